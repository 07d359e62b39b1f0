"""A judge in this process: a local model, sampled by the package's own engine."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mipo_exp.config.fields import ResponseTokens, Temperature, schema
from mipo_exp.config.groups import ModelConfig, SamplingConfig
from mipo_exp.config.schema import JUDGES, EngineConfig
from mipo_exp.data.base import Task
from mipo_exp.errors import JudgeError, ModelError
from mipo_exp.generation.transformers_engine import SAMPLING_PARTS, batch_seed, plan_batches, sample_batch
from mipo_exp.judging.judge import Backend, Keep
from mipo_exp.judging.kinds import AskedJudgeConfig
from mipo_exp.judging.replies import Messages, Reply
from mipo_exp.models.loading import locate
from mipo_exp.models.memory import memory_for
from mipo_exp.models.runtime import COMPUTING, Runtime
from mipo_exp.store.artefacts import digest
from mipo_exp.store.environment import package_versions


@JUDGES.register("local")
@schema
class LocalJudgeConfig(AskedJudgeConfig):
    max_tokens: ResponseTokens
    temperature: Temperature
    model: ModelConfig

    def backend(
        self, engine: EngineConfig, kernels: Sequence[str], task: Task, cache: Path, device: str, download: bool
    ) -> "Local":
        """See `AskedJudgeConfig.backend`."""
        try:
            source = locate(self.model, cache, download)
        except ModelError as error:
            raise error.named("the model of judge=local (its keys begin with judge.model)") from error
        return Local(self, engine, Runtime(self.model, source, task, device, kernels))


class Local(Backend):
    """Answers in batches of similar length. `engine` has the limits of a batch."""

    shared = False

    def __init__(self, config: LocalJudgeConfig, engine: EngineConfig, runtime: Runtime) -> None:
        self.config, self.engine = config, engine
        self.runtime: Runtime | None = runtime
        self._model = runtime
        self.identity: Mapping[str, Any] = {
            "runtime": runtime.identity_with(SAMPLING_PARTS),
            "max_tokens": config.max_tokens,
            "temperature": config.temperature,
        }
        self.libraries: Mapping[str, str] = package_versions((*COMPUTING, *runtime.reads_with))
        self.model = runtime.identity
        self.description = runtime.source.description

    def answer(self, requests: Sequence[Messages], keep: Keep) -> None:
        """See `Backend.answer`."""
        config, renderer = self.config, self._model.renderer
        prompts = [renderer.prompt_ids(request) for request in requests]
        limit = self._model.max_positions
        fitting = []
        for index, ids in enumerate(prompts):
            if limit is not None and len(ids) + config.max_tokens > limit:
                said = (
                    f"the prompt has {len(ids)} tokens, and with judge.max_tokens={config.max_tokens} it does not fit "
                )
                keep(index, Reply(None, 0, 0, f"{said}into the judge's {limit} positions"))
            else:
                fitting.append(index)
        sampling = SamplingConfig(config.temperature, top_p=1.0, top_k=0, max_new_tokens=config.max_tokens)
        lengths = [len(prompts[i]) for i in fitting]
        for batch in plan_batches(lengths, self.engine, config.max_tokens, self._model.device):
            rows = [fitting[i] for i in batch]
            seed = batch_seed(0, "judge", int(digest([list(requests[i]) for i in rows])[:8], 16))
            how = sampling, renderer.stop_ids, renderer.pad_id, seed
            way_out = "lower engine.batch_tokens or judge.max_tokens"
            with memory_for(f"for a batch of the judge {self.description}", way_out, JudgeError):
                sampled = sample_batch(self._model.model(), [prompts[i] for i in rows], *how)
            for index, item in zip(rows, sampled, strict=True):
                keep(index, Reply(renderer.text(item.token_ids), len(prompts[index]), len(item.token_ids)))

    def release(self) -> None:
        """See `Backend.release`."""
        self._model.release()
