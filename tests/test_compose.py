"""The config that Python composes is the one that the command line composes."""

from pathlib import Path

import pytest
import yaml

from mipo_exp.config.compose import compose_config
from mipo_exp.config.parsing import parse
from mipo_exp.config.schema import Config
from mipo_exp.errors import ConfigError
from tests.command_line import run


def by_python(*overrides: str) -> Config:
    raw = compose_config(overrides)
    raw.paths.output = "unused"
    return parse(raw)


@pytest.fixture
def mine(tmp_path: Path) -> str:
    """`+experiment=mine` in a folder of its own, as an override that adds it."""
    (tmp_path / "conf" / "experiment").mkdir(parents=True)
    (tmp_path / "conf" / "experiment" / "mine.yaml").write_text(
        "# @package _global_\ndefaults:\n  - override /negatives: mixture\n"
        "negatives:\n  weights: {random_context: 3, hard_context: 1}\n"
    )
    return f"hydra.searchpath=[file://{tmp_path / 'conf'}]"


def test_weights_mean_the_same_from_python_and_on_the_command_line(
    mine: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, last = "negatives.weights={no_context: 1}", "negatives.weights={random_prompt: 1}"
    monkeypatch.chdir(tmp_path)
    assert by_python("negatives=mixture", first, last).negatives.weights == {"random_prompt": 1}
    over_a_file = (mine, "+experiment=mine", "model=qwen1.5b", "plan=true", last, "negatives.weights.no_context=2")
    weights = {"random_prompt": 1, "no_context": 2}
    assert by_python(*over_a_file).negatives.weights == weights
    assert {path.name for path in tmp_path.iterdir()} == {"conf"}, "no folder of a run"
    done = run(*over_a_file, "hydra.run.dir=out", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    saved = yaml.safe_load((tmp_path / "out" / ".hydra" / "config.yaml").read_text())
    assert saved["negatives"]["weights"] == weights


def test_a_mixture_takes_a_strategy_of_a_plugin(plugin: str) -> None:
    asked = (f"plugins=[{plugin}]", "negatives=mixture")
    for given in (["negatives.weights={next_prompt: 1}"], ["negatives.weights.next_prompt=1"]):
        assert "next_prompt" in (by_python(*asked, *given).negatives.weights or {})
    for given in ("negatives.weights={nxt_prompt: 2}", "negatives.weights.nxt_prompt=null"):
        with pytest.raises(
            ConfigError, match=r"negatives\.weights='nxt_prompt' .* did you mean 'next_prompt'\? It takes"
        ):
            by_python(*asked, given)
