"""The kinds of judging: what is asked about each example, and the verdicts that come back.

A kind is a class in `KINDS`; the prompts of this package's stand in `templates.FILES`.
"""

import json
from abc import ABC, abstractmethod
from collections import ChainMap
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from mipo_exp.config.fields import Between, ResponseTokens, Temperature, one_of, schema
from mipo_exp.config.registry import Registry
from mipo_exp.config.schema import EngineConfig, JudgeConfig
from mipo_exp.data.base import Task
from mipo_exp.errors import ConfigError
from mipo_exp.evaluation.metrics import Measure, average, mean, ratio_of_sums, register_file
from mipo_exp.judging.formulas import CHECK_ERRORS, length_controlled, pair_outcome, preference_error
from mipo_exp.judging.judge import RUBRIC_PROMPTS, Backend
from mipo_exp.judging.replies import Messages, Reply
from mipo_exp.judging.templates import NOTHING_KNOWN, Rubric, Templates, rubric
from mipo_exp.judging.verdicts import read_choice, read_number, read_restatement, read_score, read_yes_no
from mipo_exp.store.records import Example, Judgement

Ask = Callable[[Sequence[Messages]], list[Reply]]
Texts = Mapping[str, Sequence[str]]  # the responses by phase, in the order of the examples
Measures = dict[str, dict[str, Measure]]  # by phase and metric
SIDES = ("before", "after")

register_file(Path(__file__).with_name("metrics.yaml"))


class Kind(ABC):
    """One kind of judging."""

    prompts: ClassVar[tuple[str, ...]]  # the prompt files that it uses

    @abstractmethod
    def check(self, examples: Sequence[Example], task: str) -> None:
        """Raise `ConfigError` where the references of these examples lack what the kind needs."""

    @abstractmethod
    def judge(self, examples: Sequence[Example], texts: Texts, templates: Templates, ask: Ask) -> list[Judgement]:
        """All verdicts on the responses, those that could not be read among them."""

    @abstractmethod
    def measures(self, examples: Sequence[Example], texts: Texts, judgements: Sequence[Judgement]) -> Measures:
        """The metrics of these verdicts, with a value for each example."""


KINDS: Registry[Kind] = Registry("judge.kind", lambda kind: kind())  # @KINDS.register("NAME")


@KINDS.register("pairwise")
class _Pairwise(Kind):
    """`after` against `before`, in both orders. Equal responses tie without being shown to the judge."""

    prompts = ("pairwise",)
    orders: ClassVar[dict[str, tuple[str, str]]] = {
        "before_first": ("before", "after"),
        "after_first": ("after", "before"),
    }

    def check(self, examples: Sequence[Example], task: str) -> None:
        """Any example will do."""

    def judge(self, examples: Sequence[Example], texts: Texts, templates: Templates, ask: Ask) -> list[Judgement]:
        requests: list[Messages] = []
        positions: list[tuple[int, str]] = []
        for i, example in enumerate(examples):
            for order, (first, second) in self.orders.items():
                if texts["before"][i] != texts["after"][i]:
                    values = {**_asked(example), "response_a": texts[first][i], "response_b": texts[second][i]}
                    requests.append(templates.message("pairwise", values))
                    positions.append((i, order))
        replies = dict(zip(positions, ask(requests), strict=True))
        rows = []
        for i, example in enumerate(examples):
            for order, shown in self.orders.items():
                if (reply := replies.get((i, order))) is None:
                    rows.append(Judgement(example.id, "pair", order, "tie", None, None, 0, 0))
                    continue
                choice = read_choice(reply.text or "")
                verdict = None if choice is None else {"A": shown[0], "B": shown[1], "C": "tie"}[choice]
                rows.append(_row(example, "pair", order, verdict, reply))
        return rows

    def measures(self, examples: Sequence[Example], texts: Texts, judgements: Sequence[Judgement]) -> Measures:
        found = _by_place(judgements)
        pairs = [[found[example.id, "pair", order] for order in self.orders] for example in examples]
        outcomes = np.array([pair_outcome(first.verdict, second.verdict) for first, second in pairs])
        asked = np.array([was_asked(first) for first, _ in pairs])
        consistent = np.array([float(first.verdict == second.verdict) for first, second in pairs])
        lengths = {phase: np.array([len(text) for text in texts[phase]], dtype=np.float64) for phase in SIDES}
        delta = lengths["after"] - lengths["before"]
        after = {
            "judge/win_rate": average(outcomes),
            "judge/length_controlled_win_rate": Measure(np.stack([outcomes, delta], axis=1), length_controlled),
            "judge/position_consistency": average(np.where(asked & ~np.isnan(outcomes), consistent, np.nan)),
            "judge/parse_failure_rate": _failures(examples, judgements, "pair"),
        }
        characters = {phase: {"judge/characters": average(lengths[phase])} for phase in SIDES}
        return {"before": characters["before"], "after": {**after, **characters["after"]}}


@KINDS.register("rubric")
class _Rubrics(Kind):
    """A score from 1 to 5 for every rubric of an example, with its reference answer where there is one."""

    prompts = RUBRIC_PROMPTS

    def check(self, examples: Sequence[Example], task: str) -> None:
        """An example without rubrics gets the default one; those that are there must be whole."""
        for example in examples:
            _rubrics(example, default=None)

    def judge(self, examples: Sequence[Example], texts: Texts, templates: Templates, ask: Ask) -> list[Judgement]:
        requests: list[Messages] = []
        positions: list[tuple[Example, str, str]] = []
        for phase in SIDES:
            for i, example in enumerate(examples):
                answer = json.loads(example.reference).get("reference_answer")
                values = {**_asked(example), "response": texts[phase][i], "reference_answer": answer or ""}
                for number, item in enumerate(_rubrics(example, templates.default_rubric)):
                    scale = {"criteria": item.criteria, "score_descriptions": item.scale}
                    requests.append(templates.message("rubric_reference" if answer else "rubric", {**values, **scale}))
                    positions.append((example, phase, str(number)))
        return _scored(positions, ask(requests), read_score)

    def measures(self, examples: Sequence[Example], texts: Texts, judgements: Sequence[Judgement]) -> Measures:
        return {
            phase: {
                "judge/score": average(_mean_scores(examples, judgements, phase)),
                "judge/parse_failure_rate": _failures(examples, judgements, phase),
            }
            for phase in SIDES
        }


@KINDS.register("checks")
class _Checks(Kind):
    """PrefEval's four questions about a response and a stated preference.

    Whether the preference is hallucinated is asked of the words that `acknowledge` quotes, and only where there are
    some: PrefEval reads the answer only then."""

    prompts = ("check_acknowledge", "check_violate", "check_hallucinate", "check_helpful")

    def check(self, examples: Sequence[Example], task: str) -> None:
        for example in examples:
            if not isinstance(json.loads(example.reference).get("preference"), str):
                raise ConfigError(
                    f"judge.kind=checks needs the preference that each example states, and task={task} has none "
                    f"(example {example.id}); use judge.kind=pairwise or rubric"
                )

    def judge(self, examples: Sequence[Example], texts: Texts, templates: Templates, ask: Ask) -> list[Judgement]:
        positions = [(example, phase, texts[phase][i]) for phase in SIDES for i, example in enumerate(examples)]
        asked = [{**_asked(example), **_preference(example), "response": text} for example, _, text in positions]
        first = ("acknowledge", "violate", "helpful")
        requests = [templates.message(f"check_{check}", values) for check in first for values in asked]
        replies = ask(requests)
        of = {check: replies[n * len(positions) : (n + 1) * len(positions)] for n, check in enumerate(first)}
        stating = [i for i, reply in enumerate(of["acknowledge"]) if read_yes_no(reply.text or "")]
        stated = [read_restatement(of["acknowledge"][i].text or "") for i in stating]
        again = [
            templates.message("check_hallucinate", {**asked[i], "restatement": words})
            for i, words in zip(stating, stated, strict=True)
        ]
        rows = [
            _row(example, phase, check, _word(read_yes_no(reply.text or "")), reply)
            for check in first
            for (example, phase, _), reply in zip(positions, of[check], strict=True)
        ]
        for i, reply in zip(stating, ask(again), strict=True):
            rows.append(_row(*positions[i][:2], "hallucinate", _word(read_yes_no(reply.text or "")), reply))
        return rows

    def measures(self, examples: Sequence[Example], texts: Texts, judgements: Sequence[Judgement]) -> Measures:
        found = _by_place(judgements)
        measures: Measures = {}
        for phase in SIDES:
            answers: dict[str, list[bool | None]] = {
                check: [_yes(found.get((example.id, phase, check))) for example in examples]
                for check in ("acknowledge", "violate", "hallucinate", "helpful")
            }
            results = [preference_error(*row) for row in zip(*answers.values(), strict=True)]
            # Of all responses: one that states no preference hallucinates none.
            answers["hallucinate"] = [
                False if stated is False else answer
                for stated, answer in zip(answers["acknowledge"], answers["hallucinate"], strict=True)
            ]
            rates = {f"judge/{check}": _rate(values) for check, values in answers.items()}
            # Not known: whether there is an error, or of which kind it is.
            known = [kind is not None or right == 1.0 for right, kind in results]
            errors = {
                f"judge/error/{name}": _rate(
                    [kind == name if clear else None for (_, kind), clear in zip(results, known, strict=True)]
                )
                for name in CHECK_ERRORS
            }
            measures[phase] = {
                "judge/accuracy": average([right for right, _ in results]),
                **rates,
                **errors,
                "judge/parse_failure_rate": _failures(examples, judgements, phase),
            }
        return measures


@KINDS.register("reference_score")
class _ReferenceScore(Kind):
    """A score from 1 to 5 for one preference at a time, of both responses and of a reference response; a response wins
    where its mean is at least the reference's. The protocol of the paper's authors (docs/paper.md)."""

    prompts = ("reference_score",)
    phases = SIDES
    subjects: ClassVar[tuple[str, ...]] = (*SIDES, "reference")

    def check(self, examples: Sequence[Example], task: str) -> None:
        for example in examples:
            known = json.loads(example.reference)
            if not known.get("preferences") or not known.get("reference_answer"):
                raise ConfigError(
                    f"judge.kind=reference_score needs preferences and a reference answer, and task={task} by this "
                    f"protocol has none (example {example.id}); use protocol=authors, or judge.kind=pairwise or rubric"
                )

    def judge(self, examples: Sequence[Example], texts: Texts, templates: Templates, ask: Ask) -> list[Judgement]:
        requests: list[Messages] = []
        positions: list[tuple[Example, str, str]] = []
        known = [json.loads(example.reference) for example in examples]
        shown = {**texts, "reference": [about["reference_answer"] for about in known]}
        for subject in self.subjects:
            for example, about, response in zip(examples, known, shown[subject], strict=True):
                for number, preference in enumerate(about["preferences"]):
                    values = {**_asked(example), "response": response, "preference": preference}
                    requests.append(templates.message("reference_score", values))
                    positions.append((example, subject, str(number)))
        return _scored(positions, ask(requests), read_number)

    def measures(self, examples: Sequence[Example], texts: Texts, judgements: Sequence[Judgement]) -> Measures:
        scores = {subject: _mean_scores(examples, judgements, subject) for subject in self.subjects}
        reference = scores["reference"]
        found: Measures = {}
        for phase in SIDES:
            unknown = np.isnan(scores[phase]) | np.isnan(reference)
            found[phase] = {
                "judge/reference_win_rate": average(np.where(unknown, np.nan, scores[phase] >= reference)),
                "judge/preference_score": average(scores[phase]),
                "judge/parse_failure_rate": _failures(examples, judgements, phase, "reference"),
            }
        found["after"]["judge/reference_score"] = average(reference)
        return found


def _mean_scores(examples: Sequence[Example], judgements: Sequence[Judgement], subject: str) -> NDArray[np.float64]:
    """The mean of a subject's scores that could be read, by example; NaN where there are none."""
    scores: dict[str, list[float]] = {example.id: [] for example in examples}
    for row in judgements:
        if row.subject == subject:
            scores[row.example].append(float(row.verdict or "nan"))
    return np.array([mean(np.array(of)) for of in scores.values()])


def _asked(example: Example) -> dict[str, str]:
    return {"context": NOTHING_KNOWN if example.context is None else example.context, "prompt": example.prompt}


def _preference(example: Example) -> dict[str, str]:
    reference = json.loads(example.reference)
    return {"preference": reference["preference"], "explanation": str(reference.get("explanation") or "")}


def _rubrics(example: Example, default: Rubric | None) -> list[Rubric]:
    """The rubrics of an example's reference; the default where it has none."""
    given: Any = json.loads(example.reference).get("rubrics")
    if not given:
        return [] if default is None else [default]
    if not isinstance(given, list):
        raise ConfigError(f"example {example.id}: the rubrics of its reference are not a list")
    return [
        rubric(item, f"example {example.id}: rubric {number} of its reference") for number, item in enumerate(given)
    ]


def _scored(
    positions: Sequence[tuple[Example, str, str]], replies: Iterable[Reply], read: Callable[[str], float | None]
) -> list[Judgement]:
    """The rows of replies whose verdict is the score that `read` finds in them."""
    rows = []
    for position, reply in zip(positions, replies, strict=True):
        score = read(reply.text or "")
        rows.append(_row(*position, None if score is None else str(score), reply))
    return rows


def _row(example: Example, subject: str, item: str, verdict: str | None, reply: Reply) -> Judgement:
    tokens = reply.input_tokens, reply.output_tokens
    return Judgement(example.id, subject, item, verdict, reply.text, reply.refusal, *tokens)


def _by_place(judgements: Sequence[Judgement]) -> dict[tuple[str, str, str], Judgement]:
    return {(row.example, row.subject, row.item): row for row in judgements}


def was_asked(row: Judgement) -> bool:
    """Whether the judge was asked for it; equal responses tie by themselves."""
    return row.reply is not None or row.refusal is not None


def _failures(examples: Sequence[Example], judgements: Sequence[Judgement], *subjects: str) -> Measure:
    """The share of the verdicts that could not be read: by example, how many and of how many."""
    counts = {example.id: [0.0, 0.0] for example in examples}
    for row in judgements:
        if row.subject in subjects and was_asked(row):
            counts[row.example][0] += row.verdict is None
            counts[row.example][1] += 1
    return Measure(np.array(list(counts.values())), ratio_of_sums)


def _word(answer: bool | None) -> str | None:
    return None if answer is None else ("yes" if answer else "no")


def _yes(row: Judgement | None) -> bool | None:
    return None if row is None or row.verdict is None else row.verdict == "yes"


def _rate(flags: Sequence[bool | None]) -> Measure:
    return average([np.nan if flag is None else float(flag) for flag in flags])


@schema
class AskedJudgeConfig(JudgeConfig):
    """The keys of every judge but `none`; conf/judge/endpoint.yaml explains them."""

    kind: Annotated[str, one_of(ChainMap(KINDS, {"auto": None}))]
    prompts: str | None
    max_parse_failures: Annotated[float, Between(1e-6, 1, or_zero=True)]
    max_tokens: ResponseTokens | None
    temperature: Temperature | None

    @property
    def asked(self) -> "AskedJudgeConfig":
        """See `JudgeConfig.asked`."""
        return self

    def backend(
        self, engine: EngineConfig, kernels: Sequence[str], task: Task, cache: Path, device: str, download: bool
    ) -> Backend:
        """Who is asked, checked as far as it can be before; a judge in this process keeps the engine's limits. Raises
        `UserError`: a key, a variable of the environment, a package or a model is missing or wrong."""
        raise NotImplementedError
