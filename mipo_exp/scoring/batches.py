"""What is scored together: batches by the tokens that they compute, halved where memory runs out."""

import itertools
import logging
from collections.abc import Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING

from mipo_exp.config.groups import ScoringConfig
from mipo_exp.errors import out_of_memory
from mipo_exp.kernels import prefix_tree
from mipo_exp.models.memory import free_memory, memory_for
from mipo_exp.models.rotation import rotation_limit
from mipo_exp.scoring.log_probs import Scorable, can_share, token_log_probs

if TYPE_CHECKING:
    from transformers import PreTrainedModel

log = logging.getLogger(__name__)

# A CPU gains nothing from larger batches, and loses the caches' help and time in fetching memory from the system:
# 8,192 tokens take a tenth longer than two times 4,096 with the default model.
CPU_BATCH_TOKENS = 4096
WAY_OUT = "shorten the prompts, or use a smaller model, model.dtype or another device"


def pass_tokens(scoring: ScoringConfig, device: str) -> int:
    """The most tokens of one forward pass on a device (`cpu` or `cuda[:N]`); a larger batch is computed in parts."""
    return min(scoring.batch_tokens, CPU_BATCH_TOKENS) if device == "cpu" else scoring.batch_tokens


def plan_batches(items: Sequence[Scorable], batch_tokens: int, share: bool) -> tuple[list[list[int]], list[int]]:
    """Indices of `items` in batches that compute at most `batch_tokens` tokens, or have one item, and how many tokens
    each of them computes at most, padding included.

    A pure function of its arguments: an interrupted scoring finds the same batches.

    Args:
        items: in any order.
        batch_tokens: with `share` the tokens of the batch's prefix tree, else those of its rows, padded.
        share: puts what begins alike next to each other, else what is of similar length.
    """
    sequences = [item.input_ids for item in items]
    if share:
        return prefix_tree.plan_trees(sequences, batch_tokens)
    order = sorted(range(len(items)), key=lambda i: (len(sequences[i]), i))
    batches: list[list[int]] = []
    for index in order:
        if batches and (len(batches[-1]) + 1) * len(sequences[index]) <= batch_tokens:
            batches[-1].append(index)
        else:
            batches.append([index])
    return batches, [len(batch) * len(sequences[batch[-1]]) for batch in batches]  # the last is the longest


class Scorer:
    """Scores batches with one model, with smaller ones from the first time on that memory runs out.

    Args:
        model: as `token_log_probs` takes it.
        share: whether what sequences begin with in common is computed once, where the model can.
    """

    def __init__(self, model: "PreTrainedModel", scoring: ScoringConfig, share: bool) -> None:
        self.model, self.share = model, share
        self.budget = pass_tokens(scoring, model.device.type)

    def __call__(self, items: Sequence[Scorable]) -> list[float]:
        """log p(y | prompt) of every item, summed over its tokens, in their order. Raises `ModelError`: there is no
        memory for a single item."""
        limit = rotation_limit(self.model.config.get_text_config())
        longer = [limit is not None and len(item.input_ids) > limit for item in items]
        found: dict[int, float] = {}
        for alike in (False, True):  # in passes of their own: a response's score must not depend on its neighbours
            part = [i for i in range(len(items)) if longer[i] == alike]
            found.update(zip(part, self._score([items[i] for i in part]), strict=True))
        return [found[i] for i in range(len(items))]

    def _score(self, items: Sequence[Scorable]) -> list[float]:
        share = self.share and bool(items) and can_share(self.model, items)
        found: dict[int, float] = {}
        waiting, _ = plan_batches(items, self.budget, share)
        while waiting:
            batch = waiting[0]
            rows = self._try([items[i] for i in batch], share)
            if rows is not None:
                found.update(zip(batch, rows, strict=True))
                del waiting[0]
                continue
            left = sorted(itertools.chain(*waiting))
            before = self.budget
            while waiting[0] == batch:
                self.budget //= 2
                smaller, _ = plan_batches([items[i] for i in left], self.budget, share)
                waiting = [[left[i] for i in part] for part in smaller]
            log.warning(
                "out of memory while scoring %d tokens at once; continuing with at most %d", before, self.budget
            )
        return [found[i] for i in range(len(items))]

    def _try(self, items: Sequence[Scorable], share: bool) -> list[float] | None:
        """The sums of one batch, None where memory has run out."""
        prompt, response = len(items[0].prompt_ids), len(items[0].response_ids)
        single = f"to score a single response of {response} tokens behind its prompt of {prompt}"
        try:
            with memory_for(single, WAY_OUT) if len(items) == 1 else nullcontext():
                return [float(row.double().sum()) for row in token_log_probs(self.model, items, share)]
        except (RuntimeError, MemoryError) as error:
            if not out_of_memory(error):
                raise
        # Only here, behind the error, does nothing hold the batch's tensors any more.
        free_memory(self.model.device.type)
        return None


def summed_log_probs(
    model: "PreTrainedModel", items: Sequence[Scorable], scoring: ScoringConfig, share: bool
) -> list[float]:
    """As `Scorer`; equal items are scored once."""
    different = list(dict.fromkeys(items))
    found = dict(zip(different, Scorer(model, scoring, share)(different), strict=True))
    return [found[item] for item in items]
