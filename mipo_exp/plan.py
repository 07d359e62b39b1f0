"""`plan=true`: what a run would do, without doing it."""

import json
import logging
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from mipo_exp.checks import check_examples, check_extra, check_harness
from mipo_exp.config import Config, ModelConfig
from mipo_exp.config_methods import MiRlConfig, OnPolicyConfig, RlaifConfig
from mipo_exp.data.tasks import make_task
from mipo_exp.errors import ModelError, UserError, gib
from mipo_exp.evaluation.harness import locate_harness
from mipo_exp.generation.engine import check_engine
from mipo_exp.judging.stage import (
    Estimate,
    Judging,
    estimate_judging,
    estimate_rewards,
    prepare_judging,
    response_texts,
)
from mipo_exp.models import ModelSource, locate
from mipo_exp.negatives import sample_negatives
from mipo_exp.pipeline import declare, declare_examples, declare_judgements, declare_model
from mipo_exp.records import Example
from mipo_exp.runtime import Runtime, choose_device
from mipo_exp.scoring.log_probs import MAX_LOGITS_BYTES
from mipo_exp.similarity import Encoder, in_order, locate_encoder
from mipo_exp.store import Stage, Store

log = logging.getLogger(__name__)

# What tables, checkpoints of the adapter and the report take beside the model itself; generous.
OTHER_DISK_BYTES = 2**29
BYTES = {"float32": 4, "bfloat16": 2, "float16": 2, "float64": 8}
CHARACTERS_PER_TOKEN = 4.0
TEMPLATE_TOKENS = 25
LIBRARIES_BYTES = 2**30  # torch, transformers and TRL, imported


@dataclass(frozen=True)
class Work:
    """What a stage that is not cached would take, in tokens."""

    sampled: int = 0
    scored: int = 0
    trained: int = 0


def disk_needed(source: ModelSource, config: ModelConfig, converted: bool) -> int:
    """Bytes that a run may add to the cache. A GGUF file grows at most by the ratio of float32 to its 4 bits."""
    if converted or source.kind == "folder":
        return OTHER_DISK_BYTES
    if source.path is None:
        return OTHER_DISK_BYTES + BYTES["float32"] * random_parameters(config.random or {})
    return OTHER_DISK_BYTES + 8 * source.path.stat().st_size


def random_parameters(shape: Mapping[str, Any]) -> int:
    """About how many parameters a decoder of this shape has, at most; 0 where the shape does not say."""
    sizes = {name: value for name, value in shape.items() if isinstance(value, int)}
    width, depth = sizes.get("hidden_size", 0), sizes.get("num_hidden_layers", 0)
    inner = sizes.get("intermediate_size", 4 * width)
    embeddings = (1 if sizes.get("tie_word_embeddings") else 2) * sizes.get("vocab_size", 0) * width
    return embeddings + depth * (4 * width * width + 3 * width * inner)


def describe(config: Config, resolved: Mapping[str, Any]) -> str:
    """The composed config, what of it is cached, and the tokens, memory and disk that the rest would take."""
    lines = [OmegaConf.to_yaml(OmegaConf.create(dict(resolved)))]
    store = Store(Path(config.paths.cache).expanduser())
    device = choose_device(config.device)
    check_engine(config, device)
    task = make_task(config.task, store.root)
    notes: list[str] = []
    judging: Judging | None = None
    try:
        judging = prepare_judging(config, task, store.root, device, download=False)
    except ModelError as error:
        notes.append(f"a run would fetch it first: {error}")
    data: str | None = None
    try:
        data = task.prepare(download=False)
    except UserError as error:
        notes.append(f"a run would fetch it first: {error}")
    try:
        source = locate(config.model, store.root, download=False)
    except UserError as error:
        notes.append(f"a run would fetch it first: {error}")
        source = ModelSource("folder", None, "not here yet", f"{config.model.name}, not here yet")
    encoder: Encoder | None = None
    if config.negatives.embedding_model is not None:
        try:
            encoder = locate_encoder(config.negatives.embedding_model, store.root, download=False)
        except UserError as error:
            notes.append(f"a run would fetch it first: {error}")
            encoder = Encoder(Path(), "not here yet")
    harness = locate_harness(config.harness, store.root)
    runtime = Runtime(config.model, source, task, device)
    model = declare_model(runtime)
    examples_stage = declare_examples(config, task, data or "not here yet", runtime if task.needs_tokenizer else None)
    stages = {
        "examples": examples_stage,
        **({"model": model} if model else {}),
        **declare(config, runtime, examples_stage, encoder, harness, judging),
    }
    if judging is not None:
        stages["judgements"] = declare_judgements(judging, examples_stage, stages)
    status = {name: store.status(stage) for name, stage in stages.items()}
    check_harness(harness, [status[name] for name, stage in stages.items() if stage.name == "harness"], False)
    found = store.find(examples_stage)
    examples: tuple[list[Example], list[Example]] | None = None
    if found is not None:
        examples = found.table("train", Example), found.table("eval", Example)
    elif data is not None and not task.needs_tokenizer:
        loaded = task.load(None)
        examples = loaded.train, loaded.eval
    if examples is not None:
        check_examples(config, task, *examples)
    check_extra(config)
    works = estimate_work(config, *examples) if examples is not None else {}
    lines.append(f"cache: {store.root}\ndevice: {device}, {runtime.dtype}\nmodel: {source.description}\n")
    lines.append(f"{'stage':<22}{'status':<10}{'sampled':>10}{'scored':>10}{'trained':>10}  tokens")
    for name in stages:
        work = works.get(name, Work()) if status[name] != "cached" else Work()
        cells = "".join(f"{value or '':>10}" for value in (work.sampled, work.scored, work.trained))
        lines.append(f"{name:<22}{status[name]:<10}{cells}")
    if harness is not None:
        lines.append("(the tokens of the harness are not estimated)")
    if not works:
        lines.append("(tokens are known once the data, and for token budgets the model's tokenizer, are here)")
    if judging is not None and examples is not None:
        if isinstance(config.method, RlaifConfig) and status["adapter"] != "cached":
            new = config.sampling.max_new_tokens
            rewards = estimate_rewards(judging, examples[0], works["adapter"].sampled // new, new)
            lines.append(f"judge: {rewards.requests} scores as rewards at most; {_amount(rewards)}")
        lines.append(_judge_line(judging, examples[1], store, stages, config.evaluation.sampling.max_new_tokens))
    lines += ["", *notes]
    if model is not None and status["model"] == "cached":
        runtime.folder = store.path(model) / "model"
    longest = (
        max((len(example.prompt + (example.context or "")) for example in examples[0]), default=0) if examples else 0
    )
    lines.append(_resources(config, runtime, math.ceil(longest / CHARACTERS_PER_TOKEN) + TEMPLATE_TOKENS))
    return "\n".join(lines)


def _judge_line(
    judging: Judging, examples: list[Example], store: Store, stages: Mapping[str, Stage], response_tokens: int
) -> str:
    """How often the judge would be asked, and what that would cost."""
    if store.status(stages["judgements"]) == "cached":
        return "judge: every reply is cached"
    responses = {phase: store.find(stages[f"{phase}_responses"]) for phase in ("before", "after")}
    found = {phase: artefact for phase, artefact in responses.items() if artefact is not None}
    texts = response_texts(found) if len(found) == len(responses) else None
    work = estimate_judging(judging, examples, texts, response_tokens)
    cached = f", {work.requests - work.missing} of them cached" if texts is not None else " at most"
    return (
        f"judge: {judging.judge.backend.description}, {judging.kind_name}, {work.requests} requests{cached}; "
        f"{_amount(work)}"
    )


def _amount(work: Estimate) -> str:
    cost = "its prices are not set" if work.cost is None else f"cost about {work.cost:.2f} at most"
    return f"about {work.input_tokens} tokens in and {work.output_tokens} out at most, {cost}"


def estimate_work(config: Config, train: list[Example], evaluation: list[Example]) -> dict[str, Work]:
    """Tokens by stage: prompts from their characters, responses at the token limit."""

    def prompt(example: Example, with_context: bool = True) -> float:
        text = example.prompt + ((example.context or "") if with_context else "")
        return len(text) / CHARACTERS_PER_TOKEN + TEMPLATE_TOKENS

    k, new = config.negatives.k, config.sampling.max_new_tokens
    limit = config.evaluation.sampling.max_new_tokens
    missing = 0
    if config.method.trains_on == "pairs":
        negatives = sample_negatives(train, config.negatives, config.seed, in_order)
        missing = sum(negative.source is None for negative in negatives)
    true_prompts = sum(prompt(example) for example in train)
    passes = 1 if config.pairs.min_pmi_margin is None else 2
    sides = 2 * k * (true_prompts + len(train) * new)
    held_out = sum(prompt(example) for example in evaluation)
    scored = len(evaluation) * (config.evaluation.k + 1) * limit + config.evaluation.k * held_out
    options = [json.loads(example.reference).get("options") or [] for example in evaluation]
    options_scored = held_out + sum(len(option) for of in options for option in of) / CHARACTERS_PER_TOKEN
    return {
        "chosen": Work(sampled=len(train) * new),
        "rejected": Work(sampled=missing * new),
        "scored_pairs": Work(scored=math.ceil(passes * sides)),
        "before_responses": Work(sampled=len(evaluation) * limit),
        "before_scores_base": Work(scored=math.ceil(scored)),
        "adapter": _training(config, len(train), true_prompts),
        "after_responses": Work(sampled=len(evaluation) * limit),
        "after_scores_base": Work(scored=math.ceil(scored)),
        "after_scores_policy": Work(scored=math.ceil(scored)),
        "before_option_scores": Work(scored=math.ceil(options_scored)),
        "after_option_scores": Work(scored=math.ceil(options_scored)),
    }


def _training(config: Config, examples: int, prompts: float) -> Work:
    """All training passes, and what a method samples and scores between them; `prompts` are the tokens of all
    examples' prompts."""
    method, trainer = config.method, config.trainer
    rows = examples * (config.negatives.k if method.name == "mipo" else 1)
    iterations = method.num_iterations if isinstance(method, OnPolicyConfig) else 1
    epochs = trainer.num_train_epochs
    if trainer.max_steps > 0:
        batch = trainer.per_device_train_batch_size * trainer.gradient_accumulation_steps
        epochs = trainer.max_steps * batch / max(rows * iterations, 1)
    passed = rows * epochs * sum(_row_tokens(config, prompts / max(examples, 1)))
    if not isinstance(method, OnPolicyConfig):
        return Work(trained=math.ceil(passed))
    sampled = rows * epochs * method.num_generations * config.sampling.max_new_tokens
    scored = passed if method.beta else 0.0
    if isinstance(method, MiRlConfig):
        conditions = 2 if method.estimator == "own_marginal" else method.k
        scored += conditions * (sampled + prompts * epochs)
    return Work(math.ceil(sampled), math.ceil(scored), math.ceil(passed * iterations))


def _row_tokens(config: Config, prompt: float) -> tuple[float, float]:
    """Tokens of the prompts and of the responses in one row of training data, whose prompt has `prompt` tokens."""
    method, trainer = config.method, config.trainer
    responses = trainer.per_device_train_batch_size if method.across_batch else 1
    responses = {"mipo": 2, "softmax_dpo": 1 + config.negatives.k}.get(method.name, responses)
    if isinstance(method, OnPolicyConfig):
        responses = method.num_generations
    return prompt if trainer.share_prompt else responses * prompt, responses * config.sampling.max_new_tokens


def _resources(config: Config, runtime: Runtime, prompt_tokens: int) -> str:
    parameters: float | None = parameter_count(runtime.folder) if runtime.folder is not None else None
    parameters = parameters or random_parameters(config.model.random or {})
    parameters = parameters or billions_in(config.model.hub_id or config.model.name)
    disk = (
        f"disk: about {gib(disk_needed(runtime.source, config.model, runtime.folder is not None))} at most in the cache"
    )
    if parameters is None:
        return f"{disk}\nmemory: not known before the model is converted"
    size = BYTES[runtime.dtype]
    batch = config.trainer.per_device_train_batch_size
    prompts, responses = (batch * count for count in _row_tokens(config, prompt_tokens))
    vocabulary, width, depth = _shape(runtime)
    # Logits of response positions and their gradient in float32, and what the layers keep for the backward pass (some
    # 30 widths a token).
    kept = 0 if config.trainer.activation_checkpointing else 30 * depth * width * size
    training = responses * 2 * vocabulary * 4 + (prompts + responses) * kept
    scoring = min(MAX_LOGITS_BYTES * 2, config.scoring.batch_tokens * vocabulary * 4)
    return (
        f"{disk}\nmemory: about {gib(parameters * size)} for the weights ({parameters / 1e9:.2f}B parameters), "
        f"{gib(training)} beside them while training, {gib(scoring)} while scoring, {gib(LIBRARIES_BYTES)} for the "
        "libraries"
    )


def _shape(runtime: Runtime) -> tuple[int, int, int]:
    """Vocabulary, width and depth from config.json; those of a 1.5B model where it is not here yet."""
    known: dict[str, Any] = {}
    if runtime.folder is not None and (runtime.folder / "config.json").is_file():
        known = json.loads((runtime.folder / "config.json").read_text(encoding="utf-8"))
    vocabulary, width, depth = (known.get(key) for key in ("vocab_size", "hidden_size", "num_hidden_layers"))
    return vocabulary or 151_936, width or 1536, depth or 28


def parameter_count(folder: Path) -> int | None:
    """How many parameters the safetensors files of a folder hold, from their headers; None where there are none."""
    total = 0
    for path in folder.glob("*.safetensors"):
        with path.open("rb") as handle:
            header = json.loads(handle.read(int.from_bytes(handle.read(8), "little")))
        for name, entry in header.items():
            if name != "__metadata__":
                count = 1
                for size in entry["shape"]:
                    count *= size
                total += count
    return total or None


def billions_in(name: str) -> float | None:
    """The number of parameters that a model's name states (`Qwen2.5-1.5B` → 1.5e9), None where it states none."""
    found = re.findall(r"(\d+(?:\.\d+)?)\s*([bm])\b", name.lower())
    if not found:
        return None
    value, unit = found[-1]
    return float(value) * (1e9 if unit == "b" else 1e6)
