"""Word problems: generated one- to three-step problems with integer answers, which ship with the package.

    prompt     "Anna has 12 marbles and buys 7 more. How many marbles does Anna have now?"
    reference  {"answer": "19"}

For small models and quick runs without a download. Evaluation uses templates that training does not see.
"""

import random
from collections.abc import Callable, Sequence

from mipo_exp.config.schema import TASKS
from mipo_exp.data.base import Examples, Task, reference
from mipo_exp.data.word_problem_templates import NAMES, TEMPLATES, Template
from mipo_exp.store.artefacts import digest
from mipo_exp.store.records import Example

EVAL_TEMPLATES = 14
# Distinct problems made of each template; `train_examples` and `eval_examples` draw from them.
PER_TEMPLATE = 40


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
        return self.select(train, evaluation, {"templates": len(TEMPLATES)})

    def draw(self, rows: Sequence[Example], limit: int | None) -> list[Example]:
        """The first rows: `_problems` has them in an order in which the templates take turns."""
        return list(rows[:limit])

    def _sides(self) -> tuple[list[Example], list[Example]]:
        templates = list(TEMPLATES)
        random.Random(f"templates/{self.config.seed}").shuffle(templates)
        return (
            self._problems("train", templates[EVAL_TEMPLATES:]),
            self._problems("eval", templates[:EVAL_TEMPLATES]),
        )

    def _problems(self, side: str, templates: Sequence[Template]) -> list[Example]:
        made = [list(generate(template, PER_TEMPLATE, self.config.seed)) for template in templates]
        rows = []
        for turn in range(PER_TEMPLATE):
            for template, problems in zip(templates, made, strict=True):
                prompt, answer = problems[turn]
                name = f"{template.name}/{turn:02d}"
                rows.append(Example(f"{side}/{name}", None, name, None, prompt, reference(answer=str(answer))))
        return rows


def generate(template: Template, count: int, seed: int) -> list[tuple[str, int]]:
    """`count` distinct problems and their answers."""
    rng = random.Random(f"{template.name}/{seed}")
    found: dict[str, int] = {}
    while len(found) < count:
        numbers = {slot: rng.choice(values) for slot, values in template.numbers.items()}
        shown = {**numbers, **{slot: make(**numbers) for slot, make in template.derived.items()}}
        text = template.text.format(name=rng.choice(NAMES), **shown)
        found[text] = template.answer(**numbers)
    return list(found.items())
