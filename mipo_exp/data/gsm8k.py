"""GSM8K (Cobbe et al. 2021, https://arxiv.org/abs/2110.14168): grade-school word problems with integer answers.

    question  "Weng earns $12 an hour for babysitting. Yesterday, she just did 50 minutes of babysitting. …"
    answer    "… Working 50 minutes, she earned 0.2 x 50 = $<<0.2*50=10>>10.\\n#### 10"

From the hub (`openai/gsm8k`, config `main`), or from a folder with the authors' `train.jsonl` and `test.jsonl`.
"""

import re

from mipo_exp.config.schema import TASKS
from mipo_exp.data.base import new_example, reference
from mipo_exp.data.file_task import SPLITS, SplitTask
from mipo_exp.data.files import WAY_OUT, Record
from mipo_exp.errors import DataError
from mipo_exp.store.records import Example

_GOLD = re.compile(r"-?\d+(\.\d+)?")


@TASKS.register("gsm8k")
class Gsm8k(SplitTask):
    """The answer is the number after the last `####`."""

    scorer = "number"
    columns = ("question", "answer")
    layout = ({split: (f"{split}.jsonl", f"main/{split}-*.parquet", f"{split}-*.parquet") for split in SPLITS},)

    def example(self, split: str, index: int, record: Record) -> Example:
        """See `SplitTask.example`."""
        question = record.text("question")
        return new_example(f"{split}/{index:05d}", question, reference(answer=gold_answer(record)))


def gold_answer(record: Record) -> str:
    """The number after the last `####`, without thousands commas and dollar signs. Raises `DataError`: there is
    none."""
    _, mark, tail = record.text("answer").rpartition("####")
    number = clean_gold(tail)
    if not mark or number is None:
        raise DataError(f"{record.where}: 'answer' does not end in '#### <number>' ({tail.strip()[-40:]!r}); {WAY_OUT}")
    return number


def clean_gold(text: str) -> str | None:
    """A number without thousands commas, dollar signs and a full stop at the end; None if the text is no number."""
    number = text.strip().replace(",", "").replace("$", "").removesuffix(".")
    return number if _GOLD.fullmatch(number) else None
