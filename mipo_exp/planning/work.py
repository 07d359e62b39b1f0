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
from mipo_exp.config.groups import SamplingConfig
from mipo_exp.config.schema import Config, EngineConfig, NegativesConfig
from mipo_exp.data.unrelated import draw_unrelated
from mipo_exp.errors import ConfigError
from mipo_exp.evaluation.no_context import PHASE as NO_CONTEXT
from mipo_exp.generation.transformers_engine import plan_batches as plan_sampling
from mipo_exp.pairing.negatives import sample_negatives
from mipo_exp.pairing.similarity import in_order
from mipo_exp.scoring.batches import pass_tokens, plan_batches
from mipo_exp.scoring.log_probs import Scorable
from mipo_exp.scoring.score import own_marginal, scored_conditions
from mipo_exp.store.records import Condition, Example, Negative
from mipo_exp.training.micro_batches import token_budget
from mipo_exp.training.rounds import stage_name

CHARACTERS_PER_TOKEN = 4
TEMPLATE_TOKENS = 25
# So many examples are counted; the rest of a longer list is assumed to be like its beginning.
COUNTED = 256

Encode = Callable[[Condition], Sequence[int]]


@dataclass(frozen=True)
class Work:
    """What a stage that is not cached would take, in tokens.

    Attributes:
        sampled: of responses.
        scored: of forward passes.
        trained: of forward and backward passes.
        rows: of what is trained on, each prompt once for a row of data, or for a response that is sampled.
        widest: of the largest pass, or of the largest cache while sampling.
        longest: of the pass, or the cache, of one row alone, at most.
        widest_heads: positions of the largest pass whose prediction is needed; rows while sampling.
    """

    sampled: int = 0
    scored: int = 0
    trained: int = 0
    rows: int = 0
    widest: int = 0
    longest: int = 0
    widest_heads: int = 0

    @property
    def counted(self) -> int:
        """The tokens that the stage records when it runs (`Workspace.count`), from which rates come."""
        return self.rows or self.scored or self.sampled


def pieces(condition: Condition) -> list[int]:
    """A prompt as numbers of its four-character pieces: as many as it may have tokens, and equal where it is equal."""
    found = [0] * TEMPLATE_TOKENS
    for text in filter(None, (condition.context, condition.prompt)):
        cut = (text[at : at + CHARACTERS_PER_TOKEN] for at in range(0, len(text), CHARACTERS_PER_TOKEN))
        found += [zlib.crc32(piece.encode()) for piece in cut]
    return found


def costs(config: Config, examples: tuple[Sequence[Example], Sequence[Example]], device: str) -> dict[str, float]:
    """What each stage costs in scored tokens, roughly: a sampled one takes some four, a trained one three."""
    works = estimate_work(config, *examples, device)
    return {name: 4.0 * work.sampled + work.scored + 3.0 * work.trained for name, work in works.items()}


def estimate_work(
    config: Config,
    train: Sequence[Example],
    evaluation: Sequence[Example],
    device: str = "cpu",
    encode: Encode = pieces,
    encode_held_out: Encode | None = None,
) -> dict[str, Work]:
    """The work of each stage by its name, on a device (`cpu` or `cuda[:N]`), whose limits the batches keep. Held-out
    prompts may be written in a way of their own."""
    encode_held_out = encode_held_out or encode
    prompts = [encode(example.condition) for example in train[:COUNTED]]
    held_out = [encode_held_out(example.condition) for example in evaluation[:COUNTED]]

    def sampling(of: Sequence[Sequence[int]], limits: SamplingConfig, every: Sequence[Example]) -> Work:
        return _scaled(_sampling(of, config.engine, limits, device), max(1, len(every) / COUNTED))

    def scoring(items: Sequence[Scorable], every: Sequence[Example]) -> Work:
        return _scaled(_scoring(config, items, device), max(1, len(every) / COUNTED))

    answers = sampling(held_out, config.evaluation.sampling, evaluation)
    requests = draw_unrelated(config.evaluation.unrelated_requests, config.evaluation.seed)
    contexts = [example.context for example in evaluation[: len(requests)]]
    asked = [
        encode_held_out(Condition(context, one.request, plain=True))
        for of in (contexts, [None] * len(contexts))
        for one, context in zip(requests, of, strict=False)
    ]
    unrelated = _sampling(asked, config.engine, config.evaluation.sampling, device)
    by_base, by_policy = (
        scoring(_contrasts(config, evaluation, encode_held_out, whole), evaluation)
        for whole in (config.evaluation.prompt_scoring, False)
    )
    options = scoring(_options(evaluation, held_out), evaluation)
    found = {
        "before_responses": answers,
        "before_scores_base": by_base,
        "before_unrelated": unrelated,
        "after_unrelated": unrelated,
        "adapter": _training(config, len(train), prompts, device),
        "after_responses": answers,
        "after_scores_base": by_base,
        "after_scores_policy": by_policy,
        "before_option_scores": options,
        "after_option_scores": options,
        "chosen": sampling(prompts, config.sampling, train),
    }
    both = [[of.condition, own_marginal(of)] for of in evaluation[: config.evaluation.token_pmi]]
    shown = [
        Scorable(tuple(encode_held_out(one)), (-1,) * config.evaluation.sampling.max_new_tokens)
        for of in both
        for one in of
    ]
    found |= {f"{name}_token_pmi": _scoring(config, shown, device) for name in ("before", "after", "pairs")}
    plain = [encode_held_out(Condition(None, example.prompt)) for example in evaluation[:COUNTED]]
    for phase in map(NO_CONTEXT.format, ("before", "after")):
        found[f"{phase}_responses"] = sampling(plain, config.evaluation.sampling, evaluation)
        found[f"{phase}_scores_base"] = by_base
        found[f"{phase}_option_scores"] = scoring(_options(evaluation, plain), evaluation)
    if config.method.trains_on == "pairs":
        negatives = _drawn(train, config.negatives, config.seed)
        wrong = [encode(negative.condition) for negative in negatives]
        found["rejected"] = sampling(_missing(negatives, encode), config.sampling, train)
        found["scored_pairs"] = scoring(_pairs(config, prompts, wrong), train)
        if (strategy := config.control.chosen_from) is not None:
            others = _drawn(train, NegativesConfig(strategy, 1, None, None), config.seed)
            found["other_chosen"] = sampling(_missing(others, encode), config.sampling, train)
    rounds = config.method.training_rounds
    for name in ("chosen", "other_chosen", "rejected", "scored_pairs", "adapter") if rounds > 1 else ():
        work = _scaled(found.get(name, Work()), 1 / rounds)
        found |= {stage_name(name, i, rounds): work for i in range(1, rounds + 1)}
    return found


def _drawn(train: Sequence[Example], config: NegativesConfig, seed: int) -> list[Negative]:
    """The negative conditions of the first examples."""
    return sample_negatives(train, config, seed, in_order)[: COUNTED * config.k]


def _missing(negatives: Sequence[Negative], encode: Encode) -> list[Sequence[int]]:
    """The prompts of those whose response is not there already."""
    return [encode(negative.condition) for negative in negatives if negative.source is None]


def _scaled(work: Work, scale: float) -> Work:
    """The work of so many times the examples; single passes stay as large as they are."""
    counts = {name: math.ceil(getattr(work, name) * scale) for name in ("sampled", "scored", "trained", "rows")}
    return replace(work, **counts)


def _sampling(prompts: Sequence[Sequence[int]], engine: EngineConfig, sampling: SamplingConfig, device: str) -> Work:
    if not prompts:
        return Work()
    new = sampling.max_new_tokens
    batches = plan_sampling([len(prompt) for prompt in prompts], engine, new, device)
    caches = [len(batch) * (max(len(prompts[i]) for i in batch) + new) for batch in batches]
    longest = max(map(len, prompts)) + new
    return Work(sampled=len(prompts) * new, widest=max(caches), longest=longest, widest_heads=max(map(len, batches)))


def _scoring(config: Config, items: Sequence[Scorable], device: str) -> Work:
    items = list(dict.fromkeys(items))
    share = "prefix_sharing" in kernel_parts(config.kernels)
    batches, tokens = plan_batches(items, pass_tokens(config.scoring, device), share)
    heads = [sum(len(items[i].response_ids) for i in batch) for batch in batches]
    longest = max((len(item.input_ids) for item in items), default=0)
    widest, widest_heads = max(tokens, default=0), max(heads, default=0)
    return Work(scored=sum(tokens), widest=widest, longest=longest, widest_heads=widest_heads)


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
    for example, prompt in zip(examples, prompts, strict=False):
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
    method, trainer, new = config.method, config.trainer, config.sampling.max_new_tokens
    mean = sum(map(len, prompts)) / max(len(prompts), 1)
    rows, responses = examples * method.shape(config)[0], method.shape(config)[1]
    iterations, reference, conditions = method.passes
    batch, seen = trainer.per_device_train_batch_size, rows * trainer.num_train_epochs
    if trainer.max_steps > 0:
        seen = trainer.max_steps * batch * trainer.gradient_accumulation_steps / iterations
    own = 1 if method.across_batch else responses

    def row(prompt: float) -> float:
        """Tokens of a row of training data, whose prompt has so many."""
        prompts = 1 if "prompt_sharing" in kernel_parts(config.kernels) else responses
        return prompts * prompt + responses * new

    longest = row(max(map(len, prompts), default=0))
    budget = token_budget(trainer, method, config.lora, device)
    if "micro_batches" not in kernel_parts(config.kernels):
        budget = None
    at_once = batch if budget is None else min(batch, max(1, int(budget // row(mean))))
    trained = Work(
        trained=math.ceil(seen * row(mean) * iterations),
        rows=math.ceil(seen * (mean + own * new)),
        widest=math.ceil(at_once * longest if budget is None else max(longest, min(budget, at_once * row(mean)))),
        longest=math.ceil(longest),
        widest_heads=math.ceil(at_once * responses * new),
    )
    if method.trains_on != "examples":
        return trained
    sampled = seen * responses * new
    scored = seen * row(mean) * reference + conditions * (sampled + mean * seen)
    whole = math.ceil(seen * responses * mean + sampled)
    return replace(trained, sampled=math.ceil(sampled), scored=math.ceil(scored), rows=whole)
