"""The pairs that a run has trained on, as a reader sees them."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mipo_exp.execution.run import Run
from mipo_exp.store.records import Example, ScoredPair
from mipo_exp.store.tables import ById

MOST_SHOWN = 1000


@dataclass(frozen=True)
class ShownPair:
    """A pair with its texts.

    `pmi_margin` is pmi(chosen) − pmi(rejected), null where it was not asked for, and `ref_margin` the difference of
    their log-probabilities under the base model and the true condition; both in nats, summed over tokens."""

    example: str
    user: str | None
    context: str | None
    prompt: str
    strategy: str
    chosen: str
    rejected: str
    pmi_margin: float | None
    ref_margin: float


@dataclass(frozen=True)
class TrainedPairs:
    """The pairs of the last round of a training: the folder of all, its stage's key, how many they are, and the first
    `MOST_SHOWN`."""

    folder: Path
    key: str
    count: int
    shown: Sequence[ShownPair]


def trained_pairs(run: Run) -> TrainedPairs | None:
    """The pairs of a run; None where it has not been trained on any."""
    scored = run.finished.get("scored_pairs")
    if scored is None:
        return None
    examples = ById(run.finished["examples"].artefact.table("train", Example))
    rows = scored.artefact.table("pairs", ScoredPair)
    shown = []
    for pair in itertools.islice(rows, MOST_SHOWN):
        of = examples[pair.example]
        margin = pair.ref_chosen_log_prob - pair.ref_rejected_log_prob
        said = pair.strategy, pair.chosen, pair.rejected, pair.pmi_margin, margin
        shown.append(ShownPair(of.id, of.user, of.context, of.prompt, *said))
    return TrainedPairs(scored.artefact.path, scored.stage.key, len(rows), shown)
