"""Commands over runs that have ended: `python -m mipo_exp NAME …`. Any other first argument starts an experiment.

A command is one module here, with `run(arguments)`, which raises a `UserError` for bad input; its name is in `NAMES`.
"""

from collections.abc import Sequence
from importlib import import_module

__all__ = ["NAMES", "run"]

NAMES: tuple[str, ...] = ("chat", "compare", "dashboard", "export", "rerun", "wandb_sweep")


def run(name: str, arguments: Sequence[str]) -> None:
    """Run one of `NAMES` with what follows it on the command line."""
    import_module(f"{__name__}.{name}").run(arguments)
