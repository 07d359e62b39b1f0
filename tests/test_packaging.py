"""The wheel: whoever installs it gets the configs, the sweeps and the data files, under the package."""

import itertools
import subprocess
import sys
import tomllib
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(ROOT)]
    built = subprocess.run(command, capture_output=True, text=True)
    assert built.returncode == 0, built.stdout + built.stderr
    (path,) = folder.glob("*.whl")
    assert path.name == "mipo_exp-0.1.0-py3-none-any.whl"
    return zipfile.ZipFile(path)


@pytest.mark.parametrize("folder", ["conf", "sweeps"])
def test_every_config_is_in_the_wheel_under_the_package(wheel: zipfile.ZipFile, folder: str) -> None:
    expected = {f"mipo_exp/{item.relative_to(ROOT).as_posix()}" for item in (ROOT / folder).rglob("*.yaml")}
    expected -= {name for name in expected if name.startswith("mipo_exp/conf/local/")}
    found = {name for name in wheel.namelist() if name.startswith(f"mipo_exp/{folder}/")}
    assert found >= expected
    for name in expected:
        assert wheel.read(name) == (ROOT / name.removeprefix("mipo_exp/")).read_bytes()


def test_modules_templates_and_resources_are_in_the_wheel(wheel: zipfile.ZipFile) -> None:
    files = [item for item in (ROOT / "mipo_exp").rglob("*") if item.is_file() and "__pycache__" not in item.parts]
    assert {item.relative_to(ROOT).as_posix() for item in files} <= set(wheel.namelist())
    assert {f"mipo_exp/reporting/{name}.jinja" for name in ("report.html", "table.md")} <= set(wheel.namelist())


def test_nothing_else_is_in_the_wheel(wheel: zipfile.ZipFile) -> None:
    assert {name.split("/")[0] for name in wheel.namelist()} == {
        "mipo_exp",
        "hydra_plugins",
        "mipo_exp-0.1.0.dist-info",
    }
    assert not [name for name in wheel.namelist() if name.endswith((".pyc", ".log"))]


def test_metadata_names_licence_version_and_commands(wheel: zipfile.ZipFile) -> None:
    info = "mipo_exp-0.1.0.dist-info"
    metadata = Parser().parsestr(wheel.read(f"{info}/METADATA").decode())
    assert (metadata["Name"], metadata["Version"], metadata["Requires-Python"]) == ("mipo-exp", "0.1.0", ">=3.11")
    assert metadata["License-Expression"] == "Apache-2.0"
    assert b"Apache License" in wheel.read(f"{info}/licenses/LICENSE")
    commands = wheel.read(f"{info}/entry_points.txt").decode().split()
    assert commands == [
        "[console_scripts]",
        *("mipo-exp", "=", "mipo_exp.cli:main"),
        *("mipo_exp", "=", "mipo_exp.cli:main"),
    ]


def test_every_direct_dependency_is_pinned_to_a_version_that_pyproject_allows() -> None:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = {
        canonicalize_name(pin.name): next(iter(pin.specifier)).version
        for pin in (Requirement(line) for line in lines if line and not line.startswith("#"))
    }
    extras = {name: texts for name, texts in PROJECT["optional-dependencies"].items() if name != "vllm"}
    for text in [*PROJECT["dependencies"], *itertools.chain(*extras.values())]:
        requirement = Requirement(text)
        if requirement.name == PROJECT["name"]:  # extras that refer to others
            assert requirement.extras <= set(extras)
            continue
        assert requirement.specifier.contains(pins[canonicalize_name(requirement.name)], prereleases=True), text


def test_every_yaml_file_is_readable() -> None:
    for path in [*(ROOT / "conf").rglob("*.yaml"), *(ROOT / "sweeps").rglob("*.yaml")]:
        yaml.safe_load(path.read_text(encoding="utf-8"))
