"""Sampling with transformers' continuous batching: a finished response makes room for the next prompt, and the cache is
of pages that are taken as they are needed.

Nothing is installed for it, adapters stay unmerged, and the model is the one that scores. Responses of a shard share a
random generator; all of its prompts are there before the first step, so that which of them run together depends on
nothing but their lengths and what is sampled.
"""

import math
from pathlib import Path
from typing import Any

from mipo_exp.config.fields import schema
from mipo_exp.config.schema import ENGINES, Config, EngineConfig
from mipo_exp.errors import ConfigError, ModelError
from mipo_exp.generation.engine import Engine, Request, Sampled, up_to_stop
from mipo_exp.generation.transformers_engine import generation_config
from mipo_exp.models.memory import memory_for
from mipo_exp.models.runtime import Runtime

# Tokens of a page of the cache: flash attention reads none that is not a multiple of 256.
PAGE_TOKENS = {"cpu": 32, "cuda": 256}
# Prompts are read in pieces of at most so many tokens together. Without flash attention a step has a mask of so many
# rows over the whole cache.
STEP_TOKENS = {"cpu": 512, "cuda": 4096}


@ENGINES.register("continuous")
@schema
class ContinuousConfig(EngineConfig):
    """Its keys are those of every engine. The responses of a shard share a random generator, so that the limits
    count."""

    def check(self, config: Config, on_gpu: bool) -> None:
        """See `EngineConfig.check`."""
        if config.model.attention == "eager":
            raise ConfigError(
                "engine=continuous with model.attention=eager is not supported; use sdpa, flash_attention_2 or "
                "engine=transformers"
            )

    def open(self, runtime: Runtime, adapter: Path | None, *_: Path | None) -> "ContinuousEngine":
        """See `EngineConfig.open`."""
        return ContinuousEngine(self, runtime, adapter)


class ContinuousEngine(Engine):
    """Samples in this process, from the model that scores and trains."""

    def __init__(self, config: EngineConfig, runtime: Runtime, adapter: Path | None) -> None:
        super().__init__(runtime, adapter)
        self.rows, self.tokens = config.batch_rows.on(runtime.device), config.batch_tokens.on(runtime.device)
        # Several times what is sampled at once, or the last responses of each would run alone for long.
        self.shard_rows = 4 * self.rows
        self._manager: Any = None
        self._longest = 0

    def sample(self, request: Request) -> list[Sampled]:
        """See `Engine.sample`. Raises `ModelError`: transformers gave a response up."""
        import torch

        stops = set(self.runtime.renderer.stop_ids)
        devices = [self.runtime.device] if self.runtime.device.startswith("cuda") else []
        with torch.random.fork_rng(devices=devices), memory_for("to sample", "lower engine.batch_tokens"):
            manager, found = self._open(request), dict[str, Any]()
            try:
                manager.background_thread_status.clear()  # after a shard before this one: or nothing is taken up
                torch.manual_seed(request.shard_seed)
                names = manager.add_requests(list(map(list, request.prompts)))
                manager.start()
                while len(found) < len(names):
                    result = manager.get_result(timeout=1)
                    if result is not None:
                        found[result.request_id] = result
                    elif not manager.is_running():
                        break
            except BaseException:  # interrupted: what is left of the shard is not waited for
                manager.stop(keep_for_next_session=True, hard_stop=True)
                self.close()
                raise
            manager.stop(keep_for_next_session=True)
        lost = [name for name in names if name not in found or found[name].error is not None]
        if lost:
            self.close()
            told = found[lost[0]].error if lost[0] in found else "its thread ended"
            raise ModelError(
                f"transformers' continuous batching gave {len(lost)} of {len(names)} responses up ({told}); lower "
                "engine.batch_tokens, or use engine=transformers"
            )
        return [up_to_stop(found[name].generated_tokens, stops) for name in names]

    def close(self) -> None:
        """See `Engine.close`."""
        if self._manager is not None:
            self._manager.model.destroy_cached_continuous_batching_manager()
            self._manager = None

    def _open(self, request: Request) -> Any:
        """A manager whose pages have room for the longest sequence; the first shard has it."""
        from transformers import ContinuousBatchingConfig
        from transformers.generation.continuous_batching.utils import WorkloadHints

        model: Any = self.runtime.model(self.adapter)
        if self._manager is not None and request.longest <= self._longest:
            return model.init_continuous_batching()  # the same one again, with the attention that it needs
        model.destroy_cached_continuous_batching_manager()
        self._manager = None
        sampling, renderer = request.sampling, self.runtime.renderer
        page = PAGE_TOKENS[model.device.type]
        manager = model.init_continuous_batching(
            generation_config=generation_config(sampling, renderer.stop_ids, renderer.pad_id),
            continuous_batching_config=ContinuousBatchingConfig(
                page_size=page,
                # The last page of a sequence is partly unused.
                num_blocks=math.ceil(max(self.tokens, request.longest) / page) + self.rows,
                max_batch_tokens=max(STEP_TOKENS[model.device.type], self.rows),
                max_requests_per_batch=self.rows,
                allow_block_sharing=False,  # what a shard computes must not depend on the one before
                auto_switch_to_flash=False,  # model.attention says, and is in the key
                seed=0,  # each shard sets its own
            ),
            workload_hints=WorkloadHints(
                max_prompt_length=request.longest - sampling.max_new_tokens,
                max_generated_length=sampling.max_new_tokens,
                num_requests=self.rows,
            ),
        )
        manager.warmup()
        self._manager, self._longest = manager, request.longest
        return manager
