"""Contrastive pairs: putting chosen and rejected responses together, and dropping what cannot teach."""

from collections import Counter

from mipo_exp.config import PairsConfig
from mipo_exp.errors import DataError
from mipo_exp.records import Example, Negative, Pair, Response, by_id
from mipo_exp.runtime import Runtime
from mipo_exp.store import Workspace


def build_pairs(work: Workspace, runtime: Runtime, pairs: PairsConfig) -> None:
    """Pair each example's chosen response with each of its rejected ones, under the example's true condition.

    Raises:
        DataError: no pair is left.
    """
    examples = by_id(work.inputs["examples"].table("train", Example))
    chosen = by_id(work.inputs["chosen"].table("responses", Response))
    rejected = by_id(work.inputs["rejected"].table("responses", Response))
    counts: Counter[str] = Counter()
    kept = []
    seen: set[tuple[str, tuple[int, ...]]] = set()
    for negative in work.inputs["rejected"].table("negatives", Negative):
        example = examples[negative.example]
        good, bad = chosen[example.id], rejected[negative.id]
        counts["cut_off_chosen"] += not good.finished
        counts["cut_off_rejected"] += not bad.finished
        side = (example.id, tuple(bad.token_ids))
        reason = "repeated" if side in seen else why_dropped(good, bad, pairs)
        seen.add(side)
        if reason is not None:
            counts[f"dropped_{reason}"] += 1
            continue
        counts["reused_rejected"] += negative.source is not None
        kept.append(
            Pair(
                example=example.id,
                negative=negative.index,
                strategy=negative.strategy,
                reused=negative.source is not None,
                prompt_ids=runtime.prompt_ids(example.condition),
                negative_ids=runtime.prompt_ids(negative.condition),
                chosen_ids=good.token_ids,
                rejected_ids=bad.token_ids,
                chosen=good.text,
                rejected=bad.text,
            )
        )
    counts["pairs"] = len(kept)
    if not kept:
        raise DataError(f"no pair is left after the filters of the pairs group ({_listed(counts)}); loosen them")
    work.write_table("pairs", kept, Pair)
    work.write_json("counts", dict(counts))


def why_dropped(chosen: Response, rejected: Response, config: PairsConfig) -> str | None:
    """The reason why a pair cannot be trained on, None where it can."""
    if not chosen.text or not rejected.text:
        return "empty"
    if chosen.text == rejected.text:
        return "identical"
    if not config.keep_cut_off and not (chosen.finished and rejected.finished):
        return "cut_off"
    shorter, longer = sorted((len(chosen.token_ids), len(rejected.token_ids)))
    if config.max_length_ratio is not None and longer > config.max_length_ratio * shorter:
        return "length_ratio"
    return None


def _listed(counts: Counter[str]) -> str:
    return ", ".join(f"{name}={count}" for name, count in sorted(counts.items()) if count)
