"""Training on groups, one prompt with any number of responses, for the methods whose loss TRL does not have.

Transformers' Trainer with its schedules, checkpoints and logs, around log-probabilities from one sequence a prompt
(`layout`) and a loss that is a pure function of them (`losses`).
"""

import logging
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mipo_exp.errors import ConfigError, DataError
from mipo_exp.records import Example, Response, by_id
from mipo_exp.training.job import Job, check_trainable, lora_config, training_arguments, wrong_targets
from mipo_exp.training.layout import can_share, lay_out, rounding, run_apart, run_layout

if TYPE_CHECKING:
    import torch
    from transformers import Trainer

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Group:
    """A prompt and its responses as token ids, the chosen one first.

    `ref_log_probs` (nats, summed over tokens) are theirs under the base model, where they are stored.
    """

    prompt_ids: list[int]
    responses: list[list[int]]
    ref_log_probs: list[float] | None = None


@dataclass(frozen=True)
class Scored:
    """A batch as a loss sees it: n prompts and m responses to each, all of shape (n, m).

    Attributes:
        log_probs: log π_θ(y|c,x), summed over tokens, in nats; with a gradient.
        ref_log_probs: the same under π_ref; None for a loss without a reference.
        tokens: the length of each response; 0 where a group has fewer than m.
        contrasts: whether a response stands for its own prompt or is a contrast to it; false where there is none.
    """

    log_probs: "torch.Tensor"
    ref_log_probs: "torch.Tensor | None"
    tokens: "torch.Tensor"
    contrasts: "torch.Tensor"

    @property
    def log_ratios(self) -> "torch.Tensor":
        """log π_θ − log π_ref."""
        if self.ref_log_probs is None:
            raise ValueError("this batch was scored without a reference")
        return self.log_probs - self.ref_log_probs


def told_apart(scores: "torch.Tensor", contrasts: "torch.Tensor") -> float:
    """How often the own response, on the diagonal of (n, n) scores, is the best of those that are contrasts."""
    best = scores.detach().masked_fill(~contrasts, float("-inf")).argmax(dim=1)
    return float((best == best.new_tensor(range(len(best)))).float().mean())


# From a scored batch to the loss and what is logged beside it.
Loss = Callable[[Scored], "tuple[torch.Tensor, Mapping[str, float]]"]


def chosen_groups(job: Job) -> list[Group]:
    """One group for each chosen response, for methods without rejected ones; empty responses are left out.

    Raises:
        DataError: none is left.
    """
    keep_cut_off = job.pairs is None or job.pairs.keep_cut_off
    examples = by_id(job.work.inputs["examples"].table("train", Example))
    groups = [
        Group(job.runtime.prompt_ids(examples[response.id].condition), [response.token_ids])
        for response in job.work.inputs["chosen"].table("responses", Response)
        if response.text and (response.finished or keep_cut_off)
    ]
    if not groups:
        raise DataError("no chosen response is left to train on: all are empty, or cut off (pairs.keep_cut_off=false)")
    return groups


def build_trainer(
    job: Job, groups: Sequence[Group], loss: Loss, *, reference: bool, across_batch: bool = False
) -> "Trainer":
    """A trainer with a new adapter, checked and ready to train.

    Args:
        job: what is trained.
        groups: the data.
        loss: the method.
        reference: whether the loss needs π_ref; it is the stored one where the groups have it, else the model with
            its adapter off.
        across_batch: every response of a batch is scored under every prompt of it.

    Raises:
        ConfigError: nothing trainable, or stored references that are not what this model computes.
        DataError: there are fewer groups than a batch across which is contrasted.
    """
    import peft
    from transformers import PrinterCallback, Trainer
    from trl.trainer.utils import add_fused_lm_head, disable_dropout_in_model

    runtime = job.runtime
    base = runtime.fresh_model()
    disable_dropout_in_model(base)
    add_fused_lm_head(base)
    arguments = training_arguments(job.method, job.trainer, job.seed, job.output, runtime.device, runtime.dtype)
    arguments.dataloader_drop_last = across_batch
    if across_batch and len(groups) < arguments.per_device_train_batch_size:
        raise DataError(
            f"method={job.method.name} contrasts the {arguments.per_device_train_batch_size} responses of a batch, and "
            f"there are {len(groups)}; lower trainer.per_device_train_batch_size or raise task.train_examples"
        )
    try:
        model: Any = peft.get_peft_model(base, lora_config(job.lora))
    except ValueError as error:
        raise wrong_targets(job.lora, error) from error
    check_trainable(model, job.lora)
    share = job.trainer.share_prompt and _can_share(base, groups, arguments.per_device_train_batch_size, across_batch)

    class GroupTrainer(Trainer):
        """Trains with `loss`, and logs what it gives beside the loss."""

        seen: dict[str, list[float]]

        def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, **_: Any) -> Any:
            batch = score_groups(model, inputs["groups"], reference, across_batch, share)
            value, metrics = loss(batch)
            for name, number in metrics.items():
                self.seen[name].append(number)
            return (value, None) if return_outputs else value

        def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
            means = {name: sum(values) / len(values) for name, values in self.seen.items()}
            self.seen.clear()
            super().log({**logs, **means} if "loss" in logs else logs, *args, **kwargs)

    loop = GroupTrainer(
        model=model,
        args=arguments,
        train_dataset=list(groups),
        data_collator=lambda rows: {"groups": rows},
        callbacks=[job.callback],
    )
    loop.seen = defaultdict(list)
    loop.remove_callback(PrinterCallback)
    if groups[0].ref_log_probs is not None and reference:
        check_stored_references(model, groups[: arguments.per_device_train_batch_size], share)
    return loop


def score_groups(
    model: Any, groups: Sequence[Group], reference: bool, across_batch: bool = False, share: bool = True
) -> Scored:
    """The log-probabilities of a batch.

    Args:
        model: the PEFT model, or a wrapper around it whose call is its forward.
        groups: the batch.
        reference: whether those of π_ref are wanted too.
        across_batch: score every group's first response under every prompt; responses to equal prompts are no
            contrasts to each other.
        share: compute each prompt once.
    """
    import torch

    device = next(model.parameters()).device
    prompts = [torch.tensor(group.prompt_ids, device=device) for group in groups]
    if across_batch:
        lists = [[group.responses[0] for group in groups]] * len(groups)
    else:
        most = max(len(group.responses) for group in groups)
        lists = [group.responses + [[]] * (most - len(group.responses)) for group in groups]
    responses = [[torch.tensor(ids, dtype=torch.long, device=device) for ids in row] for row in lists]
    tokens = torch.tensor([[len(ids) for ids in row] for row in lists], device=device)
    contrasts = tokens > 0
    if across_batch:
        equal = torch.tensor([[a.prompt_ids == b.prompt_ids for b in groups] for a in groups], device=device)
        contrasts = ~equal | torch.eye(len(groups), dtype=torch.bool, device=device)
    log_probs = _log_probs(model, prompts, responses, share)
    ref_log_probs = None
    if reference and groups[0].ref_log_probs is not None and not across_batch:
        stored = [(group.ref_log_probs or []) + [0.0] * (tokens.shape[1] - len(group.responses)) for group in groups]
        ref_log_probs = torch.tensor(stored, dtype=log_probs.dtype, device=device)
    elif reference:
        with torch.no_grad(), _unwrapped(model).disable_adapter():
            ref_log_probs = _log_probs(model, prompts, responses, share)
    return Scored(log_probs, ref_log_probs, tokens, contrasts)


def _log_probs(
    model: Any, prompts: "Sequence[torch.Tensor]", responses: "Sequence[Sequence[torch.Tensor]]", share: bool
) -> "torch.Tensor":
    """Summed log-probabilities in float32, shape (n, m)."""
    import torch

    count, places = len(prompts), len(responses[0])
    if not share:
        summed = run_apart(model, prompts, responses).log_probs.float().sum(1)
        return torch.as_tensor(summed).view(places, count).T
    layout = lay_out(prompts, responses)
    tokens = run_layout(_unwrapped(model).get_base_model(), model, layout).log_probs[0].float()
    zeros = tokens.new_zeros(places * count)
    return zeros.index_add(0, layout.places * count + layout.rows, tokens).view(places, count).T


def _unwrapped(model: Any) -> Any:
    """The PEFT model inside a wrapper for several processes, or the model itself."""
    return model.module if hasattr(model, "module") else model


def check_stored_references(model: Any, groups: Sequence[Group], share: bool) -> None:
    """Compare stored reference log-probabilities with what this model computes before the first step.

    Raises:
        ConfigError: they differ by more than rounding.
    """
    import torch

    model.eval()
    with torch.no_grad():
        scored = score_groups(model, groups, reference=True, share=share)
    model.train()
    gap = float(scored.log_ratios.abs().max())
    longest = int(scored.tokens.max())
    if not gap <= rounding(next(model.parameters()).dtype, longest):
        raise ConfigError(
            f"before the first step a response's log-probability under the policy differs by {gap:.3g} nats from its "
            "reference instead of 0: what was scored is not what this model computes; use trainer.reference=live, and "
            "report it"
        )
    log.info("reference: the base model's stored log-probabilities; within %.1g nats on %d groups", gap, len(groups))


def _can_share(base: Any, groups: Sequence[Group], batch: int, across_batch: bool) -> bool:
    import torch

    longest_response = max(len(ids) for group in groups for ids in group.responses)
    longest = max(len(group.prompt_ids) for group in groups) + longest_response
    tried = sorted(groups, key=lambda group: -len(group.prompt_ids))[: batch if across_batch else 1]
    device = next(base.parameters()).device
    prompts = [torch.tensor(group.prompt_ids, device=device) for group in tried]
    lists = [[group.responses[0] for group in tried]] * len(tried) if across_batch else [tried[0].responses]
    responses = [[torch.tensor(ids, device=device) for ids in row] for row in lists]
    base.eval()
    return can_share(base, longest, prompts, responses)
