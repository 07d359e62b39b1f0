"""`python -m mipo_exp export RUN`: a run's adapter, or the model with the adapter merged into it, for others."""

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path


def run(arguments: Sequence[str]) -> None:
    """Write the export, verify it and say where it is; push it where that is asked for."""
    parser = argparse.ArgumentParser(prog="python -m mipo_exp export", description=__doc__)
    parser.add_argument("run", type=Path, help="the folder of a run that has ended, outputs/DATE/TIME")
    parser.add_argument(
        "--merged", action="store_true", help="the whole model with the adapter merged into its weights"
    )
    parser.add_argument("--to", type=Path, help="the folder to write (default: RUN/exported, RUN/merged)")
    parser.add_argument(
        "--dtype", choices=("float32", "bfloat16", "float16"), help="of the weights (default: the run's)"
    )
    parser.add_argument("--base", help="the base model's folder or GGUF file, where it is not where the run had it")
    parser.add_argument("--push", metavar="OWNER/NAME", help="upload it to this repository on the hub, a private one")
    parser.add_argument("--public", action="store_true", help="make the repository of --push a public one")
    given = parser.parse_args(arguments)
    if given.public and given.push is None:
        parser.error("--public needs --push OWNER/NAME")
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    logging.getLogger("httpx").setLevel(logging.WARNING)

    from mipo_exp.reporting import export
    from mipo_exp.reporting.opened import open_run

    if given.push is not None:
        export.check_repository(given.push)
    opened = open_run(given.run, given.base, given.dtype)
    folder = (given.to or given.run / ("merged" if given.merged else "exported")).expanduser().absolute()
    found = export.export(opened, folder, given.merged)
    made = "the merged model" if given.merged else "the adapter"
    sys.stdout.write(
        f"{folder}: {made} in {opened.runtime.dtype}; on {found.tokens} tokens its logits are those of the run's "
        f"adapter to {found.difference:.1e} (allowed: {found.allowed:.1e}; the adapter itself changes them by up to "
        f"{found.effect:.1e})\n"
    )
    if given.push is not None:
        sys.stdout.write(f"pushed to {export.push(folder, given.push, given.public, opened.config)}\n")
