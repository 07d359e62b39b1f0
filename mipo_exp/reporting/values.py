"""`values.npz` of a run: one value an example and metric, from which runs are compared with each other.

The arrays `example`, `cluster` and `question` name the examples. `before/METRIC` and `after/METRIC` have a number for
each of them, whose mean is the metric (its `pseudo_values` where the metric is no mean); NaN where the metric leaves
the example out. A metric of lm-evaluation-harness has a number for each of its documents, whose numbers are in
`documents/PHASE/METRIC`.
"""

import io
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from mipo_exp.errors import DataError
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
    """The values of a run by phase and metric. Raises `DataError`: the file is damaged."""
    try:
        arrays = _load(path)
        names, rows = _named(*(tuple(arrays[key].tolist()) for key in ("example", "cluster", "question")))
    except (OSError, ValueError, TypeError, KeyError, zipfile.BadZipFile, zlib.error) as error:
        raise DataError(f"{path} is damaged ({error}); type the run's command again to have it written anew") from error
    found: dict[str, dict[str, MetricValues]] = {phase: {} for phase in PHASES}
    for key, array in arrays.items():
        phase, _, name = key.partition("/")
        if phase in found and (documents := f"{DOCUMENTS}/{key}") in arrays:
            numbers = tuple(map(str, arrays[documents].tolist()))
            found[phase][name] = MetricValues(array, numbers, Rows.of(numbers))
        elif phase in found:
            found[phase][name] = MetricValues(array, names, rows)
    return found


def _load(path: Path) -> dict[str, Any]:
    """As `np.load`, which takes three times as long over many small arrays: it parses the header of each."""
    found: dict[str, Any] = {}
    with zipfile.ZipFile(path) as archive:
        for name in archive.namelist():
            content = archive.read(name)
            start = 10 + int.from_bytes(content[8:10], "little")  # version 1.0 of the format
            shape, dtype = _header(content[8:start])
            found[name.removesuffix(".npy")] = np.ndarray(shape, dtype, content, start)
    return found


@lru_cache
def _header(content: bytes) -> tuple[tuple[int, ...], np.dtype[Any]]:
    shape, _, dtype = np.lib.format.read_array_header_1_0(io.BytesIO(content))
    return shape, dtype


@lru_cache(maxsize=16)  # runs that are compared have the same
def _named(
    examples: tuple[str, ...], of_clusters: tuple[str, ...], questions: tuple[str, ...]
) -> tuple[tuple[str, ...], Rows]:
    return examples, Rows.of(of_clusters, questions)
