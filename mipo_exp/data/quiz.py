"""Quiz: 100 easy general-knowledge questions with four options, which ship with the package.

    prompt     "Which planet is closest to the Sun?\\n\\nA. Venus\\nB. Mercury\\nC. Earth\\nD. Mars"
    reference  {"answer": "B", "options": ["Venus", "Mercury", "Earth", "Mars"]}

For small models and quick runs without a download. Each letter is right equally often.
"""

import random
from collections.abc import Callable

from mipo_exp.config.schema import TASKS
from mipo_exp.data.base import Examples, Task, choice_example
from mipo_exp.data.consistency import check_unique
from mipo_exp.data.files import Record, read_jsonl, resource
from mipo_exp.store.records import Example

RESOURCE = "quiz.jsonl"
EVAL_SHARE = 0.4


@TASKS.register("quiz")
class Quiz(Task):
    """A seeded 60 / 40 split of the questions."""

    scorer = "letter"

    def prepare(self, download: bool = True) -> str:
        """See `Task.prepare`."""
        self.refuse_source()
        return self.fingerprint([resource(RESOURCE)])

    def load(self, count_tokens: Callable[[str], int] | None = None) -> Examples:
        """See `Task.load`."""
        records = read_jsonl(resource(RESOURCE))
        check_unique(records, "id")
        random.Random(f"quiz/{self.config.seed}").shuffle(records)
        count = round(EVAL_SHARE * len(records))
        return self.select(
            [to_example("train", record) for record in records[count:]],
            [to_example("eval", record) for record in records[:count]],
            {"questions": len(records)},
        )


def to_example(side: str, record: Record) -> Example:
    """One question as an example."""
    options, name = record.get("options", list), record.text("id")
    answer = options.index(record.text("answer"))
    return choice_example(f"{side}/{name}", record.text("question"), options, answer, name)
