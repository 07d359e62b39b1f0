"""The training stage: an adapter by one of the methods, with checkpoints from which an interrupted training resumes."""

import json
import logging
import math
import shutil
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mipo_exp.config.groups import LoraConfig, PairsConfig, TrainerConfig
from mipo_exp.config.schema import MethodConfig
from mipo_exp.errors import ConfigError, UserError
from mipo_exp.execution.processes import team
from mipo_exp.execution.progress import Progress
from mipo_exp.judging.stage import Judging
from mipo_exp.kernels.micro_batches import MicroBatches
from mipo_exp.models.memory import free_memory, memory_for
from mipo_exp.models.runtime import Runtime
from mipo_exp.store.artefacts import CHECKPOINTS, Workspace, write_atomically
from mipo_exp.store.disk import follow_umask
from mipo_exp.store.manifest import file_sha256
from mipo_exp.training.job import Job, Rollout
from mipo_exp.training.micro_batches import may_split
from mipo_exp.training.scored_groups import Group

if TYPE_CHECKING:
    from transformers import Trainer

log = logging.getLogger(__name__)

COMPLETE = "complete.json"
MEASURED_ROWS = 1000


def train_adapter(
    work: Workspace,
    runtime: Runtime,
    method: MethodConfig,
    lora: LoraConfig,
    trainer: TrainerConfig,
    seed: int,
    pairs: PairsConfig | None = None,
    rollout: Rollout | None = None,
    judging: Judging | None = None,
    processes: int = 1,
) -> None:
    """Train the adapter and write `adapter/` (PEFT's format), `history.json` (the log rows) and `training.json`.

    An interrupted training resumes from its last complete checkpoint and ends with the same weights. `processes` come
    here together, each with batches of its own, whose gradients are averaged; process 0 writes.

    Raises:
        ConfigError: nothing trainable, a TRL key that does not exist, or a first loss that is not what it must be.
        ModelError: memory has run out; checkpoints are kept.
        JudgeError: the judge whose scores are the reward cannot be asked; its replies and the checkpoints are kept.
    """
    from transformers import set_seed

    together = team()
    checkpoints = work.path / CHECKPOINTS
    found = _latest_complete(checkpoints) if together.main else None
    name = together.share(None if found is None else found.name)
    resume = None if name is None else checkpoints / name
    runtime.make_room()
    if work.executor is not None:
        work.executor.release()
    set_seed(seed)
    with _progress_callback(runtime) as callback:
        job = Job(work, runtime, method, lora, trainer, seed, checkpoints, callback, pairs, rollout, judging)
        with memory_for("to begin the training", "shorten the prompts, or use a smaller model or another device"):
            loop = method.build(job)
        model: Any = loop.model
        trainable, total = model.get_nb_trainable_parameters()
        rows = len(loop.train_dataset)
        log.info("training %s of %s parameters on %d rows", f"{trainable:,}", f"{total:,}", rows)
        if processes > 1:
            each = trainer.per_device_train_batch_size * trainer.gradient_accumulation_steps
            log.info("a step takes %d rows: %d in each of %d processes", each * processes, each, processes)
            callback.spread = partial(_spread, loop)
            set_seed(seed + together.rank)  # or their dropouts would be the same
        if resume is not None:
            _restore_token_count(loop, resume)
        with memory_for("for a batch of the training", _less_memory(loop, job)):
            loop.train(resume_from_checkpoint=str(resume) if resume is not None else None)
    _check_finite(model)
    # Where weights are spread over processes, all of them put these together.
    weights = loop.accelerator.get_state_dict(loop.model_wrapped) if processes > 1 else None
    if not together.main:
        del loop, model
        free_memory(runtime.device)
        return
    settings = model.peft_config["default"]
    settings.base_model_name_or_path = runtime.base_name
    if isinstance(settings.target_modules, set):  # which would be written in another order each time
        settings.target_modules = sorted(settings.target_modules)
    model.save_pretrained(work.path / "adapter", state_dict=weights, save_embedding_layers=False)
    # PEFT writes a model card without content, which would only look like documentation.
    (work.path / "adapter" / "README.md").unlink(missing_ok=True)
    work.count(_tokens_seen(loop), runtime.device_name)
    # A checkpoint has sorted the rows that it brought back.
    work.write_json("history", [dict(sorted(row.items())) for row in loop.state.log_history if "loss" in row])
    work.write_json(
        "training",
        {"steps": loop.state.global_step, "rows": rows, "trainable_parameters": trainable, "parameters": total},
    )
    del loop, model
    free_memory(runtime.device)


def _tokens_seen(loop: "Trainer") -> int:
    """The tokens of the rows that were trained on, each prompt once; of sampled responses, those that TRL has counted.
    The lengths of a long list are taken to be those of some of its rows."""
    if loop.state.num_input_tokens_seen:
        return loop.state.num_input_tokens_seen
    rows: Any = loop.train_dataset
    some = range(0, len(rows), math.ceil(len(rows) / MEASURED_ROWS))
    lengths = [row.tokens if isinstance(row, Group) else _tokens(row) for row in (rows[i] for i in some)]
    return round(sum(lengths) / len(lengths) * len(rows) * (loop.state.epoch or 0.0))


def _tokens(row: Mapping[str, Any]) -> int:
    return sum(len(value) for value in row.values() if isinstance(value, list))


def _less_memory(loop: "Trainer", job: Job) -> str:
    """What the user can do where a batch finds no memory."""
    trainer, on = job.trainer, job.runtime.device.partition(":")[0]
    ways = []
    if isinstance(loop, MicroBatches) and loop.splits:
        ways.append(f"lower trainer.batch_tokens.{on}")
    elif trainer.batch_tokens.on(on) is None and may_split(job.method, job.lora):
        ways.append(f"set trainer.batch_tokens.{on}")
    elif trainer.per_device_train_batch_size > 1:
        ways.append("lower trainer.per_device_train_batch_size")
    if not trainer.activation_checkpointing:
        ways.append("set trainer.activation_checkpointing=true")
    return " or ".join([*ways, "shorten the prompts and responses"])


def _check_finite(model: Any) -> None:
    bad = [name for name, weight in model.named_parameters() if weight.requires_grad and not weight.isfinite().all()]
    if bad:
        raise ConfigError(
            f"the training diverged: {len(bad)} of the adapter's tensors are not finite; lower trainer.learning_rate"
        )


def _restore_token_count(loop: "Trainer", checkpoint: Path) -> None:
    """TRL counts tokens from 0 again after a resume; continue `num_tokens` from where it was."""
    rows = json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))["log_history"]
    loop._total_train_tokens = int(next((row["num_tokens"] for row in reversed(rows) if "num_tokens" in row), 0))


def _latest_complete(folder: Path) -> Path | None:
    """The newest checkpoint that was written to its end; the others are removed."""
    best: Path | None = None
    for path in sorted(folder.glob("checkpoint-*"), key=lambda item: int(item.name.rpartition("-")[2])):
        if _is_complete(path):
            best = path
        else:
            shutil.rmtree(path)
    if best is not None:
        log.info("resuming the training from %s", best.name)
    return best


def _is_complete(path: Path) -> bool:
    try:
        sums = json.loads((path / COMPLETE).read_text(encoding="utf-8"))
        listed = isinstance(sums, dict) and bool(sums)
        return listed and all(file_sha256(path / name) == value for name, value in sums.items())
    except (OSError, ValueError):
        return False


def _mark_complete(path: Path) -> None:
    sums = {str(file.relative_to(path)): file_sha256(file) for file in sorted(path.rglob("*")) if file.is_file()}
    write_atomically(path / COMPLETE, json.dumps(sums).encode())
    follow_umask(path, path / COMPLETE)  # so that another user of the cache can resume


def _spread(loop: Any) -> str:
    """How the processes of a training share the model, from what they hold once it is prepared. Raises `ConfigError`:
    they do not share it as was asked for."""
    from torch.distributed.tensor import DTensor

    kind = str(loop.accelerator.distributed_type.value)
    if loop.accelerator.is_fsdp2:
        weights = list(loop.model.parameters())
        split = sum(isinstance(weight, DTensor) for weight in weights)
        if not split:
            raise ConfigError("FSDP left every weight whole; set --fsdp_auto_wrap_policy TRANSFORMER_BASED_WRAP")
        return f"FSDP 2: {split} of {len(weights)} weights are split among them"
    if kind == "DEEPSPEED":
        stage = loop.accelerator.deepspeed_plugin.zero_stage
        return f"DeepSpeed ZeRO {stage}, which computes a batch as a whole (trainer.batch_tokens is not used)"
    return "FSDP 1" if kind == "FSDP" else "data parallel"


def _progress_callback(runtime: Runtime) -> Any:
    """A callback that marks complete checkpoints, shows progress and passes log rows on while the training runs."""
    from transformers import TrainerCallback

    class Watch(TrainerCallback):
        progress: Progress | None = None
        spread: Callable[[], str] | None = None  # how the processes share the model

        def __enter__(self) -> "Watch":
            return self

        def __exit__(self, *error: Any) -> None:
            if self.progress is not None:
                self.progress.__exit__(*error)

        def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if self.spread is not None:
                log.info("the processes train with %s", self.spread())
                self.spread = None  # it holds the model
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
            # Each process has its file in it, of the state of its random generators.
            team().share()
            if team().main:
                _mark_complete(Path(args.output_dir) / f"checkpoint-{state.global_step}")

    return Watch()
