"""The config reference: every key of `conf/` with what it takes, its default and its meaning.

What a key takes comes from the schema, the rest from the YAML files and their comments; nothing is written by hand.
"""

import html
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from pydantic import TypeAdapter

from mipo_exp.config.compose import CONFIG_DIR, PROJECT_ROOT
from mipo_exp.config.registry import load_variants
from mipo_exp.config.schema import REGISTRIES, Config

HEAD = """# Config reference

Every key with what it takes, its default and its meaning, made from the schema (`mipo_exp/config/schema.py`) and from
the comments in `conf/`. `--cfg job` behind a command prints the keys with the values that they have in it.
"""
# Groups of sets of keys, and how one is added.
SETS = {"arm": "+arm=", "debug": "+debug=", "experiment": "+experiment=", "search": "-m +search="}
KINDS = {"string": "text", "boolean": "true or false", "null": "null", "object": "a dict"}
Schema = Mapping[str, Any]  # as JSON Schema


class Key(NamedTuple):
    """A key of a YAML file: its dotted name, its value as written there ("" of a mapping), and its comment."""

    name: str
    value: str
    comment: str


def config_reference() -> str:
    """The page, in Markdown."""
    load_variants()
    groups = [path for path in sorted(CONFIG_DIR.iterdir()) if path.is_dir() and path.name not in {*SETS, "local"}]
    parts = [HEAD, "## Top level\n", _table(_keys(CONFIG_DIR / "config.yaml"), _schema(Config), "")]
    parts += [_group(folder) for folder in groups]
    parts.append("## Named sets\n\nSets of keys with one name.\n")
    named = [(CONFIG_DIR / name, added) for name, added in SETS.items()] + [(PROJECT_ROOT / "sweeps", "-m +sweeps=")]
    for folder, added in named:
        files = sorted(folder.rglob("*.yaml"))
        rows = [(f"`{added}{path.relative_to(folder).with_suffix('')}`", _said(path)) for path in files]
        parts.append(_rows(("added as", "what it is"), rows) if rows else "")
    return "\n".join(parts)


def _group(folder: Path) -> str:
    """The section of a group: the keys that its options share, its options, and the keys that each has alone."""
    group, files = folder.name, sorted(folder.glob("*.yaml"))
    parts, own, options = [f"## {group}\n"], [], []
    shared: dict[str, set[str]] = {}
    for base in sorted({base for path in files for base in _bases(path)}):
        keys = list(_keys(CONFIG_DIR / f"{base}.yaml"))
        shared[base] = {key.name for key in keys}
        users = [path.stem for path in files if base in _bases(path)]
        whose = "every option" if len(users) == len(files) else ", ".join(f"`{name}`" for name in users)
        parts.append(f"Keys of {whose} (`conf/{base}.yaml`):\n\n{_table(keys, _of_option(group, users[0]), group)}")
    for path in files:
        known = {"name"}.union(*(shared[base] for base in _bases(path)))
        keys = list(_keys(path))
        sets = [f"`{key.name}={_escape(key.value)}`" for key in keys if key.name in known and key.value]
        options.append((f"`{group}={path.stem}`", _said(path), "<br>".join(sets[1:])))
        if rest := [key for key in keys if key.name not in known]:
            overall = "@package _global_" in path.read_text(encoding="utf-8")
            of = (_schema(Config), "") if overall else (_of_option(group, path.stem), group)
            own.append((path.stem, _table(rest, *of)))
    if len(files) > 1:
        parts.append(_rows(("option", "what it is", "what it sets"), options))
    return "\n".join(parts + [f"### {group}={name}\n\n{table}" if len(files) > 1 else table for name, table in own])


def _of_option(group: str, option: str) -> Schema:
    variant = REGISTRIES[group].get(option) if group in REGISTRIES else None
    variant = getattr(variant, "keys", variant)  # a task's are a class of their own
    if isinstance(variant, type):
        return _schema(variant)
    whole = _schema(Config)
    return {**_inner(whole, group), "$defs": whole["$defs"]}


def _schema(of: type) -> Schema:
    return TypeAdapter(of).json_schema()


def _inner(schema: Schema, key: str) -> Schema:
    """What a dotted key takes."""
    inner = schema
    for name in key.split("."):
        inner = inner.get("properties", {}).get(name, {})
        if "$ref" in inner:
            inner = schema["$defs"][inner["$ref"].rpartition("/")[2]]
    return inner


def _table(keys: Iterable[Key], schema: Schema, group: str) -> str:
    """Keys of a group as a table; `schema` is the group's."""
    rows = []
    for key in keys:
        value = "must be given" if key.value == "???" else f"`{_escape(key.value)}`" if key.value else ""
        name = f"{group}.{key.name}" if group else key.name
        rows.append((f"`{name}`", _takes(_inner(schema, key.name)), value, key.comment))
    return _rows(("key", "takes", "default", "meaning"), rows)


def _takes(schema: Schema) -> str:
    """What a value may be, in words."""
    if "enum" in schema:
        return ", ".join(f"`{name}`" for name in schema["enum"])
    if "anyOf" in schema:
        return " or ".join(map(_takes, schema["anyOf"]))
    kind = str(schema.get("type"))
    if kind == "array":
        return f"a list of {_takes(schema['items'])}"
    if kind in ("integer", "number"):
        bounds = [f"{schema[bound]:.10g}" for bound in ("minimum", "maximum") if bound in schema]
        return f"{'a whole' if kind == 'integer' else 'a'} number" + f" from {' to '.join(bounds)}" * (len(bounds) == 2)
    return "" if "properties" in schema else KINDS.get(kind, "")


def _rows(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table without its empty columns."""
    used = [i for i in range(len(head)) if any(row[i] for row in rows)]
    lines = [[head[i] for i in used], ["---"] * len(used), *([row[i] for i in used] for row in rows)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _escape(text: str) -> str:
    return text.replace("|", "\\|")


def _bases(path: Path) -> list[str]:
    """The files in `conf/` that a file extends."""
    return re.findall(r"^  - /(_\w+)@_here_", path.read_text(encoding="utf-8"), re.MULTILINE)


def _said(path: Path) -> str:
    """What a file says of itself at its beginning, without its command and Hydra's line."""
    head = re.match(r"(#.*\n)*", path.read_text(encoding="utf-8"))
    lines = head[0].splitlines() if head else []
    return _words(line for line in lines if not re.match(r"# (@package|python -m|wandb)", line))


def _words(lines: Iterable[str]) -> str:
    return _escape(html.escape(" ".join(line.strip().lstrip("# ") for line in lines), quote=False))


def _keys(path: Path) -> Iterator[Key]:
    """The keys of a file in their order, without Hydra's."""
    text = path.read_text(encoding="utf-8")
    return _walk(yaml.compose(text, yaml.SafeLoader), text, "")


def _walk(node: yaml.MappingNode | None, text: str, prefix: str) -> Iterator[Key]:
    for key, value in node.value if node is not None else ():
        if key.value in ("defaults", "hydra"):
            continue
        nested = isinstance(value, yaml.MappingNode) and not value.flow_style
        written = "" if nested else text[value.start_mark.index : value.end_mark.index]
        end = key.end_mark if nested else value.end_mark
        yield Key(prefix + key.value, written, _comment(text.splitlines(), key.start_mark, end))
        if nested:
            yield from _walk(value, text, f"{prefix}{key.value}.")


def _comment(lines: Sequence[str], start: yaml.Mark, end: yaml.Mark) -> str:
    """The comment on a key's line with the lines that go on with it, or else the one on the lines before."""

    def goes_on(number: int, behind: bool) -> bool:
        if not 0 <= number < len(lines) or not lines[number].lstrip().startswith("#"):
            return False
        return bool((lines[number].index("#") > start.column) == behind)

    _, mark, comment = lines[end.line][end.column :].partition("#")
    number, found = end.line + 1, [comment]
    if mark:
        while goes_on(number, True):
            found.append(lines[number])
            number += 1
        return _words(found)
    number, found = start.line - 1, []
    while goes_on(number, False):
        found.insert(0, lines[number])
        number -= 1
    return _words(found) if number >= 0 else ""  # from the first line on it is the file's own
