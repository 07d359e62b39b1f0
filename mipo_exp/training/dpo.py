"""MIPO's training: DPO on the pairs, through TRL. Everything that touches TRL's interface is in this module.

The reference is the base model itself. `trainer.reference=scored` reads its log-probabilities from the pairs, where
the scoring stage put them; `live` computes them in each step with the adapter off. Both are checked before the first
step: with the adapter at its start the policy is the reference, so every margin is 0 and the loss has a known value.
"""

import json
import logging
import math
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mipo_exp.config import LoraConfig, MethodConfig, TrainerConfig
from mipo_exp.errors import ConfigError, UserError
from mipo_exp.progress import Progress
from mipo_exp.records import ScoredPair
from mipo_exp.runtime import Runtime
from mipo_exp.store import Workspace, file_sha256, write_atomically
from mipo_exp.training.shared_prompt import can_share, share_prompts

if TYPE_CHECKING:
    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer

log = logging.getLogger(__name__)

CHECKED_PAIRS = 4
COMPLETE = "complete.json"
# What would go around this framework; `trainer.extra` may not name it, nor anything that is set elsewhere.
REFUSED = ("precompute_ref_log_probs", "resume_from_checkpoint", "push_to_hub", "eval_strategy", "do_eval")
# Keys of the trainer group that are ours, not TRL's.
OWN_KEYS = ("reference", "share_prompt", "extra")


def train_adapter(
    work: Workspace,
    runtime: Runtime,
    method: MethodConfig,
    lora: LoraConfig,
    trainer: TrainerConfig,
    seed: int,
) -> None:
    """Train the adapter and write `adapter/` (PEFT's format), `history.json` (TRL's log rows) and `training.json`.

    An interrupted training goes on from its last complete checkpoint and ends with the same weights.

    Raises:
        ConfigError: nothing trainable, a TRL key that does not exist, or a first loss that is not what it must be.
    """
    from transformers import set_seed

    pairs = work.inputs["scored_pairs"].table("pairs", ScoredPair)
    _check_room_for_responses(pairs, trainer.max_length)
    checkpoints = work.path / "checkpoints"
    resume = _latest_complete(checkpoints)
    runtime.release()
    set_seed(seed)
    with _progress_callback(runtime) as callback:
        dpo = _build_trainer(runtime, pairs, method, lora, trainer, seed, checkpoints, callback)
        trainable, total = dpo.model.get_nb_trainable_parameters()
        if not trainable:
            raise ConfigError(f"lora.target_modules={lora.target_modules} leaves nothing to train")
        if trainer.share_prompt:
            _share_prompts(dpo, pairs)
        log.info("training %s of %s parameters on %d pairs", f"{trainable:,}", f"{total:,}", len(pairs))
        check_first_loss(dpo, method, trainer.reference)
        if resume is not None:
            _restore_token_count(dpo, resume)
        dpo.train(resume_from_checkpoint=str(resume) if resume is not None else None)
    _check_finite(dpo.model)
    dpo.model.peft_config["default"].base_model_name_or_path = runtime.base_name
    dpo.model.save_pretrained(work.path / "adapter", save_embedding_layers=False)
    # PEFT writes a model card without content, which would only look like documentation.
    (work.path / "adapter" / "README.md").unlink(missing_ok=True)
    work.write_json("history", [row for row in dpo.state.log_history if "loss" in row])
    work.write_json(
        "training",
        {"steps": dpo.state.global_step, "pairs": len(pairs), "trainable_parameters": trainable, "parameters": total},
    )
    del dpo
    runtime.release()
    shutil.rmtree(checkpoints, ignore_errors=True)


def training_arguments(
    method: MethodConfig, trainer: TrainerConfig, seed: int, output: Path, device: str, dtype: str
) -> "DPOConfig":
    """The method and trainer groups as TRL's config.

    Raises:
        ConfigError: `trainer.extra` names a key that TRL does not have or that another group sets.
    """
    import dataclasses

    from trl import DPOConfig

    known = {item.name for item in dataclasses.fields(DPOConfig)}
    managed: dict[str, Any] = {
        **_fields(trainer, OWN_KEYS),
        **_fields(method, ("name",)),
        "output_dir": str(output),
        "seed": seed,
        "data_seed": seed,
        "use_cpu": device == "cpu",
        "bf16": dtype == "bfloat16",
        "fp16": dtype == "float16",
        "report_to": "none",
        "disable_tqdm": True,
        "save_strategy": "steps",
        "save_total_limit": 2,
        "logging_strategy": "steps",
        # The collator needs columns that are no arguments of the model's forward.
        "remove_unused_columns": False,
    }
    for key in trainer.extra:
        if key in managed or key in REFUSED:
            raise ConfigError(f"trainer.extra.{key} is set elsewhere in the config; remove it from trainer.extra")
        if key not in known:
            import difflib

            near = difflib.get_close_matches(key, known, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise ConfigError(f"trainer.extra.{key} is not an argument of TRL's DPOConfig{hint}")
    try:
        arguments = DPOConfig(**managed, **trainer.extra)
    except (ValueError, TypeError) as error:
        raise ConfigError(f"TRL refuses the trainer and method groups: {error}") from error
    # One process trains on one device, the one that was asked for; the Trainer would spread over all that it sees.
    arguments._n_gpu = min(arguments.n_gpu, 1)
    return arguments


def _fields(config: Any, without: Sequence[str]) -> dict[str, Any]:
    import dataclasses

    return {item.name: getattr(config, item.name) for item in dataclasses.fields(config) if item.name not in without}


def _build_trainer(
    runtime: Runtime,
    pairs: Sequence[ScoredPair],
    method: MethodConfig,
    lora: LoraConfig,
    trainer: TrainerConfig,
    seed: int,
    output: Path,
    callback: Any,
) -> "DPOTrainer":
    import peft
    from transformers import PrinterCallback
    from trl import DPOTrainer

    class PairTrainer(DPOTrainer):
        """TRL's trainer on pairs that are token ids already."""

        def _prepare_dataset(self, dataset: "Dataset", *_: Any, **__: Any) -> "Dataset":
            return dataset

    arguments = training_arguments(method, trainer, seed, output, runtime.device, runtime.dtype)
    adapter = peft.LoraConfig(task_type="CAUSAL_LM", **_fields(lora, ()))
    try:
        dpo = PairTrainer(
            model=runtime.fresh_model(),
            args=arguments,
            train_dataset=_dataset(pairs, trainer.reference),
            processing_class=runtime.renderer.tokenizer,
            peft_config=adapter,
            callbacks=[callback],
        )
    except ValueError as error:
        if "target modules" in str(error).lower() or "target_modules" in str(error):
            raise ConfigError(
                f"lora.target_modules={lora.target_modules} does not fit this model ({error}); use all-linear or names "
                "of its linear layers"
            ) from error
        raise
    dpo.remove_callback(PrinterCallback)
    # TRL reads the reference's log-probabilities from the batch where this is set. Asking for it through its config
    # instead would hash the whole model first, to name a cache file that is not used here.
    dpo.precompute_ref_logps = trainer.reference == "scored"
    return dpo


def _share_prompts(dpo: "DPOTrainer", pairs: Sequence[ScoredPair]) -> None:
    """Compute each prompt once, where the longest pair shows that this architecture allows it."""
    longest = max(range(len(pairs)), key=lambda i: len(pairs[i].prompt_ids) + len(pairs[i].chosen_ids))
    base = dpo.accelerator.unwrap_model(dpo.model).get_base_model()
    dpo.model.eval()
    possible = can_share(base, dpo._prepare_inputs(dpo.data_collator([dpo.train_dataset[longest]])))
    dpo.model.train()
    if possible:
        share_prompts(base)
    else:
        log.info("this architecture cannot share a prompt between responses: each gets its own")


def _dataset(pairs: Sequence[ScoredPair], reference: str) -> "Dataset":
    from datasets import Dataset

    columns: dict[str, list[Any]] = {
        "prompt_ids": [pair.prompt_ids for pair in pairs],
        "chosen_ids": [pair.chosen_ids for pair in pairs],
        "rejected_ids": [pair.rejected_ids for pair in pairs],
    }
    if reference == "scored":
        columns["ref_chosen_logps"] = [pair.ref_chosen_log_prob for pair in pairs]
        columns["ref_rejected_logps"] = [pair.ref_rejected_log_prob for pair in pairs]
    return Dataset.from_dict(columns)


def first_loss(method: MethodConfig) -> float | None:
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


def check_first_loss(dpo: "DPOTrainer", method: MethodConfig, reference: str) -> None:
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
    losses, gaps = [], []
    with torch.random.fork_rng(devices=devices), torch.no_grad():
        for i in range(count):
            batch = dpo._prepare_inputs(dpo.data_collator([dpo.train_dataset[i]]))
            losses.append(float(dpo.compute_loss(model, batch)))
            seen = dpo._metrics["eval"]
            gaps += [abs(float(seen[f"rewards/{side}"][-1])) / method.beta for side in ("chosen", "rejected")]
    dpo._metrics["eval"].clear()
    dpo._total_train_tokens = 0
    model.train()
    # In 16 bits each token's log-probability is rounded by some hundredths of a nat, and a response sums many.
    half = next(model.parameters()).dtype in (torch.bfloat16, torch.float16)
    allowed = 2.0 if half else 5e-3
    gap, loss, expected = max(gaps), sum(losses) / count, first_loss(method)
    if not gap <= allowed:
        raise ConfigError(
            f"before the first step a pair's log-probability under the policy differs by {gap:.3g} nats from its "
            f"reference instead of 0: what was scored is not what this model computes; use trainer.reference=live, and "
            "report it"
        )
    slope = max(method.beta, 1.0, 1.0 / method.beta)
    if expected is not None and not abs(loss - expected) <= allowed * slope + 1e-3 * expected:
        raise ConfigError(
            f"before the first step the loss is {loss:.6g} instead of {expected:.6g} (loss_type="
            f"{', '.join(method.loss_type)}, beta={method.beta})"
        )
    described = (
        "the base model's stored log-probabilities" if reference == "scored" else "the model with its adapter off"
    )
    log.info("reference: %s; first loss %.4f, within %.1g nats on %d pairs", described, loss, gap, count)


def _check_room_for_responses(pairs: Sequence[ScoredPair], max_length: int | None) -> None:
    if max_length is None:
        return
    full = sum(len(pair.prompt_ids) >= max_length for pair in pairs)
    if full:
        longest = max(len(pair.prompt_ids) for pair in pairs)
        raise ConfigError(
            f"trainer.max_length={max_length} cuts away the whole response of {full} of {len(pairs)} pairs; the "
            f"longest prompt has {longest} tokens, so give more, or null"
        )


def _check_finite(model: Any) -> None:
    bad = [name for name, weight in model.named_parameters() if weight.requires_grad and not weight.isfinite().all()]
    if bad:
        raise ConfigError(
            f"the training diverged: {len(bad)} of the adapter's tensors are not finite; lower trainer.learning_rate"
        )


def _restore_token_count(dpo: "DPOTrainer", checkpoint: Path) -> None:
    """TRL counts tokens from 0 again after a resume; let `num_tokens` go on from where it was."""
    rows = json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))["log_history"]
    dpo._total_train_tokens = int(next((row["num_tokens"] for row in reversed(rows) if "num_tokens" in row), 0))


def _latest_complete(folder: Path) -> Path | None:
    """The newest checkpoint that was written to its end; the others are removed."""
    best: Path | None = None
    for path in sorted(folder.glob("checkpoint-*"), key=lambda item: int(item.name.rpartition("-")[2])):
        if _is_complete(path):
            best = path
        else:
            shutil.rmtree(path)
    if best is not None:
        log.info("going on with the training from %s", best.name)
    return best


def _is_complete(path: Path) -> bool:
    try:
        sums = json.loads((path / COMPLETE).read_text(encoding="utf-8"))
        return all(file_sha256(path / name) == value for name, value in sums.items())
    except (OSError, ValueError):
        return False


def _mark_complete(path: Path) -> None:
    sums = {str(file.relative_to(path)): file_sha256(file) for file in sorted(path.rglob("*")) if file.is_file()}
    write_atomically(path / COMPLETE, json.dumps(sums).encode())


def _progress_callback(runtime: Runtime) -> Any:
    """A callback that marks complete checkpoints, shows progress and passes log rows on while the training runs."""
    from transformers import TrainerCallback

    class Watch(TrainerCallback):
        progress: Progress | None = None

        def __enter__(self) -> "Watch":
            return self

        def __exit__(self, *error: Any) -> None:
            if self.progress is not None:
                self.progress.__exit__(*error)

        def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            self.progress = Progress("training", state.max_steps, "steps")
            self.progress.__enter__()
            self.progress.advance(state.global_step, 0)
            for row in state.log_history:
                if "loss" in row:
                    runtime.on_training_log(row)

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if self.progress is not None:
                self.progress.advance(1, 1)

        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
            row = {**(logs or {}), "step": state.global_step}
            if "loss" not in row:  # the Trainer's own summary at the end
                return
            runtime.on_training_log(row)
            if not math.isfinite(float(row["loss"])):
                raise UserError(
                    f"the loss is {row['loss']} at step {state.global_step}; lower trainer.learning_rate or "
                    "method.beta, or use float32"
                )

        def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            _mark_complete(Path(args.output_dir) / f"checkpoint-{state.global_step}")

    return Watch()
