"""Word problems: generated one- to three-step problems with integer answers, which ship with the package.

    prompt     "Anna has 12 marbles and buys 7 more. How many marbles does Anna have now?"
    reference  {"answer": "19"}

For small models and quick runs without a download. Evaluation uses templates that training does not see.
"""

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache

from mipo_exp.config.schema import TASKS
from mipo_exp.data.base import Examples, Task, reference
from mipo_exp.data.files import read_table
from mipo_exp.store.artefacts import digest
from mipo_exp.store.records import Example

EVAL_TEMPLATES = 14
# Distinct problems made of each template; `train_examples` and `eval_examples` draw from them.
PER_TEMPLATE = 40


@dataclass(frozen=True)
class Template:
    """One kind of problem: its text has slots for `name`, the numbers and the values derived from them.

    `numbers` has the arguments of a range for each slot; `answer` and `derived` are sums and products of the numbers.
    """

    name: str
    text: str
    numbers: Mapping[str, Sequence[int]]
    answer: str
    derived: Mapping[str, str] = field(default_factory=dict)

    def fill(self, name: str, numbers: Mapping[str, int]) -> tuple[str, int]:
        """The problem with these numbers, and its answer."""

        def value(formula: str) -> int:
            return int(eval(formula, {"__builtins__": {}}, dict(numbers)))  # formulas are this package's own

        derived = {slot: value(formula) for slot, formula in self.derived.items()}
        return self.text.format(name=name, **numbers, **derived), value(self.answer)


@cache
def templates() -> tuple[list[str], list[Template]]:
    """The names of people and the templates that ship with the package."""
    found = read_table("word_problems")
    return found["names"], [Template(**row) for row in found["templates"]]


@TASKS.register("word_problems")
class WordProblems(Task):
    """Problems from two disjoint sets of templates, every template equally often."""

    scorer = "number"

    def prepare(self, download: bool = True) -> str:
        """See `Task.prepare`: a hash of the problems themselves, since no file holds them."""
        self.refuse_source()
        return digest([[row.prompt, row.reference] for side in self._sides() for row in side])

    def load(self, count_tokens: Callable[[str], int] | None = None) -> Examples:
        """See `Task.load`."""
        train, evaluation = self._sides()
        return self.select(train, evaluation, {"templates": len(templates()[1])})

    def draw(self, rows: Sequence[Example], limit: int | None) -> list[Example]:
        """The first rows: `_problems` has them in an order in which the templates take turns."""
        return list(rows[:limit])

    def _sides(self) -> tuple[list[Example], list[Example]]:
        shuffled = list(templates()[1])
        random.Random(f"templates/{self.config.seed}").shuffle(shuffled)
        return (self._problems("train", shuffled[EVAL_TEMPLATES:]), self._problems("eval", shuffled[:EVAL_TEMPLATES]))

    def _problems(self, side: str, kinds: Sequence[Template]) -> list[Example]:
        made = [list(generate(template, PER_TEMPLATE, self.config.seed)) for template in kinds]
        rows = []
        for turn in range(PER_TEMPLATE):
            for template, problems in zip(kinds, made, strict=True):
                prompt, answer = problems[turn]
                name = f"{template.name}/{turn:02d}"
                rows.append(Example(f"{side}/{name}", None, name, None, prompt, reference(answer=str(answer))))
        return rows


def generate(template: Template, count: int, seed: int) -> list[tuple[str, int]]:
    """`count` distinct problems and their answers."""
    rng = random.Random(f"{template.name}/{seed}")
    found: dict[str, int] = {}
    while len(found) < count:
        numbers = {slot: rng.choice(range(*limits)) for slot, limits in template.numbers.items()}
        text, answer = template.fill(rng.choice(templates()[0]), numbers)
        found[text] = answer
    return list(found.items())
