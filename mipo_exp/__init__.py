"""mipo_exp: mutual-information preference optimization (arXiv 2603.19294) from data to report.

`run` and `load` are for notebooks and scripts (docs/python.md); `python -m mipo_exp` is the command line.
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mipo_exp.reporting.saved import Results

__all__ = ["load", "run"]

# oneDNN (`onednn`) keeps a kernel for each shape of a product, and torch's binding another list of them: a thousand
# each by default, which is half a gigabyte where batches differ in length. Both read this before their first product.
for _name in ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY"):
    os.environ.setdefault(_name, "64")


def run(overrides: Sequence[str] = (), output: str | Path | None = None) -> "Results":
    """Run one experiment.

    Args:
        overrides: as on the command line: `["task=gsm8k", "method.beta=0.05"]`.
        output: the run's folder; None for a new one, outputs/DATE/TIME.

    Raises:
        UserError: bad input; what was computed before stays in the cache.
    """
    from mipo_exp.experiment import run

    return run(overrides, output)


def load(folder: str | Path) -> "Results":
    """The results of a run that is in a folder, whoever started it. Raises `DataError`: there is no run in it, or it
    has not ended."""
    from mipo_exp.reporting.saved import load

    return load(Path(folder))
