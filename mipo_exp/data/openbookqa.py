"""OpenBookQA (Mihaylov et al. 2018, https://arxiv.org/abs/1809.02789): elementary science with four options.

    prompt     "The sun is responsible for\\n\\nA. puppies learning new tricks\\nB. children growing up …\\nC. …"
    reference  {"answer": "D", "options": ["puppies learning new tricks", …, "plants sprouting, blooming and wilting"]}

From the hub (`allenai/openbookqa`, config `main`), or from the folder `OpenBookQA-V1-Sep2018` of AI2's release. How
rows are read: `ai2`.
"""

import json

from mipo_exp.config.schema import TASKS
from mipo_exp.data.ai2 import Ai2Task
from mipo_exp.data.file_task import SPLITS
from mipo_exp.data.options import stem_of
from mipo_exp.store.records import Example

RELEASE = "OpenBookQA-V1-Sep2018/Data/Main"


@TASKS.register("openbookqa")
class OpenBookQa(Ai2Task):
    """Train and test; the "open book" of facts is not shown."""

    columns = ("id", "question_stem", "choices", "answerKey")
    layout = (
        {split: (f"main/{split}-*.parquet", f"{split}-*.parquet") for split in SPLITS},
        {split: (f"{RELEASE}/{split}.jsonl", f"Data/Main/{split}.jsonl", f"{split}.jsonl") for split in SPLITS},
    )

    def plain_question(self, example: Example) -> str:
        """See `Task.plain_question`; the harness's `openbookqa` is the stem alone."""
        return stem_of(example.prompt, json.loads(example.reference)["options"])
