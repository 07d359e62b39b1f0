"""Contrastive pairs: putting chosen and rejected responses together, and dropping what cannot teach."""

import itertools
from collections import Counter
from collections.abc import Iterator

import numpy as np

from mipo_exp.config.groups import PairsConfig
from mipo_exp.errors import DataError
from mipo_exp.models.runtime import Runtime
from mipo_exp.store.artefacts import Workspace
from mipo_exp.store.records import Example, Negative, Pair, Response
from mipo_exp.store.tables import ById


def build_pairs(work: Workspace, runtime: Runtime, pairs: PairsConfig, swaps: float = 0.0, seed: int = 0) -> None:
    """Pair each example's chosen response with each of its rejected ones, under the example's true condition; with the
    probability `swaps` a pair's sides are exchanged, as `seed` decides. Raises `DataError`: no pair is left."""
    examples = ById(work.inputs["examples"].table("train", Example))
    chosen = ById(work.inputs["chosen"].table("responses", Response))
    rejected = ById(work.inputs["rejected"].table("responses", Response))
    negatives = work.inputs["rejected"].table("negatives", Negative)
    counts: Counter[str] = Counter()
    rng = np.random.default_rng(seed)

    def kept() -> Iterator[Pair]:
        # Those of an example stand together in every strategy.
        for name, group in itertools.groupby(negatives, lambda negative: negative.example):
            example, good = examples[name], chosen[name]
            prompt_ids = runtime.prompt_ids(example.condition)
            seen: list[list[int]] = []
            for negative in group:
                bad = rejected[negative.id]
                counts["cut_off_chosen"] += not good.finished
                counts["cut_off_rejected"] += not bad.finished
                reason = "repeated" if bad.token_ids in seen else why_dropped(good, bad, pairs)
                seen.append(bad.token_ids)
                if reason is not None:
                    counts[f"dropped_{reason}"] += 1
                    continue
                counts["pairs"] += 1
                counts["reused_rejected"] += negative.source is not None
                sides = (good, bad)
                if swaps and rng.random() < swaps:
                    counts["swapped"] += 1
                    sides = (bad, good)
                yield Pair(
                    example=name,
                    negative=negative.index,
                    strategy=negative.strategy,
                    reused=negative.source is not None,
                    prompt_ids=prompt_ids,
                    negative_ids=runtime.prompt_ids(negative.condition),
                    chosen_ids=sides[0].token_ids,
                    rejected_ids=sides[1].token_ids,
                    chosen=sides[0].text,
                    rejected=sides[1].text,
                )

    if not work.write_table("pairs", kept(), Pair):
        why = ", ".join(f"{name}={count}" for name, count in sorted(counts.items()) if count)
        raise DataError(f"no pair is left after the filters of the pairs group ({why}); loosen them")
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
