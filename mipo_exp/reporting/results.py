"""What the user gets of an experiment whose stages are finished: metrics with intervals, `summary.json`, the report."""

import dataclasses
import json
import logging
import math
import resource
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from mipo_exp.config.redaction import without_secrets
from mipo_exp.config.schema import SCORERS, Config
from mipo_exp.errors import ConfigError, JudgeError, ModelError
from mipo_exp.evaluation.diversity import set_facts
from mipo_exp.evaluation.error_kinds import answering_and_knowing, kinds, transitions
from mipo_exp.evaluation.harness_results import HarnessOutcome, compare_outcomes, document_values
from mipo_exp.evaluation.measure import PHASES, Comparison, compare, measures
from mipo_exp.evaluation.metrics import Evaluated, Measure, clusters, contrasted_in
from mipo_exp.evaluation.no_context import PHASE as NO_CONTEXT
from mipo_exp.evaluation.no_context import without_context
from mipo_exp.evaluation.options import likeliest_right
from mipo_exp.execution.processes import team
from mipo_exp.execution.run import Run
from mipo_exp.judging.kinds import Measures
from mipo_exp.judging.stage import judge_facts, judge_measures, metric_phases
from mipo_exp.pipeline import Assembled
from mipo_exp.reporting import tracking
from mipo_exp.reporting.adapter_folder import write_adapter
from mipo_exp.reporting.earlier_results import finished, set_aside
from mipo_exp.reporting.metrics import costs, headline, headlines
from mipo_exp.reporting.page_parts import Shown, changed
from mipo_exp.reporting.pairs import trained_pairs
from mipo_exp.reporting.report import Sample, write_report
from mipo_exp.reporting.saved import SUMMARY_SCHEMA, WEIGHTS
from mipo_exp.reporting.values import VALUES, write_values
from mipo_exp.store.artefacts import write_atomically
from mipo_exp.store.environment import git_commit, hardware, package_versions
from mipo_exp.store.records import Example, HarnessResult, HarnessSample, OptionScores, Response, Scores, TokenPmi

log = logging.getLogger(__name__)

T = TypeVar("T")

SAMPLES_SHOWN, SAMPLES_IN_PAGE = 24, 1000
COUNTED = {"examples": "notes", "pairs": "counts", "scored_pairs": "counts"}  # the file of a stage's counts


@dataclass(frozen=True)
class Outcome:
    """How a run ended: the metric that `objective` names, None where it is missing, why parts are missing, what
    `summary.json` says (nothing in a process beside the main one), and whether it had all been there before."""

    objective: float | None
    missing: Mapping[str, str]
    summary: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    before: bool = False


def write_results(
    assembled: Assembled, summary: dict[str, Any], history: Sequence[Mapping[str, float]], tracker: tracking.Tracker
) -> Outcome:
    """Evaluate, ask the judge where there is one, and write `summary.json`, `report.html` and `adapter/`.

    Args:
        assembled: with all stages fetched.
        summary: its head, which is filled in.
    """
    config, run, output = assembled.config, assembled.run, assembled.output
    examples, asked = assembled.evaluated, assembled.held_out.task
    before, after = (_evaluated(assembled, examples, phase) for phase in ("before", "after"))
    if "policy" in after.scores:
        # Before training the policy is the base model.
        before = dataclasses.replace(before, scores={**before.scores, "policy": before.scores["base"]})
    measured = {phase: measures(of, asked.scorer) for phase, of in (("before", before), ("after", after))}
    for phase, of in measured.items():
        if f"{NO_CONTEXT.format(phase)}_responses" in run.finished:
            alone = _evaluated(assembled, examples, NO_CONTEXT.format(phase))
            of.update(without_context(measures(alone, asked.scorer)))
    for phase, judged in _judged(assembled, examples, {"before": before.texts, "after": after.texts}, summary).items():
        measured[phase].update(judged)
    compared = compare(measured["before"], measured["after"], examples)
    estimates = compared.estimates
    outcomes = {phase: _outcome(run, phase) for phase in ("before", "after")}
    for phase, found in compare_outcomes(outcomes["before"], outcomes["after"]).items():
        estimates[phase].update(found)
    adapter = output / "adapter" if "adapter" in run.finished else None
    summary.update(_summary(assembled, compared, adapter), status="incomplete" if summary["missing"] else "ok")
    summary.update(without_secrets(summary, names=False))
    if SCORERS[asked.scorer].has_kinds:
        summary["transitions"] = _transitions(asked.scorer, examples, before, after)
    if adapter is not None:
        trained = run.path("adapter") / "adapter"
        write_adapter(adapter, trained, assembled.runtime, summary, config, config.paths.copy_adapter)
    samples = _samples(asked.scorer, examples, before, after, measured)
    lengths = {phase: of["response/tokens"].values.astype(int).tolist() for phase, of in measured.items()}
    pairs = trained_pairs(run)
    shown = Shown(pairs, _token_pmi(run), changed(summary["command"]))
    write_report(output / "report.html", summary, history, lengths, samples, shown)
    documents = {phase: {} if of is None else document_values(of) for phase, of in outcomes.items()}
    write_values(output / VALUES, examples, compared.values, documents)
    write_summary(output / "summary.json", summary)
    tracker.finish(summary, samples[:SAMPLES_SHOWN], adapter, output / "report.html", pairs)
    _say_result(summary)
    reasons = {part: str(facts["why"]) for part, facts in summary["missing"].items()}
    return Outcome(_objective(config.objective, summary["metrics"]), reasons, summary)


def finished_before(config: Config, output: Path, run_id: str, command: str) -> Outcome | None:
    """The outcome of the finished run in a folder, where it is that of this experiment in this version's words.

    The results of another experiment (other data, settings or versions) are set aside for this one's."""
    summary = finished(output)
    if summary is None:
        return None
    if summary.get("run_id") != run_id:
        set_aside(output, summary)
        return None
    whole = "adapter" not in summary["stages"] or (output / "adapter" / WEIGHTS).exists()
    if not whole or [summary.get("command"), summary.get("schema")] != [command, SUMMARY_SCHEMA]:
        return None
    return Outcome(_objective(config.objective, summary["metrics"]), {}, summary, before=True)


def _summary(assembled: Assembled, compared: Comparison, adapter: Path | None) -> dict[str, Any]:
    """What `summary.json` says of the metrics and of where they come from."""
    config, run, output = assembled.config, assembled.run, assembled.output
    metrics = {phase: {name: item.as_json() for name, item in of.items()} for phase, of in compared.estimates.items()}
    examples = assembled.evaluated
    mi = _conditions(run, examples, config.evaluation.k)
    return {
        "metrics": metrics,
        "mi": mi,
        "costs": costs({"metrics": metrics, "mi": mi}),
        "headline": headline({"metrics": metrics, "mi": mi}),
        "evaluated": compared.evaluated,
        "diversity": set_facts(clusters(examples), config.evaluation.self_bleu_size, config.evaluation.seed),
        "reward_judge": None if assembled.rewarding is None else assembled.rewarding.judge.backend.description,
        "counts": _counts(run),
        "stages": {
            name: {"key": item.stage.key, "cached": item.cached, "seconds": round(item.seconds, 3)}
            for name, item in run.finished.items()
        },
        "resources": _resources(assembled.runtime.device),
        "paths": {
            "output": str(output),
            "cache": str(assembled.store.root),
            "adapter": None if adapter is None else str(adapter),
            "report": str(output / "report.html"),
            "metrics": str(output / "metrics.jsonl"),
        },
    }


def _judged(
    assembled: Assembled, examples: Sequence[Example], texts: Mapping[str, Sequence[str]], summary: dict[str, Any]
) -> Measures:
    """The judge's metrics by phase; what `summary.json` says of the judge is written into `summary`.

    Where the judge cannot be asked there are no metrics: `summary["missing"]` says why, and the run continues."""
    run, judging, stage = assembled.run, assembled.judging, assembled.judgements
    if judging is None or stage is None:
        return {}
    backend = judging.judge.backend
    try:
        if backend.runtime is not None and run.store.status(stage) != "cached":
            run.fetch_model(backend.runtime, "judge_model")
        artefact = run.fetch("judgements", stage)
    except (JudgeError, ModelError) as error:
        log.warning("the judge's metrics are missing: %s; the same command asks for what is missing only", error)
        summary["judge"] = judge_facts(judging, None)
        summary["missing"]["judge"] = {"why": str(error), "metrics": sorted(metric_phases(judging.kind_name))}
        return {}
    finally:
        backend.release()
    summary["judge"] = judge_facts(judging, artefact)
    return judge_measures(judging, artefact, examples, texts)


def _conditions(run: Run, examples: Sequence[Example], k: int) -> dict[str, Any]:
    """How many conditions the mutual information compares, what they differ in, and of the prompt relevance its own K;
    no estimate can exceed its log K."""
    found: dict[str, Any] = {"k": k, "log_k": math.log(k), "contrasted": contrasted_in(examples)}
    scored = run.finished["before_scores_base"].artefact.table("scores", Scores)
    if scored and (prompts := scored[0].prompt_log_probs) is not None:
        found.update(prompt_k=len(prompts), prompt_log_k=math.log(len(prompts)))
    return found


def _token_pmi(run: Run) -> dict[str, Sequence[TokenPmi]]:
    """What is known of the words of the first responses, before and after, and of the first pairs."""
    found = {name.removesuffix("_token_pmi"): of for name, of in run.finished.items() if of.stage.name == "token_pmi"}
    return {name: of.artefact.table("tokens", TokenPmi) for name, of in found.items()}


def _transitions(scorer: str, examples: Sequence[Example], before: Evaluated, after: Evaluated) -> dict[str, Any]:
    old, new = (kinds(scorer, examples, evaluated.responses) for evaluated in (before, after))
    found: dict[str, Any] = transitions(old, new)
    if before.options is not None and after.options is not None:
        knew, knows = (likeliest_right(options, examples) for options in (before.options, after.options))
        found["options"] = answering_and_knowing(old, new, knew, knows)
    return found


def write_summary(path: Path, summary: Mapping[str, Any]) -> None:
    """Write `summary.json` at once: a reader never sees half of it."""
    plain = without_secrets(summary, names=False)
    write_atomically(path, (json.dumps(plain, indent=1, ensure_ascii=False) + "\n").encode())


def summary_head(config: Config, command: str) -> dict[str, Any]:
    """What `summary.json` says before anything has been computed."""
    return {
        "schema": SUMMARY_SCHEMA,
        "run_id": None,
        "created": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "git": git_commit(),
        "command": command,
        "model": model_name(config),
        "task": config.task.name,
        "protocol": dataclasses.asdict(config.protocol),
        "method": config.method.name,
        "data": {
            "source": config.task.source,
            "path": config.task.path,
            "license": config.task.license,
            "version": config.task.version,
            "higher_is_better": config.task.higher_is_better,
        },
        "negatives": config.negatives.strategy,
        "control": config.control.name,
        "seed": config.seed,
        "processes": team().size,
        "versions": {"python": sys.version.split()[0], **package_versions()},
        "hardware": hardware(),
        "metrics": {phase: {} for phase in PHASES},
        "stages": {},
        "paths": {},
        "missing": {},
        "status": "running",
        "error": None,
    }


def model_name(config: Config) -> str:
    """The group's name; that of the folder or file where `model.path` replaces what the group names."""
    return config.model.name if config.model.path is None else Path(config.model.path).expanduser().resolve().name


def _evaluated(assembled: Assembled, examples: Sequence[Example], phase: str) -> Evaluated:
    run = assembled.run

    def table(name: str, rows: str, kind: type[T]) -> Sequence[T] | None:
        found = run.finished.get(f"{phase}_{name}")
        return None if found is None else found.artefact.table(rows, kind)

    scores = {
        name.rpartition("_")[2]: item.artefact.table("scores", Scores)
        for name, item in run.finished.items()
        if name.startswith(f"{phase}_scores_")
    }
    responses = run.finished[f"{phase}_responses"].artefact.table("responses", Response)
    return Evaluated(
        examples,
        assembled.config.evaluation,
        responses,
        scores,
        table("option_scores", "options", OptionScores),
        table("unrelated", "responses", Response),
        assembled.config.method.decoding.passes if phase == "after" else 1,
        _answers(assembled, phase, responses),
    )


def _answers(assembled: Assembled, phase: str, responses: Sequence[Response]) -> list[str] | None:
    """The responses' texts with what the model extracted from them; None where it is not asked for that."""
    extraction = SCORERS[assembled.held_out.task.scorer].extraction
    if extraction is None:
        return None
    replies = assembled.run.finished[f"{phase}_extractions"].artefact.table("replies", Response)
    said = {reply.id: reply.text for reply in replies}
    return [extraction.joins(row.text, said[row.id]) if row.id in said else row.text for row in responses]


def _outcome(run: Run, phase: str) -> HarnessOutcome | None:
    found = run.finished.get(f"{phase}_harness")
    if found is None:
        return None
    return HarnessOutcome(
        found.artefact.table("results", HarnessResult), found.artefact.table("samples", HarnessSample)
    )


def _counts(run: Run) -> dict[str, int]:
    """What stages have counted, summed over the rounds of a training."""
    counts = Counter[str]()
    for item in run.finished.values():
        if (name := COUNTED.get(item.stage.name)) is not None:
            counts.update(item.artefact.json(name))
        elif item.stage.name == "adapter":
            training = item.artefact.json("training")
            counts["training_steps"] += training["steps"]
            counts["trainable_parameters"] = training["trainable_parameters"]
    return dict(counts)


def _resources(device: str) -> dict[str, float]:
    """Peak memory of this process so far, in GiB; a run whose stages are all cached has used next to none."""
    found = {"peak_memory_gib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 3)}
    if device.startswith("cuda") and "torch" in sys.modules:
        import torch

        found["peak_gpu_memory_gib"] = round(torch.cuda.max_memory_allocated(device) / 2**30, 3)
    return found


def _samples(
    scorer: str,
    examples: Sequence[Example],
    before: Evaluated,
    after: Evaluated,
    measured: Mapping[str, Mapping[str, Measure]],
) -> list[Sample]:
    """The first responses of either model, side by side."""
    shown, sides = range(min(len(examples), SAMPLES_IN_PAGE)), {"before": before, "after": after}
    found: dict[str, list[Any]] = {}
    for phase, of in sides.items():
        found[f"pmi_{phase}"] = measured[phase]["mi/base/nats"].values[: len(shown)].tolist()
        right = measured[phase].get("accuracy")
        if right is not None and right.values.ndim == 1:
            found[f"correct_{phase}"] = (right.values[: len(shown)] == 1).tolist()
        if SCORERS[scorer].has_kinds:
            found[f"kind_{phase}"] = kinds(scorer, examples[: len(shown)], of.responses[: len(shown)])
    return [
        Sample(
            user=examples[i].user,
            context=examples[i].context,
            prompt=examples[i].prompt,
            before=before.responses[i].text,
            after=after.responses[i].text,
            reference=examples[i].reference,
            **{name: values[i] for name, values in found.items()},
        )
        for i in shown
    ]


def _say_result(summary: Mapping[str, Any]) -> None:
    """The closing lines: first what the gain costs in words, then the figures of gains and costs."""
    if summary["headline"]:
        log.info("%s", summary["headline"])
    for title, names in headlines(summary).items():
        for name in names:
            if name in summary["metrics"]["delta"]:
                log.info("%s: %s: %s", title, name, _said(summary["metrics"], name))
    if (rate := summary["metrics"]["after"].get("judge/win_rate")) is not None:
        log.info("judge/win_rate of after against before: %s", _with_interval(rate))
    log.info("report: %s", summary["paths"]["report"])


def _said(metrics: Mapping[str, Mapping[str, Any]], name: str) -> str:
    before, after, delta = (metrics[phase][name] for phase in PHASES)
    return f"{_number(before['mean'])} → {_number(after['mean'])} (difference {_with_interval(delta, '+')})"


def _with_interval(entry: Mapping[str, Any], sign: str = "") -> str:
    low, high = (_number(bound, sign) for bound in entry["ci95"])
    return f"{_number(entry['mean'], sign)}, 95% interval {low} to {high}, n = {entry['n']}"


def _number(value: float | None, sign: str = "") -> str:
    return "–" if value is None else f"{value:{sign}.3f}"


def _objective(objective: str, metrics: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> float | None:
    phase, _, name = objective.partition("/")
    found = metrics[phase].get(name)
    if found is None and name.startswith("harness/"):  # its metrics are known once it has run
        known = ", ".join(metric for metric in metrics[phase] if metric.startswith("harness/"))
        raise ConfigError(f"objective={objective!r}: the run has no such metric; of the harness it has {known}")
    return None if found is None else found["mean"]
