"""Likelihoods of the options of multiple choice: what is scored, how it becomes accuracy, and what it says."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from mipo_exp.data.base import reference
from mipo_exp.data.mmlu import MMLU_SUBJECTS
from mipo_exp.data.options import question_text
from mipo_exp.data.tasks import make_task
from mipo_exp.errors import DataError
from mipo_exp.evaluation.error_kinds import answering_and_knowing
from mipo_exp.evaluation.options import likeliest_right, option_accuracy
from mipo_exp.models.runtime import Runtime
from mipo_exp.planning.checks import check_examples
from mipo_exp.scoring.options import scored_options
from mipo_exp.store.records import Example, OptionScores
from tests.conftest import Experiment, composed, make_runtime
from tests.test_log_probs import one_token_at_a_time
from tests.test_pipeline import artefact

OPTIONS = ["gold", "iron ore"]


def example(answer: str = "B", name: str = "test/x", options: list[str] = OPTIONS) -> Example:
    return Example(
        name, None, "q", None, question_text("Which rusts?", options), reference(answer=answer, options=options)
    )


def test_the_likeliest_option_and_the_likeliest_by_length() -> None:
    """−6 / 4 characters = −1.5 and −8 / 8 = −1: the first is likelier, the second by length. Equal ones: the first."""
    rows = [OptionScores("a", [-6.0, -8.0], [4, 8]), OptionScores("b", [-6.0, -8.0], [4, 8])]
    rows += [OptionScores("c", [-4.0, -4.0], [4, 4])]
    examples = [example("B"), example("A"), example("B")]
    assert likeliest_right(rows, examples) == [False, True, False]
    found = option_accuracy(rows, examples)
    assert found["options/accuracy"].values.tolist() == [0.0, 1.0, 0.0]
    assert found["options/accuracy_norm"].values.tolist() == [1.0, 0.0, 0.0]
    letters = [OptionScores("a", [-1.0, -2.0], None)]
    assert list(option_accuracy(letters, examples[:1])) == ["options/accuracy"]


@pytest.fixture(scope="module")
def quiz(tmp_path_factory: pytest.TempPathFactory) -> Runtime:
    return make_runtime(composed("+debug=quick", "task=quiz"), tmp_path_factory.mktemp("quiz"))


def test_under_chat_an_option_stands_where_the_response_begins(quiz: Runtime) -> None:
    one = example()
    forms, items = scored_options(quiz, one, "chat")
    tokenizer = quiz.renderer.tokenizer
    assert forms == OPTIONS
    assert {item.prompt_ids for item in items} == {tuple(quiz.prompt_ids(one.condition))}
    assert [tokenizer.decode(list(item.response_ids)) for item in items] == OPTIONS


def test_under_harness_the_text_is_its_plain_question_and_the_option_after_a_space(quiz: Runtime) -> None:
    _, items = scored_options(quiz, example(), "harness")
    texts = [quiz.renderer.tokenizer.decode([*item.prompt_ids, *item.response_ids]) for item in items]
    assert texts == ["Question: Which rusts?\nAnswer: gold", "Question: Which rusts?\nAnswer: iron ore"]
    assert quiz.renderer.tokenizer.decode(list(items[0].prompt_ids)) == "Question: Which rusts?\nAnswer:"


def test_under_harness_a_context_stands_before_the_question(quiz: Runtime) -> None:
    one = dataclasses.replace(example(), context="I collect old coins.")
    _, items = scored_options(quiz, one, "harness")
    text = quiz.renderer.tokenizer.decode(list(items[0].prompt_ids), skip_special_tokens=True)
    assert text == f"I collect old coins.\n\n{quiz.task.plain_question(example())}"


def test_plain_questions_are_those_of_the_harness() -> None:
    """Rendered by the harness's own templates from rows in the public schema."""
    lm_eval = pytest.importorskip("lm_eval", reason="pip install 'mipo-exp[eval]'")
    import yaml
    from lm_eval.utils import apply_template

    root = Path(lm_eval.__file__).parent / "tasks"

    def template(path: str) -> dict[str, Any]:
        found: dict[str, Any] = yaml.safe_load((root / path).read_text(encoding="utf-8"))
        return found

    arc, openbookqa, mmlu = (
        make_task(composed(f"task={name}").task, Path("unused")) for name in ("arc", "openbookqa", "mmlu")
    )
    row = {"question": "Which rusts?", "question_stem": "Which rusts?", "choices": ["gold", "iron", "tin", "zinc"]}
    one = example("B", "test/x", list(row["choices"]))
    assert arc.plain_question(one) == apply_template(template("arc/arc_easy.yaml")["doc_to_text"], row)
    assert openbookqa.plain_question(one) == row[template("openbookqa/openbookqa.yaml")["doc_to_text"]]
    question = apply_template(template("mmlu/default/_default_template_yaml")["doc_to_text"], row)
    for subject in MMLU_SUBJECTS:
        description = template(f"mmlu/default/mmlu_{subject}.yaml")["description"]
        of = example("B", f"test/{subject}/00000", list(row["choices"]))
        assert mmlu.plain_question(of) == description + question


def test_mmlu_scores_letters(tmp_path: Path) -> None:
    runtime = make_runtime(composed("+debug=quick", "task=mmlu"), tmp_path)
    one = example("B", "test/anatomy/00000")
    assert scored_options(runtime, one, "chat")[0] == ["A", "B"]
    _, items = scored_options(runtime, one, "harness")
    assert [runtime.renderer.tokenizer.decode(list(item.response_ids)) for item in items] == [" A", " B"]


@pytest.mark.parametrize("rendering", ["chat", "harness"])
def test_the_stage_scores_every_option_of_every_question(rendering: str, experiment: Experiment, quiz: Runtime) -> None:
    objective = "objective=delta/options/accuracy_norm"
    summary, output = experiment("task=quiz", f"evaluation.option_scoring={rendering}", objective)
    rows = artefact(summary, "before_option_scores").table("options", OptionScores)
    examples = artefact(summary, "examples").table("eval", Example)
    assert [row.id for row in rows] == [one.id for one in examples]
    for row, one in zip(rows[:2], examples, strict=False):
        items = scored_options(quiz, one, rendering)[1]
        expected = [sum(one_token_at_a_time(quiz.model(), item)) for item in items]
        assert row.log_probs == pytest.approx(expected, abs=1e-3)
        assert row.lengths == [len(option) for option in json.loads(one.reference)["options"]]
    for phase in ("before", "after", "delta"):
        assert summary["metrics"][phase]["options/accuracy"]["n"] == len(examples)
    crossed = summary["transitions"]["options"]
    right = sum(crossed[side][inner] for side in crossed for inner in crossed if inner.startswith("right_to"))
    assert summary["metrics"]["before"]["options/accuracy"]["mean"] == pytest.approx(right / len(examples))
    assert "Answering and knowing" in (output / "report.html").read_text()


def test_without_option_scoring_there_is_neither_stage_nor_metric(experiment: Experiment) -> None:
    summary, output = experiment("task=quiz", "evaluation.option_scoring=none")
    assert not [name for name in summary["stages"] if "option" in name]
    assert "options/accuracy" not in summary["metrics"]["after"]
    assert "options" not in summary["transitions"]
    assert "Answering and knowing" not in (output / "report.html").read_text()


def test_a_blank_option_is_refused_before_anything_is_scored() -> None:
    config = composed("task=quiz", "evaluation.k=2")
    task = make_task(config.task, Path("unused"))
    examples = task.load(None)
    blank = [example("A", "eval/blank", ["gold", " "]), *examples.eval]
    with pytest.raises(DataError, match=r"example eval/blank: an option is blank.*evaluation\.option_scoring=none"):
        check_examples(config, task, task, examples.train, blank)
    check_examples(composed("task=quiz", "evaluation.option_scoring=none"), task, task, examples.train, blank)


def test_what_was_known_and_what_was_answered() -> None:
    """Two became right: one whose right option was likeliest all along, one whose was not, before or after."""
    before, after = ["no_answer", "wrong_value", "right"], ["right", "wrong_format", "right"]
    table = answering_and_knowing(before, after, [True, False, True], [True, False, False])
    assert table["wrong_to_right"] == {
        "right_to_right": 1,
        "right_to_wrong": 0,
        "wrong_to_right": 0,
        "wrong_to_wrong": 1,
    }
    assert table["right_to_right"]["right_to_wrong"] == 1
    assert sum(sum(row.values()) for row in table.values()) == 3
