"""A strategy, a task with a scorer, a method and a metric from outside mipo_exp."""

from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any

from mipo_exp.config.fields import Between, schema
from mipo_exp.config.schema import METHODS, SCORERS, STRATEGIES, TASKS, TaskConfig
from mipo_exp.data.base import Examples, Task, reference
from mipo_exp.evaluation.metrics import Evaluated, Measure, average, metric
from mipo_exp.pairing.negatives import Draw
from mipo_exp.store.records import Example, Negative
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
