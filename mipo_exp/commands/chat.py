"""`python -m mipo_exp chat RUN`: the base model and the trained one, side by side, on a prompt and context of yours."""

import argparse
import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

HELP = (
    "Each prompt is answered for itself. /context TEXT sets what is known of the user, /context none; end with /quit."
)


def run(arguments: Sequence[str]) -> None:
    """Answer `--prompt`, or each line that is typed until the end."""
    parser = argparse.ArgumentParser(prog="python -m mipo_exp chat", description=__doc__)
    parser.add_argument("run", type=Path, help="the folder of a run that has ended, outputs/DATE/TIME")
    parser.add_argument("--prompt", help="answer this one and end; else prompts are asked for")
    parser.add_argument("--context", help="what is known of the user, where the task has contexts")
    parser.add_argument("--base", help="the base model's folder or GGUF file, where it is not where the run had it")
    parser.add_argument("--temperature", type=float, help="0 takes the likeliest tokens (default: the evaluation's)")
    parser.add_argument("--max-new-tokens", type=int, help="of a response (default: the evaluation's)")
    parser.add_argument("--seed", type=int, default=0, help="of what is sampled")
    given = parser.parse_args(arguments)

    from pydantic import ValidationError
    from rich.console import Console

    from mipo_exp.errors import ConfigError
    from mipo_exp.reporting.opened import open_run

    opened = open_run(given.run, given.base)
    asked = {"temperature": given.temperature, "max_new_tokens": given.max_new_tokens}
    try:
        sampling = dataclasses.replace(
            opened.config.evaluation.sampling, **{name: value for name, value in asked.items() if value is not None}
        )
    except ValidationError as error:
        name, said = error.errors()[0]["loc"][0], error.errors()[0]["msg"]
        raise ConfigError(f"--{str(name).replace('_', '-')}={asked[str(name)]}: {said}") from error
    console, context = Console(), given.context
    if given.prompt is not None:
        console.print(_side_by_side(*opened.respond(context, given.prompt, sampling, given.seed)))
        return
    console.print(HELP, style="dim")
    while True:
        try:
            text = console.input("> ").strip()
        except EOFError:
            return
        if text == "/quit":
            return
        if text.startswith("/context"):
            context = text.removeprefix("/context").strip()
            context = None if context in ("", "none") else context
        elif text:
            console.print(_side_by_side(*opened.respond(context, text, sampling, given.seed)))


def _side_by_side(before: str, after: str) -> Any:
    from rich.table import Table
    from rich.text import Text

    table = Table("base model", "trained", expand=True, show_lines=True)
    table.add_row(Text(before or "(empty)"), Text(after or "(empty)"))
    return table
