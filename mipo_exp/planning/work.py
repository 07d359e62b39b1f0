"""What each stage would compute, counted on the prompts themselves.

Prompts are token ids where the model's tokenizer is at hand, and pieces of four characters where it is not. Responses
count at the token limit.
"""

import json
import math
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import count

from mipo_exp.config.fields import kernel_parts
from mipo_exp.config.methods import MiRlConfig, OnPolicyConfig
from mipo_exp.config.schema import Config, EngineConfig, SamplingConfig
from mipo_exp.errors import ConfigError
from mipo_exp.generation.transformers_engine import plan_batches as plan_sampling
from mipo_exp.pairing.negatives import sample_negatives
from mipo_exp.pairing.similarity import in_order
from mipo_exp.scoring.batches import computed_tokens, pass_tokens, plan_batches
from mipo_exp.scoring.log_probs import Scorable
from mipo_exp.scoring.score import scored_conditions
from mipo_exp.store.records import Condition, Example
from mipo_exp.training.micro_batches import token_budget

CHARACTERS_PER_TOKEN = 4
TEMPLATE_TOKENS = 25
# So many examples are counted; a longer list is taken to go on like its beginning.
COUNTED = 256

Encode = Callable[[Condition], Sequence[int]]


@dataclass(frozen=True)
class Work:
    """What a stage that is not cached would take.

    Attributes:
        sampled: response tokens.
        scored: tokens of forward passes.
        trained: tokens of forward and backward passes.
        heads: of `scored` or `trained`, those whose prediction is needed.
        length: tokens that a scored, trained or sampled token looks back at, at most, on average.
        calls: passes in which `scored` or `trained` is computed.
        prompts: prompt tokens that are read before responses are sampled, with their padding where it is known.
        turns: decoding steps in which `sampled` is computed.
        widest: tokens of the largest pass, or of the largest cache while sampling.
        widest_heads: positions of the largest pass whose prediction is needed; rows while sampling.
        adapted: whether what samples has an adapter on it, unmerged.
    """

    sampled: int = 0
    scored: int = 0
    trained: int = 0
    heads: int = 0
    length: float = 0.0
    calls: int = 0
    prompts: int = 0
    turns: int = 0
    widest: int = 0
    widest_heads: int = 0
    adapted: bool = False


def pieces(condition: Condition) -> list[int]:
    """A prompt as numbers of its four-character pieces: as many as it may have tokens, and equal where it is equal."""
    texts = [part for part in (condition.context, condition.prompt) if part is not None]
    found = [0] * TEMPLATE_TOKENS
    for text in texts:
        cut = (text[at : at + CHARACTERS_PER_TOKEN] for at in range(0, len(text), CHARACTERS_PER_TOKEN))
        found += [zlib.crc32(piece.encode()) for piece in cut]
    return found


def estimate_work(
    config: Config,
    train: Sequence[Example],
    evaluation: Sequence[Example],
    device: str = "cpu",
    encode: Encode = pieces,
) -> dict[str, Work]:
    """The work of each stage by its name, on a device (`cpu` or `cuda[:N]`), whose limits the batches keep."""
    counted_train, counted_evaluation = train[:COUNTED], evaluation[:COUNTED]
    scale = len(train) / max(len(counted_train), 1)
    held_out_scale = len(evaluation) / max(len(counted_evaluation), 1)
    limit = config.evaluation.sampling
    true_prompts = [encode(example.condition) for example in counted_train]
    held_out = [encode(example.condition) for example in counted_evaluation]
    before = _scaled(_sampling(held_out, config.engine, limit), held_out_scale)
    by_base, by_policy = (
        _scaled(_scoring(config, _contrasts(config, evaluation, encode, prompts), device), held_out_scale)
        for prompts in (config.evaluation.prompt_scoring, False)
    )
    options = _scaled(_scoring(config, _options(counted_evaluation, held_out), device), held_out_scale)
    found = {
        "before_responses": before,
        "before_scores_base": by_base,
        "adapter": _training(config, len(train), true_prompts, device),
        "after_responses": replace(before, adapted=True),
        "after_scores_base": by_base,
        "after_scores_policy": by_policy,
        "before_option_scores": options,
        "after_option_scores": options,
        "chosen": _scaled(_sampling(true_prompts, config.engine, config.sampling), scale),
    }
    if config.method.trains_on == "pairs":
        negatives = sample_negatives(train, config.negatives, config.seed, in_order)
        negatives = negatives[: len(counted_train) * config.negatives.k]
        missing = [encode(negative.condition) for negative in negatives if negative.source is None]
        wrong = [encode(negative.condition) for negative in negatives]
        found["rejected"] = _scaled(_sampling(missing, config.engine, config.sampling), scale)
        found["scored_pairs"] = _scaled(_scoring(config, _pairs(config, true_prompts, wrong), device), scale)
    return found


def _scaled(work: Work, scale: float) -> Work:
    """As much of it as `scale` times the examples make; single passes stay as large as they are."""
    grown = ("sampled", "scored", "trained", "heads", "calls", "prompts", "turns")
    return replace(work, **{name: math.ceil(getattr(work, name) * scale) for name in grown})


def _sampling(prompts: Sequence[Sequence[int]], engine: EngineConfig, sampling: SamplingConfig) -> Work:
    if not prompts:
        return Work()
    new = sampling.max_new_tokens
    batches = plan_sampling([len(prompt) for prompt in prompts], engine, new)
    read = sum(map(len, prompts))
    widths = [len(batch) * max(len(prompts[i]) for i in batch) for batch in batches]
    # With continuous batching there are no fewer steps; with batches each waits for its longest response.
    padded = engine.name == "transformers"
    turns = len(batches) if padded else math.ceil(len(prompts) / engine.batch_rows)
    caches = [width + len(batch) * new for width, batch in zip(widths, batches, strict=True)]
    return Work(
        sampled=len(prompts) * new,
        length=read / len(prompts) + new / 2,
        prompts=sum(widths) if padded else read,
        turns=turns * new,
        widest=max(caches),
        widest_heads=max(map(len, batches)),
    )


def _scoring(config: Config, items: Sequence[Scorable], device: str) -> Work:
    items = list(dict.fromkeys(items))
    if not items:
        return Work()
    share = "prefix_sharing" in kernel_parts(config.kernels)
    batches = plan_batches(items, pass_tokens(config.scoring, device), share)
    tokens, heads = [], []
    for batch in batches:
        tokens.append(computed_tokens([items[i] for i in batch], share))
        heads.append(sum(len(items[i].response_ids) for i in batch))
    return Work(
        scored=sum(tokens),
        heads=sum(heads),
        length=sum(len(item.input_ids) for item in items) / len(items),
        calls=len(batches),
        widest=max(tokens),
        widest_heads=max(heads),
    )


def _contrasts(config: Config, examples: Sequence[Example], encode: Encode, prompts: bool) -> list[Scorable]:
    """The first responses, each under the conditions that it is scored under."""
    if not examples:
        return []
    k, seed = config.evaluation.k, config.evaluation.seed
    try:  # among themselves they share as much as all of them do
        rows = scored_conditions(examples[:COUNTED], k, seed, prompts)
    except ConfigError:  # the first ones are of too few users
        rows = scored_conditions(examples, k, seed, prompts)[:COUNTED]
    responses = _responses(config.evaluation.sampling.max_new_tokens)
    items = []
    for conditions in rows:
        response = responses()
        items += [Scorable(tuple(encode(one)), response) for one in dict.fromkeys(conditions)]
    return items


def _pairs(config: Config, prompts: Sequence[Sequence[int]], wrong: Sequence[Sequence[int]]) -> list[Scorable]:
    responses = _responses(config.sampling.max_new_tokens)
    items, k = [], config.negatives.k
    for number, prompt in enumerate(prompts):
        chosen = responses()
        for negative in wrong[number * k : (number + 1) * k]:
            under = [prompt] if config.pairs.min_pmi_margin is None else [prompt, negative]
            rejected = responses()
            items += [Scorable(tuple(ids), side) for ids in under for side in (chosen, rejected)]
    return items


def _options(examples: Sequence[Example], prompts: Sequence[Sequence[int]]) -> list[Scorable]:
    items = []
    for example, prompt in zip(examples, prompts, strict=True):
        for option in json.loads(example.reference).get("options") or []:
            tokens = max(1, len(option) // CHARACTERS_PER_TOKEN)
            items.append(Scorable(tuple(prompt), _responses(tokens, zlib.crc32(option.encode()))()))
    return items


def _responses(tokens: int, first: int = 0) -> Callable[[], tuple[int, ...]]:
    """Responses of that many tokens, each different from the others from its first token on."""
    numbers = count(first)
    return lambda: (-1 - abs(next(numbers)), *([-1] * (tokens - 1)))


def _training(config: Config, examples: int, prompts: Sequence[Sequence[int]], device: str) -> Work:
    """All training passes, and what a method samples and scores between them."""
    method, trainer = config.method, config.trainer
    mean = sum(map(len, prompts)) / max(len(prompts), 1)
    longest = max(map(len, prompts), default=0)
    rows = examples * (config.negatives.k if method.name == "mipo" else 1)
    iterations = method.num_iterations if isinstance(method, OnPolicyConfig) else 1
    epochs = trainer.num_train_epochs
    batch = trainer.per_device_train_batch_size
    if trainer.max_steps > 0:
        epochs = trainer.max_steps * batch * trainer.gradient_accumulation_steps / max(rows * iterations, 1)
    seen = rows * epochs
    prompt_tokens, response_tokens = _row_tokens(config, mean)
    row = prompt_tokens + response_tokens
    widest = sum(_row_tokens(config, longest))
    passed = seen * row
    budget = token_budget(trainer, method, config.lora, device)
    if "micro_batches" not in kernel_parts(config.kernels):
        budget = None
    at_once = batch if budget is None else min(batch, max(1, int(budget // row)))
    trained = Work(
        trained=math.ceil(passed * iterations),
        heads=math.ceil(seen * response_tokens * iterations),
        length=mean + config.sampling.max_new_tokens,
        calls=math.ceil(seen * iterations / at_once),
        widest=math.ceil(at_once * widest if budget is None else max(widest, min(budget, at_once * row))),
        widest_heads=math.ceil(at_once * response_tokens),
    )
    if not isinstance(method, OnPolicyConfig):
        return trained
    sampled = seen * method.num_generations * config.sampling.max_new_tokens
    scored = passed if method.beta else 0.0
    if isinstance(method, MiRlConfig):
        conditions = 2 if method.estimator == "own_marginal" else method.k
        scored += conditions * (sampled + mean * examples * epochs)
    return replace(
        trained,
        sampled=math.ceil(sampled),
        scored=math.ceil(scored),
        prompts=math.ceil(seen * method.num_generations * mean),
        turns=math.ceil(seen / batch * config.sampling.max_new_tokens),
        adapted=True,
    )


def _row_tokens(config: Config, prompt: float) -> tuple[float, float]:
    """Tokens of the prompts and of the responses in one row of training data, whose prompt has `prompt` tokens."""
    method, trainer = config.method, config.trainer
    responses = trainer.per_device_train_batch_size if method.across_batch else 1
    responses = {"mipo": 2, "softmax_dpo": 1 + config.negatives.k}.get(method.name, responses)
    if isinstance(method, OnPolicyConfig):
        responses = method.num_generations
    prompts = 1 if "prompt_sharing" in kernel_parts(config.kernels) else responses
    return prompts * prompt, responses * config.sampling.max_new_tokens
