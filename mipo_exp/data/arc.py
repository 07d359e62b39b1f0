"""ARC (Clark et al. 2018, https://arxiv.org/abs/1803.05457): grade-school science questions with 3 to 5 options.

    prompt     "Which factor will most likely cause a person to develop a fever?\\n\\nA. a leg muscle relaxing …\\nB. …"
    reference  {"answer": "B", "options": ["a leg muscle relaxing …", "a bacterial population …", …]}

From the hub (`allenai/ai2_arc`), or from the folder `ARC-V1-Feb2018-2` of AI2's release. How rows are read: `ai2`.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import ClassVar, Literal

from mipo_exp.config.fields import schema
from mipo_exp.config.schema import TASKS, TaskConfig
from mipo_exp.data.ai2 import read_questions
from mipo_exp.data.base import Examples
from mipo_exp.data.file_task import FileTask, Layout
from mipo_exp.data.left_out import LeftOut

SPLITS = ("train", "test")
FOLDERS = {"easy": "ARC-Easy", "challenge": "ARC-Challenge"}
RELEASE = "ARC-V1-Feb2018-2"


@schema
class ArcConfig(TaskConfig):
    subset: Literal["easy", "challenge"]


@TASKS.register("arc")
class Arc(FileTask):
    """Train and test of one subset; a training row whose question is also in test is dropped and counted."""

    keys = ArcConfig
    config: ArcConfig
    scorer = "letter"
    keyed: ClassVar[bool] = False  # whether references have the source's own key, which may be a digit

    def layouts(self) -> Sequence[Layout]:
        """See `FileTask.layouts`."""
        name = FOLDERS[self.config.subset]
        lines = {split: f"{name}-{split.capitalize()}.jsonl" for split in SPLITS}
        return [
            {split: f"{name}/{split}-*.parquet" for split in SPLITS},
            {split: (f"{name}/{file}", f"{RELEASE}/{name}/{file}", file) for split, file in lines.items()},
        ]

    def root(self, download: bool) -> Path:
        """See `FileTask.root`. Only the folder's name says which subset parquet files are of: it may be given, too."""
        root = super().root(download)
        return root.parent if root.name == FOLDERS[self.config.subset] else root

    def load(self, count_tokens: Callable[[str], int] | None = None) -> Examples:
        """See `Task.load`."""
        left_out = LeftOut()
        sides = read_questions(self.files(download=False), "question", left_out, self.keyed)
        return self.select(sides["train"], sides["test"], left_out.notes(self.config.name))
