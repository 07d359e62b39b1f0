"""`values.npz` of a run: one value an example and metric, from which runs are compared with each other.

The arrays `example`, `cluster` and `question` name the examples. `before/METRIC` and `after/METRIC` have a number for
each of them, whose mean is the metric (its `pseudo_values` where the metric is no mean); NaN where the metric leaves
the example out. A metric of lm-evaluation-harness has a number for each of its documents, whose numbers are in
`documents/PHASE/METRIC`.
"""

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mipo_exp.evaluation.metrics import clusters
from mipo_exp.evaluation.statistics import Rows, Values
from mipo_exp.store.artefacts import write_atomically
from mipo_exp.store.records import Example

VALUES = "values.npz"
PHASES = ("before", "after")
DOCUMENTS = "documents"


@dataclass(frozen=True)
class MetricValues:
    """A metric of one run: its values, shape (n,), the names of what they are of, and what these have in common."""

    values: Values
    names: tuple[str, ...]
    rows: Rows


def write_values(
    path: Path,
    examples: Sequence[Example],
    values: Mapping[str, Mapping[str, Values]],
    documents: Mapping[str, Mapping[str, Mapping[int, float]]],
) -> None:
    """Write the values by phase and metric, shape (examples,), and those of the harness by document."""
    arrays: dict[str, Any] = {
        "example": np.array([example.id for example in examples], dtype=str),
        "cluster": np.array(clusters(examples), dtype=str),
        "question": np.array([example.question for example in examples], dtype=str),
    }
    for phase, of in values.items():
        arrays |= {f"{phase}/{name}": array for name, array in of.items()}
    for phase, by_metric in documents.items():
        for name, by_document in by_metric.items():
            arrays[f"{phase}/{name}"] = np.array(list(by_document.values()))
            arrays[f"{DOCUMENTS}/{phase}/{name}"] = np.array(list(by_document))
    content = io.BytesIO()
    np.savez_compressed(content, **arrays)
    write_atomically(path, content.getvalue())


def read_values(path: Path) -> dict[str, dict[str, MetricValues]]:
    """The values of a run by phase and metric."""
    with np.load(path) as arrays:
        names = tuple(arrays["example"].tolist())
        rows = Rows.of(arrays["cluster"].tolist(), arrays["question"].tolist())
        found: dict[str, dict[str, MetricValues]] = {phase: {} for phase in PHASES}
        for key in arrays:
            phase, _, name = key.partition("/")
            if phase in found and (documents := f"{DOCUMENTS}/{key}") in arrays:
                numbers = tuple(map(str, arrays[documents].tolist()))
                found[phase][name] = MetricValues(arrays[key], numbers, Rows.of(numbers))
            elif phase in found:
                found[phase][name] = MetricValues(arrays[key], names, rows)
    return found
