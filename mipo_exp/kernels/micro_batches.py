"""Micro batches: a batch in parts that fit into memory, with the gradient, loss and logged metrics of the whole.

A loss that is a mean over pairs is a weighted sum of its means over parts, so the parts go through the model one after
the other and their gradients add up. Only the activations of one part stand in memory.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

# From the rows of a batch to the padded tokens that they take together.
Padded = Callable[[Sequence[int]], int]
# From the number of rows that this process would take in a part to the smallest of all processes.
Agree = Callable[[int], int]


@dataclass(frozen=True)
class Part:
    """Some rows of a batch.

    Attributes:
        inputs: as the trainer's `compute_loss` takes them.
        share: of the batch's loss; those of all parts add up to 1.
    """

    inputs: Mapping[str, Any]
    share: float


def split(rows: int, padded: Padded, budget: int, agree: Agree | None = None) -> list[list[int]]:
    """The rows 0 … rows − 1 in parts of at most `budget` padded tokens, similar sizes together, the largest first.

    Args:
        padded: what rows take together; not less with one more.
        budget: a row that takes more is a part by itself.
        agree: where several processes must make parts of the same sizes.
    """
    order = sorted(range(rows), key=lambda row: -padded([row]))

    def chunks(size: int) -> list[list[int]]:
        return [order[start : start + size] for start in range(0, rows, size)]

    if agree is not None:
        fit = (size for size in range(rows, 1, -1) if all(padded(chunk) <= budget for chunk in chunks(size)))
        return chunks(agree(next(fit, 1)))
    parts: list[list[int]] = []
    for row in order:
        if parts and padded([*parts[-1], row]) <= budget:
            parts[-1].append(row)
        else:
            parts.append([row])
    return parts


class MicroBatches:
    """Mixed into a Trainer before its own class: `training_step` goes through the parts of a batch."""

    # The budget; None leaves every batch whole.
    batch_tokens: int | None = None
    shares_prompts = False  # whether the model computes a prompt once for all responses to it
    _share = 1.0

    @property
    def splits(self: Any) -> bool:
        """Whether batches are computed in parts: DeepSpeed would take a step at every backward pass."""
        return self.batch_tokens is not None and self.accelerator.distributed_type != "DEEPSPEED"

    def parts_of(self, inputs: Any, budget: int, agree: Agree | None) -> list[Part]:
        """The parts of a batch; `agree` as `split` takes it."""
        raise NotImplementedError

    def finish_batch(self, parts: Sequence[Part]) -> None:
        """Called after the last part: make of what the parts logged what the batch would have logged."""
        raise NotImplementedError

    def training_step(self: Any, model: Any, inputs: Any, num_items_in_batch: Any = None) -> "torch.Tensor":
        """The loss of the batch, as Trainer returns it, after the backward passes of its parts."""
        inputs = self._prepare_inputs(inputs)
        parts = self._split_alike(inputs)
        losses = []
        for number, part in enumerate(parts):
            last = number == len(parts) - 1
            self._share = part.share
            try:
                with nullcontext() if last else self.accelerator.no_sync(model):  # ranks exchange gradients once
                    step = super().training_step  # type: ignore[misc]
                    losses.append(step(model, part.inputs, num_items_in_batch))
            finally:
                self._share = 1.0
        self.finish_batch(parts)
        return sum(losses[1:], losses[0])

    def compute_loss(self: Any, *args: Any, **kwargs: Any) -> Any:
        """The loss of a part, by its share."""
        loss = super().compute_loss(*args, **kwargs)  # type: ignore[misc]
        return loss if self._share == 1.0 else loss * self._share

    def _split_alike(self: Any, inputs: Any) -> list[Part]:
        """Parts of the same sizes on every process: they gather what TRL logs of each pair of a part."""
        if not self.splits:
            return [Part(inputs, 1.0)]
        agree = self._smallest if self.accelerator.num_processes > 1 else None
        parts: list[Part] = self.parts_of(inputs, self.batch_tokens, agree)
        return parts

    def _smallest(self: Any, size: int) -> int:
        import torch

        return int(self.accelerator.gather(torch.tensor([size], device=self.accelerator.device)).min())


def split_pairs(
    inputs: "Mapping[str, torch.Tensor]", shared: bool, budget: int, agree: Agree | None = None
) -> list[Part]:
    """Parts of TRL's DPO batch: (2B, T) ids and masks, right-padded, chosen sides first, and (B,) reference values.

    Args:
        shared: whether a pair's prompt stands in memory once.
        budget: padded tokens of a part.
    """
    import torch

    whole = inputs["attention_mask"].sum(1)
    sides = inputs["completion_mask"].sum(1)
    pairs = len(whole) // 2
    lengths = torch.stack([whole - sides, sides, whole]).cpu().view(3, 2, pairs)
    prompts, chosen, rejected = lengths[0].amax(0), *lengths[1]
    longest = lengths[2].amax(0)

    def padded(rows: Sequence[int]) -> int:
        at = list(rows)
        if not shared:
            return 2 * len(at) * int(longest[at].max())
        return len(at) * int(prompts[at].max() + chosen[at].max() + rejected[at].max())

    parts = []
    for rows in split(pairs, padded, budget, agree):
        both = torch.tensor([*rows, *(row + pairs for row in rows)], device=whole.device)
        width = int(longest[rows].max())
        part = {
            name: values[both, :width] if values.dim() == 2 else values[both[: len(rows)]]
            for name, values in inputs.items()
        }
        parts.append(Part(part, len(rows) / pairs))
    return parts


def pair_counts(parts: Sequence[Part]) -> "torch.Tensor":
    """(parts, 3): the pairs of each, and its chosen and rejected response tokens that are predicted."""
    import torch

    counts = []
    for part in parts:
        tokens = part.inputs["completion_mask"][:, 1:].sum(1)
        chosen, rejected = tokens.view(2, -1)
        counts.append(torch.stack([chosen.new_tensor(len(chosen)), chosen.sum(), rejected.sum()]))
    return torch.stack(counts)


def merge_pair_metrics(metrics: Mapping[str, list[float]], counts: "torch.Tensor") -> None:
    """Put one value, that of the whole batch, in place of those that TRL appended for its parts.

    Args:
        metrics: by name; each is a mean over pairs, or over tokens of the responses.
        counts: as `pair_counts` gives them, of all ranks together.
    """
    pairs, chosen, rejected = counts.double().cpu().T
    over = {
        "entropy": chosen + rejected,
        "logits/chosen": chosen,
        "logits/rejected": rejected,
        "mean_token_accuracy": chosen,
    }
    for name, values in metrics.items():
        if name == "num_tokens":  # a running total, which TRL sets and does not append
            continue
        weights = over.get(name, pairs)
        of_parts = weights.new_tensor(values[-len(counts) :])
        values[-len(counts) :] = [float((weights * of_parts).sum() / weights.sum())]
