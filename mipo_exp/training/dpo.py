"""MIPO's training: DPO on the pairs, through TRL.

The reference is the base model itself. `trainer.reference=scored` reads its log-probabilities from the pairs, where
the scoring stage put them; `live` computes them in each step with the adapter off. Both are checked before the first
step: with the adapter at its start the policy is the reference, so every margin is 0 and the loss has a known value.
"""

import logging
import math
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from mipo_exp.config.methods import MipoConfig
from mipo_exp.errors import ConfigError
from mipo_exp.kernels import rounding
from mipo_exp.kernels.micro_batches import Agree, MicroBatches, Part, merge_pair_metrics, pair_counts, split_pairs
from mipo_exp.kernels.prompt_sharing import share_prompts
from mipo_exp.store.records import ScoredPair
from mipo_exp.store.tables import Table
from mipo_exp.training.job import (
    Job,
    check_rotation,
    check_trainable,
    lora_config,
    restore_lora_dropout,
    training_arguments,
    wrong_targets,
)
from mipo_exp.training.micro_batches import settle_budget
from mipo_exp.training.scored_groups import as_batch

if TYPE_CHECKING:
    from datasets import Dataset
    from trl import DPOTrainer

log = logging.getLogger(__name__)

CHECKED_PAIRS = 4


def build_mipo(job: Job) -> "DPOTrainer":
    """TRL's trainer on the scored pairs, checked and ready to train.

    Raises:
        ConfigError: nothing trainable, a TRL key that does not exist, or a first loss that is not what it must be.
    """
    method = cast(MipoConfig, job.method)
    pairs = job.work.inputs["scored_pairs"].table("pairs", ScoredPair)
    _check_room_for_responses(pairs, job.trainer.max_length)
    dpo = make_trainer(job, method, pairs)
    check_trainable(dpo.model, job.lora)
    check_rotation(job, pairs)
    if "prompt_sharing" in job.runtime.kernels:
        _share_prompts(dpo, pairs, job.runtime.kernels)
    check_first_loss(dpo, method, job.trainer.reference)
    return dpo


def make_trainer(job: Job, method: MipoConfig, pairs: Table[ScoredPair]) -> "DPOTrainer":
    """TRL's trainer with a new adapter on a base model of its own."""
    from transformers import PrinterCallback
    from trl import DPOTrainer

    class PairTrainer(MicroBatches, DPOTrainer):
        """TRL's trainer on pairs that are token ids already."""

        shares_prompts = False

        def _prepare_dataset(self, dataset: "Dataset", *_: Any, **__: Any) -> "Dataset":
            return dataset

        def parts_of(self, inputs: Any, budget: int, agree: Agree | None) -> list[Part]:
            return split_pairs(inputs, self.shares_prompts, budget, agree)

        def finish_batch(self, parts: Sequence[Part]) -> None:
            if self.batch_tokens is not None:
                counts = self.accelerator.reduce(pair_counts(parts), reduction="sum")
                merge_pair_metrics(self._metrics["train"], counts)

    runtime, reference = job.runtime, job.trainer.reference
    try:
        dpo = PairTrainer(
            model=runtime.fresh_model(),
            args=training_arguments(method, job.trainer, job.seed, job.output, runtime.device, runtime.dtype),
            train_dataset=_dataset(pairs, reference),
            processing_class=runtime.renderer.tokenizer,
            peft_config=lora_config(job.lora),
            callbacks=[job.callback],
        )
    except ValueError as error:
        raise wrong_targets(job.lora, error) from error
    restore_lora_dropout(dpo.model, job.lora)
    dpo.remove_callback(PrinterCallback)
    # TRL reads the reference's log-probabilities from the batch where this is set. Asking for it through its config
    # instead would hash the whole model first, to name a cache file that is not used here.
    dpo.precompute_ref_logps = reference == "scored"
    if (
        "micro_batches" in runtime.kernels and not dpo.aux_loss_enabled
    ):  # the balance of a router is a property of the whole batch
        dpo.batch_tokens = settle_budget(job.trainer, method, job.lora, runtime.device)
    return dpo


def _share_prompts(dpo: "DPOTrainer", pairs: Table[ScoredPair], kernels: Collection[str]) -> None:
    """Compute each prompt once, where this architecture allows it; the longest pair is tried."""
    lengths = pairs.lengths("prompt_ids") + np.maximum(pairs.lengths("chosen_ids"), pairs.lengths("rejected_ids"))
    pair = pairs[int(lengths.argmax())]
    batch = as_batch([pair.prompt_ids], [[pair.chosen_ids, pair.rejected_ids]], dpo.args.device)
    base = dpo.accelerator.unwrap_model(dpo.model).get_base_model()
    dpo.shares_prompts = share_prompts(base, batch, int(lengths.max()), kernels)


def _dataset(pairs: Table[ScoredPair], reference: str) -> "Dataset":
    """The columns that TRL reads, in the same memory, or file, as the table's."""
    from datasets import Dataset

    names = {side: side for side in ("prompt_ids", "chosen_ids", "rejected_ids")}
    if reference == "scored":
        names |= {"ref_chosen_log_prob": "ref_chosen_logps", "ref_rejected_log_prob": "ref_rejected_logps"}
    # With a name of its own, because the default is a hash of all of the data. Nothing is cached under it.
    return Dataset(pairs.arrow.select(list(names)).rename_columns(list(names.values())), fingerprint="scored_pairs")


def first_loss(method: MipoConfig) -> float | None:
    """The loss before the first step, where policy and reference agree; None where it has no fixed value.

    For the sigmoid loss −log σ(0) = log 2.
    """
    beta, log2 = method.beta, math.log(2)
    at_zero = {
        **dict.fromkeys(("sigmoid", "robust", "sigmoid_norm", "aot", "aot_unpaired"), log2),
        **dict.fromkeys(("nca_pair", "bco_pair"), 2 * log2),
        **dict.fromkeys(("hinge", "apo_zero", "apo_down"), 1.0),
        "ipo": (1 / (2 * beta)) ** 2,
        "sppo_hard": 2 * (0.5 / beta) ** 2,
        "discopop": 0.5 * log2 + 0.5,
    }
    if method.label_smoothing:
        smooth = method.label_smoothing
        at_zero["exo_pair"] = 0.5 * (-log2 - math.log1p(-smooth)) + 0.5 * (-log2 - math.log(smooth))
    if method.use_weighting or not all(loss in at_zero for loss in method.loss_type):
        return None
    weights = method.loss_weights or [1.0] * len(method.loss_type)
    return sum(weight * at_zero[loss] for loss, weight in zip(method.loss_type, weights, strict=True))


def largest_change(method: MipoConfig, margin: float) -> float:
    """How far a loss lies from `first_loss` at most where the log-ratios of the two sides differ by `margin` nats."""
    beta, smooth = method.beta, method.label_smoothing
    slopes = {
        "ipo": 1 / beta + margin,
        "sppo_hard": 2 * (1 / beta + margin),
        "robust": beta / max(abs(1 - 2 * smooth), 1e-3),
        "exo_pair": beta * (1 + abs(math.log(smooth / (1 - smooth)))) if smooth else beta,
        "discopop": beta * math.exp(beta * margin) * (1 + 1 / method.discopop_tau),
    }
    weights = method.loss_weights or [1.0] * len(method.loss_type)
    steepest = sum(abs(weight) * slopes.get(loss, beta) for loss, weight in zip(method.loss_type, weights, strict=True))
    # Other divergences take a function of the log-ratios, of which this is the steepest slope.
    power = max(1.0, abs(method.f_alpha_divergence_coef - 1))
    divergence = 1.0 if method.f_divergence_type == "reverse_kl" else math.exp(power * margin)
    return steepest * margin * divergence


def check_first_loss(dpo: "DPOTrainer", method: MipoConfig, reference: str) -> None:
    """Check the rewards and the loss of a few pairs, one by one, before the first step.

    With stored reference log-probabilities this compares them with a fresh forward pass: a difference in truncation,
    precision, template or padding shows here and not as a slightly wrong result.

    Raises:
        ConfigError: a reward is not 0, or the loss is not what it must be.
    """
    import torch

    count = min(CHECKED_PAIRS, len(dpo.train_dataset))
    model = dpo.model
    model.eval()
    devices = [] if dpo.args.device.type == "cpu" else [dpo.args.device]
    losses, gaps, balance = [], [], list[float]()
    with torch.random.fork_rng(devices=devices), torch.no_grad():
        for i in range(count):
            batch = dpo._prepare_inputs(dpo.data_collator([dpo.train_dataset[i]]))
            losses.append(float(dpo.compute_loss(model, batch)))
            seen = dpo._metrics["eval"]
            balance += seen["aux_loss"][-1:]
            gaps += [abs(float(seen[f"rewards/{side}"][-1])) / method.beta for side in ("chosen", "rejected")]
    dpo._metrics["eval"].clear()
    dpo._total_train_tokens = 0
    model.train()
    rows = [dpo.train_dataset[i] for i in range(count)]
    longest = max(len(row[side]) for row in rows for side in ("chosen_ids", "rejected_ids"))
    allowed = rounding(next(model.parameters()).dtype, longest)
    gap, loss, expected = max(gaps), sum(losses) / count, first_loss(method)
    if not gap <= allowed:
        raise ConfigError(
            f"before the first step a pair's log-probability under the policy differs by {gap:.3g} nats from its "
            f"reference instead of 0: what was scored is not what this model computes; use trainer.reference=live, and "
            "report it"
        )
    router = dpo.router_aux_loss_coef * sum(balance) / count if balance else 0.0
    # The router's part may be in 16 bits; TRL computes the rest in float32.
    change = largest_change(method, 2 * gap) + 1e-2 * router
    if expected is not None and not abs(loss - router - expected) <= change + 1e-3 * expected:
        raise ConfigError(
            f"before the first step the loss is {loss - router:.6g} instead of {expected:.6g} (loss_type="
            f"{', '.join(method.loss_type)}, beta={method.beta})"
        )
    described = (
        "the base model's stored log-probabilities" if reference == "scored" else "the model with its adapter off"
    )
    log.info("reference: %s; first loss %.4f, within %.1g nats on %d pairs", described, loss, gap, count)


def _check_room_for_responses(pairs: Table[ScoredPair], max_length: int | None) -> None:
    if max_length is None:
        return
    lengths = pairs.lengths("prompt_ids")
    full = int((lengths >= max_length).sum())
    if full:
        longest = int(lengths.max())
        raise ConfigError(
            f"trainer.max_length={max_length} cuts away the whole response of {full} of {len(pairs)} pairs; the "
            f"longest prompt has {longest} tokens, so give more, or null"
        )
