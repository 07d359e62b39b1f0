"""The tutorial's commands: each is one that there is, and in their order they run, on the tiny model."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from mipo_exp import commands
from tests.command_line import ROOT, run
from tests.conftest import composed

PAGE = (ROOT / "docs" / "tutorial.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w+)(?: title=\"([^\"]+)\")?\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
LINES = [line for kind, _, text in BLOCKS if kind == "bash" for line in text.replace("\\\n", "").splitlines()]
COMMANDS = [shlex.split(line.removeprefix("python -m mipo_exp")) for line in LINES]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the files that the tutorial writes."""
    folder = tmp_path_factory.mktemp("tutorial")
    for kind, name, text in BLOCKS:
        if name:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(text)
        elif kind == "python":
            subprocess.run([sys.executable, "-c", text], cwd=folder, check=True)
    return folder


def test_the_commands_over_runs_are_there() -> None:
    assert all(line.startswith("python -m mipo_exp ") for line in LINES)
    named = {command[0] for command in COMMANDS if "=" not in command[0]}
    assert {"chat", "compare", "dashboard", "export", "rerun"} <= named <= set(commands.NAMES)


@pytest.mark.parametrize("command", [command for command in COMMANDS if "=" in command[0]], ids=" ".join)
def test_each_experiment_is_a_config(command: list[str], place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    folders = [f"hydra.searchpath=[file://{place / item.partition('=')[2]}]" for item in command if "--config" in item]
    config = composed(*folders, *(item.partition(",")[0] for item in command if not item.startswith("-")))
    assert config.task.name == ("custom" if folders else "personas")


@pytest.mark.slow
def test_the_commands_run_in_their_order(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    for command in COMMANDS:
        if command[0] in commands.NAMES:
            if command[0] != "dashboard":  # asks a server: tests/test_dashboard.py
                commands.run(command[0], command[1:])
            continue
        done = run(*command, *(["+debug=quick"] if "+debug=quick" not in command else []), cwd=place)
        assert done.returncode == 0, f"{command}\n{done.stderr}"
    made = ("outputs/mine/report.html", "multirun/mine/table.md", "comparison/table.md", "exported/adapter_config.json")
    assert [name for name in made if not (place / name).exists()] == []
