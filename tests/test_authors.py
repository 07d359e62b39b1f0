"""The protocol of the paper's authors: prompts, draws, reading, and one adapter measured both ways."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from mipo_exp.config.groups import SamplingConfig
from mipo_exp.config.parsing import parse
from mipo_exp.config.schema import AUTHORS, SCORERS
from mipo_exp.data.base import Task
from mipo_exp.data.overlap import unseen
from mipo_exp.data.tasks import make_task
from mipo_exp.errors import DataError
from mipo_exp.evaluation.accuracy import measure
from mipo_exp.evaluation.answers import authors_letter, authors_number
from mipo_exp.experiment import assemble
from mipo_exp.models.rendering import Message
from mipo_exp.store.records import Example
from tests import personal_data
from tests.conftest import SCRATCH, Experiment, compose_raw, composed
from tests.public_files import GSM8K_ROW, arc_folder, arc_row, real, svamp_row, svamp_rows


def authors(name: str, path: Path | str, **changes: Any) -> Task:
    config = dataclasses.replace(personal_data.config(name), path=str(path), train_examples=None, **changes)
    return make_task(config, SCRATCH, "authors")


def content(messages: list[Message]) -> str:
    """Of the one user turn."""
    (message,) = messages
    assert message["role"] == "user"
    return message["content"]


def gsm8k_rows(folder: Path, train: int = 12, test: int = 8) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for split, count in (("train", train), ("test", test)):
        questions = [f"There are {number} {split} ducks. One flies away. How many stay?" for number in range(count)]
        questions[-1] = f"How many {split} ducks are there?"  # without a full stop
        rows = [{**GSM8K_ROW, "question": question} for question in questions]
        (folder / f"{split}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder


def test_math_is_asked_with_eight_examples_in_one_user_turn(tmp_path: Path) -> None:
    text = content(authors("gsm8k", tmp_path).messages(None, "How many {ducks}?"))
    assert text.startswith("You are a helpful math assistant.")
    answers = [line.rpartition("#### ")[2] for line in text.splitlines() if line.startswith("Answer: ")]
    assert answers == ["6", "5", "39", "8", "9", "29", "33", "8"], "those of Wei et al. 2022"
    assert [f"Example {number}:" in text for number in range(1, 10)] == [True] * 8 + [False]
    assert text.endswith("\nNew question: How many {ducks}?")
    assert content(authors("svamp", tmp_path).messages(None, "How many {ducks}?")) == text
    assert content(authors("gsm8k", tmp_path).messages(None, None)) == ""


@pytest.mark.parametrize(
    ("text", "number", "letter"),
    [
        ("so 3 + 4 = 7 #### 7", 7.0, None),
        ("#### $15.50 and #### 3", 15.5, None),
        ("#### -5", 5.0, None),
        ("#### 1,080", 1.0, None),
        ("#### none\nso it is 12", 12.0, None),
        ("The answer is: <B>", None, "B"),
        ("the ANSWER IS d, not A. The answer is: C", None, "D"),
        ("The answer is: 2, which is best", None, "C"),
        ("B", None, None),
        ("It is 7", None, None),
    ],
)
def test_answers_are_read_as_the_authors_read_them(text: str, number: float | None, letter: str | None) -> None:
    assert authors_number(text) == number
    assert authors_letter(text) == letter


def test_a_number_that_the_model_extracts_counts_where_it_gave_none() -> None:
    extraction = SCORERS["authors_number"].extraction
    assert extraction is not None
    texts, replies = ["7 ducks", "no ####", "#### 7", "?"], {0: "It is 7, or 8", 1: "7", 3: "none"}
    assert [i for i, text in enumerate(texts) if extraction.reads(text) is None] == list(replies)
    answers = [extraction.joins(text, replies[i]) if i in replies else text for i, text in enumerate(texts)]
    scores = measure("authors_number", [json.dumps({"answer": "7"})] * 4, answers)
    assert scores["accuracy"].values.tolist() == [1, 1, 1, 0]
    assert scores["answer/unparsed_rate"].values.tolist() == [0, 0, 0, 1]


def test_gsm8k_leaves_out_training_questions_without_a_full_stop(tmp_path: Path) -> None:
    found = authors("gsm8k", gsm8k_rows(tmp_path)).load(None)
    assert (len(found.train), len(found.eval)) == (11, 8)
    assert found.notes["train_rows_without_a_full_stop"] == 1


def test_real_gsm8k_and_arc_are_drawn_by_the_authors_seed() -> None:
    task = authors("gsm8k", real("gsm8k"))
    found, again = task.load(None), authors("gsm8k", real("gsm8k"), seed=7).load(None)
    assert len(found.eval) == 200
    assert found.eval == again.eval
    assert len(found.train) == 7473 - found.notes["train_rows_without_a_full_stop"]
    fewer = authors("gsm8k", real("gsm8k"), eval_examples=20).load(None)
    assert {row.id for row in fewer.eval} < {row.id for row in found.eval}
    assert len(authors("arc", real("arc")).load(None).eval) == 500


def test_svamp_is_trained_with_as_many_questions_of_gsm8k(tmp_path: Path) -> None:
    gsm8k_rows(tmp_path / "gsm8k")
    (tmp_path / "svamp").mkdir()
    rows = svamp_rows(svamp_row(2, "Body."), svamp_row(3, "Another body."))
    (tmp_path / "svamp" / "SVAMP.json").write_text(json.dumps(rows))
    for path in (tmp_path / "svamp", tmp_path / "svamp" / "SVAMP.json"):
        task = authors("svamp", path)
        first = task.prepare(download=False)
        found = task.load(None)
        assert (len(found.train), len(found.eval), found.notes["train_rows_of_gsm8k"]) == (13, 300, 11)
        scores = measure(task.scorer, [row.reference for row in found.train], ["#### 51"] * 13)
        assert scores["accuracy"].values[:2].tolist() == [1, 1]
    gsm8k_rows(tmp_path / "gsm8k", train=14)
    assert authors("svamp", path).prepare(download=False) != first, "its bytes are in the key"


def test_a_key_that_is_a_digit_is_never_right(tmp_path: Path) -> None:
    sides = ([arc_row(f"{side} letters"), arc_row(f"{side} digits", "1234", "2")] for side in ("train", "test"))
    arc_folder(tmp_path, *sides)
    task = authors("arc", tmp_path)
    found = task.load(None).eval
    assert [json.loads(row.reference)["answer"] for row in found] == ["B", "B"]
    scores = measure(task.scorer, [row.reference for row in found], ["The answer is: B"] * 2)
    assert scores["accuracy"].values.tolist() == [1, 0]
    text = content(task.messages(None, found[0].prompt))
    assert text.count("The answer is: <X>") == 2
    assert found[0].prompt in text


def test_personal_tasks_leave_the_sentence_about_the_user_out_and_have_references(tmp_path: Path) -> None:
    for name, make in personal_data.MADE.items():
        if name not in AUTHORS:
            continue
        path = Path(make(tmp_path / name).partition("=")[2])
        task = authors(name, path)
        task.prepare(download=False)
        one = task.load(None).eval[0]
        assert task.judging == "reference_score"
        with_context, without = (
            content(task.messages(one.context, one.prompt)),
            content(task.messages(None, one.prompt)),
        )
        assert str(one.context) in with_context
        assert one.prompt in without
        assert str(one.context) not in without
        reference = json.loads(one.reference)
        assert reference["preferences"]
        assert reference["reference_answer"]
    prism = authors("prism", tmp_path)
    assert content(prism.messages("Be kind.", "Why?")) == (
        "Give me short 2-3 sentence answers to the following prompt: Why? Please respect the following requirements "
        "made by the user: Be kind. Respond with short 2-3 sentences."
    )
    assert content(prism.messages(None, "Why?")) == (
        "Give me short 2-3 sentence answers to the following prompt: Why? Respond with short 2-3 sentences."
    )


def keys(tmp_path: Path, *overrides: str) -> dict[str, str]:
    paths = (f"paths.output={tmp_path / 'out'}", f"paths.cache={tmp_path / 'cache'}", f"paths.data={tmp_path}")
    config = parse(compose_raw("model=tiny", "tracker=none", "task=gsm8k", "evaluation.k=3", *paths, *overrides))
    return assemble(config, tmp_path / "out", fetch=False).keys


def test_one_adapter_is_measured_by_both_protocols(tmp_path: Path) -> None:
    gsm8k_rows(tmp_path / "gsm8k")
    names = ("ours", "authors_evaluation", "authors_training", "authors")
    found = {name: keys(tmp_path, f"protocol={name}") for name in names}
    assert found["ours"]["adapter"] == found["authors_evaluation"]["adapter"]
    assert found["authors"]["adapter"] == found["authors_training"]["adapter"] != found["ours"]["adapter"]
    for stage in ("before_responses", "after_responses", "after_scores_base"):
        assert len({found[name][stage] for name in names}) == 4, stage
    assert found["authors"].keys() - found["ours"].keys() == {"before_extractions", "after_extractions"}
    assert "held_out" in found["authors_evaluation"]
    assert "held_out" not in found["ours"]


def test_what_was_trained_on_by_one_protocol_is_not_evaluated_by_another() -> None:
    def row(name: str, user: str, question: str) -> Example:
        return Example(name, user, question, "c", f"prompt {question}", "{}")

    train = [row("a", "u1", "q1"), row("b", "u2", "q2")]
    test = [row("c", "u1", "q3"), row("d", "u3", "q2"), row("e", "u3", "q3")]
    assert unseen(train, test, "prism") == test[2:]
    with pytest.raises(DataError, match="use one protocol for both"):
        unseen(train, test[:2], "prism")


def test_an_adapter_of_ours_runs_through_the_authors_evaluation(tmp_path: Path, experiment: Experiment) -> None:
    folder = gsm8k_rows(tmp_path / "gsm8k")
    summary, _ = experiment("task=gsm8k", f"task.path={folder}", "protocol=authors_evaluation", "kernels=plain")
    assert summary["status"] == "ok"
    assert summary["protocol"] == {"training": "ours", "evaluation": "authors"}
    rates = summary["metrics"]["after"]
    # Eight tokens of a random model hold no "####".
    assert rates["answer/extracted_rate"]["mean"] == 1
    assert "accuracy/strict" not in rates
    assert rates["accuracy"]["n"] == 6
    assert "transitions" not in summary
    assert summary["stages"]["held_out"]["key"] != summary["stages"]["examples"]["key"]


@pytest.mark.parametrize("protocol", ["ours", "authors_training", "authors_evaluation", "authors"])
def test_pairs_and_responses_are_sampled_by_their_own_protocol(protocol: str) -> None:
    by = {"ours": (False, False), "authors_training": (True, False), "authors_evaluation": (False, True)}
    training, evaluation = by.get(protocol, (True, True))
    for name, temperature, tokens, test_tokens in (("svamp", 0.1, 1024, 5012), ("arc", 1.0, 1024, 1024)):
        config = composed(f"task={name}", f"protocol={protocol}")
        own = config.task.max_new_tokens
        assert config.negatives.strategy == ("shuffled_prompt" if training else "random_prompt")
        asked = SamplingConfig(temperature, 0.9, 0, tokens) if training else SamplingConfig(0.7, 1.0, 0, own)
        assert config.sampling == asked
        asked = SamplingConfig(temperature, 0.9, 0, test_tokens) if evaluation else SamplingConfig(1.0, 1.0, 0, own)
        assert config.evaluation.sampling == asked
