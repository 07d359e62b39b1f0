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
from collections.abc import Mapping, Sequence
from pathlib import Path

from mipo_exp.config.schema import TASKS
from mipo_exp.data.base import new_example, reference
from mipo_exp.data.consistency import check_unique
from mipo_exp.data.file_task import SPLITS, SplitTask
from mipo_exp.data.files import WAY_OUT, Record, read_json_rows, read_text, resource
from mipo_exp.data.left_out import LeftOut
from mipo_exp.errors import DataError
from mipo_exp.store.records import Example

FILE = "SVAMP.json"
TEST_IDS = "svamp_test_ids.json"


@TASKS.register("svamp")
class Svamp(SplitTask):
    """The hub's train and test."""

    scorer = "float_number"
    columns = ("ID", "Body", "Question", "Answer")
    layout = (
        {split: (f"data/{split}-*.parquet", f"{split}-*.parquet") for split in SPLITS},
        {"all": (FILE, f"data/{FILE}")},
    )

    def records(self, files: Mapping[str, Sequence[Path]], left_out: LeftOut) -> dict[str, list[Record]]:
        """See `SplitTask.records`."""
        found = split_records(files["all"][0], left_out) if "all" in files else super().records(files, left_out)
        named = [one for of in found.values() for one in of if str(one.values.get("ID") or "").strip()]
        check_unique(named, "ID")
        return {split: found[split] for split in SPLITS}

    def example(self, split: str, index: int, record: Record) -> Example:
        """See `SplitTask.example`."""
        prompt = f"{record.text('Body').strip()} {record.text('Question').strip()}"
        return new_example(f"{split}/{record.text('ID')}", prompt, reference(answer=_answer(record)))


def test_ids() -> frozenset[str]:
    """The ids of the hub's test split."""
    content = json.loads(read_text(resource(TEST_IDS)))
    return frozenset(f"{content['prefix']}{number}" for number in content["numbers"])


def split_records(path: Path, left_out: LeftOut) -> dict[str, list[Record]]:
    """The rows of the authors' file by split; those without an ID are left out. Raises `DataError`: the file is
    damaged, or lacks rows of the test split."""
    rows = read_json_rows(path)
    records = left_out.read(rows, lambda record: record.text("ID"))
    ids = test_ids()
    missing = ids - {name for _, name in records}
    if len(missing) > len(rows) - len(records):  # a row without an ID may be one of them
        raise DataError(
            f"{path}: {len(missing)} of the {len(ids)} test rows are missing (e.g. the ID {min(missing)!r}): this is "
            f"not the whole of {FILE}; {WAY_OUT}"
        )
    sides = {True: "test", False: "train"}
    return {side: [record for record, name in records if (name in ids) is held_out] for held_out, side in sides.items()}


def _answer(record: Record) -> float:
    """The answer: a number in the authors' file, perhaps text on the hub. Raises `DataError`: it is no finite
    number."""
    value = record.values.get("Answer")
    try:
        number = float(value if isinstance(value, str | int) else record.get("Answer", float))
    except (ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        raise DataError(f"{record.where}: 'Answer' is no number ({str(value)[:40]!r}); {WAY_OUT}")
    return number
