"""The stage that scores the options of multiple choice: log p(option | question), beside what the model generates.

How likely the model finds each option says what it knows; which answer it writes depends on more, such as whether it
keeps to the form that was asked for. What is scored follows lm-evaluation-harness 0.4: the option's text (`arc_easy`,
`arc_challenge`, `openbookqa`) or its letter (`mmlu`), without an end of turn.
"""

import dataclasses
import json
from collections.abc import Sequence

from mipo_exp.config.groups import ScoringConfig
from mipo_exp.data.base import Task
from mipo_exp.data.options import letters
from mipo_exp.errors import DataError
from mipo_exp.models.runtime import Runtime
from mipo_exp.scoring.log_probs import Scorable
from mipo_exp.scoring.score import score_items
from mipo_exp.store.artefacts import Workspace
from mipo_exp.store.records import Example, OptionScores

NO_SCORES = "or set evaluation.option_scoring=none"


def score_options(
    work: Workspace, runtime: Runtime, scoring: ScoringConfig, rendering: str, context: bool = True
) -> None:
    """Every option of every evaluation example, under the base model, or the policy where there is a `scorer` input;
    without `context`, after the question alone. Raises `DataError`: an option has no tokens of its own."""
    examples: Sequence[Example] = work.inputs["examples"].table("eval", Example)
    if not context:
        examples = [dataclasses.replace(example, context=None) for example in examples]
    items: list[Scorable] = []
    for example in examples:
        for option, item in zip(*scored_options(runtime, example, rendering), strict=True):
            if not item.response_ids:
                raise DataError(f"example {example.id}: the option {option!r} has no tokens; correct it, {NO_SCORES}")
            items.append(item)
    found = iter(score_items(work, runtime, scoring, items, "scoring options"))
    rows = []
    for example in examples:
        options = _options(example)
        lengths = [len(option) for option in options] if runtime.task.option_form == "text" else None
        rows.append(OptionScores(example.id, [next(found) for _ in options], lengths))
    work.write_table("options", rows, OptionScores)


def scored_options(runtime: Runtime, example: Example, rendering: str) -> tuple[list[str], list[Scorable]]:
    """What is scored of each option, and how it is written after the question, as token ids.

    Args:
        runtime: renders prompts.
        example: of a task with options.
        rendering: `chat`: the task's own prompt, and the option where the response begins. `harness`: the plain
            question of lm-evaluation-harness, after the context and an empty line where there is one, and the option
            after a space. As there (`_encode_pair`), the option's ids are what the whole text has beyond the
            question's, because a tokenizer may merge across the border.
    """
    options = _options(example)
    forms = options if runtime.task.option_form == "text" else list(letters(len(options)))
    tokenizer = runtime.renderer.tokenizer
    if rendering == "chat":
        prompt = tuple(runtime.prompt_ids(example.condition))
        return forms, [
            Scorable(prompt, tuple(tokenizer(form, add_special_tokens=False)["input_ids"])) for form in forms
        ]
    question = runtime.task.plain_question(example)
    if example.context is not None:
        question = f"{example.context}\n\n{question}"
    prompt = tuple(tokenizer(question)["input_ids"])
    wholes = [tuple(tokenizer(f"{question} {form}")["input_ids"]) for form in forms]
    return forms, [Scorable(prompt, whole[len(prompt) :]) for whole in wholes]


def check_options(task: Task, examples: Sequence[Example]) -> None:
    """Raise `DataError` for an option that cannot be scored because it is blank."""
    for example in examples if task.has_options else ():
        if task.option_form == "text" and not all(option.strip() for option in _options(example)):
            raise DataError(
                f"task={task.config.name}, example {example.id}: an option is blank, and its likelihood is asked for; "
                f"correct the row, {NO_SCORES}"
            )


def _options(example: Example) -> list[str]:
    options: list[str] = json.loads(example.reference)["options"]
    return options
