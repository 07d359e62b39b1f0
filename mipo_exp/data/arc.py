"""ARC (Clark et al. 2018, https://arxiv.org/abs/1803.05457): grade-school science questions with 3 to 5 options.

    prompt     "Which factor will most likely cause a person to develop a fever?\\n\\nA. a leg muscle relaxing …\\nB. …"
    reference  {"answer": "B", "options": ["a leg muscle relaxing …", "a bacterial population …", …]}

From the hub (`allenai/ai2_arc`), or from the folder `ARC-V1-Feb2018-2` of AI2's release. How rows are read: `ai2`.
"""

from collections.abc import Callable
from pathlib import Path

from mipo_exp.config import ArcConfig
from mipo_exp.data.ai2 import read_questions
from mipo_exp.data.base import Examples, Task
from mipo_exp.data.files import hub_snapshot
from mipo_exp.errors import DataError

SPLITS = ("train", "test")
FOLDERS = {"easy": "ARC-Easy", "challenge": "ARC-Challenge"}


class Arc(Task):
    """Train and test of one subset; a training row whose question is also in test is dropped and counted."""

    config: ArcConfig
    scorer = "letter"

    def prepare(self, download: bool = True) -> str:
        """See `Task.prepare`."""
        return self.fingerprint([path for paths in self._files(download).values() for path in paths])

    def load(self, count_tokens: Callable[[str], int] | None = None) -> Examples:
        """See `Task.load`."""
        files = self._files(download=False)
        sides = {split: read_questions(split, paths, "question") for split, paths in files.items()}
        return self.select(sides["train"], sides["test"], {})

    def _files(self, download: bool) -> dict[str, list[Path]]:
        name = FOLDERS[self.config.subset]
        if self.config.path is None:
            patterns = [f"{name}/{split}-*.parquet" for split in SPLITS]
            root = hub_snapshot(self.config.hub_id, self.config.revision, patterns, self.config.name, download)
        else:
            root = Path(self.config.path).expanduser()
        for folder in (root / name, root / "ARC-V1-Feb2018-2" / name, root):
            files = {split: _find_split(folder, name, split) for split in SPLITS}
            if all(files.values()):
                return files
        raise DataError(
            f"task.path={root} has no {name}-Train.jsonl and {name}-Test.jsonl (nor {name}/train-*.parquet and test); "
            "give the folder ARC-V1-Feb2018-2 or the one above it (docs/tasks.md), or task.path=null for the hub"
        )


def _find_split(folder: Path, name: str, split: str) -> list[Path]:
    lines = folder / f"{name}-{split.capitalize()}.jsonl"
    if lines.is_file():
        return [lines]
    # Parquet files do not say which subset they are of: only the folder's name does.
    return sorted(folder.glob(f"{split}-*.parquet")) if folder.name == name else []
