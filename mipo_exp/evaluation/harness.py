"""lm-evaluation-harness (https://github.com/EleutherAI/lm-evaluation-harness) on the base model and on the policy.

Its tasks, prompts, answer filters and metrics; our model, adapter, chat template and cache. The harness is an extra
(`pip install 'mipo-exp[eval]'`), imported only where `harness.tasks` names something and it is not cached yet.
"""

import contextlib
import dataclasses
import difflib
import glob
import json
import logging
import math
import random
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache, partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import yaml

from mipo_exp.config.groups import HarnessConfig
from mipo_exp.errors import ConfigError, DataError
from mipo_exp.models.hub import refusal, unreachable
from mipo_exp.models.runtime import Runtime
from mipo_exp.store.artefacts import Workspace, digest
from mipo_exp.store.fingerprints import remembered_sha256
from mipo_exp.store.records import HarnessResult, HarnessSample

if TYPE_CHECKING:
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

# Resamples behind the standard errors that have no closed form; means have one.
BOOTSTRAP_SAMPLES = 1000
# What the harness warns of whenever it is given a model that is loaded already, which is what we want.
EXPECTED_WARNINGS = ("`pretrained` model kwarg", "Passed an already-initialized model")


@dataclass(frozen=True)
class Harness:
    """What is to be run. `identity` is all that a result depends on beside the model; `cache` is where the harness's
    library keeps the data that it reads."""

    config: HarnessConfig
    identity: Mapping[str, Any]
    cache: Path


def locate_harness(config: HarnessConfig, cache: Path) -> Harness | None:
    """The harness with the tasks of the config; None where there are none. Imports nothing heavy. Raises `ConfigError`:
    it is not installed, or `harness.include_path` is no folder with task files."""
    if not config.tasks:
        return None
    try:
        version("lm_eval")
    except PackageNotFoundError:
        raise ConfigError(
            f"harness.tasks={config.tasks} needs lm-evaluation-harness, which is not installed: "
            "pip install 'mipo-exp[eval]' (from a checkout: pip install -e '.[eval]'), or set harness.tasks=[]"
        ) from None
    settings = {name: value for name, value in dataclasses.asdict(config).items() if name != "include_path"}
    files = None if config.include_path is None else _fingerprint(Path(config.include_path).expanduser(), cache)
    return Harness(config, {**settings, "files": files}, cache / "data" / "harness")


def check_tasks(harness: Harness, load: bool) -> None:
    """Make sure that the harness knows the tasks and, with `load`, that their data is on this machine.

    Raises:
        ConfigError: a task is unknown, twice in the list, or of a kind that is not run here.
        DataError: a task's data cannot be loaded.
    """
    with _environment(harness):
        manager = _manager(harness)
        for name in harness.config.tasks:
            if name not in manager.all_tasks:
                near = difflib.get_close_matches(name, manager.all_tasks, n=1)
                raise ConfigError(
                    f"harness.tasks: {name!r} is no task, group or tag of lm-evaluation-harness "
                    f"{version('lm_eval')}{f'; did you mean {near[0]!r}?' if near else ';'} See "
                    "`lm-eval ls tasks`, or give the folder of your own task's YAML with harness.include_path=DIR"
                )
        if load:
            _load(harness)


def run_harness(work: Workspace, runtime: Runtime, harness: Harness) -> None:
    """All tasks, under the base model, or the policy where there is a `scorer` input.

    Requests that an interrupted run had answered are not asked again."""
    from lm_eval.api.model import CachingLM
    from lm_eval.evaluator import evaluate

    adapter = work.inputs["scorer"].path / "adapter" if "scorer" in work.inputs else None
    config = harness.config
    answers = work.path / "answers.db"
    with _environment(harness), _stopping(runtime, adapter):
        tasks = _load(harness)
        model = CachingLM(language_model(runtime, adapter, config), str(answers))
        try:
            found = evaluate(
                model,
                tasks,
                limit=config.limit,
                bootstrap_iters=BOOTSTRAP_SAMPLES,
                apply_chat_template=config.apply_chat_template,
                fewshot_as_multiturn=True,
            )
        finally:
            model.dbdict.close()
    work.write_table("results", results(found), HarnessResult)
    work.write_table("samples", samples(found), HarnessSample)
    answers.unlink()


def language_model(runtime: Runtime, adapter: Path | None, config: HarnessConfig) -> "HFLM":
    """The loaded model as the harness asks it, with our rendering of its chat template."""
    from lm_eval.models.huggingface import HFLM

    tokenizer, arguments = runtime.renderer.standalone_tokenizer()
    model = HFLM(
        pretrained=runtime.model(adapter),
        tokenizer=tokenizer,
        batch_size=config.batch_size,
        chat_template_args=arguments,
    )
    if not sys.stderr.isatty():  # no bars in a log file; the harness passes its own choice on over TQDM_DISABLE
        for name in ("loglikelihood", "loglikelihood_rolling", "generate_until"):
            setattr(model, name, partial(getattr(model, name), disable_tqdm=True))
    return model


def results(found: Mapping[str, Any]) -> list[HarnessResult]:
    """Every metric with a single number, of tasks and groups, from what the harness returns."""
    rows = []
    for task, metrics in {**found["results"], **found.get("groups", {})}.items():
        for key, value in metrics.items():
            metric, comma, name = key.partition(",")
            if not comma or metric.endswith("_stderr") or not isinstance(value, int | float):
                continue
            error = metrics.get(f"{metric}_stderr,{name}")
            stderr = float(error) if isinstance(error, int | float) and math.isfinite(error) else None
            count = metrics.get("sample_len") or metrics.get("sample_count", {}).get(key, 0)
            rows.append(HarnessResult(task, metric, name, float(value), stderr, int(count)))
    return rows


def samples(found: Mapping[str, Any]) -> list[HarnessSample]:
    """Every document of every task, once for each filter."""
    rows = []
    for task, documents in found["samples"].items():
        for item in documents:
            values = {
                metric: float(item[metric]) for metric in item["metrics"] if isinstance(item.get(metric), int | float)
            }
            texts = [
                json.dumps(part, ensure_ascii=False, default=str)
                for part in (item["target"], item["resps"], item["filtered_resps"], values)
            ]
            rows.append(HarnessSample(task, item["filter"], int(item["doc_id"]), *texts))
    return rows


def _load(harness: Harness) -> Any:
    """The tasks with their data, as the config changes them."""
    from datasets.exceptions import DatasetsError

    config = harness.config
    try:
        loaded = _manager(harness).load(list(config.tasks))
    except (OSError, ImportError, DatasetsError) as error:
        refused = refusal(error, f"harness.tasks={config.tasks}: the data of a task")
        if refused is not None:
            raise DataError(refused) from error
        why = unreachable()
        raise DataError(
            f"harness.tasks={config.tasks}: the data of a task cannot be loaded ({type(error).__name__}: "
            f"{str(error).strip().splitlines()[0] if str(error).strip() else 'no message'}); "
            f"{'' if why is None else f'{why}; '}connect to the hub once, "
            "or copy the task's YAML to harness.include_path=DIR with dataset_path: json and its data_files"
        ) from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(
            f"harness.tasks={config.tasks} cannot be prepared ({type(error).__name__}: {error}); name each task once, "
            "and check the YAML files in harness.include_path"
        ) from error
    for name, task in loaded["tasks"].items():
        for attribute, what in (("UNSAFE_CODE", "executes code that a model wrote"), ("MULTIMODAL", "shows pictures")):
            if getattr(task, attribute, False):
                raise ConfigError(f"harness.tasks: {name} {what}, which is not done here; leave it out")
        if config.num_fewshot is not None and task.get_config("num_fewshot") != 0:
            task.set_config(key="num_fewshot", value=config.num_fewshot)
        elif task.get_config("num_fewshot") is None:
            task.set_config(key="num_fewshot", value=0)
        if config.gen_kwargs and task.get_config("output_type") == "generate_until":
            task.set_config(key="generation_kwargs", value=dict(config.gen_kwargs), update=True)
        task.set_fewshot_seed(seed=config.seed)
    return loaded


def _manager(harness: Harness) -> "TaskManager":
    """The index of tasks: of the user's own folder where that has all of them, else with the harness's 14,000 as well,
    which takes ten seconds to read."""
    folder = harness.config.include_path
    own = None if folder is None else _index(folder, False)
    return own if own is not None and set(harness.config.tasks) <= set(own.all_tasks) else _index(folder, True)


@cache
def _index(folder: str | None, everything: bool) -> "TaskManager":
    from lm_eval.tasks import TaskManager

    path = None if folder is None else str(Path(folder).expanduser().resolve())
    return TaskManager(include_path=path, include_defaults=everything)


@contextlib.contextmanager
def _environment(harness: Harness) -> Iterator[None]:
    """Random numbers from the config's seed, data below `paths.cache`, no waiting for a hub that does not answer, no
    warnings of what is intended; all of it as before afterwards."""
    import datasets
    import huggingface_hub
    import torch

    handlers = list(logging.getLogger().handlers)
    states = random.getstate(), np.random.get_state()
    changes: list[tuple[Any, str, Any]] = [(datasets.config, "HF_DATASETS_CACHE", harness.cache)]
    if unreachable() is not None:
        changes += [(of, "HF_HUB_OFFLINE", True) for of in (datasets.config, huggingface_hub.constants)]
    kept = [(of, name, getattr(of, name)) for of, name, _ in changes]

    def unexpected(record: logging.LogRecord) -> bool:
        return not (record.name.startswith("lm_eval") and record.getMessage().startswith(EXPECTED_WARNINGS))

    for of, name, value in changes:
        setattr(of, name, value)
    for handler in handlers:
        handler.addFilter(unexpected)
    try:
        with torch.random.fork_rng():
            random.seed(harness.config.seed)
            np.random.seed(harness.config.seed)
            torch.manual_seed(harness.config.seed)
            yield
    finally:
        for handler in handlers:
            handler.removeFilter(unexpected)
        for of, name, value in kept:
            setattr(of, name, value)
        random.setstate(states[0])
        np.random.set_state(states[1])


@contextlib.contextmanager
def _stopping(runtime: Runtime, adapter: Path | None) -> Iterator[None]:
    """Lets the model end a response at any of its end-of-turn tokens: the harness itself looks for one only."""
    model: Any = runtime.model(adapter)
    base = model.get_base_model() if adapter is not None else model
    kept = base.generation_config
    base.generation_config = type(kept)(
        eos_token_id=list(runtime.renderer.stop_ids), pad_token_id=runtime.renderer.pad_id
    )
    try:
        yield
    finally:
        base.generation_config = kept


class _Loader(yaml.SafeLoader):
    """YAML as the harness writes it, its `!function` left unread."""


_Loader.add_multi_constructor("!", lambda loader, suffix, node: None)


def _fingerprint(folder: Path, cache: Path) -> str:
    """A hash of the files below the folder, and of the local data and the files elsewhere that its YAMLs name."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    tasks = [path for path in files if path.suffix == ".yaml"]
    if not tasks:
        raise ConfigError(
            f"harness.include_path={folder} is no folder with task files (*.yaml); give one, or set it to null"
        )
    named: set[Path] = set()
    inside = {path.resolve() for path in files}
    for path in tasks:
        try:
            content = yaml.load(path.read_text(encoding="utf-8"), _Loader)
        except (OSError, ValueError, yaml.YAMLError) as error:
            raise ConfigError(
                f"harness.include_path: {path} cannot be read ({' '.join(str(error).split())}); correct it, or move it "
                "out of the folder"
            ) from error
        if isinstance(content, Mapping):
            named |= set(_data_files([content.get("dataset_path"), content.get("dataset_kwargs")]))
            included = content.get("include") or []
            beside = [path.parent / item for item in ([included] if isinstance(included, str) else included)]
            named |= {file for file in beside if file.is_file() and file.resolve() not in inside}
    known = [[str(path.relative_to(folder)), remembered_sha256(path, cache)] for path in files]
    return digest([known, [[str(path), remembered_sha256(path, cache)] for path in sorted(named)]])


def _data_files(value: Any) -> Iterator[Path]:
    """The files that a value of a task's YAML names, directly, as a folder or as a pattern."""
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, list):
        for item in value:
            yield from _data_files(item)
    elif isinstance(value, str) and value and "://" not in value:
        for name in glob.glob(str(Path(value).expanduser())):
            path = Path(name)
            yield from (item for item in (path.rglob("*") if path.is_dir() else [path]) if item.is_file())
