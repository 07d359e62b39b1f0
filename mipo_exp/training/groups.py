"""Training on groups, one prompt with any number of responses, for the methods whose loss TRL does not have.

Transformers' Trainer with its schedules, checkpoints and logs, around log-probabilities from one sequence a prompt
(`layout`) and a loss that is a pure function of them.
"""

import heapq
import logging
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from mipo_exp.config.fields import schema
from mipo_exp.config.schema import MethodConfig, TrainsOn
from mipo_exp.errors import ConfigError, DataError
from mipo_exp.execution.processes import mean_over_processes
from mipo_exp.kernels.micro_batches import Agree, MicroBatches, Part
from mipo_exp.store.records import Example, Response, ScoredPair
from mipo_exp.store.tables import ById, Mapped
from mipo_exp.training.job import (
    Job,
    Prompted,
    adapting,
    check_rotation,
    finish,
    lora_config,
    training_arguments,
)
from mipo_exp.training.references import check_gaps, checked_pairs
from mipo_exp.training.scored_groups import Count, Group, Scored, joined, score_groups, split_groups

if TYPE_CHECKING:
    import torch
    from transformers import Trainer

log = logging.getLogger(__name__)


# A loss and what is logged beside it.
Result = tuple["torch.Tensor", Mapping[str, float]]
Loss = Callable[[Scored], Result]


@schema
class GroupMethod(MethodConfig):
    """A method whose loss is a function of the log-probabilities of groups: of the chosen responses alone, unless it
    has `groups` of its own."""

    trains_on: ClassVar[TrainsOn] = "chosen"
    reference: ClassVar[bool] = True  # whether the loss needs π_ref

    def groups(self, job: Job) -> Sequence[Group]:
        """The training data."""
        return chosen_groups(job)

    def mean_over(self, groups: Sequence[Group]) -> int:
        """How many there are of what the loss is a mean over."""
        return len(groups)

    def loss(self, batch: Scored) -> Result:
        """The loss of a batch."""
        raise NotImplementedError

    def build(self, job: Job) -> "Trainer":
        """See `MethodConfig.build`."""
        return build_trainer(job, self.groups(job), self.loss, reference=self.reference, mean_over=self.mean_over)


def chosen_groups(job: Job) -> Sequence[Group]:
    """One group for each chosen response, for methods without rejected ones; empty responses are left out. Raises
    `DataError`: none is left."""
    keep_cut_off = job.pairs is None or job.pairs.keep_cut_off
    examples = ById(job.work.inputs["examples"].table("train", Example))
    responses = job.work.inputs["chosen"].table("responses", Response)

    def group(number: int) -> Group:
        response = responses[number]
        return Group(job.runtime.prompt_ids(examples[response.id].condition), [response.token_ids])

    kept = [
        number for number, response in enumerate(responses) if response.text and (response.finished or keep_cut_off)
    ]
    if not kept:
        raise DataError("no chosen response is left to train on: all are empty, or cut off (pairs.keep_cut_off=false)")
    return Mapped(group, kept)


def pair_groups(job: Job) -> Sequence[Group]:
    """One group for each example with pairs: its chosen response and all rejected ones, with their log-probabilities
    under the base model where `trainer.reference` is `scored`.

    Raises:
        ConfigError: as `check_rotation`.
    """
    pairs = job.work.inputs["scored_pairs"].table("pairs", ScoredPair)
    check_rotation(job, pairs)
    by_example: dict[str, list[int]] = {}
    for number, example in enumerate(pairs.column("example")):
        by_example.setdefault(example, []).append(number)
    stored = job.trainer.reference == "scored"

    def group(numbers: Sequence[int]) -> Group:
        own = [pairs[number] for number in numbers]
        return Group(
            own[0].prompt_ids,
            [own[0].chosen_ids, *(pair.rejected_ids for pair in own)],
            [own[0].ref_chosen_log_prob, *(pair.ref_rejected_log_prob for pair in own)] if stored else None,
        )

    return Mapped(group, list(by_example.values()))


def build_trainer(
    job: Job, groups: Sequence[Group], loss: Loss, *, reference: bool, mean_over: Count = len
) -> "Trainer":
    """A trainer with a new adapter, checked and ready to train.

    Args:
        reference: whether the loss needs π_ref; it is the stored one where the groups have it, else the model with
            its adapter off.
        mean_over: what the loss is a mean over, where it is not across the batch: there every response of a batch is
            scored under every prompt of it.

    Raises:
        ConfigError: nothing trainable, or stored references that are not what this model computes.
        DataError: there are fewer groups than a batch across which is contrasted.
    """
    import peft
    from transformers import Trainer
    from trl.trainer.utils import add_fused_lm_head, disable_dropout_in_model

    runtime, across_batch = job.runtime, job.method.across_batch
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
    with adapting(job.lora):
        model: Any = peft.get_peft_model(base, lora_config(job.lora))
    if isinstance(base.get_output_embeddings(), peft.tuners.tuners_utils.BaseTunerLayer):
        raise ConfigError(
            f"lora.target_modules={job.lora.target_modules} adapts the output head, which "
            f"method={job.method.name} reads without its adapter; leave it out"
        )

    class LossTrainer(Trainer):
        """Trains with `loss`."""

        scored: list[Scored]
        weight = 1.0

        def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, **_: Any) -> Any:
            batch = score_groups(model, inputs["groups"], reference, across_batch)
            self.scored.append(batch.detached())
            value = loss(batch)[0] * self.weight
            return (value, None) if return_outputs else value

    class GroupTrainer(MicroBatches, LossTrainer):
        """Goes through a batch in parts, and logs what the loss gives beside it."""

        seen: dict[str, list[float]]
        mean_count: float  # of what the loss is a mean over, in a batch of this step

        def get_batch_samples(self, *args: Any, **kwargs: Any) -> Any:
            # The loss is a mean over what all batches of a step have on all processes; both, the Trainer and the
            # processes, average over batches.
            batches, items = super().get_batch_samples(*args, **kwargs)
            own = sum(mean_over(batch["groups"]) for batch in batches) / max(len(batches), 1)
            self.mean_count = mean_over_processes([own])[0]
            return batches, items

        def training_step(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
            self.weight = mean_over(inputs["groups"]) / self.mean_count
            try:
                return super().training_step(model, inputs, *args, **kwargs)
            finally:
                self.weight = 1.0

        def parts_of(self, inputs: Any, budget: int, agree: Agree | None) -> list[Part]:
            return split_groups(inputs["groups"], self.shares_prompts, mean_over, budget, agree)

        def finish_batch(self, parts: Sequence[Part]) -> None:
            _, metrics = loss(joined(self.scored))
            for name, number in metrics.items():
                self.seen[name].append(number)
            self.scored.clear()

        def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
            own = [sum(values) / len(values) for values in self.seen.values()]
            means = dict(zip(self.seen, mean_over_processes(own), strict=True))
            self.seen.clear()
            super().log({**logs, **means} if "loss" in logs else logs, *args, **kwargs)

    loop = GroupTrainer(
        model=model,
        args=arguments,
        train_dataset=groups,
        data_collator=lambda rows: {"groups": rows},
        callbacks=[job.callback],
    )
    loop.seen, loop.scored = defaultdict(list), []
    finish(job, loop, lambda: _longest(groups, arguments.per_device_train_batch_size if across_batch else 1))
    if groups[0].ref_log_probs is not None and reference:
        check_stored_references(model, groups[: checked_pairs(model, stored=True)])
    return loop


def check_stored_references(model: Any, groups: Sequence[Group]) -> None:
    """Compare stored reference log-probabilities with what this model computes before the first step. Raises
    `ConfigError`: they differ by more than rounding."""
    import torch

    def log_ratios() -> list[float]:  # one by one: a batch at once may not fit
        scored = [score_groups(model, [group], reference=True).log_ratios for group in groups]
        return [float(one) for ratios in scored for one in ratios[0]]

    tokens = [len(ids) for group in groups for ids in group.responses]
    model.eval()
    with torch.no_grad():
        gaps = log_ratios()
        check_gaps(gaps, tokens, model, log_ratios)
    model.train()
    gap = max(map(abs, gaps))
    log.info("reference: the base model's stored log-probabilities; within %.1g nats on %d groups", gap, len(groups))


def _longest(groups: Sequence[Group], rows: int) -> tuple[list[Prompted], int]:
    """As `finish` tries them: the longest prompts with the first responses of all `rows` of them, or the longest one
    with all of its responses."""
    longest_response = 0

    def prompt_lengths() -> Iterator[tuple[int, int]]:
        nonlocal longest_response
        for number, group in enumerate(groups):  # once: what is read is rendered anew each time
            longest_response = max(longest_response, *map(len, group.responses))
            yield len(group.prompt_ids), -number

    most = heapq.nlargest(rows, prompt_lengths())
    tried = [groups[-number] for _, number in most]
    firsts = [group.responses[0] for group in tried]
    responses = [tried[0].responses] if rows == 1 else [firsts] * len(tried)
    return [(group.prompt_ids, row) for group, row in zip(tried, responses, strict=True)], most[0][0] + longest_response
