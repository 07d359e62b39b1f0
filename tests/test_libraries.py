"""Libraries of the wrong version are named before anything runs."""

from importlib.metadata import PackageNotFoundError
from pathlib import Path
from typing import Any

import pytest

from mipo_exp import experiment
from mipo_exp.errors import LibraryError
from mipo_exp.planning import libraries
from mipo_exp.planning.libraries import check_libraries
from mipo_exp.training import job
from tests.conftest import composed

NEEDED = ["torch>=2.6", "transformers>=5.19,<6", "ray>=2.50; extra == 'ray'", "tomli>=2; python_version < '3'"]


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    found = {"torch": "2.13.0+cpu", "transformers": "5.23.0"}

    def version(name: str) -> str:
        if name not in found:
            raise PackageNotFoundError(name)
        return found[name]

    monkeypatch.setattr(libraries, "requires", lambda name: NEEDED)
    monkeypatch.setattr(libraries, "version", version)
    return found


@pytest.mark.parametrize(
    ("library", "version", "message"),
    [
        (
            "transformers",
            "5.18.0",
            r"^transformers 5\.18\.0 is installed.* needs transformers<6,>=5\.19; pip install 'tr",
        ),
        ("transformers", "6.0.0", r"transformers 6\.0\.0 is installed"),
        ("torch", "2.5.1+cu124", r"torch 2\.5\.1\+cu124 is installed, and this program needs torch>=2\.6"),
        ("torch", None, r"torch is not installed; pip install 'torch>=2\.6'"),
    ],
)
def test_a_wrong_version_stops_a_run_before_it_does_anything(
    installed: dict[str, str], library: str, version: str | None, message: str, tmp_path: Path
) -> None:
    check_libraries()
    if version is None:
        del installed[library]
    else:
        installed[library] = version
    with pytest.raises(LibraryError, match=message):
        experiment.assemble(composed("+debug=quick", f"paths.cache={tmp_path / 'cache'}"), tmp_path / "run")
    assert not (tmp_path / "cache").exists()


def test_an_argument_that_older_transformers_call_otherwise_gets_its_former_name(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = composed("+debug=quick", "trainer.activation_checkpointing=true")
    known = job.argument_names(config.method)

    def managed() -> dict[str, Any]:
        return job._managed(config.method, config.trainer, config.sampling)

    today = managed()
    monkeypatch.setattr(job, "argument_names", lambda method: known - {"activation_checkpointing"})
    former = managed()
    assert former.pop("gradient_checkpointing") is True
    assert {**former, "activation_checkpointing": True} == today
