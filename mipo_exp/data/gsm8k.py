"""GSM8K (Cobbe et al. 2021, https://arxiv.org/abs/2110.14168): grade-school word problems with integer answers.

    question  "Weng earns $12 an hour for babysitting. Yesterday, she just did 50 minutes of babysitting. …"
    answer    "… Working 50 minutes, she earned 0.2 x 50 = $<<0.2*50=10>>10.\\n#### 10"

From the hub (`openai/gsm8k`, config `main`), or from a folder with the authors' `train.jsonl` and `test.jsonl`.
"""

import re
from collections.abc import Callable
from pathlib import Path

from mipo_exp.data.base import Examples, Task, reference
from mipo_exp.data.files import WAY_OUT, Record, hub_snapshot, read_jsonl, read_parquet
from mipo_exp.data.overlap import question_key
from mipo_exp.errors import DataError
from mipo_exp.records import Example

SPLITS = ("train", "test")
COLUMNS = ("question", "answer")
_GOLD = re.compile(r"-?\d+(\.\d+)?")


class Gsm8k(Task):
    """Train and test as they are; a training question that is also in test is dropped and counted."""

    scorer = "number"

    def prepare(self, download: bool = True) -> str:
        """See `Task.prepare`."""
        return self.fingerprint([path for paths in self._files(download).values() for path in paths])

    def load(self, count_tokens: Callable[[str], int] | None = None) -> Examples:
        """See `Task.load`."""
        files = self._files(download=False)
        sides = {
            split: [to_example(split, index, record) for index, record in enumerate(_read(files[split]))]
            for split in SPLITS
        }
        return self.select(sides["train"], sides["test"], {})

    def _files(self, download: bool) -> dict[str, list[Path]]:
        if self.config.path is None:
            patterns = [f"main/{split}-*.parquet" for split in SPLITS]
            folder = hub_snapshot(self.config.hub_id, self.config.revision, patterns, self.config.name, download)
        else:
            folder = Path(self.config.path).expanduser()
        files = {split: find_split(folder, split) for split in SPLITS}
        missing = [split for split, paths in files.items() if not paths]
        if missing:
            raise DataError(
                f"task.path={folder} has neither {missing[0]}.jsonl nor {missing[0]}-*.parquet (nor below main/); "
                "give the folder that holds them (docs/tasks.md), or task.path=null for the hub"
            )
        return files


def find_split(folder: Path, split: str) -> list[Path]:
    """The files of one split: the authors' JSON lines, or the hub's parquet shards."""
    lines = folder / f"{split}.jsonl"
    if lines.is_file():
        return [lines]
    return sorted(folder.glob(f"main/{split}-*.parquet")) or sorted(folder.glob(f"{split}-*.parquet"))


def _read(paths: list[Path]) -> list[Record]:
    return read_jsonl(paths[0]) if paths[0].suffix == ".jsonl" else read_parquet(paths, COLUMNS)


def to_example(split: str, index: int, record: Record) -> Example:
    """One row of the source as an example."""
    question = record.text("question")
    return Example(
        id=f"{split}/{index:05d}",
        user=None,
        question=question_key(question),
        context=None,
        prompt=question,
        reference=reference(answer=gold_answer(record)),
    )


def gold_answer(record: Record) -> str:
    """The number after the last `####`, without thousands commas and dollar signs.

    Raises:
        DataError: there is none.
    """
    _, mark, tail = record.text("answer").rpartition("####")
    number = clean_gold(tail)
    if not mark or number is None:
        raise DataError(f"{record.where}: 'answer' does not end in '#### <number>' ({tail.strip()[-40:]!r}); {WAY_OUT}")
    return number


def clean_gold(text: str) -> str | None:
    """A number without thousands commas, dollar signs and a full stop at the end; None if the text is no number."""
    number = text.strip().replace(",", "").replace("$", "").removesuffix(".")
    return number if _GOLD.fullmatch(number) else None
