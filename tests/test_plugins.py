"""Variants from outside the package: by `plugins=` and by entry points, and what is said where one is wrong."""

import importlib
import json
import re
from collections.abc import Sequence
from pathlib import Path

import pytest

from mipo_exp.config.schema import STRATEGIES
from mipo_exp.errors import ConfigError
from mipo_exp.evaluation import metrics
from mipo_exp.judging.kinds import KINDS
from mipo_exp.judging.replies import Messages, Reply
from mipo_exp.judging.stage import metric_phases
from mipo_exp.judging.templates import load_templates
from mipo_exp.store.records import Example
from tests.command_line import ROOT, environment, run
from tests.conftest import composed

PACKAGE = Path(__file__).parent / "plugin_package"
CONF = f"--config-dir={PACKAGE / 'conf'}"
EXAMPLE = "plugins=[mipo_example.variants]"


def on_path(*folders: Path) -> str:
    return ":".join([*map(str, folders), str(ROOT), environment()["PYTHONPATH"]])


def test_an_experiment_runs_with_a_task_a_strategy_a_method_an_engine_and_a_metric_of_a_plugin(tmp_path: Path) -> None:
    variants = ("task=spelling", "negatives=next_prompt", "method=margin", "engine=cooler")
    few = ("task.eval_examples=5", "evaluation.k=2")
    quick = ("+debug=quick", "task.train_examples=5", "objective=after/response/words", "hydra.run.dir=out")
    done = run(CONF, EXAMPLE, *quick, *variants, *few, cwd=tmp_path, PYTHONPATH=on_path(PACKAGE))
    assert done.returncode == 0, done.stderr
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert (summary["task"], summary["negatives"], summary["method"]) == ("spelling", "next_prompt", "margin")
    assert summary["status"] == "ok"
    assert summary["metrics"]["after"]["response/words"]["n"] == 5
    assert summary["metrics"]["after"]["accuracy"]["n"] == 5, "from the task's own scorer"


def test_an_installed_package_is_found_by_its_entry_point(tmp_path: Path) -> None:
    """As pip leaves it, but for the place of the code."""
    info = tmp_path / "mipo_example-0.1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.4\nName: mipo-example\nVersion: 0.1.0\n")
    (info / "entry_points.txt").write_text("[mipo_exp]\nexample = mipo_example.variants\n")
    path = on_path(tmp_path, PACKAGE)
    wrong = run(CONF, "method=margin", "method.margin=0", cwd=tmp_path, PYTHONPATH=path)
    assert wrong.returncode == 2
    assert "method.margin=0.0 is out of range; it must be greater than 0" in wrong.stderr
    (info / "entry_points.txt").write_text("[mipo_exp]\nexample = mipo_example.nothing\n")
    broken = run("+debug=quick", cwd=tmp_path, PYTHONPATH=path)
    assert broken.returncode == 2
    assert "the entry point example of mipo-example cannot be imported (ModuleNotFoundError" in broken.stderr


@pytest.mark.parametrize(
    ("content", "arguments", "pattern"),
    [
        (None, [], r"plugins=\[mine\] cannot be imported \(ModuleNotFoundError: .*'mine'\); install .* PYTHONPATH"),
        (None, ["negatives=mine"], r"plugins=\[mine\] cannot be imported"),
        ("1 / 0", [], r"plugins=\[mine\] cannot be imported \(ZeroDivisionError"),
        (
            "@STRATEGIES.register('no_context')\ndef mine(examples, draw): ...",
            [],
            r"plugins=\[mine\]: negatives=no_context is registered twice, by mipo_exp\.pairing\.negatives\.no_context "
            r"and by mine\.mine; give one of them another name",
        ),
        (
            "@STRATEGIES.register('mine')\ndef mine(examples, draw): ...",
            ["negatives=mine"],
            r"negatives=mine is registered, and no negatives/mine\.yaml is found; .* --config-dir=DIR",
        ),
    ],
    ids=["not there", "not there, chosen", "broken", "twice", "no YAML"],
)
def test_a_wrong_plugin_is_named_with_the_way_out(
    content: str | None, arguments: list[str], pattern: str, tmp_path: Path
) -> None:
    if content is not None:
        (tmp_path / "mine.py").write_text(f"from mipo_exp.config.schema import STRATEGIES\n{content}\n")
    done = run("+debug=quick", "plugins=[mine]", *arguments, cwd=tmp_path, PYTHONPATH=on_path(tmp_path))
    assert done.returncode == 2, done.stderr
    assert re.search(pattern, done.stderr.strip().splitlines()[-1]), done.stderr
    assert "Traceback" not in done.stderr


def test_a_key_of_a_plugin_that_is_misspelt_gets_the_nearest_one(tmp_path: Path) -> None:
    for place in (CONF, f"hydra.searchpath=[file://{PACKAGE / 'conf'}]"):
        for wrong, right in (("method.margn=1", "method.margin"), ("taks.seed=1", "task")):
            done = run(place, EXAMPLE, "method=margin", wrong, cwd=tmp_path, PYTHONPATH=on_path(PACKAGE))
            assert done.returncode == 2, done.stderr
            assert f"did you mean {right!r}?" in done.stderr


def test_a_kind_of_judging_of_a_plugin_is_chosen_by_its_name_and_gives_its_metric(plugin: str) -> None:
    importlib.import_module(plugin)
    asked = ("judge=endpoint", "judge.model=m")
    assert composed(*asked, "judge.kind=answers").judge.asked.kind == "answers"
    with pytest.raises(ConfigError, match="did you mean 'answers'"):
        composed(*asked, "judge.kind=anwers")
    examples = [Example("a", None, "q", None, "Spell boat.", "{}"), Example("b", None, "p", None, "Spell mast.", "{}")]
    texts = {"before": ["b o a t", "no"], "after": ["b o a t", "m a s t"]}

    def judge(requests: Sequence[Messages]) -> list[Reply]:
        return [
            Reply("No" if "Response: no" in str(of[0]["content"]) else "<answer>Yes</answer>", 1, 1) for of in requests
        ]

    kind = KINDS["answers"]
    measures = kind.measures(examples, texts, kind.judge(examples, texts, load_templates(None), judge))
    assert {phase: of["judge/answers"].result() for phase, of in measures.items()} == {"before": 0.5, "after": 1.0}
    assert metric_phases("answers") == {"judge/answers": ("before", "after", "delta")}


def test_the_code_of_the_page_is_that_of_the_package() -> None:
    page = (ROOT / "docs" / "extending.md").read_text(encoding="utf-8")
    parts = re.findall(r"^```(?:python|yaml)\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    files = [path.read_text(encoding="utf-8") for path in PACKAGE.rglob("*") if path.suffix in (".py", ".yaml")]
    assert len(parts) >= 12
    for part in parts:
        assert any(part in text for text in files), f"tests/plugin_package has no such lines:\n{part}"


def test_one_module_may_be_imported_twice(plugin: str) -> None:
    """As a notebook does; only another variant of a taken name is refused."""
    variants = importlib.import_module(plugin)
    computed = len(metrics.COMPUTED)
    importlib.reload(variants)
    assert len(metrics.COMPUTED) == computed
    assert STRATEGIES["next_prompt"].sample is variants.next_prompt

    def words(of: metrics.Evaluated) -> list[float]:
        return []

    with pytest.raises(ConfigError, match="'response/words' is registered twice"):
        metrics.metric("response/words", "Words")(words)
