"""python -m campaign: robustness, tried at random, with a table in docs/campaign.md.

All of it takes about an hour on two cores. One part, a few times: python -m campaign --part kills --tries 5
What was tried is recorded in --work; the same command goes on from there, and another --seed adds to it.
"""

import argparse
import os
import sys
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")

from campaign import config_values, damage, files, kills, places, planted, surroundings
from campaign.table import write_page
from campaign.tries import Part, run_part

PARTS: dict[str, Part] = {
    part.name: part
    for module in (kills, damage, config_values, files, places, planted, surroundings)
    for part in module.PARTS
}


def main() -> int:
    """Make the tries that are asked for; 1 where something did not hold."""
    parser = argparse.ArgumentParser(prog="python -m campaign", description=__doc__.splitlines()[0])
    parser.add_argument("--part", action="append", choices=PARTS, help="one of the rows; again for another one")
    parser.add_argument("--tries", type=int, help="of each part, in place of its own number")
    parser.add_argument("--from", dest="first", type=int, default=0, help="the number of the first try")
    parser.add_argument("--again", action="store_true", help="make those that did not hold again")
    parser.add_argument("--seed", type=int, default=0, help="of all that is drawn")
    parser.add_argument("--jobs", type=int, default=len(os.sched_getaffinity(0)), help="tries at once")
    parser.add_argument("--work", type=Path, default=Path("build/campaign"), help="the folder for tries and records")
    parser.add_argument("--page", type=Path, help="write the table over all records in --work here: docs/campaign.md")
    args = parser.parse_args()
    found = 0
    for name in args.part or PARTS:
        found += _run(PARTS[name], args)
    if args.page is not None:
        write_page(args.page, args.work, list(PARTS.values()))
    return 1 if found else 0


def _run(part: Part, args: argparse.Namespace) -> int:
    """Make the tries of a part; how many did not hold."""
    wrong = 0
    numbers = range(args.first, args.first + (part.tries if args.tries is None else args.tries))
    for record in run_part(part, args.work.absolute(), args.seed, numbers, args.jobs, args.again):
        wrong += record.wrong is not None
        said = f"did not hold: {record.wrong}" if record.wrong else "held"
        sys.stdout.write(f"{part.name} {record.number} ({record.seconds:.0f} s, {record.case}): {said}\n")
        sys.stdout.flush()
    return wrong


if __name__ == "__main__":
    raise SystemExit(main())
