"""lm-evaluation-harness and this package give the same numbers on GSM8K and ARC where the settings are the same.

Both are asked the same rows (in the public schema), greedily, by one model: one item at a time, not on average.
"""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from mipo_exp.config.groups import SamplingConfig
from mipo_exp.evaluation.accuracy import measure
from mipo_exp.evaluation.answers import flexible_number
from mipo_exp.evaluation.measure import PHASES
from mipo_exp.evaluation.options import option_accuracy
from mipo_exp.generation.transformers_engine import sample_batch
from mipo_exp.models.runtime import Runtime
from mipo_exp.store.records import Condition, Example, HarnessSample, OptionScores, Response
from tests.conftest import Experiment, composed, make_runtime
from tests.test_pipeline import artefact

pytest.importorskip("lm_eval", reason="pip install 'mipo-exp[eval]'")

DATA = Path(os.environ.get("MIPO_TEST_DATA", Path(__file__).parents[2] / "shared" / "data"))
Row = Mapping[str, Any]

PROBLEMS = [
    ("Tom has 3 bags with 4 apples each. How many apples does he have?", "3 * 4 = <<3*4=12>>12 apples.\n#### 12"),
    ("A pen costs $2. What do 540 pens cost, in dollars?", "540 * 2 = <<540*2=1080>>1080.\n#### 1,080"),
    ("It was 5 degrees and fell by 9. What is it now?", "5 - 9 = -4\n#### -4"),
    ("Ann reads 7 pages a day. How many does she read in a week?", "7 * 7 = <<7*7=49>>49\n#### 49"),
    ("Half of 30 birds flew away. How many stayed?", "30 / 2 = 15\n#### 15"),
    ("A train goes 60 miles an hour for 3 hours. How far?", "60 * 3 = 180 miles\n#### 180"),
]
CHOICES = [
    ("Which gas do plants take in?", ["oxygen", "carbon dioxide", "helium", "neon"], "ABCD", "B"),
    ("What pulls things to the ground?", ["gravity", "light", "sound"], "ABC", "A"),
    ("Which of these is a mammal?", ["trout", "eagle", "a blue whale", "frog", "ant"], "ABCDE", "C"),
    ("Ice that melts becomes", ["steam", "water", "rock", "salt"], "1234", "2"),
    ("The Sun is a", ["planet", "moon", "star", "comet"], "1234", "3"),
    ("Which is hardest?", ["talc", "quartz", "chalk", "diamond"], "ABCD", "D"),
]


def problems() -> list[Row]:
    """In the schema of `openai/gsm8k`."""
    return [{"question": question, "answer": answer} for question, answer in PROBLEMS]


def choices() -> list[Row]:
    """In the schema of `allenai/ai2_arc`."""
    return [
        {"id": f"Q{i}", "question": stem, "choices": {"text": texts, "label": list(labels)}, "answerKey": key}
        for i, (stem, texts, labels, key) in enumerate(CHOICES)
    ]


def write_rows(path: Path, rows: Sequence[Row]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return path


def harness_task(folder: Path, name: str, of: str, data: Path, **changes: Any) -> str:
    """A task file that takes everything but the data and `changes` from the harness's own; the overrides for it."""
    import lm_eval

    folder.mkdir(parents=True, exist_ok=True)
    own = Path(lm_eval.__file__).parent / "tasks" / of
    files = dict.fromkeys(("train", "validation", "test"), str(data))
    task = {"include": str(own), "task": name, "tag": None, "dataset_path": "json", "dataset_name": None}
    content = {**task, "dataset_kwargs": {"data_files": files}, **changes}
    (folder / f"{name}.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
    return f"harness.include_path={folder}"


def write_arc(folder: Path, rows: Sequence[Row]) -> str:
    """The rows in the layout of AI2's release; the override that reads them."""
    released = [
        {
            "id": row["id"],
            "question": {
                "stem": row["question"],
                "choices": [
                    {"text": text, "label": label}
                    for text, label in zip(row["choices"]["text"], row["choices"]["label"], strict=True)
                ],
            },
            "answerKey": row["answerKey"],
        }
        for row in rows
    ]
    write_rows(folder / "ARC-Easy" / "ARC-Easy-Test.jsonl", released)
    training = [
        {**released[0], "id": f"train{i}", "question": {**released[0]["question"], "stem": f"No test question, {i}?"}}
        for i in range(2)
    ]
    write_rows(folder / "ARC-Easy" / "ARC-Easy-Train.jsonl", training)
    return f"task.path={folder}"


def documents(summary: Mapping[str, Any], phase: str, filter_name: str) -> list[HarnessSample]:
    rows = artefact(dict(summary), f"{phase}_harness").table("samples", HarnessSample)
    return sorted((row for row in rows if row.filter == filter_name), key=lambda row: row.document)


def in_file_order(rows: Sequence[Any], ids: Sequence[str]) -> list[Any]:
    found = {row.id: row for row in rows}
    return [found[name] for name in ids]


def check_gsm8k(summary: Mapping[str, Any], phase: str) -> None:
    """Every problem's response, and whether it is right, strictly and flexibly, is the same in both."""
    ours = artefact(dict(summary), f"{phase}_responses").table("responses", Response)
    examples = artefact(dict(summary), "examples").table("eval", Example)
    ids = sorted(row.id for row in ours)
    responses, references = in_file_order(ours, ids), in_file_order(examples, ids)
    measures = measure("number", [row.reference for row in references], [row.text for row in responses])
    for name, filter_name in (("accuracy", "flexible-extract"), ("accuracy/strict", "strict-match")):
        theirs = documents(summary, phase, filter_name)
        assert len(theirs) == len(ids)
        for response, document, value in zip(responses, theirs, measures[name].values, strict=True):
            assert json.loads(document.responses)[0][0].strip() == response.text, response.id
            assert json.loads(document.metrics)["exact_match"] == value, (response.id, name, response.text)
        mean = summary["metrics"][phase][f"harness/ours/exact_match/{filter_name}"]["mean"]
        assert mean == pytest.approx(summary["metrics"][phase][name]["mean"])


def check_arc(summary: Mapping[str, Any], phase: str, rows: Sequence[Row], shifted: bool) -> None:
    """Every option's log-probability, and whether each question is right by acc and acc_norm, is the same in both.

    With `shifted` the log-probabilities may differ by a number that all options of a question share: the harness takes
    white space at the end of a prompt (the line break at the end of ChatML's) for the beginning of each option. That
    number counts in acc_norm, which divides by the options' lengths.
    """
    ours = artefact(dict(summary), f"{phase}_option_scores").table("options", OptionScores)
    scores = in_file_order(ours, [f"test/{row['id']}" for row in rows])
    for row, score, document in zip(rows, scores, documents(summary, phase, "none"), strict=True):
        theirs = np.array([float(response[0][0]) for response in json.loads(document.responses)])
        difference = theirs - np.array(score.log_probs)
        assert np.ptp(difference) < 1e-3, row["id"]
        assert shifted or abs(difference).max() < 1e-3, row["id"]
        gold = list(row["choices"]["label"]).index(row["answerKey"])
        assert json.loads(document.target) == gold
        reference = json.dumps({"answer": "ABCDE"[gold], "options": row["choices"]["text"]})
        example = Example(score.id, None, "q", None, "x", reference)
        same = replace(score, log_probs=[value + float(difference.mean()) * shifted for value in score.log_probs])
        ours_right = {name: float(found.values[0]) for name, found in option_accuracy([same], [example]).items()}
        theirs_right = json.loads(document.metrics)
        assert theirs_right == {"acc": ours_right["options/accuracy"], "acc_norm": ours_right["options/accuracy_norm"]}
    of = summary["metrics"][phase]
    assert of["options/accuracy"]["mean"] == pytest.approx(of["harness/ours/acc"]["mean"])
    if not shifted:
        assert of["options/accuracy_norm"]["mean"] == pytest.approx(of["harness/ours/acc_norm"]["mean"])


def gsm8k_run(experiment: Experiment, folder: Path, rows: Sequence[Row], tokens: int, *more: str) -> Any:
    """Greedy answers of both to the same prompts, of the same length at most, ended by an end of turn only."""
    data = write_rows(folder / "data" / "test.jsonl", rows)
    write_rows(
        folder / "data" / "train.jsonl",
        [{"question": f"What is {n} and 1?", "answer": f"#### {n + 1}"} for n in (1, 2)],
    )
    instruction = composed("task=gsm8k").task.instruction
    settings = {"do_sample": False, "until": [], "max_gen_toks": tokens}
    include = harness_task(
        *(folder / "tasks", "ours", "gsm8k/gsm8k.yaml", data),
        doc_to_text="{{question}}\n\n" + str(instruction),
        generation_kwargs=settings,
        num_fewshot=0,
    )
    return experiment(
        *("task=gsm8k", f"task.path={data.parent}", "task.eval_examples=null", f"task.max_new_tokens={tokens}"),
        *("evaluation.sampling.temperature=0", "harness.tasks=[ours]", include, *more),
    )[0]


def arc_run(experiment: Experiment, folder: Path, rows: Sequence[Row], rendering: str, *more: str) -> Any:
    """Likelihoods of both under the harness's plain prompt, or under the task's own chat prompt."""
    data = write_rows(folder / "rows.jsonl", rows)
    instruction = composed("task=arc").task.instruction
    lettered = "{% for text in choices.text %}\n{{'ABCDE'[loop.index0]}}. {{text}}{% endfor %}"
    own = {"doc_to_text": "{{question}}\n" + lettered + "\n\n" + str(instruction)} if rendering == "chat" else {}
    include = harness_task(folder / f"tasks_{rendering}", "ours", "arc/arc_easy.yaml", data, **own)
    return experiment(
        *(
            "task=arc",
            write_arc(folder / "arc", rows),
            "task.eval_examples=null",
            f"evaluation.option_scoring={rendering}",
        ),
        *("harness.tasks=[ours]", f"harness.apply_chat_template={'true' if rendering == 'chat' else 'false'}"),
        *(include, *more),
    )[0]


# A seed whose random weights write digits, and a training large enough to change what is written.
NOISE = ("model.random.seed=34", "trainer.learning_rate=0.05", "trainer.max_steps=4")


def test_greedy_answers_to_gsm8k_agree_before_and_after_training(experiment: Experiment, tmp_path: Path) -> None:
    """So that some of the noise that the tiny model writes is right, half the golds become what it has written."""
    noisy = make_runtime(composed("+debug=quick", "task=gsm8k", NOISE[0]), tmp_path)
    prompts = [noisy.prompt_ids(Condition(None, str(row["question"]))) for row in problems()]
    greedy, stops = SamplingConfig(0.0, 1.0, 0, 40), noisy.renderer.stop_ids
    written = sample_batch(noisy.model(), prompts, greedy, stops, noisy.renderer.pad_id, 0)
    rows = [
        {**row, "answer": f"#### {flexible_number(noisy.renderer.text(one.token_ids)) or 0}"} if i % 2 else row
        for i, (row, one) in enumerate(zip(problems(), written, strict=True))
    ]
    summary = gsm8k_run(experiment, tmp_path, rows, 40, *NOISE)
    for phase in ("before", "after"):
        check_gsm8k(summary, phase)
    assert 0 < summary["metrics"]["before"]["harness/ours/exact_match/flexible-extract"]["mean"] < 1


@pytest.mark.parametrize("rendering", ["harness", "chat"])
def test_likelihoods_of_arc_options_agree_before_and_after_training(
    rendering: str, experiment: Experiment, tmp_path: Path
) -> None:
    summary = arc_run(experiment, tmp_path, choices(), rendering, *NOISE)
    for phase in ("before", "after"):
        check_arc(summary, phase, choices(), rendering == "chat")
    scores = [artefact(summary, f"{phase}_option_scores").table("options", OptionScores) for phase in PHASES[:2]]
    assert scores[0] != scores[1], "the adapter was scored"


REAL = ("model=smollm2", "trainer.max_steps=1", "evaluation.k=2", "evaluation.policy_scoring=false")


@pytest.mark.slow
def test_smollm2_agrees_with_the_harness_on_gsm8k(smollm2: Runtime, experiment: Experiment, tmp_path: Path) -> None:
    if not DATA.is_dir():
        pytest.skip("the public data is not here")
    lines = (DATA / "gsm8k" / "test.jsonl").read_text(encoding="utf-8").splitlines()[:32]
    rows = [json.loads(line) for line in lines]
    summary = gsm8k_run(experiment, tmp_path, rows, 128, f"model.path={smollm2.folder}", *REAL)
    check_gsm8k(summary, "before")


@pytest.mark.slow
@pytest.mark.parametrize("rendering", ["harness", "chat"])
def test_smollm2_agrees_with_the_harness_on_arc(
    rendering: str, smollm2: Runtime, experiment: Experiment, tmp_path: Path
) -> None:
    if not DATA.is_dir():
        pytest.skip("the public data is not here")
    path = DATA / "arc" / "ARC-V1-Feb2018-2" / "ARC-Easy" / "ARC-Easy-Test.jsonl"
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines()[:32]:
        row = json.loads(line)
        options = row["question"]["choices"]
        lists = {name: [option[name] for option in options] for name in ("text", "label")}
        rows.append({**row, "question": row["question"]["stem"], "choices": lists})
    summary = arc_run(experiment, tmp_path, rows, rendering, f"model.path={smollm2.folder}", *REAL)
    check_arc(summary, "before", rows, rendering == "chat")
