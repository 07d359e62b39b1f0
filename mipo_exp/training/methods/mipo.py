"""MIPO's training: DPO on the pairs, through TRL.

The reference is the base model itself; in a later one of `method.rounds`, the policy of the round before.
`trainer.reference=scored` reads its log-probabilities from the pairs, where the scoring stage put them; `live` computes
them in each step with the adapter off. Both are checked before the first step: with the adapter at its start the policy
is the reference, so every margin is 0 and the loss has a known value.
"""

import logging
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
from pydantic import model_validator

from mipo_exp.config.fields import Between, Tie, one_of, schema
from mipo_exp.config.groups import SamplingConfig, TrainerConfig
from mipo_exp.config.schema import METHODS, Config, MethodConfig
from mipo_exp.errors import ConfigError
from mipo_exp.kernels.micro_batches import Agree, MicroBatches, Part, merge_pair_metrics, pair_counts, split_pairs
from mipo_exp.store.records import ScoredPair
from mipo_exp.store.tables import Table
from mipo_exp.training.job import (
    Job,
    Prompted,
    adapting,
    check_rotation,
    fields_of,
    finish,
    lora_config,
    training_arguments,
)
from mipo_exp.training.references import check_gaps, checked_pairs

if TYPE_CHECKING:
    from datasets import Dataset
    from trl import DPOTrainer

log = logging.getLogger(__name__)

LOSS_TYPES = (
    *("sigmoid", "hinge", "ipo", "exo_pair", "nca_pair", "robust", "bco_pair", "sppo_hard", "aot", "aot_unpaired"),
    *("apo_zero", "apo_down", "discopop", "sft", "sigmoid_norm"),
)
# Losses that are functions of the chosen-minus-rejected reward alone, the only ones with an f-divergence form (TRL).
F_DIVERGENCE_LOSSES = ("sigmoid", "sigmoid_norm", "hinge", "ipo", "exo_pair", "robust", "discopop", "sft")
SMOOTHED_LOSSES = ("aot", "aot_unpaired", "exo_pair", "robust")
# No means over pairs: two sort the batch, one is a mean over the batch's tokens.
WHOLE_BATCH_LOSSES = ("aot", "aot_unpaired", "sft")


@METHODS.register("mipo")
@schema
class Mipo(MethodConfig):
    """The keys are arguments of TRL's DPOConfig under its own names."""

    arguments_class = ("trl", "DPOConfig")
    takes_max_length = True
    beta: Tie
    loss_type: list[Annotated[str, one_of(LOSS_TYPES)]]
    loss_weights: list[Annotated[float, Between(-1e6, 1e6)]] | None
    label_smoothing: Annotated[float, Between(1e-6, 1 - 1e-6, or_zero=True)]
    f_divergence_type: Literal["reverse_kl", "forward_kl", "js_divergence", "alpha_divergence"]
    f_alpha_divergence_coef: Annotated[float, Between(-10, 10)]  # its paper has 0 to 1; 1 is reverse_kl
    discopop_tau: Annotated[float, Between(1e-4, 100)]
    ld_alpha: Annotated[float, Between(1e-6, 1, or_zero=True)] | None
    use_weighting: bool
    rounds: Annotated[int, Between(1, 100)]

    @model_validator(mode="after")
    def _check(self) -> "Mipo":
        losses, weights, smoothing = self.loss_type, self.loss_weights, self.label_smoothing
        if not losses:
            raise ConfigError(f"method.loss_type is empty; name at least one of {', '.join(LOSS_TYPES)}")
        if weights is not None and len(weights) != len(losses):
            raise ConfigError(
                f"method.loss_weights has {len(weights)} entries for {len(losses)} losses in method.loss_type; give "
                "one weight a loss, or null for equal weights"
            )
        if weights is not None and not (min(weights) >= 0 and max(weights) > 0):
            raise ConfigError(f"method.loss_weights={weights}: none may be negative, and one must be above 0")
        if "exo_pair" in losses and smoothing == 0:
            raise ConfigError("method.loss_type=exo_pair needs method.label_smoothing > 0 (its paper recommends 1e-3)")
        if smoothing and not set(SMOOTHED_LOSSES) & set(losses):
            raise ConfigError(
                f"method.label_smoothing={smoothing} has no effect on loss_type={', '.join(losses)}; it is read by "
                f"{', '.join(SMOOTHED_LOSSES)}"
            )
        if "robust" in losses and not smoothing < 0.5:
            raise ConfigError(f"method.label_smoothing={smoothing} with loss_type=robust; it must be less than 0.5")
        if self.f_divergence_type != "reverse_kl" and not set(losses) <= set(F_DIVERGENCE_LOSSES):
            raise ConfigError(
                f"method.f_divergence_type={self.f_divergence_type} is defined only for the losses "
                f"{', '.join(F_DIVERGENCE_LOSSES)}; use reverse_kl with {', '.join(losses)}"
            )
        if self.use_weighting and {"aot", "aot_unpaired"} & set(losses):
            raise ConfigError(
                "method.use_weighting=true cannot be combined with loss_type aot or aot_unpaired (they sort)"
            )
        return self

    @property
    def identity(self) -> dict[str, Any]:
        """See `MethodConfig.identity`: without the rounds, which show in what a round learns from."""
        return fields_of(self, ("rounds",))

    @property
    def training_rounds(self) -> int:
        """See `MethodConfig.training_rounds`."""
        return self.rounds

    @property
    def splits(self) -> bool:
        """See `MethodConfig.splits`."""
        return not set(self.loss_type) & set(WHOLE_BATCH_LOSSES)

    def shape(self, config: Config) -> tuple[int, int]:
        """See `MethodConfig.shape`: pairs."""
        return config.negatives.k, 2

    def check(self, config: Config) -> None:
        """See `MethodConfig.check`."""
        super().check(config)
        if config.trainer.max_length is not None and config.trainer.reference == "scored":
            raise ConfigError(
                "trainer.max_length truncates the sequences, and the stored reference log-probabilities are of whole "
                "ones; set trainer.max_length=null or trainer.reference=live"
            )
        if self.rounds > 1 and config.trainer.reference != "scored":
            raise ConfigError(
                f"method.rounds={self.rounds} trains each round against the policy of the one before, and "
                "trainer.reference=live against the base model; set trainer.reference=scored"
            )
        if 0 < config.trainer.max_steps < self.rounds:
            raise ConfigError(
                f"trainer.max_steps={config.trainer.max_steps} are divided among method.rounds={self.rounds}; give at "
                "least one step a round, or lower method.rounds"
            )
        if self.ld_alpha is not None and config.trainer.reference == "scored":
            raise ConfigError(
                "method.ld_alpha reweights tokens, which stored reference sums cannot do; set trainer.reference=live"
            )

    def check_examples(self, config: Config, task: Any, examples: Sequence[Any]) -> None:
        """See `MethodConfig.check_examples`."""
        if len(examples) < self.rounds:
            raise ConfigError(
                f"method.rounds={self.rounds} divides the training examples, and there are {len(examples)}; lower it, "
                "or raise task.train_examples"
            )

    def arguments(self, trainer: TrainerConfig, sampling: SamplingConfig | None) -> dict[str, Any]:
        """See `MethodConfig.arguments`."""
        return fields_of(self, ("name", "rounds"))

    def build(self, job: Job) -> "DPOTrainer":
        """See `MethodConfig.build`. Raises `ConfigError`: nothing trainable, a TRL key that does not exist, or a first
        loss that is not what it must be."""
        pairs = job.work.inputs["scored_pairs"].table("pairs", ScoredPair)
        _check_room_for_responses(pairs, job.trainer.max_length)
        dpo = make_trainer(job, self, pairs)
        check_rotation(job, pairs)
        finish(job, dpo, lambda: longest_pair(pairs))
        check_first_loss(dpo, self, job.trainer.reference)
        return dpo


def make_trainer(job: Job, method: Mipo, pairs: Table[ScoredPair]) -> "DPOTrainer":
    """TRL's trainer with a new adapter, or that of the round before, on a base model of its own."""
    import peft
    from trl import DPOTrainer

    class PairTrainer(MicroBatches, DPOTrainer):
        """TRL's trainer on pairs that are token ids already."""

        @property
        def splits(self) -> bool:
            return super().splits and not self.aux_loss_enabled  # a router's balance is one of the whole batch

        def _prepare_dataset(self, dataset: "Dataset", *_: Any, **__: Any) -> "Dataset":
            return dataset

        def parts_of(self, inputs: Any, budget: int, agree: Agree | None) -> list[Part]:
            return split_pairs(inputs, self.shares_prompts, budget, agree)

        def finish_batch(self, parts: Sequence[Part]) -> None:
            if self.splits:
                counts = self.accelerator.reduce(pair_counts(parts), reduction="sum")
                merge_pair_metrics(self._metrics["train"], counts)

    runtime, reference = job.runtime, job.trainer.reference
    with adapting(job.lora):
        dpo = PairTrainer(
            model=runtime.fresh_model(),
            args=training_arguments(method, job.trainer, job.seed, job.output, runtime.device, runtime.dtype),
            train_dataset=_dataset(pairs, reference),
            processing_class=runtime.renderer.tokenizer,
            peft_config=lora_config(job.lora),
            callbacks=[job.callback],
        )
    if (earlier := job.work.inputs.get("adapter")) is not None:
        weights = peft.load_peft_weights(str(earlier.path / "adapter"), device="cpu")
        peft.set_peft_model_state_dict(dpo.model, weights)
    # TRL reads the reference's log-probabilities from the batch where this is set. Asking for it through its config
    # instead would hash the whole model first, to name a cache file that is not used here.
    dpo.precompute_ref_logps = reference == "scored"
    return dpo


def longest_pair(pairs: Table[ScoredPair]) -> tuple[list[Prompted], int]:
    """As `finish` tries them: the longest pair."""
    lengths = pairs.lengths("prompt_ids") + np.maximum(pairs.lengths("chosen_ids"), pairs.lengths("rejected_ids"))
    pair = pairs[int(lengths.argmax())]
    return [(pair.prompt_ids, [pair.chosen_ids, pair.rejected_ids])], int(lengths.max())


def _dataset(pairs: Table[ScoredPair], reference: str) -> "Dataset":
    """The columns that TRL reads, in the same memory, or file, as the table's."""
    from datasets import Dataset

    names = {side: side for side in ("prompt_ids", "chosen_ids", "rejected_ids")}
    if reference == "scored":
        names |= {"ref_chosen_log_prob": "ref_chosen_logps", "ref_rejected_log_prob": "ref_rejected_logps"}
    # With a name of its own, because the default is a hash of all of the data. Nothing is cached under it.
    return Dataset(pairs.arrow.select(list(names)).rename_columns(list(names.values())), fingerprint="scored_pairs")


def first_loss(method: Mipo) -> float | None:
    """The loss before the first step, where policy and reference agree; None where it has no fixed value.

    For the sigmoid loss −log σ(0) = log 2."""
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


def largest_change(method: Mipo, margin: float) -> float:
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


def check_first_loss(dpo: "DPOTrainer", method: Mipo, reference: str) -> None:
    """Check the rewards and the loss of some pairs, one by one, before the first step.

    With stored reference log-probabilities this compares them with a fresh forward pass: a difference in truncation,
    precision, template or padding shows here and not as a slightly wrong result.

    Raises:
        ConfigError: a reward is not 0, or the loss is not what it must be.
    """
    count = min(checked_pairs(dpo.model, reference == "scored"), len(dpo.train_dataset))
    # Spread over all of them, which may be sorted.
    rows = [dpo.train_dataset[i * len(dpo.train_dataset) // count] for i in range(count)]
    losses, balance, gaps = evaluated(dpo, method, rows)
    tokens = [len(row[f"{side}_ids"]) for row in rows for side in ("chosen", "rejected")]
    check_gaps(gaps, tokens, dpo.model, lambda: evaluated(dpo, method, rows)[2])
    loss, expected = sum(losses) / count, first_loss(method)
    router = dpo.router_aux_loss_coef * sum(balance) / count if balance else 0.0
    # The router's part may be in 16 bits; TRL computes the rest in float32.
    apart = [abs(chosen) + abs(rejected) for chosen, rejected in zip(gaps[::2], gaps[1::2], strict=True)]
    change = sum(largest_change(method, margin) for margin in apart) / count + 1e-2 * router
    if expected is not None and not abs(loss - router - expected) <= change + 1e-3 * expected:
        raise ConfigError(
            f"before the first step the loss is {loss - router:.6g} instead of {expected:.6g} (loss_type="
            f"{', '.join(method.loss_type)}, beta={method.beta})"
        )
    described = "stored log-probabilities" if reference == "scored" else "the model with its adapter off"
    gap = max(map(abs, gaps))
    log.info("reference: %s; first loss %.4f, within %.1g nats on %d pairs", described, loss, gap, count)


def evaluated(dpo: "DPOTrainer", method: Mipo, rows: Sequence[Any]) -> tuple[list[float], list[float], list[float]]:
    """Of pairs one by one, before the first step: the losses, the router's part where there is one, and log π_θ −
    log π_ref of both sides."""
    import torch

    dpo.model.eval()
    devices = [] if dpo.args.device.type == "cpu" else [dpo.args.device]
    seen = dpo._metrics["eval"]
    with torch.random.fork_rng(devices=devices), torch.no_grad():
        losses = [float(dpo.compute_loss(dpo.model, dpo._prepare_inputs(dpo.data_collator([row])))) for row in rows]
    sides = zip(seen["rewards/chosen"], seen["rewards/rejected"], strict=True)
    found = losses, list(seen["aux_loss"]), [float(reward) / method.beta for pair in sides for reward in pair]
    seen.clear()
    dpo._total_train_tokens = 0
    dpo.model.train()
    return found


def _check_room_for_responses(pairs: Table[ScoredPair], max_length: int | None) -> None:
    if max_length is None:
        return
    lengths = pairs.lengths("prompt_ids")
    full = int((lengths >= max_length).sum())
    if full:
        longest = int(lengths.max())
        raise ConfigError(
            f"trainer.max_length={max_length} truncates the whole response of {full} of {len(pairs)} pairs; the "
            f"longest prompt has {longest} tokens, so give more, or null"
        )
