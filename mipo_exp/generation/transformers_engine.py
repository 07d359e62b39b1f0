"""Sampling with transformers' `generate`, in batches of similar prompt length.

A batch is a pure function of the prompts and the engine's settings and has its own seed, so a batch can be sampled
alone: after an interruption only the missing ones are, and they come out the same.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mipo_exp.config.fields import schema
from mipo_exp.config.groups import SamplingConfig
from mipo_exp.config.schema import ENGINES, EngineConfig
from mipo_exp.generation.engine import Contrast, Engine, Request, Sampled, longest_first, up_to_stop
from mipo_exp.models.memory import memory_for
from mipo_exp.models.runtime import Runtime
from mipo_exp.store.artefacts import digest

if TYPE_CHECKING:
    import torch
    from transformers import GenerationConfig, PreTrainedModel

# The parts of `kernels` that change what is sampled.
SAMPLING_PARTS = ("onednn",)


@ENGINES.register("transformers")
@schema
class TransformersConfig(EngineConfig):
    """Its keys are those of every engine. The rows of a batch share a random generator, so that the limits count."""

    contrasts = True

    def open(self, runtime: Runtime, adapter: Path | None, *_: Path | None) -> "TransformersEngine":
        """See `EngineConfig.open`."""
        return TransformersEngine(self, runtime, adapter)


def in_process(config: EngineConfig) -> TransformersConfig:
    """`engine=transformers` with the limits of this one: a policy in training is sampled where it is."""
    return TransformersConfig("transformers", config.batch_rows, config.batch_tokens)


class TransformersEngine(Engine):
    """Samples in this process, from the model that scores and trains."""

    def __init__(self, config: EngineConfig, runtime: Runtime, adapter: Path | None) -> None:
        super().__init__(runtime, adapter)
        self.config = config

    def plan(self, lengths: Sequence[int], max_new_tokens: int) -> list[list[int]]:
        """See `Engine.plan`: a shard is a batch."""
        return plan_batches(lengths, self.config, max_new_tokens, self.runtime.device)

    def sample(self, request: Request) -> list[Sampled]:
        """See `Engine.sample`: the rows of a batch share a generator."""
        renderer, count = self.runtime.renderer, len(request.prompts)
        model = self.runtime.model(self.adapter)
        way_out = "lower engine.batch_tokens" if count > 1 else "shorten the prompts, or use a smaller model"
        how = request.sampling, renderer.stop_ids, renderer.pad_id, request.shard_seed, request.contrast
        with memory_for(f"to sample {count} responses at once", way_out):
            return sample_batch(model, request.prompts, *how)


def plan_batches(lengths: Sequence[int], engine: EngineConfig, max_new_tokens: int, device: str) -> list[list[int]]:
    """Indices of prompts of these lengths in tokens, in batches within the limits on a device, longest first (an
    out-of-memory error shows at once)."""
    most_rows, most_tokens = engine.batch_rows.on(device), engine.batch_tokens.on(device)
    batches: list[list[int]] = []
    for index in longest_first(lengths):
        if batches:
            width = lengths[batches[-1][0]] + max_new_tokens
            rows = len(batches[-1]) + 1
            if rows <= most_rows and rows * width <= most_tokens:
                batches[-1].append(index)
                continue
        batches.append([index])
    return batches


def batch_seed(seed: int, purpose: str, batch: int) -> int:
    """The seed of one batch: different for each run seed, purpose (chosen, rejected …) and batch."""
    return int(digest([seed, purpose, batch])[:15], 16)


def sample_batch(
    model: "PreTrainedModel",
    prompts: Sequence[Sequence[int]],
    sampling: SamplingConfig,
    stop_ids: Sequence[int],
    pad_id: int,
    seed: int,
    contrast: Contrast | None = None,
) -> list[Sampled]:
    """One response for each prompt of a batch.

    Args:
        model: in evaluation mode.
        prompts: token ids, each of at least one token.
        sampling: temperature 0 is greedy.
        stop_ids: ids that end a response; the first one sampled is kept as its last token.
        pad_id: what the engine fills finished rows with; never read.
        seed: of the torch generators; theirs are restored afterwards.
        contrast: decode against the same prompts without their contexts.
    """
    import torch

    device = next(model.parameters()).device
    ids, mask = _pad_left(prompts, pad_id)
    against = {}
    if contrast is not None:
        plain_ids, plain_mask = _pad_left(contrast.prompts, pad_id)
        against = {
            "negative_prompt_ids": plain_ids.to(device),
            "negative_prompt_attention_mask": plain_mask.to(device),
            "guidance_scale": 1 + contrast.alpha,
        }
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices), torch.inference_mode():
        torch.manual_seed(seed)
        output = model.generate(
            input_ids=ids.to(device),
            attention_mask=mask.to(device),
            generation_config=generation_config(sampling, stop_ids, pad_id),
            **against,
        )
    stops = set(stop_ids)
    return [up_to_stop(row, stops) for row in output[:, ids.shape[1] :].tolist()]


def _pad_left(prompts: Sequence[Sequence[int]], pad_id: int) -> "tuple[torch.Tensor, torch.Tensor]":
    """(B, T) ids and attention mask."""
    import torch
    from torch.nn.utils.rnn import pad_sequence

    rows = [torch.tensor(prompt, dtype=torch.long) for prompt in prompts]
    ids = pad_sequence(rows, batch_first=True, padding_value=pad_id, padding_side="left")
    return ids, pad_sequence([torch.ones_like(row) for row in rows], batch_first=True, padding_side="left")


def generation_config(sampling: SamplingConfig, stop_ids: Sequence[int], pad_id: int) -> "GenerationConfig":
    """Our settings as transformers takes them."""
    from transformers import GenerationConfig

    greedy = sampling.temperature == 0
    shape = {"temperature": sampling.temperature, "top_p": sampling.top_p, "top_k": sampling.top_k}
    return GenerationConfig(
        max_new_tokens=sampling.max_new_tokens,
        do_sample=not greedy,
        eos_token_id=list(stop_ids),
        pad_token_id=pad_id,
        **({} if greedy else shape),
    )
