"""SVAMP (Patel et al. 2021, https://arxiv.org/abs/2103.07191): short word problems, varied so that shortcuts fail.

    Body      "Each pack of dvds costs 76 dollars. If there is a discount of 25 dollars on each pack"
    Question  "How much do you have to pay to buy each pack?"
    Answer    51.0

The prompt is Body, a space and Question, as in the hub's `question_concat`. From the hub (`ChilleD/SVAMP`), or from
the authors' `SVAMP.json`. That file has no split: test is the hub's, by the 300 ids in
`resources/svamp_test_ids.json`, and train the other 700.
"""

import json
import math
from collections.abc import Callable
from pathlib import Path

from mipo_exp.data.base import Examples, Task, reference
from mipo_exp.data.files import (
    WAY_OUT,
    Record,
    check_unique,
    hub_snapshot,
    read_json_rows,
    read_parquet,
    read_text,
    resource,
)
from mipo_exp.data.overlap import question_key
from mipo_exp.errors import DataError
from mipo_exp.records import Example

SPLITS = ("train", "test")
COLUMNS = ("ID", "Body", "Question", "Answer")
FILE = "SVAMP.json"
TEST_IDS = "svamp_test_ids.json"


class Svamp(Task):
    """The hub's train and test; a training question that is also in test is dropped and counted."""

    scorer = "float_number"

    def prepare(self, download: bool = True) -> str:
        """See `Task.prepare`."""
        return self.fingerprint([path for paths in self._files(download).values() for path in paths])

    def load(self, count_tokens: Callable[[str], int] | None = None) -> Examples:
        """See `Task.load`."""
        files = self._files(download=False)
        if "all" in files:
            records = split_records(files["all"][0])
        else:
            records = {split: read_parquet(files[split], COLUMNS) for split in SPLITS}
        check_unique([record for split in SPLITS for record in records[split]], "ID")
        sides = {split: [to_example(split, record) for record in records[split]] for split in SPLITS}
        return self.select(sides["train"], sides["test"], {})

    def _files(self, download: bool) -> dict[str, list[Path]]:
        """The authors' file under `all`, or the hub's shards by split."""
        if self.config.path is None:
            patterns = [(f"data/{split}-*.parquet", f"{split}-*.parquet") for split in SPLITS]
            folder = hub_snapshot(self.config.hub_id, self.config.revision, patterns, self.config.name, download)
        else:
            folder = Path(self.config.path).expanduser()
            for path in (folder, folder / FILE, folder / "data" / FILE):
                if path.is_file():
                    return {"all": [path]}
        for base in (folder, folder / "data"):
            files = {split: sorted(base.glob(f"{split}-*.parquet")) for split in SPLITS}
            if all(files.values()):
                return files
        raise DataError(
            f"task.path={folder} has neither {FILE} nor train-*.parquet and test-*.parquet (nor below data/); give the "
            "file or the folder that holds it (docs/tasks.md), or task.path=null for the hub"
        )


def test_ids() -> frozenset[str]:
    """The ids of the hub's test split."""
    content = json.loads(read_text(resource(TEST_IDS)))
    return frozenset(f"{content['prefix']}{number}" for number in content["numbers"])


def split_records(path: Path) -> dict[str, list[Record]]:
    """The rows of the authors' file by split.

    Raises:
        DataError: the file is damaged, or lacks rows of the test split.
    """
    records = read_json_rows(path)
    ids = test_ids()
    test = [record for record in records if record.text("ID") in ids]
    missing = ids - {record.text("ID") for record in test}
    if missing:
        raise DataError(
            f"{path}: {len(missing)} of the {len(ids)} test rows are missing (e.g. the ID {min(missing)!r}): this is "
            f"not the whole of {FILE}; {WAY_OUT}"
        )
    return {"train": [record for record in records if record.text("ID") not in ids], "test": test}


def to_example(split: str, record: Record) -> Example:
    """One row of the source as an example."""
    prompt = f"{record.text('Body').strip()} {record.text('Question').strip()}"
    return Example(
        id=f"{split}/{record.text('ID')}",
        user=None,
        question=question_key(prompt),
        context=None,
        prompt=prompt,
        reference=reference(answer=_answer(record)),
    )


def _answer(record: Record) -> float:
    """The answer: a number in the authors' file, perhaps text on the hub.

    Raises:
        DataError: it is no finite number.
    """
    value = record.values.get("Answer")
    try:
        number = float(value if isinstance(value, str | int) else record.get("Answer", float))
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise DataError(f"{record.where}: 'Answer' is no number ({str(value)[:40]!r}); {WAY_OUT}")
    return number
