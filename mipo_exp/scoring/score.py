"""The stages that score: pairs under the base model for training, responses under K conditions for the evaluation."""

import dataclasses
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from mipo_exp.config import ScoringConfig
from mipo_exp.errors import DataError
from mipo_exp.negatives import contrast_conditions
from mipo_exp.progress import Progress
from mipo_exp.records import Condition, Example, Pair, Response, ScoredPair, Scores
from mipo_exp.runtime import Runtime
from mipo_exp.scoring.batches import Scorer, plan_batches
from mipo_exp.scoring.log_probs import Scorable
from mipo_exp.shards import Shard, compute_shards
from mipo_exp.store import Workspace


@dataclass(frozen=True)
class _BatchScores:
    """A shard: positions of the scored items and their summed log-probabilities."""

    item: int
    log_prob: float


def score_pairs(work: Workspace, runtime: Runtime, scoring: ScoringConfig, min_pmi_margin: float | None) -> None:
    """Both sides of every pair under its true condition, which is DPO's reference.

    With `min_pmi_margin` they are scored under the negative condition as well, and pairs whose margin
    pmi(y⁺) − pmi(y⁻), in nats, is smaller are dropped. For `random_context` and `random_prompt` this is against the
    negative condition and not against the marginal.

    Raises:
        DataError: no pair is left.
    """
    pairs = work.inputs["pairs"].table("pairs", Pair)
    prompts = ["prompt_ids"] if min_pmi_margin is None else ["prompt_ids", "negative_ids"]
    items = [
        Scorable(tuple(getattr(pair, prompt)), tuple(side))
        for prompt in prompts
        for pair in pairs
        for side in (pair.chosen_ids, pair.rejected_ids)
    ]
    scores = score_items(work, runtime, scoring, items, "scoring pairs")
    scored = []
    for number, pair in enumerate(pairs):
        chosen, rejected = scores[2 * number : 2 * number + 2]
        margin = None
        if min_pmi_margin is not None:
            chosen_negative, rejected_negative = scores[2 * (len(pairs) + number) :][:2]
            margin = (chosen - chosen_negative) - (rejected - rejected_negative)
        if margin is None or min_pmi_margin is None or margin >= min_pmi_margin:
            scored.append(
                ScoredPair(
                    **dataclasses.asdict(pair),
                    ref_chosen_log_prob=chosen,
                    ref_rejected_log_prob=rejected,
                    pmi_margin=margin,
                )
            )
    if not scored:
        raise DataError(f"pairs.min_pmi_margin={min_pmi_margin} leaves none of the {len(pairs)} pairs; lower it")
    work.write_table("pairs", scored, ScoredPair)
    work.write_json("counts", {"dropped_pmi_margin": len(pairs) - len(scored), "trained_pairs": len(scored)})


def score_conditions(work: Workspace, runtime: Runtime, scoring: ScoringConfig, k: int, seed: int) -> None:
    """Every evaluation response under K conditions and its own marginal.

    The scoring model is the base model, or the policy where there is a `scorer` input.
    """
    examples = work.inputs["examples"].table("eval", Example)
    responses = work.inputs["responses"].table("responses", Response)
    contrasts = contrast_conditions(examples, k, seed)
    items = []
    for example, response, conditions in zip(examples, responses, contrasts, strict=True):
        for condition in (*conditions, own_marginal(example)):
            items.append(Scorable(tuple(runtime.prompt_ids(condition)), tuple(response.token_ids)))
    scores = score_items(work, runtime, scoring, items, "scoring responses under K conditions")
    rows = []
    for number, response in enumerate(responses):
        *under_conditions, marginal = scores[number * (k + 1) : (number + 1) * (k + 1)]
        rows.append(Scores(response.id, len(response.token_ids), under_conditions, marginal))
    work.write_table("scores", rows, Scores)


def own_marginal(example: Example) -> Condition:
    """The condition of p(y | x) for a prompt with context, of p(y) for one without."""
    return Condition(None, example.prompt if example.context is not None else "")


def score_items(
    work: Workspace, runtime: Runtime, scoring: ScoringConfig, items: Sequence[Scorable], label: str
) -> list[float]:
    """Summed log-probabilities (nats) of all items, in their order; equal items are scored once."""
    adapter = work.inputs["scorer"].path / "adapter" if "scorer" in work.inputs else None
    different = list(dict.fromkeys(items))
    batches = plan_batches(different, scoring.batch_tokens, scoring.share_prefix)
    opened = partial(opened_scorer, scoring=scoring)
    found: dict[Scorable, float] = {}

    def shard(number: int) -> Shard[Scorer, _BatchScores]:
        batch = batches[number]
        return partial(score_shard, numbers=batch, items=[different[i] for i in batch])

    def fits(number: int, rows: list[_BatchScores]) -> bool:  # not if another version planned other batches
        return [row.item for row in rows] == batches[number]

    with Progress(label, len(different), "response tokens") as progress:
        for rows, reused in compute_shards(work, runtime, adapter, opened, _BatchScores, len(batches), shard, fits):
            found.update({different[row.item]: row.log_prob for row in rows})
            progress.advance(len(rows), 0 if reused else sum(len(different[row.item].response_ids) for row in rows))
    work.finish_shards()
    return [found[item] for item in items]


@contextmanager
def opened_scorer(runtime: Runtime, adapter: Path | None, scoring: ScoringConfig) -> Iterator[Scorer]:
    """The sums of a batch's log-probabilities, from the base model or the policy."""

    yield Scorer(runtime.model(adapter), scoring)


def score_shard(
    runtime: Runtime, score: Scorer, numbers: Sequence[int], items: Sequence[Scorable]
) -> list[_BatchScores]:
    """The scores of one batch; `numbers` are the places of its items among all."""
    return [_BatchScores(i, value) for i, value in zip(numbers, score(items), strict=True)]
