"""Sampling on the CPU with openvino-genai's continuous batching: a finished response makes room for the next prompt.

Every response has a random generator of its own, so that what it gets does not depend on its neighbours, but for the
rounding of sums.
"""

import dataclasses
import math
from pathlib import Path
from typing import Any, Literal, Self

from mipo_exp.config.fields import schema
from mipo_exp.config.groups import SamplingConfig
from mipo_exp.config.schema import ENGINES, Config, EngineConfig
from mipo_exp.errors import ConfigError, ModelError
from mipo_exp.generation import openvino_model
from mipo_exp.generation.engine import Engine, Request, Sampled, up_to_stop
from mipo_exp.generation.openvino_model import FILE, properties, write_model
from mipo_exp.generation.transformers_engine import in_process
from mipo_exp.models.runtime import Runtime

BLOCK_TOKENS = 32  # of the paged cache on CPUs
STEP_TOKENS = 4096  # prompts are read in pieces of at most so many tokens together


@ENGINES.register("openvino")
@schema
class OpenvinoConfig(EngineConfig):
    needs = "openvino-genai"
    stays_open = True
    convert = staticmethod(openvino_model.convert)
    precision: Literal["auto", "float32", "bfloat16"]
    policy: Literal["openvino", "transformers"]

    @property
    def identity(self) -> dict[str, Any]:
        """See `EngineConfig.identity`."""
        return {**super().identity, "precision": self.precision, "network": openvino_model.VERSION}

    def check(self, config: Config, on_gpu: bool) -> None:
        """See `EngineConfig.check`."""
        if on_gpu:
            raise ConfigError(
                "engine=openvino computes on the CPU; use engine=transformers or vllm on a GPU, or device=cpu"
            )
        for key, sampling in (("sampling", config.sampling), ("evaluation.sampling", config.evaluation.sampling)):
            if sampling.top_k and sampling.top_p < 1:
                raise ConfigError(
                    f"{key} has both top_k={sampling.top_k} and top_p={sampling.top_p}, which engine=openvino applies "
                    "in another order than the others; set one of them, or use engine=transformers"
                )

    def settled(self, device: str) -> Self:
        """See `EngineConfig.settled`: `engine.precision=auto`."""
        precision = openvino_model.resolve_precision(self.precision)
        return dataclasses.replace(super().settled(device), precision=precision)

    def for_policy(self) -> EngineConfig:
        """See `EngineConfig.for_policy`."""
        return in_process(self) if self.policy == "transformers" else self

    def open(self, runtime: Runtime, adapter: Path | None, folder: Path | None, scratch: Path) -> "OpenvinoEngine":
        """See `EngineConfig.open`."""
        return OpenvinoEngine(self, runtime, adapter, scratch if folder is None else folder)


class OpenvinoEngine(Engine):
    """One model in a continuous-batching pipeline.

    Args:
        config: the engine group, settled.
        runtime: the model and how it is prompted.
        adapter: the policy's; merged into a copy of the model.
        folder: of the converted base model; where there is an adapter, the policy is written there.
    """

    shard_rows = 256  # several times what is sampled at once, or the last responses of each would run alone for long

    def __init__(self, config: OpenvinoConfig, runtime: Runtime, adapter: Path | None, folder: Path) -> None:
        super().__init__(runtime, adapter)
        self.config, self.folder = config, folder
        self._pipeline: Any = None
        self._requests = 0
        self._cache_blocks = 0

    def sample(self, request: Request) -> list[Sampled]:
        """See `Engine.sample`. Raises `ModelError`: openvino gave a response up."""
        import numpy as np
        import openvino
        import openvino_genai

        prompts, sampling = request.prompts, request.sampling
        pipeline = self._open(request.longest)
        needed = [_blocks(len(prompt) + sampling.max_new_tokens) for prompt in prompts]
        handles: list[Any] = []
        running: set[int] = set()
        while len(handles) < len(prompts) or running:
            # Nothing is begun that could run out of cache: openvino would throw a response away and begin it again.
            while (
                (index := len(handles)) < len(prompts)
                and len(running) < self.config.batch_rows.cpu
                and sum(needed[i] for i in running) + needed[index] <= self._cache_blocks
            ):
                ids = openvino.Tensor(np.array([prompts[index]], dtype=np.int64))
                settings = self._generation_config(sampling, request.seeds[index])
                handles.append(pipeline.add_request(self._requests, ids, settings))
                self._requests += 1
                running.add(index)
            pipeline.step()
            going = openvino_genai.GenerationStatus.RUNNING
            running = {index for index in running if handles[index].get_status() == going}
        stops = set(self.runtime.renderer.stop_ids)
        found = []
        for handle in handles:
            results = handle.read_all()
            if len(results) != 1 or not results[0].generated_ids:
                raise ModelError(f"openvino gave a response up ({handle.get_status()}); use engine=transformers")
            found.append(up_to_stop(results[0].generated_ids, stops))
        return found

    def close(self) -> None:
        """See `Engine.close`."""
        self._pipeline = None

    rest = close  # the next `sample` opens it again

    def _open(self, longest: int) -> Any:
        """A pipeline whose cache has room for `longest` tokens of one sequence; the first shard has the longest."""
        blocks = _blocks(max(self.config.batch_tokens.cpu, longest))
        if self._pipeline is not None and blocks <= self._cache_blocks:
            return self._pipeline
        import openvino_genai

        self._pipeline = None
        scheduler = openvino_genai.SchedulerConfig()
        self._cache_blocks = blocks
        scheduler.max_num_batched_tokens = max(STEP_TOKENS, self.config.batch_rows.cpu)
        scheduler.num_kv_blocks = self._cache_blocks + 1
        scheduler.enable_prefix_caching = False
        if self.adapter is not None and not (self.folder / FILE).exists():
            write_model(self.runtime, self.adapter, self.folder)
        self._pipeline = openvino_genai.ContinuousBatchingPipeline(
            self.folder, scheduler_config=scheduler, device="CPU", properties=properties(self.config.precision)
        )
        return self._pipeline

    def _generation_config(self, sampling: SamplingConfig, seed: int) -> Any:
        import openvino_genai

        stop_ids = self.runtime.renderer.stop_ids
        config = openvino_genai.GenerationConfig()
        config.max_new_tokens = sampling.max_new_tokens
        config.eos_token_id = stop_ids[0]
        config.stop_token_ids = set(stop_ids)
        config.do_sample = sampling.temperature > 0
        if config.do_sample:
            config.rng_seed = seed
            config.temperature = sampling.temperature
            config.top_p = sampling.top_p
            if sampling.top_k:
                config.top_k = sampling.top_k
        return config


def _blocks(tokens: int) -> int:
    """How many blocks of the cache a sequence takes."""
    return math.ceil(tokens / BLOCK_TOKENS) + 1
