"""`python -m mipo_exp dashboard ENTITY/PROJECT [--group G]`: a saved view of a W&B project, and a report of a group."""

import argparse
import sys
from collections.abc import Sequence

from mipo_exp.errors import ConfigError
from mipo_exp.reporting.dashboard import make_dashboard


def run(arguments: Sequence[str]) -> None:
    """Save them on the W&B server, and print their addresses."""
    parser = argparse.ArgumentParser(
        prog="python -m mipo_exp dashboard",
        description="Save a view of a W&B project (Results, Training, Samples, System), and of a multirun a report.",
    )
    parser.add_argument("project", metavar="ENTITY/PROJECT", help="as in the address of its page")
    parser.add_argument("--group", help="show the runs of this W&B group only, the folder of a multirun; with a report")
    asked = parser.parse_args(list(arguments))
    entity, _, project = asked.project.partition("/")
    if not entity or not project or "/" in project:
        raise ConfigError(f"{asked.project!r} is not ENTITY/PROJECT; both are in the address of the project's page")
    for address in make_dashboard(entity, project, asked.group):
        sys.stdout.write(f"{address}\n")
