"""MIPO from data to report: the stages in order.

`declare` says what depends on what; it reads like the method:

    examples → chosen y⁺ ~ π_ref(·|c,x) and rejected y⁻ ~ π_ref(·|negative condition) → pairs → their log-probabilities
    under π_ref → an adapter by DPO → responses of π_ref and π_θ to held-out examples → mutual information, accuracy,
    and what a judge thinks of them.

On-policy methods go from the examples to the adapter at once: they sample while they train. With `method.rounds` the
way to the adapter is taken several times, with another part of the examples and the policy of the time before as π_ref.
"""

import dataclasses
import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mipo_exp.config.decoding import Decoding
from mipo_exp.config.groups import TrainerConfig
from mipo_exp.config.schema import SCORERS, Config, TrainsOn
from mipo_exp.data.base import Task
from mipo_exp.data.unrelated import draw_unrelated
from mipo_exp.evaluation.harness import Harness, run_harness
from mipo_exp.evaluation.no_context import PHASE as NO_CONTEXT
from mipo_exp.evaluation.no_context import answers_without_context
from mipo_exp.execution.processes import team
from mipo_exp.execution.run import Run
from mipo_exp.generation import openvino_model
from mipo_exp.generation.responses import (
    extract_answers,
    sample_chosen,
    sample_chosen_from,
    sample_evaluation,
    sample_rejected,
    sample_unrelated,
)
from mipo_exp.generation.transformers_engine import SAMPLING_PARTS, in_process
from mipo_exp.judging.stage import Judging
from mipo_exp.models.runtime import COMPUTING, Runtime
from mipo_exp.pairing.pairs import build_pairs
from mipo_exp.pairing.similarity import Encoder
from mipo_exp.scoring.options import score_options
from mipo_exp.scoring.score import score_conditions, score_pairs
from mipo_exp.scoring.token_pmi import token_pmi_of_pairs, token_pmi_of_responses
from mipo_exp.store.artefacts import Stage, Store
from mipo_exp.store.environment import package_versions
from mipo_exp.store.records import Example
from mipo_exp.training.adapter import train_adapter
from mipo_exp.training.job import Rollout
from mipo_exp.training.rounds import of_round, stage_name

# Those that several processes build together: what is computed in shards, where Ray's workers do not compute it, and
# the training. The main process builds the others while the rest wait.
SHARDED = (
    *("chosen", "rejected", "other_chosen", "scored_pairs", "responses", "unrelated", "extractions"),
    *("scores", "option_scores"),
)

# Raised when a stage computes something else from the same config: what it made before is not used any more.
VERSIONS = {
    "engine_model": openvino_model.VERSION,
    "chosen": 1,
    "rejected": 2,
    "other_chosen": 1,
    "pairs": 2,
    "scored_pairs": 3,
    "adapter": 4,
    "responses": 1,
    "unrelated": 1,
    "extractions": 1,
    "scores": 4,
    "option_scores": 4,
    "token_pmi": 1,
    "harness": 1,
}

# The libraries whose versions are in the key of a stage; an engine's own and PEFT are added where they take part.
LIBRARIES = {
    "pairs": ("transformers", "tokenizers"),
    "adapter": (*COMPUTING, "peft", "trl"),
    "harness": (*COMPUTING, "lm_eval"),
}

# The parts of `kernels` that take part in a stage, and are in its key.
SCORING_PARTS = ("prefix_sharing", "flex_attention", "onednn")
PARTS: dict[str, Sequence[str]] = {
    **dict.fromkeys(("chosen", "rejected", "other_chosen", "responses", "unrelated", "extractions"), SAMPLING_PARTS),
    **dict.fromkeys(("scored_pairs", "scores", "option_scores"), SCORING_PARTS),
    "adapter": ("prompt_sharing", "flex_attention", "micro_batches", "onednn"),
    **dict.fromkeys(("harness", "token_pmi"), ("onednn",)),
}

# Only shown: what an experiment is does not depend on them.
SHOWN = ("token_pmi",)


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
        task: where the examples come from, and how they are asked.
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
        stages = {**self.stages, **judgements}
        return {name: stage.key for name, stage in stages.items() if stage.name not in SHOWN}


def declare(
    config: Config,
    runtime: Runtime,
    examples: Stage,
    encoder: Encoder | None = None,
    harness: Harness | None = None,
    rewarding: Judging | None = None,
    settle: Callable[[Stage], Stage] = lambda stage: stage,
    apart: HeldOut | None = None,
) -> dict[str, Stage]:
    """All stages after the examples, in an order in which they can be built. `encoder` finds near negatives; `harness`
    evaluates on other tasks, where there are any; `rewarding` is for methods that learn from a judge's scores; `settle`
    may put other versions of libraries into a stage (`Store.settled`); `apart` is what is evaluated on, where that
    has a protocol of its own."""

    test, asked = (examples, runtime) if apart is None else (apart.examples, apart.runtime)
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
        libraries = dict(package_versions(tuple(sorted(used))))
        if own is not None and own.needs is not None:
            libraries[own.needs] = str(own.version())
            parts = []  # it samples by itself
        return settle(
            Stage(
                name,
                VERSIONS[name],
                {"runtime": runtime.identity_with(parts), **plain},
                inputs,
                lambda work: build(work, runtime, **slices),
                shared=name in shared,
                libraries=libraries,
            )
        )

    engine, held_out = config.engine.settled(runtime.device), config.evaluation
    sampling, scoring, seed = config.sampling, config.scoring, config.seed

    # The base model in the form that the engine reads, where that is one of its own.
    converted: dict[str, Stage] = {}
    if engine.convert is not None:
        converted["engine_model"] = stage("engine_model", engine.convert, {})

    on, rounds = config.method.trains_on, config.method.training_rounds
    filters, control = dataclasses.replace(config.pairs, min_pmi_margin=None), config.control

    def learn(examples: Stage, trainer: TrainerConfig, policy: Mapping[str, Stage]) -> dict[str, Stage]:
        """What an adapter learns from, and last the adapter. `policy` has the `adapter` of the round before, which
        samples, is the reference and is trained further; it is empty where that is the base model."""
        if on is None:
            return {}
        source = {"examples": examples, **(policy or converted)}
        sampler = engine.for_policy() if policy else engine
        chosen = stage("chosen", sample_chosen, source, sampling=sampling, engine=sampler, seed=seed)
        rejected = stage(
            "rejected",
            sample_rejected,
            {**source, "chosen": chosen},
            also=config.negatives.compares_with,
            negatives=dataclasses.replace(config.negatives, embedding_model=None),  # the encoder's files count
            encoder=encoder,
            sampling=sampling,
            engine=sampler,
            seed=seed,
        )
        # In place of the chosen responses, where a control takes others.
        others: dict[str, Stage] = {}
        if control.chosen_from is not None:
            how = {"strategy": control.chosen_from, "sampling": sampling, "engine": sampler, "seed": seed}
            others["other_chosen"] = stage("other_chosen", sample_chosen_from, {**source, "chosen": chosen}, **how)
        pairs = stage(
            "pairs",
            build_pairs,
            {"examples": examples, "chosen": others.get("other_chosen", chosen), "rejected": rejected},
            pairs=filters,
            **({"swaps": control.swaps, "seed": seed} if control.swaps else {}),
        )
        scored_pairs = stage(
            "scored_pairs",
            score_pairs,
            {"pairs": pairs, **scorer_of(policy)},
            scoring=scoring,
            min_pmi_margin=config.pairs.min_pmi_margin,
        )
        from_pairs = {**others, "rejected": rejected, "pairs": pairs, "scored_pairs": scored_pairs}
        learns_from: dict[TrainsOn, dict[str, Stage]] = {
            "pairs": {"scored_pairs": scored_pairs},
            "chosen": {"examples": examples, "chosen": chosen},
            "examples": {"examples": examples},
        }
        before_training: dict[TrainsOn, dict[str, Stage]] = {
            "pairs": {"chosen": chosen, **from_pairs},
            "chosen": {"chosen": chosen},
        }
        adapter = stage(
            "adapter",
            train_adapter,
            {**learns_from[on], **policy},
            method=config.method,
            lora=config.lora,
            trainer=trainer,
            seed=seed,
            **({"rollout": Rollout(sampling, in_process(engine), scoring)} if on == "examples" else {"pairs": filters}),
            **({"judging": rewarding} if config.method.asks_judge else {}),
            # Their number multiplies the batch.
            **({"processes": team().size} if team().size > 1 else {}),
        )
        return {**before_training.get(on, {}), "adapter": adapter}

    learnt: dict[str, Stage] = {}
    policy: dict[str, Stage] = {}
    for number in range(1, rounds + 1):
        part, trainer = of_round(config, examples, number)
        made = {**({} if part is examples else {"part": part}), **learn(part, trainer, policy)}
        learnt |= {stage_name(name, number, rounds): of for name, of in made.items()}
        policy = {name: of for name, of in made.items() if name == "adapter"}
    before_training = dict(itertools.takewhile(lambda item: item[1].name != "adapter", learnt.items()))

    def responses(of: Mapping[str, Stage], decoding: Decoding, requests: Sequence[str] | None = None) -> Stage:
        """To the held-out examples, or to these requests, which have nothing to do with them."""
        name, build = ("responses", sample_evaluation) if requests is None else ("unrelated", sample_unrelated)
        return stage(
            name,
            build,
            {"examples": test, **(of or converted)},
            runtime=asked,
            sampling=decoding.sampling(held_out.sampling),
            engine=engine.for_policy() if of else engine,
            seed=held_out.seed,
            decoding=decoding,
            **({} if requests is None else {"requests": list(requests)}),
        )

    def scores(of: Stage, by: Mapping[str, Stage]) -> Stage:
        inputs = {"examples": test, "responses": of, **by}
        # Whether a response still answers its prompt is for the base model to say.
        under = {"k": held_out.k, "seed": held_out.seed, "prompts": held_out.prompt_scoring and not by}
        return stage("scores", score_conditions, inputs, runtime=asked, scoring=scoring, **under)

    def option_scores(by: Mapping[str, Stage], **how: bool) -> Stage:
        inputs, rendering = {"examples": test, **by}, held_out.option_scoring
        return stage("option_scores", score_options, inputs, runtime=asked, scoring=scoring, rendering=rendering, **how)

    def extractions(of: Stage, by: Mapping[str, Stage], asks: str) -> Stage:
        """What the model itself extracts from its responses."""
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

    extraction = SCORERS[asked.task.scorer].extraction
    personal = config.task.family == "personalization"
    requests = [one.request for one in draw_unrelated(held_out.unrelated_requests * personal, held_out.seed)]
    alone = answers_without_context(held_out, asked.task.scorer, personal)

    def evaluated(phase: str, of: Mapping[str, Stage], decoding: Decoding) -> dict[str, Stage]:
        """Responses to held-out examples, to the same ones without their contexts and to unrelated requests."""
        found = {phase: responses(of, decoding)}
        if alone:
            plain = dataclasses.replace(decoding, context=False, alpha=None)
            found[NO_CONTEXT.format(phase)] = responses(of, plain)
        asks = {} if extraction is None else dict.fromkeys(found, extraction.asks)
        return {
            **{f"{name}_responses": answers for name, answers in found.items()},
            **({f"{phase}_unrelated": responses(of, decoding, requests)} if requests else {}),
            **{f"{name}_extractions": extractions(found[name], of, text) for name, text in asks.items()},
            **{f"{name}_scores_base": scores(answers, {}) for name, answers in found.items()},
            **({f"{phase}_token_pmi": tokens(responses=found[phase])} if held_out.token_pmi else {}),
        }

    def tokens(**of: Stage) -> Stage:
        """Of held-out `responses`, or of `pairs`: what the report shows of their words."""
        if "pairs" in of:
            return stage("token_pmi", token_pmi_of_pairs, of, count=held_out.token_pmi)
        inputs = {"examples": test, **of}
        return stage("token_pmi", token_pmi_of_responses, inputs, runtime=asked, count=held_out.token_pmi)

    shown: dict[str, Stage] = {}
    if held_out.token_pmi and (scored := learnt.get("scored_pairs")) is not None:
        scorer = {name: of for name, of in scored.inputs.items() if name == "scorer"}
        shown["pairs_token_pmi"] = tokens(pairs=scored, **scorer)
    stages = {
        **({} if apart is None else {"held_out": test}),
        **converted,
        **before_training,
        **evaluated("before", {}, Decoding()),
        **learnt,
        **shown,
        **evaluated("after", policy, config.method.decoding),
    }
    if held_out.policy_scoring and policy:
        stages["after_scores_policy"] = scores(stages["after_responses"], scorer_of(policy))
    # The model that a method without training leaves as it is has these results as well.
    by = {"before": {}, **({"after": scorer_of(policy)} if policy else {})}
    if asked.task.has_options and held_out.option_scoring != "none":
        for phase, scorer in by.items():
            stages[f"{phase}_option_scores"] = option_scores(scorer)
            if alone:
                stages[f"{NO_CONTEXT.format(phase)}_option_scores"] = option_scores(scorer, context=False)
    if harness is not None:
        of = {phase: stage("harness", run_harness, scorer, harness=harness) for phase, scorer in by.items()}
        stages.update({f"{phase}_harness": found for phase, found in of.items()})
    return stages


def scorer_of(policy: Mapping[str, Stage]) -> dict[str, Stage]:
    """The input of a stage that scores by a policy, which has it as its `adapter`; none for the base model."""
    return {"scorer": policy["adapter"]} if policy else {}


def _plain(value: Any) -> Any:
    """A config slice as JSON-like data."""
    if hasattr(value, "identity"):
        return value.identity
    return dataclasses.asdict(value) if dataclasses.is_dataclass(value) and not isinstance(value, type) else value
