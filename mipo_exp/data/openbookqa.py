"""OpenBookQA (Mihaylov et al. 2018, https://arxiv.org/abs/1809.02789): elementary science with four options.

    prompt     "The sun is responsible for\\n\\nA. puppies learning new tricks\\nB. children growing up …\\nC. …"
    reference  {"answer": "D", "options": ["puppies learning new tricks", …, "plants sprouting, blooming and wilting"]}

From the hub (`allenai/openbookqa`, config `main`), or from the folder `OpenBookQA-V1-Sep2018` of AI2's release. The
"open book" of facts is not shown. How rows are read: `ai2`.
"""

import json
from collections.abc import Callable
from pathlib import Path

from mipo_exp.data.ai2 import read_questions
from mipo_exp.data.base import Examples, Task
from mipo_exp.data.files import hub_snapshot
from mipo_exp.data.gsm8k import find_split
from mipo_exp.data.options import stem_of
from mipo_exp.errors import DataError
from mipo_exp.records import Example

SPLITS = ("train", "test")
INNER = Path("Data") / "Main"
RELEASE = Path("OpenBookQA-V1-Sep2018") / INNER


class OpenBookQa(Task):
    """Train and test as they are; a training row whose question is also in test is dropped and counted."""

    scorer = "letter"

    def prepare(self, download: bool = True) -> str:
        """See `Task.prepare`."""
        return self.fingerprint([path for paths in self._files(download).values() for path in paths])

    def load(self, count_tokens: Callable[[str], int] | None = None) -> Examples:
        """See `Task.load`."""
        files = self._files(download=False)
        sides = {split: read_questions(split, paths, "question_stem") for split, paths in files.items()}
        return self.select(sides["train"], sides["test"], {})

    def plain_question(self, example: Example) -> str:
        """See `Task.plain_question`; the harness's `openbookqa` is the stem alone."""
        return stem_of(example.prompt, json.loads(example.reference)["options"])

    def _files(self, download: bool) -> dict[str, list[Path]]:
        if self.config.path is None:
            patterns = [f"main/{split}-*.parquet" for split in SPLITS]
            root = hub_snapshot(self.config.hub_id, self.config.revision, patterns, self.config.name, download)
        else:
            root = Path(self.config.path).expanduser()
        for folder in (root / RELEASE, root / INNER, root):
            files = {split: find_split(folder, split) for split in SPLITS}
            if all(files.values()):
                return files
        raise DataError(
            f"task.path={root} has no {RELEASE}/train.jsonl and test.jsonl (nor main/train-*.parquet and test); give "
            "the folder OpenBookQA-V1-Sep2018, the one above it or the one that holds the files (docs/tasks.md), or "
            "task.path=null for the hub"
        )
