"""The page of the campaign: how many tries of each part held, and those that did not."""

from collections.abc import Sequence
from pathlib import Path

from campaign.tries import Part, Record, read_records

SHOWN = 20  # tries of a part that did not hold

HEAD = """# The campaign: robustness, tried at random

`make campaign` strikes runs of the tiny model with what can happen to them, and counts where they hold: the same
command again ends with the same results and bytes, or one message says what is wrong and the way out. It is seeded
(`--seed`), goes on where it was interrupted, and takes about an hour on two cores;
`python -m campaign --part kills --tries 5` makes some tries of one row. The folder of a try that did not hold stays in
`build/campaign/SEED/PART/NUMBER`; `--part PART --from NUMBER --tries 1 --again` makes it again, once what it found is
mended: its last result counts.

What is compared with an undisturbed run are the bytes of every artefact and output, but for times, logs and pages that
show times. `surroundings` allows another artefact's numbers to differ by 1e-4; under one key they may where the number
of threads is another, or `trainer.batch_tokens`, which says what fits into memory. A message has at most 12 lines,
names the key or the file, and comes with exit code 2 within 5 seconds of processor time; where a run was struck at
work, or a model had to be read, the time is left out. Permissions hold for root too (its way around them is given up);
a full disk is a small tmpfs where one can be mounted, else a largest file. W&B, judges, Ray and GPUs are not in it.

An edit can leave good input (one letter of a text), so some is accepted and counts as held. An empty file, a page of
HTML, a pointer of Git LFS, a folder or UTF-16 in place of a file that is needed never is.
"""


def write_page(path: Path, work: Path, parts: Sequence[Part]) -> None:
    """Write the table over all that is recorded in a folder."""
    records = read_records(work)
    lines = [HEAD, "| what | tries | held | of them accepted | of a whole campaign | seeds | commits | dates |"]
    lines.append("|" + " --- |" * 8)
    for part in parts:
        of = [record for record in records if record.part == part.name]
        held, accepted = sum(record.wrong is None for record in of), sum(record.accepted for record in of)
        seeds, commits, dates = (
            ", ".join(sorted({str(value) for value in values if value is not None}))
            for values in ([r.seed for r in of], [r.commit and r.commit[:8] for r in of], [r.date for r in of])
        )
        counts = f"{len(of)} | {held} | {accepted or ''} | {part.tries}"
        lines.append(f"| `{part.name}`: {part.row} | {counts} | {seeds} | {commits} | {dates} |")
    failed = [record for record in records if record.wrong is not None]
    if failed:
        lines += ["", "## What did not hold", ""]
    lines += [_line(record) for part in parts for record in _of(failed, part)[:SHOWN]]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def _of(records: Sequence[Record], part: Part) -> list[Record]:
    return [record for record in records if record.part == part.name]


def _line(record: Record) -> str:
    said = " ".join((record.wrong or "").split())[:300].replace("|", "\\|")
    return f"- `{record.part}` {record.number}, seed {record.seed} ({record.case}): {said}"
