"""A strategy, a task with a scorer, a method, a metric, an engine and a kind of judging from outside mipo_exp.

docs/extending.md shows them one by one; a test keeps its code and this the same.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

from mipo_exp.config.fields import Between, schema
from mipo_exp.config.schema import ENGINES, METHODS, SCORERS, STRATEGIES, TASKS, TaskConfig
from mipo_exp.data.base import Examples, Task, reference
from mipo_exp.evaluation.metrics import JUDGE, Evaluated, Measure, Metric, average, metric, register
from mipo_exp.generation.engine import Request, Sampled
from mipo_exp.generation.transformers_engine import TransformersConfig, TransformersEngine
from mipo_exp.judging.kinds import KINDS, Ask, Kind, Measures, Texts
from mipo_exp.judging.templates import Templates
from mipo_exp.judging.verdicts import read_yes_no
from mipo_exp.models.runtime import Runtime
from mipo_exp.pairing.negatives import Draw
from mipo_exp.store.records import Example, Judgement, Negative
from mipo_exp.training.groups import GroupMethod, Result
from mipo_exp.training.job import Job
from mipo_exp.training.methods.softmax_dpo import pair_groups
from mipo_exp.training.scored_groups import Group, Scored


@STRATEGIES.register("next_prompt")
def next_prompt(examples: Sequence[Example], draw: Draw) -> list[Negative]:
    """The prompts of the k examples that follow, with their contexts."""
    count = len(examples)
    return [
        Negative(example.id, j, "next_prompt", other.context, other.prompt, other.id)
        for i, example in enumerate(examples)
        for j in range(draw.k)
        for other in [examples[(i + j + 1) % count]]
    ]


@SCORERS.register("spelled")
def spelled(references: Sequence[Mapping[str, Any]], texts: Sequence[str]) -> dict[str, Measure]:
    """`accuracy`: the response has the letters in their order, with spaces."""
    return {"accuracy": average([of["answer"] in text for of, text in zip(references, texts, strict=True)])}


@schema
class SpellingConfig(TaskConfig):
    words: list[str]


@TASKS.register("spelling")
class Spelling(Task):
    """Spell a word; the words are in the config."""

    keys = SpellingConfig
    config: SpellingConfig
    scorer = "spelled"

    def prepare(self, download: bool = True) -> str:
        self.refuse_source()
        return "1"

    def load(self, count_tokens: Callable[[str], int] | None = None) -> Examples:
        rows = [
            Example(word, None, word, None, f"Spell the word {word}.", reference(answer=" ".join(word)))
            for word in self.config.words
        ]
        return self.divide(rows, 0.5, {})


@METHODS.register("margin")
@schema
class Margin(GroupMethod):
    """The chosen response's log-ratio above those of the rejected ones by a margin, in nats."""

    trains_on = "pairs"
    margin: Annotated[float, Between(0.01, 100)]

    def groups(self, job: Job) -> Sequence[Group]:
        return pair_groups(job)

    def loss(self, batch: Scored) -> Result:
        gaps = self.margin - (batch.log_ratios[:, :1] - batch.log_ratios[:, 1:])
        return gaps.relu()[batch.contrasts[:, 1:]].mean(), {"gap": float(gaps.detach().mean())}


@metric("response/words", "Words", "Responses", column=True)
def words(of: Evaluated) -> list[float]:
    """Words of a response."""
    return [float(len(text.split())) for text in of.texts]


@ENGINES.register("cooler")
@schema
class CoolerConfig(TransformersConfig):
    """transformers, at half the temperature that is asked for."""

    def open(self, runtime: Runtime, adapter: Path | None, *_: Path | None) -> "Cooler":
        return Cooler(self, runtime, adapter)


class Cooler(TransformersEngine):
    def sample(self, request: Request) -> list[Sampled]:
        cooler = dataclasses.replace(request.sampling, temperature=request.sampling.temperature / 2)
        return super().sample(dataclasses.replace(request, sampling=cooler))


@KINDS.register("answers")
class Answers(Kind):
    """Whether a response answers its request, yes or no."""

    prompts = ()  # files of this name; its words are in the code, so another wording gets another name

    def check(self, examples: Sequence[Example], task: str) -> None:
        """Any example will do."""

    def judge(self, examples: Sequence[Example], texts: Texts, templates: Templates, ask: Ask) -> list[Judgement]:
        asked = [
            (example.id, phase, f"Request: {example.prompt}\nResponse: {text}\nDoes it answer the request? Yes or No.")
            for phase in ("before", "after")
            for example, text in zip(examples, texts[phase], strict=True)
        ]
        replies = ask([[{"role": "user", "content": words}] for _, _, words in asked])
        rows = []
        for (id, phase, _), reply in zip(asked, replies, strict=True):
            said = {True: "yes", False: "no", None: None}[read_yes_no(reply.text or "")]
            tokens = reply.input_tokens, reply.output_tokens
            rows.append(Judgement(id, phase, "answers", said, reply.text, reply.refusal, *tokens))
        return rows

    def measures(self, examples: Sequence[Example], texts: Texts, judgements: Sequence[Judgement]) -> Measures:
        values = {"yes": 1.0, "no": 0.0, None: float("nan")}
        return {
            phase: {"judge/answers": average([values[row.verdict] for row in judgements if row.subject == phase])}
            for phase in ("before", "after")
        }


register(Metric("judge/answers", "Answers the request", JUDGE, "proportion", 1, "As the judge sees it, yes or no."))
