"""Multi-Bench, or Multifaceted-Bench (Lee et al. 2024, https://arxiv.org/abs/2405.17977): instructions under personas.

    {"source": "self-instruct", "system": "You are a master storyteller …", "prompt": "…", "reference_answer": "…",
     "rubrics": [{"criteria": "Does the response …?", "score_descriptions": {"1": "…", …, "5": "…"}}, …]}

The context is the persona, a system message; each prompt has several. Responses are judged by the rubrics, four a row.
From the hub (`kaist-ai/Multifaceted-Bench`), or from its parquet file or a JSON file of such rows; older ones say
`rubric`. There is one split: a share of the prompts is evaluated on.
"""

from collections.abc import Callable

from mipo_exp.config.fields import Share, schema
from mipo_exp.config.schema import TASKS, TaskConfig
from mipo_exp.data.base import Examples, new_example, reference
from mipo_exp.data.consistency import Fact, check_contradictions, check_unique, without_repetitions
from mipo_exp.data.file_task import FileTask
from mipo_exp.data.files import WAY_OUT, IncompleteError, Record, read_rows
from mipo_exp.data.left_out import LeftOut
from mipo_exp.data.overlap import question_key
from mipo_exp.store.records import Example

SCORES = tuple("12345")


@schema
class MultiBenchConfig(TaskConfig):
    eval_share: Share


@TASKS.register("multi_bench")
class MultiBench(FileTask):
    """All personas of a prompt are on one side; a persona of both sides goes to one."""

    keys = MultiBenchConfig
    config: MultiBenchConfig
    scorer = "none"
    judging = "rubric"
    layout = (
        {"rows": ("data/train-*.parquet", "default/train/*.parquet", "train-*.parquet")},
        {"rows": ("multifaceted_bench.json", "multifaceted_bench.jsonl")},
    )

    def load(self, count_tokens: Callable[[str], int] | None = None) -> Examples:
        """See `Task.load`. Raises `DataError`: also where a persona and a prompt have two reference answers or lists of
        rubrics."""
        records = read_rows(self.files(download=False)["rows"])
        check_unique([record for record in records if record.values.get("id") is not None], "id")
        left_out = LeftOut()
        read = left_out.read(list(enumerate(records)), lambda row: to_example(*row))
        check_contradictions(Fact(record.where, (row.user, row.question), row.reference) for (_, record), row in read)
        rows = [row for _, row in read]
        examples = without_repetitions(rows)
        notes = {"prompts": len({row.question for row in rows}), "repeated_rows": len(rows) - len(examples)}
        notes |= left_out.notes(self.config.name)
        return self.divide(examples, self.config.eval_share, notes, unit=lambda row: row.question)


def to_example(index: int, record: Record) -> Example:
    """One row as an example; the persona names the user."""
    persona, prompt = record.text("system").strip(), record.text("prompt").strip()
    name = record.name("id") if record.values.get("id") is not None else f"{index:05d}"
    gold = reference(reference_answer=record.text("reference_answer"), rubrics=read_rubrics(record))
    return new_example(name, prompt, gold, user=f"persona/{question_key(persona)}", context=persona)


def read_rubrics(record: Record) -> list[dict[str, object]]:
    """What the judge is told: for each criterion, what each score from 1 to 5 means. Raises `DataError`: there is no
    rubric, or one lacks its criterion or a score."""
    field = "rubrics" if "rubrics" in record.values else "rubric"
    found: list[dict[str, object]] = []
    for index, values in enumerate(record.get(field, list)):
        rubric = record.child(f"{field} {index}", values)
        scores = rubric.child("score_descriptions", rubric.get("score_descriptions", dict))
        found.append(
            {"criteria": rubric.text("criteria"), "score_descriptions": {score: scores.text(score) for score in SCORES}}
        )
    if not found:
        raise IncompleteError(f"{record.where}: {field!r} is empty; {WAY_OUT}")
    return found
