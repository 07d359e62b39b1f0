"""The stages that sample: chosen and rejected responses for training, responses of a model for evaluation."""

import dataclasses
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path

from mipo_exp.config.decoding import Decoding
from mipo_exp.config.groups import SamplingConfig
from mipo_exp.config.schema import SCORERS, EngineConfig, NegativesConfig
from mipo_exp.data.unrelated import take_turns
from mipo_exp.errors import ConfigError, DataError
from mipo_exp.execution.progress import Progress
from mipo_exp.execution.shards import Shard, Shards, compute_shards
from mipo_exp.generation.engine import Contrast, Engine, Request, request_seed
from mipo_exp.generation.transformers_engine import batch_seed
from mipo_exp.models.runtime import Runtime
from mipo_exp.pairing.negatives import sample_negatives
from mipo_exp.pairing.similarity import Encoder, bm25
from mipo_exp.store.artefacts import Workspace
from mipo_exp.store.records import Condition, Example, Negative, Response
from mipo_exp.store.tables import ById, Gathered, Mapped

EXTRACTED_TOKENS = 64  # of a reply that extracts a number


def sample_chosen(work: Workspace, runtime: Runtime, sampling: SamplingConfig, engine: EngineConfig, seed: int) -> None:
    """y⁺ ~ π_ref(· | c, x) for every training example."""
    examples = work.inputs["examples"].table("train", Example)
    responses = sample_responses(work, runtime, Mapped(_true, examples), sampling, engine, seed, "chosen")
    work.write_table("responses", responses, Response)


def sample_rejected(
    work: Workspace,
    runtime: Runtime,
    negatives: NegativesConfig,
    sampling: SamplingConfig,
    engine: EngineConfig,
    seed: int,
    encoder: Encoder | None,
) -> None:
    """y⁻ ~ π_ref(· | negative condition): k for every training example.

    A negative condition that is the true condition of another example has its response already, drawn from the same
    distribution: it is reused."""
    examples = list(work.inputs["examples"].table("train", Example))
    conditions = sample_negatives(examples, negatives, seed, encoder or bm25)
    responses = _responses_to(work, runtime, conditions, sampling, engine, seed, "rejected")
    work.write_table("negatives", conditions, Negative)
    work.write_table("responses", responses, Response)


def sample_chosen_from(
    work: Workspace, runtime: Runtime, strategy: str, sampling: SamplingConfig, engine: EngineConfig, seed: int
) -> None:
    """In place of the chosen responses: one for every training example under the condition that a strategy draws."""
    examples = list(work.inputs["examples"].table("train", Example))
    own_seed = request_seed(seed, "chosen from", strategy)  # the rejected responses may be from the same strategy
    conditions = sample_negatives(examples, NegativesConfig(strategy, 1, None, None), own_seed)
    responses = _responses_to(work, runtime, conditions, sampling, engine, own_seed, "chosen")
    named = zip(examples, responses, strict=True)
    work.write_table("responses", (dataclasses.replace(row, id=example.id) for example, row in named), Response)


def _responses_to(
    work: Workspace,
    runtime: Runtime,
    conditions: Sequence[Negative],
    sampling: SamplingConfig,
    engine: EngineConfig,
    seed: int,
    purpose: str,
) -> Iterator[Response]:
    """The response to each condition: a new one, or the chosen one of the example whose true condition it is."""
    chosen = ById(work.inputs["chosen"].table("responses", Response))
    missing = [(negative.id, negative.condition) for negative in conditions if negative.source is None]
    sampled = ById(sample_responses(work, runtime, missing, sampling, engine, seed, purpose))

    def response_to(negative: Negative) -> Response:
        source = negative.source
        found = sampled[negative.id] if source is None else chosen[source]
        return dataclasses.replace(found, id=negative.id)

    return map(response_to, conditions)


def sample_evaluation(
    work: Workspace,
    runtime: Runtime,
    sampling: SamplingConfig,
    engine: EngineConfig,
    seed: int,
    decoding: Decoding,
) -> None:
    """Responses to the held-out examples, by the base model or, where there is an `adapter` input, by the policy.

    With `decoding` it answers without the context, or against it; its temperature and top_p are in `sampling` already.
    """
    examples = work.inputs["examples"].table("eval", Example)
    without = Mapped(_without_context, examples)
    conditions = Mapped(_true, examples) if decoding.context else without
    against = None if decoding.alpha is None else (without, decoding.alpha)
    responses = sample_responses(work, runtime, conditions, sampling, engine, seed, "evaluation", against)
    work.write_table("responses", responses, Response)


def sample_unrelated(
    work: Workspace,
    runtime: Runtime,
    requests: Sequence[str],
    sampling: SamplingConfig,
    engine: EngineConfig,
    seed: int,
    decoding: Decoding,
) -> None:
    """Responses to requests that have nothing to do with a context, with those of held-out users in turn, and then
    without any; by which model and with what `decoding` as in `sample_evaluation`."""
    examples = work.inputs["examples"].table("eval", Example)
    rows = [examples[row] for row in take_turns([example.user for example in examples], len(requests), seed)]
    asked = list(zip(rows, requests, strict=False))
    without = [(f"{example.id}/without_context", Condition(None, text, plain=True)) for example, text in asked]
    own = [
        (example.id, Condition(example.context if decoding.context else None, text, plain=True))
        for example, text in asked
    ]
    against = None if decoding.alpha is None else ([*without, *without], decoding.alpha)
    found = sample_responses(work, runtime, [*own, *without], sampling, engine, seed, "unrelated", against)
    work.write_table("responses", found, Response)


def extract_answers(
    work: Workspace, runtime: Runtime, scorer: str, asks: str, sampling: SamplingConfig, engine: EngineConfig, seed: int
) -> None:
    """The replies of the model that gave some responses, where the scorer reads no answer in them and it is asked to
    extract it (`Extraction`); replies have at most `EXTRACTED_TOKENS`."""
    extraction, reading = SCORERS[scorer].extraction, work.inputs["responses"].table("responses", Response)
    if extraction is None:
        raise ValueError(f"scorer {scorer} asks for no answers")
    unread = [(row.id, Condition(None, row.text)) for row in reading if extraction.reads(row.text) is None]

    def prompt_ids(condition: Condition) -> list[int]:
        content = asks.replace("{response}", condition.prompt)
        return runtime.renderer.prompt_ids([{"role": "user", "content": content}])

    short = dataclasses.replace(sampling, max_new_tokens=min(sampling.max_new_tokens, EXTRACTED_TOKENS))
    replies = sample_responses(work, runtime, unread, short, engine, seed, "extraction", prompt_ids=prompt_ids)
    work.write_table("replies", replies, Response)


def _true(example: Example) -> tuple[str, Condition]:
    return example.id, example.condition


def _without_context(example: Example) -> tuple[str, Condition]:
    return example.id, Condition(None, example.prompt)


def sample_responses(
    work: Workspace,
    runtime: Runtime,
    conditions: Sequence[tuple[str, Condition]],
    sampling: SamplingConfig,
    engine: EngineConfig,
    seed: int,
    purpose: str,
    against: tuple[Sequence[tuple[str, Condition]], float] | None = None,
    prompt_ids: Callable[[Condition], list[int]] | None = None,
) -> Sequence[Response]:
    """One response for each (id, condition), in their order; finished shards of an interrupted build are reused.

    `against` are the conditions and the α of context-aware decoding, where it is wanted; `prompt_ids` writes prompts in
    another way than the runtime's.

    Raises:
        DataError: a prompt does not fit into the model's positions.
    """
    found = Gathered(Response)
    if not conditions:
        return found.in_order([])
    render = prompt_ids or runtime.prompt_ids
    adapter = work.inputs["adapter"].path / "adapter" if "adapter" in work.inputs else None
    ids = [name for name, _ in conditions]
    lengths = [len(render(condition)) for _, condition in conditions]
    check_lengths(runtime, ids, lengths, sampling.max_new_tokens)
    folder = work.inputs["engine_model"].path / "model" if "engine_model" in work.inputs else None
    scratch = work.path / "engine"
    opened = partial(opened_engine, config=engine, folder=folder, scratch=scratch)
    with opened(runtime, adapter) as planner:  # loads nothing
        batches = planner.plan(lengths, sampling.max_new_tokens)

    def shard(number: int) -> Shard[Engine, Response]:
        batch = batches[number]
        contrast = None
        if against is not None:
            contrast = Contrast([runtime.prompt_ids(against[0][i][1]) for i in batch], against[1])
        prompts = [render(conditions[i][1]) for i in batch]
        seeds = [request_seed(seed, purpose, ids[i]) for i in batch]
        request = Request(prompts, sampling, batch_seed(seed, purpose, number), seeds, contrast)
        return partial(sample_shard, ids=[ids[i] for i in batch], request=request)

    def fits(number: int, rows: Sequence[Response]) -> bool:  # not if another version planned other batches
        return [row.id for row in rows] == [ids[i] for i in batches[number]]

    shards = Shards(runtime, adapter, opened, Response, len(batches), shard, fits)
    with Progress(f"sampling {purpose} responses", len(conditions), "tokens") as progress:
        for rows, reused in compute_shards(work, shards):
            found.add(rows)
            tokens = sum(len(row.token_ids) for row in rows)
            work.count(tokens, runtime.device_name)
            progress.advance(len(rows), 0 if reused else tokens)
    shutil.rmtree(scratch, ignore_errors=True)  # of interrupted builds, too
    return found.in_order(ids)


@contextmanager
def opened_engine(
    runtime: Runtime, adapter: Path | None, config: EngineConfig, folder: Path | None, scratch: Path
) -> Iterator[Engine]:
    """The engine of a config for the base model or the policy. What it writes lies in a folder of its own, in `scratch`
    where this machine has the folder around it, and is gone afterwards; with the base model some engines stay open from
    stage to stage. Raises `ConfigError`: the converted model is not on this machine."""
    if folder is not None and not folder.is_dir():
        raise ConfigError(
            f"{folder} is not here; engine={config.name} over machines needs a paths.cache that all share"
        )
    if adapter is None and config.stays_open:
        yield runtime.keep((config, folder), partial(config.open, runtime, None, folder, scratch))
        return
    try:
        scratch.mkdir(exist_ok=True)
        own = tempfile.TemporaryDirectory(dir=scratch, ignore_cleanup_errors=True)
        Path(own.name).chmod(scratch.stat().st_mode)  # so that another user of the cache can remove what a kill leaves
    except FileNotFoundError:  # a machine that does not share the cache
        own = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
    with own as name, closing(config.open(runtime, adapter, folder, Path(name) / "model")) as engine:
        yield engine


def sample_shard(runtime: Runtime, engine: Engine, ids: Sequence[str], request: Request) -> list[Response]:
    """One response for each id, to the prompt at the same index."""
    return [
        Response(name, item.token_ids, runtime.renderer.text(item.token_ids), item.finished)
        for name, item in zip(ids, engine.sample(request), strict=True)
    ]


def check_lengths(runtime: Runtime, ids: Sequence[str], lengths: Sequence[int], new_tokens: int) -> None:
    """Raise `DataError` for a prompt whose length leaves no room for `new_tokens` in the model's positions."""
    limit = runtime.max_positions
    for name, length in zip(ids, lengths, strict=True):
        if limit is not None and length + new_tokens > limit:
            raise DataError(
                f"example {name}: its prompt has {length} tokens, and with max_new_tokens={new_tokens} it does not "
                f"fit into the {limit} positions of the model; shorten the context or use a model with more"
            )
