"""`python -m mipo_exp compare DIR…`: tables and a page over runs and multiruns that have ended, old ones too."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from mipo_exp.errors import DataError, StorageError


def run(arguments: Sequence[str]) -> None:
    """Compare the runs in folders. Raises `DataError`: there are none; `StorageError`: nothing can be written."""
    parser = argparse.ArgumentParser(prog="python -m mipo_exp compare", description=__doc__)
    parser.add_argument("folders", nargs="+", type=Path, metavar="DIR", help="of a run, a multirun, or of several")
    parser.add_argument("--output", type=Path, default=Path("comparison"), metavar="DIR", help="default: comparison/")
    options = parser.parse_args(arguments)
    options.output = options.output.expanduser()

    from mipo_exp.reporting.found import find_runs
    from mipo_exp.reporting.table import write_tables

    for folder in options.folders:
        if not folder.is_dir():
            raise DataError(f"{folder} is not a folder; give those of runs, outputs/DATE/TIME or multirun/DATE/TIME")
    runs, missing = find_runs(options.folders)
    if not runs:
        reasons = "; ".join(f"{item['job']}: {item['error']}" for item in missing)
        where = ", ".join(map(str, options.folders))
        raise DataError(
            f"none of the runs in {where} can be compared: {reasons}"
            if missing
            else f"{where}: no run in it; give the folders of runs, outputs/DATE/TIME or multirun/DATE/TIME"
        )
    try:
        options.output.mkdir(parents=True, exist_ok=True)
        write_tables(options.output, runs, missing)
    except OSError as error:
        raise StorageError(
            f"{error.filename} cannot be written ({error.strerror}); set --output DIR to a folder that can"
        ) from error
