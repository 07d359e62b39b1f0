"""The metrics: each says at one place what it is called, what it means, where it is shown, and how it is computed.

    @metric("response/questions", "Asks back", "Responses", "proportion", column=True)
    def asks_back(of: Evaluated) -> list[bool]:
        '''Share of responses that end with a question mark.'''
        return [text.rstrip().endswith("?") for text in of.texts]

is a whole metric, in any module that is imported before the config is checked. Functions that compute several metrics
are marked with `measuring`, and their metrics described by `register`; this package's are in `metrics.yaml`. A metric
that nobody describes is still reported, under its own name and without an explanation.
"""

import math
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from string import Template
from typing import Any, Literal, TypeVar

import numpy as np
import yaml

from mipo_exp.config.groups import EvaluationConfig
from mipo_exp.errors import ConfigError
from mipo_exp.store.records import Example, OptionScores, Response, Scores

Unit = Literal["nats", "nats per token", "proportion", "tokens", "characters", "score"]

# Groups of the report, in this order; those of other names follow.
INFORMATION = "Mutual information with the {of}, scored by the base model"
RELEVANCE = "Prompt relevance, scored by the base model"
FLUENCY = "Fluency, scored by the base model"
POLICY_INFORMATION = "Mutual information with the {of}, scored by the trained model"
QUALITY, JUDGE, RESPONSES, DIVERSITY = "Task quality", "LLM judge", "Responses", "Diversity"
UNRELATED = "Over-application, unrelated requests"
GROUPS = (INFORMATION, RELEVANCE, FLUENCY, UNRELATED, POLICY_INFORMATION, QUALITY, JUDGE, RESPONSES, DIVERSITY)


@dataclass(frozen=True)
class Metric:
    """What a metric means and where it is shown. In its texts `{of}` stands for what the K conditions of the mutual
    information differ in: "context", or "prompt" where there are no contexts.

    Attributes:
        name: as in summary.json.
        label: its title.
        group: of the report's table.
        unit: of its values; proportions are written in per cent.
        direction: 1 higher is better, -1 lower is better, 0 neither.
        explanation: for the report; not repeated elsewhere.
        neutral: the value that says "no difference", for a metric of one side against the other.
        column: whether it is one of the table over runs; table.json has all.
        tested: whether its column has stars; not what is a difference from `before` already, or explains another one.
        headline: whether it has a card in the report: as a gain, as a gain where no other of its group is one, as a
            cost.
        cost: the kind of cost that its change for the worse is.
        chance: whether it is 1/K by chance.
        plot: its name in the report's figures, where it is in one.
    """

    name: str
    label: str
    group: str = "Other"
    unit: Unit = "score"
    direction: int = 0
    explanation: str = ""
    neutral: float | None = None
    column: bool = False
    tested: bool = True
    headline: Literal["gain", "first gain", "cost"] | None = None
    cost: Literal["prompt relevance", "fluency", "unrelated requests"] | None = None
    chance: bool = False
    plot: str = ""


@dataclass(frozen=True)
class Measure:
    """One metric before averaging.

    `values` has one row a response, shape (n,) or (n, m); `reduce` takes any subset of the rows, with repetitions,
    to the metric."""

    values: np.ndarray
    reduce: Callable[[np.ndarray], float]

    def result(self) -> float:
        """The metric over all responses."""
        return self.reduce(self.values)


@dataclass(frozen=True)
class Evaluated:
    """One model's responses to the evaluation examples, with their scores by scoring model (`base`, `policy`) and, in
    multiple choice, the model's scores of the options; `unrelated` are its responses to unrelated requests, first those
    with a context and then those without (`data.unrelated`); `passes` are forward passes for a token of a response;
    `answers` are the texts with the answers that the model was asked to extract, where it was."""

    examples: Sequence[Example]
    config: EvaluationConfig
    responses: Sequence[Response]
    scores: Mapping[str, Sequence[Scores]]
    options: Sequence[OptionScores] | None = None
    unrelated: Sequence[Response] | None = None
    passes: int = 1
    answers: Sequence[str] | None = None

    @cached_property
    def texts(self) -> list[str]:
        """Of the responses."""
        return [response.text for response in self.responses]

    @cached_property
    def contrasted(self) -> str:
        """What the K conditions of the mutual information differ in: `context`, or `prompt` where there are none."""
        return contrasted_in(self.examples)


Compute = Callable[[Evaluated], Mapping[str, Measure]]
# A value for each response, whose mean is the metric; None where it is not measured.
ByResponse = Callable[[Evaluated], "Measure | Sequence[float] | np.ndarray | None"]
Decorated = TypeVar("Decorated", bound=ByResponse)

METRICS: dict[str, Metric] = {}
COMPUTED: list[Compute] = []
_DESCRIBED_BY: dict[str, str] = {}  # the function or module of each of `METRICS`
# Those that are known by how their names begin.
FAMILIES: dict[str, Callable[[str], Metric]] = {}


def register(*metrics: Metric, by: str | None = None) -> None:
    """Describe metrics; a module that is imported again, as a notebook does, describes its own anew. `by` is the
    function that they are of, with its module; None for a call in a module. Raises `ConfigError`: a name is taken."""
    by = by or str(sys._getframe(1).f_globals["__name__"])
    for item in metrics:
        if item.name in METRICS and _DESCRIBED_BY.get(item.name) != by:
            raise ConfigError(f"metric {item.name!r} is registered twice; give one of the two another name")
        METRICS[item.name], _DESCRIBED_BY[item.name] = item, by


def register_file(path: Path, **values: str) -> None:
    """Describe the metrics of a YAML file: by name, the other attributes of `Metric`. `values` stand for their `$name`
    in it."""
    text = Template(path.read_text(encoding="utf-8")).substitute(values)
    for name, facts in yaml.safe_load(text).items():
        register(Metric(name, **facts), by=str(path))


def measuring(compute: Compute) -> Compute:
    """Add a function that computes metrics of every evaluation, by name; none where they are not measured."""
    COMPUTED.append(compute)
    return compute


def metric(
    name: str, label: str, group: str = "Other", unit: Unit = "score", direction: int = 0, **shown: Any
) -> Callable[[Decorated], Decorated]:
    """A function as a metric: its docstring is the explanation. The arguments are those of `Metric`."""

    def add(function: Decorated) -> Decorated:
        described = Metric(name, label, group, unit, direction, " ".join((function.__doc__ or "").split()), **shown)
        register(described, by=f"{function.__module__}.{function.__qualname__}")

        def compute(of: Evaluated) -> dict[str, Measure]:
            found = function(of)
            if found is None:
                return {}
            return {name: found if isinstance(found, Measure) else average(found)}

        compute.__name__ = f"metric {name}"
        COMPUTED[:] = [known for known in COMPUTED if getattr(known, "__name__", "") != compute.__name__]
        measuring(compute)
        return function

    return add


def describe(name: str, contrasted: str = "context") -> Metric:
    """The metric of that name, or a plain one for a name that is not described. `contrasted` is what the K conditions
    of the mutual information differ in, `mi.contrasted` of summary.json."""
    for beginning, of_family in FAMILIES.items():
        if name.startswith(beginning):
            return of_family(name)
    known = METRICS.get(name) or Metric(name, name)
    given, left = ("context, prompt", "prompt") if contrasted == "context" else ("prompt", "empty prompt")
    texts = {
        field: getattr(known, field).format(of=contrasted, given=given, left=left)
        for field in ("label", "group", "explanation", "plot")
        if "{" in getattr(known, field)
    }
    return replace(known, **texts)


def known_metrics() -> list[Metric]:
    """All that are described, group by group."""
    places = {group: place for place, group in enumerate(GROUPS)}
    return sorted(METRICS.values(), key=lambda item: places.get(item.group, len(GROUPS)))


def in_order(names: Mapping[str, Any] | Sequence[str]) -> list[str]:
    """Names of metrics, those that are described first, group by group."""
    return [item.name for item in known_metrics() if item.name in names] + sorted(set(names) - set(METRICS))


def contrasted_in(examples: Sequence[Example]) -> str:
    """What the K conditions of the mutual information differ in: `context`, or `prompt` where there are no contexts."""
    return "prompt" if any(example.context is None for example in examples) else "context"


def clusters(examples: Sequence[Example]) -> list[str]:
    """What varies as a whole: the user of each example, its question where there are no users."""
    return [example.user if example.user is not None else example.question for example in examples]


def mean(values: np.ndarray) -> float:
    """The mean of what is not NaN; NaN of nothing."""
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else math.nan


def average(values: Sequence[float] | np.ndarray) -> Measure:
    """The mean over responses of a value each."""
    return Measure(np.asarray(values, dtype=np.float64), mean)


def ratio(values: Sequence[float] | np.ndarray, by: Sequence[float] | np.ndarray) -> Measure:
    """Σ values / Σ by: per token of the whole set, so that short responses do not weigh more than their tokens."""
    return Measure(np.stack([np.asarray(values, np.float64), np.asarray(by, np.float64)], axis=1), ratio_of_sums)


def ratio_of_sums(values: np.ndarray) -> float:
    """Σ of the first column / Σ of the second, shape (n, 2); NaN where the second is 0."""
    total = float(values[:, 1].sum())
    return float(values[:, 0].sum()) / total if total else math.nan


register_file(Path(__file__).with_name("metrics.yaml"))
