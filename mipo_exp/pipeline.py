"""MIPO from data to report: the stages in order.

`declare` says what depends on what; it reads like the method:

    examples → chosen y⁺ ~ π_ref(·|c,x) and rejected y⁻ ~ π_ref(·|negative condition) → pairs → their log-probabilities
    under π_ref → an adapter by DPO → responses of π_ref and π_θ to held-out examples → mutual information, accuracy,
    and what a judge thinks of them.

On-policy methods go from the examples to the adapter at once: they sample while they train.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from mipo_exp.config.schema import SCORERS, Config, Decoding, TrainsOn
from mipo_exp.data.base import Task
from mipo_exp.data.overlap import unseen
from mipo_exp.evaluation.harness import Harness, run_harness
from mipo_exp.execution.processes import team
from mipo_exp.execution.run import Run
from mipo_exp.generation import openvino_model
from mipo_exp.generation.responses import extract_answers, sample_chosen, sample_evaluation, sample_rejected
from mipo_exp.generation.transformers_engine import SAMPLING_PARTS, in_process
from mipo_exp.judging.stage import Judging, judge_responses
from mipo_exp.models.runtime import COMPUTING, Runtime
from mipo_exp.pairing.pairs import build_pairs
from mipo_exp.pairing.similarity import Encoder
from mipo_exp.scoring.options import score_options
from mipo_exp.scoring.score import score_conditions, score_pairs
from mipo_exp.store.artefacts import Stage, Store, Workspace
from mipo_exp.store.environment import package_versions
from mipo_exp.store.records import Example
from mipo_exp.training.adapter import train_adapter
from mipo_exp.training.job import Rollout

# What says where a task's data comes from or what its defaults are, and not what the examples are.
NOT_IN_EXAMPLES = (
    *("path", "hub_id", "revision", "base_url", "source", "license", "higher_is_better", "default_negatives"),
    "max_new_tokens",
)

# Those that several processes build together: what is computed in shards, where Ray's workers do not compute it, and
# the training. The main process builds the others while the rest wait.
SHARDED = ("chosen", "rejected", "scored_pairs", "responses", "extractions", "scores", "option_scores")

# Raised when a stage computes something else from the same config: what it made before is not used any more.
VERSIONS = {
    "engine_model": openvino_model.VERSION,
    "examples": 1,
    "chosen": 1,
    "rejected": 2,
    "pairs": 2,
    "scored_pairs": 3,
    "adapter": 4,
    "responses": 1,
    "extractions": 1,
    "scores": 4,
    "option_scores": 4,
    "harness": 1,
    "judgements": 1,
}

# The libraries whose versions are in the key of a stage; an engine's own and PEFT are added where they take part.
LIBRARIES = {
    "pairs": ("transformers", "tokenizers"),
    "adapter": (*COMPUTING, "peft", "trl"),
    "harness": (*COMPUTING, "lm_eval"),
}

# The parts of `kernels` that take part in a stage, and are in its key.
SCORING_PARTS = ("prefix_sharing", "onednn")
PARTS: dict[str, Sequence[str]] = {
    **dict.fromkeys(("chosen", "rejected", "responses", "extractions"), SAMPLING_PARTS),
    **dict.fromkeys(("scored_pairs", "scores", "option_scores"), SCORING_PARTS),
    "adapter": ("prompt_sharing", "micro_batches", "onednn", "causal_blocks"),
    "harness": ("onednn",),
}


@dataclass(frozen=True)
class HeldOut:
    """What is evaluated on, by the protocol of the evaluation.

    Attributes:
        examples: the stage of its examples.
        data: the fingerprint of its data; None in a plan where it is not here.
        task: how they are asked.
        runtime: the base model, asked in this way.
    """

    examples: Stage
    data: str | None
    task: Task
    runtime: Runtime


@dataclass(frozen=True)
class Assembled:
    """An experiment, put together and checked as far as that needs no model (`experiment.assemble`).

    Attributes:
        config: the checked config.
        output: the run's folder.
        store: the cache.
        run: fetches the stages.
        task: where the examples come from, and how they are asked.
        runtime: the base model.
        examples: the stage of the examples.
        held_out: what is evaluated on: the same, unless the evaluation has a protocol of its own.
        stages: those after it, in an order in which they can be built.
        judging: the judge of the results, where there is one.
        rewarding: the judge whose scores a method learns from.
        judgements: the stage of the verdicts, after the others.
        data: the fingerprint of the task's data; None in a plan where it is not here.
        model_stage: makes the folder of the base model, where it is not one already.
        notes: in a plan, what a run would fetch first.
    """

    config: Config
    output: Path
    store: Store
    run: Run
    task: Task
    runtime: Runtime
    examples: Stage
    held_out: HeldOut
    stages: Mapping[str, Stage]
    judging: Judging | None
    rewarding: Judging | None
    judgements: Stage | None
    data: str | None
    model_stage: Stage | None
    notes: Sequence[str] = ()

    @property
    def evaluated(self) -> Sequence[Example]:
        """The examples that are evaluated on, once their stage is finished."""
        finished = self.run.finished
        return finished.get("held_out", finished["examples"]).artefact.table("eval", Example)

    @property
    def keys(self) -> dict[str, str]:
        """The keys of all stages by name; equal ones are equal experiments."""
        judgements = {} if self.judgements is None else {"judgements": self.judgements}
        return {name: stage.key for name, stage in {**self.stages, **judgements}.items()}


def declare_examples(
    config: Config, task: Task, data: str, runtime: Runtime | None, training: Stage | None = None
) -> Stage:
    """The `examples` stage; its key contains the data's fingerprint, and the model's where budgets count tokens. Those
    evaluated by another protocol than that of `training`, the stage of its examples, have nothing of it."""
    fields = dataclasses.asdict(config.task)
    shape: dict[str, Any] = {name: value for name, value in fields.items() if name not in NOT_IN_EXAMPLES}
    count_tokens: Callable[[str], int] | None = None
    shape |= task.identity
    if task.needs_tokenizer:
        if runtime is None:
            raise ValueError(f"task={config.task.name} needs the model's tokenizer")
        shape["runtime"] = runtime.identity
        count_tokens = runtime.count_tokens
    inputs = {} if training is None else {"training": training}
    build = partial(load_examples, task, count_tokens)
    return Stage("examples", VERSIONS["examples"], {"task": shape, "data": data}, inputs, build)


def load_examples(task: Task, count_tokens: Callable[[str], int] | None, work: Workspace) -> None:
    """Training and evaluation examples, as the task defines them."""
    examples = task.load(count_tokens)
    evaluation = examples.eval
    if "training" in work.inputs:
        evaluation = unseen(work.inputs["training"].table("train", Example), evaluation, task.config.name)
    work.write_table("train", examples.train, Example)
    work.write_table("eval", evaluation, Example)
    work.write_json("notes", examples.notes)


def declare(
    config: Config,
    runtime: Runtime,
    examples: Stage,
    encoder: Encoder | None = None,
    harness: Harness | None = None,
    rewarding: Judging | None = None,
    settle: Callable[[Stage], Stage] = lambda stage: stage,
    evaluated: HeldOut | None = None,
) -> dict[str, Stage]:
    """All stages after the examples, in an order in which they can be built. `encoder` finds near negatives; `harness`
    evaluates on other tasks, where there are any; `rewarding` is for methods that learn from a judge's scores; `settle`
    may put other versions of libraries into a stage (`Store.settled`); `evaluated` is what is evaluated on, where that
    has a protocol of its own."""

    test, asked = (examples, runtime) if evaluated is None else (evaluated.examples, evaluated.runtime)
    shared = ("adapter", *(() if config.workers.remote else SHARDED))

    def stage(
        name: str,
        build: Callable[..., None],
        inputs: Mapping[str, Stage],
        also: Any = None,
        runtime: Any = runtime,
        **slices: Any,
    ) -> Stage:
        """What a stage is given is what its key covers: the runtime's identity and these slices of the config. `also`
        is the name of one more library that computes it, or None."""
        plain = {key: _plain(value) for key, value in slices.items()}
        parts = [*PARTS.get(name, ()), *((*SAMPLING_PARTS, *SCORING_PARTS) if "rollout" in slices else ())]
        used = {*LIBRARIES.get(name, COMPUTING), *runtime.reads_with, *(() if also is None else (also,))}
        if {"adapter", "scorer"} & set(inputs):
            used.add("peft")
        own = slices.get("engine", engine if name == "engine_model" else None)
        if own is not None and own.needs is not None:
            used.add(own.needs[1])
            parts = []  # it samples by itself
        return settle(
            Stage(
                name,
                VERSIONS[name],
                {"runtime": runtime.identity_with(parts), **plain},
                inputs,
                lambda work: build(work, runtime, **slices),
                shared=name in shared,
                libraries=package_versions(tuple(sorted(used))),
            )
        )

    sampling, engine, scoring, seed = config.sampling, config.engine.settled(), config.scoring, config.seed
    held_out = config.evaluation

    # The base model in the form that the engine reads, where that is one of its own.
    converted: dict[str, Stage] = {}
    if engine.convert is not None:
        converted["engine_model"] = stage("engine_model", engine.convert, {})
    from_base = {"examples": examples, **converted}

    chosen = stage("chosen", sample_chosen, from_base, sampling=sampling, engine=engine, seed=seed)
    rejected = stage(
        "rejected",
        sample_rejected,
        {**from_base, "chosen": chosen},
        also=config.negatives.compares_with,
        negatives=dataclasses.replace(config.negatives, embedding_model=None),  # the encoder's files count
        encoder=encoder,
        sampling=sampling,
        engine=engine,
        seed=seed,
    )
    filters = dataclasses.replace(config.pairs, min_pmi_margin=None)
    pairs = stage(
        "pairs",
        build_pairs,
        {"examples": examples, "chosen": chosen, "rejected": rejected},
        pairs=filters,
    )
    scored_pairs = stage(
        "scored_pairs", score_pairs, {"pairs": pairs}, scoring=scoring, min_pmi_margin=config.pairs.min_pmi_margin
    )
    from_pairs = {"rejected": rejected, "pairs": pairs, "scored_pairs": scored_pairs}
    learns_from: dict[TrainsOn, dict[str, Stage]] = {
        "pairs": {"scored_pairs": scored_pairs},
        "chosen": {"examples": examples, "chosen": chosen},
        "examples": {"examples": examples},
    }
    before_training: dict[TrainsOn, dict[str, Stage]] = {
        "pairs": {"chosen": chosen, **from_pairs},
        "chosen": {"chosen": chosen},
    }
    on = config.method.trains_on
    adapter = stage(
        "adapter",
        train_adapter,
        learns_from.get(on, {}),
        method=config.method,
        lora=config.lora,
        trainer=config.trainer,
        seed=seed,
        **({"rollout": Rollout(sampling, in_process(engine), scoring)} if on == "examples" else {"pairs": filters}),
        **({"judging": rewarding} if config.method.asks_judge else {}),
        # Their number multiplies the batch.
        **({"processes": team().size} if team().size > 1 else {}),
    )

    def responses(of: Mapping[str, Stage], decoding: Decoding | None = None) -> Stage:
        return stage(
            "responses",
            sample_evaluation,
            {"examples": test, **(of or converted)},
            runtime=asked,
            sampling=held_out.sampling,
            engine=engine.for_policy() if of else engine,
            seed=held_out.seed,
            decoding=decoding,
        )

    def scores(of: Stage, by: Mapping[str, Stage]) -> Stage:
        inputs = {"examples": test, "responses": of, **by}
        # Whether a response still answers its prompt is for the base model to say.
        under = {"k": held_out.k, "seed": held_out.seed, "prompts": held_out.prompt_scoring and not by}
        return stage("scores", score_conditions, inputs, runtime=asked, scoring=scoring, **under)

    def option_scores(by: Mapping[str, Stage]) -> Stage:
        rendering = held_out.option_scoring
        inputs = {"examples": test, **by}
        return stage("option_scores", score_options, inputs, runtime=asked, scoring=scoring, rendering=rendering)

    def extractions(of: Stage, by: Mapping[str, Stage], asks: str) -> Stage:
        return stage(
            "extractions",
            extract_answers,
            {"responses": of, **(by or converted)},
            scorer=asked.task.scorer,
            asks=asks,
            sampling=held_out.sampling,
            engine=engine.for_policy() if by else engine,
            seed=held_out.seed,
        )

    trained = {"adapter": adapter} if on is not None else {}
    before, after = responses({}), responses(trained, config.method.decoding)
    stages = {
        **({} if evaluated is None else {"held_out": test}),
        **converted,
        **before_training.get(on, {}),
        "before_responses": before,
        "before_scores_base": scores(before, {}),
        **trained,
        "after_responses": after,
        "after_scores_base": scores(after, {}),
    }
    if held_out.policy_scoring and trained:
        stages["after_scores_policy"] = scores(after, {"scorer": adapter})
    if (extraction := SCORERS[asked.task.scorer].extraction) is not None:
        stages["before_extractions"] = extractions(before, {}, extraction.asks)
        stages["after_extractions"] = extractions(after, trained, extraction.asks)
    # The model that a method without training leaves as it is has these results as well.
    by = {"before": {}, **({"after": {"scorer": adapter}} if trained else {})}
    if asked.task.has_options and held_out.option_scoring != "none":
        stages.update({f"{phase}_option_scores": option_scores(scorer) for phase, scorer in by.items()})
    if harness is not None:
        of = {phase: stage("harness", run_harness, scorer, harness=harness) for phase, scorer in by.items()}
        stages.update({f"{phase}_harness": found for phase, found in of.items()})
    return stages


def declare_judgements(
    judging: Judging,
    examples: Stage,
    stages: Mapping[str, Stage],
    settle: Callable[[Stage], Stage] = lambda stage: stage,
) -> Stage:
    """The `judgements` stage, after the others. Where a server is, its prices and the pauses between attempts are not
    in its key, unless `judge.identity` is left to be the address. `settle` is as in `declare`."""
    shape = {
        "kind": judging.kind_name,
        "max_parse_failures": judging.config.max_parse_failures,
        **judging.judge.identity(judging.kind.prompts),
    }
    inputs = {"examples": examples, "before": stages["before_responses"], "after": stages["after_responses"]}
    build = partial(judge_responses, judging)
    libraries = judging.judge.backend.libraries
    return settle(Stage("judgements", VERSIONS["judgements"], shape, inputs, build, libraries=libraries))


def _plain(value: Any) -> Any:
    """A config slice as JSON-like data."""
    if hasattr(value, "identity"):
        return value.identity
    return dataclasses.asdict(value) if dataclasses.is_dataclass(value) and not isinstance(value, type) else value
