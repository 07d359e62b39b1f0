"""The stages that score: pairs under the base model for training, responses under K conditions for the evaluation."""

import dataclasses
from array import array
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path

from mipo_exp.config.groups import ScoringConfig
from mipo_exp.errors import DataError
from mipo_exp.execution.progress import Progress
from mipo_exp.execution.shards import Shard, Shards, compute_shards
from mipo_exp.models.runtime import Runtime
from mipo_exp.pairing.negatives import contrast_conditions, contrast_prompts
from mipo_exp.scoring.batches import Scorer, plan_batches
from mipo_exp.scoring.log_probs import Scorable
from mipo_exp.store.artefacts import Workspace
from mipo_exp.store.records import Condition, Example, Pair, Response, ScoredPair, Scores
from mipo_exp.store.tables import Mapped

# Tokens of the items whose batches are planned at once, the smallest number that is not less. What begins alike shares
# its computation within such a window, and of more items than it takes only one window is in memory.
WINDOW_TOKENS = 2**22


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

    per_pair = 2 if min_pmi_margin is None else 4
    row = lru_cache(maxsize=1)(pairs.__getitem__)  # its items are asked for one after the other

    def item(number: int) -> Scorable:
        pair, which = row(number // per_pair), number % per_pair
        prompt = pair.prompt_ids if which < 2 else pair.negative_ids
        return Scorable(tuple(prompt), tuple(pair.rejected_ids if which % 2 else pair.chosen_ids))

    items = Mapped(item, range(per_pair * len(pairs)))
    scores = score_items(work, runtime, scoring, items, "scoring pairs")

    def scored() -> Iterator[ScoredPair]:
        for number, pair in enumerate(pairs):
            chosen, rejected, *negative = scores[per_pair * number : per_pair * (number + 1)]
            margin = (chosen - negative[0]) - (rejected - negative[1]) if negative else None
            if margin is None or min_pmi_margin is None or margin >= min_pmi_margin:
                yield ScoredPair(
                    **dataclasses.asdict(pair),
                    ref_chosen_log_prob=chosen,
                    ref_rejected_log_prob=rejected,
                    pmi_margin=margin,
                )

    trained = work.write_table("pairs", scored(), ScoredPair)
    if not trained:
        raise DataError(f"pairs.min_pmi_margin={min_pmi_margin} leaves none of the {len(pairs)} pairs; lower it")
    work.write_json("counts", {"dropped_pmi_margin": len(pairs) - trained, "trained_pairs": trained})


def score_conditions(
    work: Workspace, runtime: Runtime, scoring: ScoringConfig, k: int, seed: int, prompts: bool
) -> None:
    """Every evaluation response under K conditions and its own marginal; with `prompts` and contexts, under K prompts
    with its own context, too.

    The scoring model is the base model, or the policy where there is a `scorer` input."""
    examples = list(work.inputs["examples"].table("eval", Example))
    responses = work.inputs["responses"].table("responses", Response)
    rows = scored_conditions(examples, k, seed, prompts)
    each = len(rows[0])  # as many for every example

    def item(number: int) -> Scorable:
        of, which = divmod(number, each)
        return Scorable(tuple(runtime.prompt_ids(rows[of][which])), tuple(responses[of].token_ids))

    items = Mapped(item, range(each * len(examples)))
    scores = score_items(work, runtime, scoring, items, "scoring responses under K conditions")

    def scored() -> Iterator[Scores]:
        for number, response in enumerate(responses):
            found = list(scores[number * each : (number + 1) * each])
            under_prompts = found[k + 1 :] or None
            yield Scores(response.id, len(response.token_ids), found[:k], found[k], under_prompts)

    work.write_table("scores", scored(), Scores)


def scored_conditions(examples: Sequence[Example], k: int, seed: int, prompts: bool) -> list[list[Condition]]:
    """What the response to each example is scored under: K conditions, its own marginal, and with `prompts` its
    context with K prompts. The first of the conditions and the first of the prompts are equal, and scored once."""
    contrasts = contrast_conditions(examples, k, seed)
    others = contrast_prompts(examples, k, seed) if prompts else [[] for _ in examples]
    return [
        [*row, own_marginal(example), *more] for example, row, more in zip(examples, contrasts, others, strict=True)
    ]


def own_marginal(example: Example) -> Condition:
    """The condition of p(y | x) for a prompt with context, of p(y) for one without."""
    return Condition(None, example.prompt if example.context is not None else "")


def _windows(items: Iterable[Scorable]) -> Iterator[list[Scorable]]:
    """The items in runs of `WINDOW_TOKENS`."""
    window: list[Scorable] = []
    used = 0
    for item in items:
        window.append(item)
        used += len(item.prompt_ids) + len(item.response_ids)
        if used >= WINDOW_TOKENS:
            yield window
            window, used = [], 0
    if window:
        yield window


def score_items(
    work: Workspace, runtime: Runtime, scoring: ScoringConfig, items: Sequence[Scorable], label: str
) -> Sequence[float]:
    """Summed log-probabilities (nats) of all items, in their order; items that are equal and in one window are scored
    once."""
    adapter = work.inputs["scorer"].path / "adapter" if "scorer" in work.inputs else None
    share = "prefix_sharing" in runtime.kernels
    # For each item the index of the first that is equal to it, and the length of its response.
    first_equal, tokens = array("q"), array("i")
    batches: list[list[int]] = []
    window: list[Scorable] = []
    computed = 0
    for window in _windows(items):
        indices: dict[Scorable, int] = {}
        for number, item in enumerate(window, len(first_equal)):
            first_equal.append(indices.setdefault(item, number))
            tokens.append(len(item.response_ids))
        numbers = list(indices.values())
        planned, counts = plan_batches(list(indices), scoring.batch_tokens, share)
        computed += sum(counts)
        batches += [[numbers[i] for i in batch] for batch in planned]
    if len(window) == len(items):
        items = window  # there is one window: nothing is made twice
    work.count(computed, runtime.device_name)
    opened = partial(opened_scorer, scoring=scoring)
    found = array("d", bytes(8 * len(items)))

    def shard(number: int) -> Shard[Scorer, _BatchScores]:
        batch = batches[number]
        return partial(score_shard, numbers=batch, items=[items[i] for i in batch])

    def fits(number: int, rows: Sequence[_BatchScores]) -> bool:  # not if another version planned other batches
        return [row.item for row in rows] == batches[number]

    shards = Shards(runtime, adapter, opened, _BatchScores, len(batches), shard, fits)
    with Progress(label, sum(map(len, batches)), "response tokens") as progress:
        for rows, reused in compute_shards(work, shards):
            for row in rows:
                found[row.item] = row.log_prob
            progress.advance(len(rows), 0 if reused else sum(tokens[row.item] for row in rows))
    return array("d", (found[i] for i in first_equal))


@contextmanager
def opened_scorer(runtime: Runtime, adapter: Path | None, scoring: ScoringConfig) -> Iterator[Scorer]:
    """The sums of a batch's log-probabilities, from the base model or the policy."""
    yield Scorer(runtime.model(adapter), scoring, "prefix_sharing" in runtime.kernels)


def score_shard(
    runtime: Runtime, score: Scorer, numbers: Sequence[int], items: Sequence[Scorable]
) -> list[_BatchScores]:
    """The scores of one batch; `numbers` are the indices of its items among all."""
    return [_BatchScores(i, value) for i, value in zip(numbers, score(items), strict=True)]
