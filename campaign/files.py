"""Files of a user: data of every task, model folders and YAML, each with something wrong in it.

A run ends with one message that names the file, never with a traceback, and not after minutes; or as if nothing were
wrong, which for one changed letter in a text is right, and for `NEVER_GOOD` is not.
"""

import csv
import io
import json
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow.lib import ArrowException

from campaign.runs import nothing, run, wrong_message
from campaign.tries import Held, Part, Try
from mipo_exp import experiment
from tests import personal_data
from tests.command_line import Done
from tests.personal_data import write_rows
from tests.public_files import arc_row, mmlu_question, svamp_rows
from tests.test_lamp import rating_rows, write_files

WHOLE = 0.1  # of the tries run on to the end; the others stop where a model would be loaded
ROWS = 24
NEVER_GOOD = ("empty", "in UTF-16", "a page of HTML", "a pointer of Git LFS", "a folder")
NEEDED = ("config.json", "model.safetensors", "tokenizer.json")  # of a model folder; a template may be any text


def stop_before_stages() -> None:
    """Have a run end well as soon as all is checked that needs no model."""

    def stop(*_: Any, **__: Any) -> Any:
        raise SystemExit(0)

    experiment.run_stages = stop


def _gsm8k(folder: Path) -> str:
    for split in ("train", "test"):
        rows = [{"question": f"{split} {i}: 1 + {i}?", "answer": f"It is {i + 1}.\n#### {i + 1}"} for i in range(ROWS)]
        write_rows(folder / f"{split}.jsonl", rows)
    return f"task.path={folder}"


def _svamp(folder: Path) -> str:
    others = [{**row, "ID": f"chal-{2000 + i}", "Body": f"Other {i}."} for i, row in enumerate(svamp_rows()[:ROWS])]
    write_rows(folder / "SVAMP.json", svamp_rows(*others))
    return f"task.path={folder}"


def _arc(folder: Path) -> str:
    for split in ("Train", "Test"):
        place = folder / "ARC-V1-Feb2018-2" / "ARC-Easy" / f"ARC-Easy-{split}.jsonl"
        write_rows(place, [arc_row(f"{split}{i}") for i in range(ROWS)])
    return f"task.path={folder}"


def _openbookqa(folder: Path) -> str:
    for split in ("train", "test"):
        place = folder / "OpenBookQA-V1-Sep2018" / "Data" / "Main" / f"{split}.jsonl"
        write_rows(place, [arc_row(f"{split}{i}") for i in range(ROWS)])
    return f"task.path={folder}"


def _mmlu(folder: Path) -> str:
    for split in ("auxiliary_train", "test"):
        of = [
            {"question": stem, "subject": "anatomy", "choices": options, "answer": 1}
            for stem, *options, _ in (mmlu_question(f"{split} {i}") for i in range(ROWS))
        ]
        write_rows(folder / "all" / f"{split}-00000-of-00001.parquet", of)
    return f"task.subject=anatomy task.path={folder}"


def _lamp(folder: Path) -> str:
    write_files(folder, 3, rating_rows("t", 12), rating_rows("d", 12))
    return f"task.path={folder}"


def _custom(folder: Path, suffix: str) -> str:
    rows = [{"who": f"u{i % 8}", "about": f"I keep {i % 8} bees.", "ask": f"What of {i}?"} for i in range(ROWS)]
    write_rows(folder / f"mine.{suffix}", rows)
    keys = "task.eval_share=0.5 task.columns.prompt=ask task.columns.context=about task.columns.user=who"
    return f"task.family=personalization {keys} task.path={folder / f'mine.{suffix}'}"


# What writes a task's files, and returns overrides.
MADE: dict[str, Callable[[Path], str]] = {
    **personal_data.MADE,
    **{"gsm8k": _gsm8k, "svamp": _svamp, "arc": _arc, "openbookqa": _openbookqa, "mmlu": _mmlu, "lamp": _lamp},
    **{f"custom, {suffix}": partial(_custom, suffix=suffix) for suffix in ("jsonl", "json", "csv", "parquet")},
}


def data(one: Try) -> Held:
    """A task with something wrong in one of its files."""
    name = one.random.choice(sorted(MADE))
    folder = one.folder / "data"
    folder.mkdir()
    overrides = MADE[name](folder).split()
    target = one.random.choice(sorted(path for path in folder.rglob("*") if path.is_file()))
    case = f"task={name}, {target.relative_to(folder)}: {spoil(target, one.random)}"
    whole = one.random.random() < WHOLE
    done = run(
        *("+debug=quick", f"task={name.partition(',')[0]}", *overrides),
        cwd=one.folder,
        before=nothing if whole else stop_before_stages,
    )
    if done.returncode == 0 and "Traceback" not in done.stderr:
        return _accepted(case, True)
    return Held(case, wrong_message(done, [target.name, "task."]))


def _accepted(case: str, needed: bool) -> Held:
    """A run took a file, which it reads where it is `needed`."""
    good = not (needed and case.endswith(NEVER_GOOD))
    return Held(case, None if good else "accepted", True)


def prepare_model(shared: Path) -> None:
    """A folder with the tiny model."""
    done = run("+debug=quick", "method=base", "hydra.run.dir=run", cwd=shared)
    if done.returncode:
        raise RuntimeError(done.stderr)
    shutil.copytree(next(shared.glob("cache/model/*/model")), shared / "model")


def model(one: Try) -> Held:
    """A model folder with something wrong in one of its files."""
    folder = one.folder / "model"
    shutil.copytree(one.shared / "model", folder)
    target = one.random.choice(sorted(folder.iterdir()))
    case = f"{target.name}: {spoil(target, one.random)}"
    done = run("+debug=quick", "method=base", f"model.path={folder}", cwd=one.folder)
    if done.returncode == 0 and "Traceback" not in done.stderr:
        return _accepted(case, target.name in NEEDED)
    # Reading a model takes its time.
    return Held(case, wrong_message(done._replace(seconds=0.0), [target.name, str(folder), "model."]))


YAML = """# @package _global_
# python -m mipo_exp +experiment=mine
defaults:
  - override /method: mipo
  - override /negatives: mixture

seed: 3
method:
  beta: 0.2 # the tie
negatives:
  weights: {no_context: 1, random_prompt: 2}
trainer:
  max_steps: 3
  extra:
    adam_beta2: 0.95
task:
  instruction: "Answer in one line: yes or no."
tracker:
  tags: [one, two]
"""
PIECES = (
    *("\t", ":", "- ", "{", "}", "[", "]", "'", '"', "&a ", "*a", "!!python/object:os.system ", "? ", "| ", "> ", "%"),
    *("@", "`", "\0", "\ud800", "\ufeff", "\u2028", "💥", "${", "${oc.env:NOWHERE}", "${seed}", "${nowhere}", "---\n"),
    *("1" * 5000, "&a [*a, *a]", "null", "\n\n", "  ", "<<: ", "!!binary ", ".inf", ".nan", "0x", "1_000", "yes", "~"),
)


def prepare_yaml(shared: Path) -> None:
    """As it is, it is accepted."""
    if (done := _planned(shared, YAML)).returncode:
        raise RuntimeError(done.stderr)


def _planned(folder: Path, content: str) -> Done:
    """Plan with a YAML of this content, which is written into a folder."""
    path = folder / "mine" / "experiment" / "mine.yaml"
    path.parent.mkdir(parents=True)
    path.write_bytes(content.encode(errors="surrogatepass"))
    return run(f"--config-dir={folder / 'mine'}", "+debug=quick", "plan=true", "+experiment=mine", cwd=folder)


def user_yaml(one: Try) -> Held:
    """A YAML of the user's with something wrong in it."""
    content = YAML
    for _ in range(one.random.choice((1, 1, 2))):
        content = _edited(content, one.random)
    done = _planned(one.folder, content)
    case = f"mine.yaml: {_changed(content)}"
    if done.returncode == 0 and "Traceback" not in done.stderr:
        return Held(case, None, True)
    names = [
        "mine",
        *(f"{group}{end}" for group in ("method", "negatives", "trainer", "task", "tracker") for end in ".="),
        "seed",
    ]
    return Held(case, wrong_message(done, [*names, "config key", "override", "method", "negatives"]))


def _edited(text: str, random: Random) -> str:
    at = random.randrange(len(text))
    lines = text.splitlines(keepends=True)
    line = random.randrange(len(lines))
    edits = [
        lambda: text[:at] + random.choice(PIECES) + text[at:],
        lambda: text[:at] + text[at + random.randrange(1, 20) :],
        lambda: "".join([*lines[:line], lines[line], *lines[line:]]),
        lambda: "".join([*lines[:line], *lines[line + 1 :]]),
        lambda: "".join([*lines[:line], lines[line].lstrip(" "), *lines[line + 1 :]]),
        lambda: "".join([*lines[:line], f"  {lines[line]}", *lines[line + 1 :]]),
        lambda: "".join([*lines[:line], f"{lines[line].split(':')[0]}: {random.choice(PIECES)}\n", *lines[line + 1 :]]),
    ]
    return random.choice(edits)()


def _changed(content: str) -> str:
    before = YAML.splitlines()
    found = [line for line in content.splitlines() if line not in before]
    return repr(" / ".join(found)[:120]) if found else "lines left out or repeated"


WRONG: tuple[Any, ...] = (
    *(None, "", " ", -1, 0, 1e300, 10**40, True, [], {}, [[]], {"a": {"b": []}}, "a\0b", "\ud800", "x" * 100_000),
    *(float("nan"), "💥", "<html>", "A", "-5", ["a", 1, None], "1e999"),
)


def spoil(path: Path, random: Random) -> str:
    """Do something wrong to a file; says what."""
    if random.random() < 0.6:
        try:
            said = {".json": _json, ".jsonl": _json, ".csv": _csv, ".parquet": _parquet}[path.suffix](path, random)
        except (KeyError, ArrowException, OverflowError):  # no such file, or no such value in it
            pass
        else:
            return said
    content = path.read_bytes()
    at = random.randrange(len(content) + 1)
    name, changed = random.choice(
        [
            ("truncated", content[:at]),
            ("empty", b""),
            ("some bytes put in", content[:at] + random.randbytes(random.randrange(1, 9)) + content[at:]),
            ("a NUL put in", content[:at] + b"\0" + content[at:]),
            ("in UTF-16", content.decode("latin-1").encode("utf-16")),
            ("a byte of Latin-1 put in", content[:at] + b"\xe9" + content[at:]),
            ("a part left out", content[:at] + content[at + random.randrange(1, 200) :]),
            ("a part twice", content[: at + 50] + content[at:]),
            ("with a byte order mark", b"\xef\xbb\xbf" + content),
            ("with the line ends of Windows", content.replace(b"\n", b"\r\n")),
            ("a page of HTML", b"<!DOCTYPE html><html><body>404</body></html>"),
            ("a pointer of Git LFS", b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12\n"),
            ("a folder", None),
        ]
    )
    if changed is None:
        path.unlink()
        path.mkdir()
    else:
        path.write_bytes(changed)
    return f"{name} at {at} of {len(content)}" if changed is not None and name[:2] in ("tr", "so", "a ") else name


def _json(path: Path, random: Random) -> str:
    text = path.read_text(encoding="utf-8")
    lines = text.splitlines() if path.suffix == ".jsonl" else [text]
    number = random.randrange(len(lines))
    value = {"whole": json.loads(lines[number])}
    said = _changed_value(value, random)
    lines[number] = json.dumps(value["whole"])
    path.write_text("\n".join(lines), encoding="utf-8")
    return f"line {number + 1}, {said}"


def _changed_value(value: Any, random: Random) -> str:
    """Change something somewhere in nested data."""
    where, inner = "", value
    key: Any = "whole"
    while isinstance(inner[key], (dict, list)) and inner[key] and random.random() < 0.85:
        inner = inner[key]
        key = random.choice(list(inner)) if isinstance(inner, dict) else random.randrange(len(inner))
        where += f".{key}"
    action = random.choice(["removed", "renamed", "wrong", "wrong", "wrong"])
    if action == "wrong" or where == "":
        inner[key] = random.choice(WRONG)
        return f"{where or 'all'} is {str(inner[key])[:30]!r}"
    removed = inner.pop(key)
    if action == "renamed" and isinstance(inner, dict):
        inner[f"{key}_"] = removed
    return f"{where} {action}"


def _csv(path: Path, random: Random) -> str:
    rows = list(csv.reader(io.StringIO(path.read_text(encoding="utf-8"))))
    line = random.randrange(len(rows))
    cell = random.randrange(len(rows[line]))
    action = random.choice(["removed", "wrong", "wrong", "one more"])
    if action == "removed":
        del rows[line][cell]
    elif action == "one more":
        rows[line].insert(cell, "one more")
    else:
        rows[line][cell] = str(random.choice(WRONG)).encode(errors="replace").decode()
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(rows)
    return f"row {line}, cell {cell} {action}"


def _parquet(path: Path, random: Random) -> str:
    table = pq.read_table(path)
    name = random.choice(table.column_names)
    if random.random() < 0.3:
        pq.write_table(table.drop([name]), path)
        return f"no column {name}"
    value = random.choice(WRONG)
    rows = table.to_pylist()
    if random.random() < 0.5:
        rows[random.randrange(len(rows))][name] = value
    else:
        rows = [{**row, name: value} for row in rows]
    pq.write_table(pa.Table.from_pylist(rows), path)
    return f"column {name} is {str(value)[:30]!r}"


PARTS = [
    Part("data", "data files of every task with something wrong in them", 150, data),
    Part("models", "model folders with something wrong in them", 75, model, prepare_model),
    Part("yaml", "the user's YAML with something wrong in it", 175, user_yaml, prepare_yaml),
]
