"""Imported once for all processes that `command_line` forks: everything that a run imports, heavy libraries too."""

import gc
import importlib

for _name in (
    *("mipo_exp.cli", "mipo_exp.experiment", "mipo_exp.planning.describe", "torch", "transformers", "peft"),
    *("trl.trainer.dpo_trainer", "trl.trainer.grpo_trainer", "matplotlib.backends.backend_svg", "sacrebleu"),
):
    importlib.import_module(_name)
# What is imported stays: collecting garbage in a fork looks at it no more.
gc.freeze()
