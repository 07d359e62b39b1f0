"""What the configs say of themselves: `--help` by group with a line for each key, and `--explain KEY`.

Read from the comments in `conf/` and `sweeps/`, so that nothing is said twice.
"""

import difflib
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from mipo_exp.config.compose import CONFIG_DIR, PROJECT_ROOT
from mipo_exp.errors import ConfigError

USAGE = """One experiment: python -m mipo_exp [GROUP=OPTION …] [KEY=VALUE …]
Several:        python -m mipo_exp -m [+sweeps=NAME] [KEY=VALUE,VALUE …]
Over runs:      python -m mipo_exp NAME … with NAME one of {commands}
One key:        python -m mipo_exp --explain KEY         what would run: plan=true
Hydra's own:    --hydra-help, --cfg job --resolve, --multirun; tab completion: docs/stages.md
"""
WIDTH = 30  # of a key's name and default
# Indentation, name, value (in which a # is none of a comment unless a space is before it), comment.
LINE = re.compile(r"( *)([\w.]+):(?: +|$)((?:\"[^\"]*\"|'[^']*'|[^#\s]|\s(?!\s*#)|(?<!\s)#)*)(?:\s*#\s*(.*))?$")


class Key(NamedTuple):
    """A key in a file: its whole name, the default there, what the comment says, and the option whose file it is."""

    name: str
    default: str
    comment: str
    option: str


def help_text(commands: str) -> str:
    """Every group with its options and the keys that its default has, and the named sets of overrides."""
    defaults = dict(re.findall(r"^  - (\w+): (\w+)", (CONFIG_DIR / "config.yaml").read_text(encoding="utf-8"), re.M))
    lines = [USAGE.format(commands=commands), "Keys of the experiment", *_lines([CONFIG_DIR / "config.yaml"], "")]
    for group, default in defaults.items():
        lines += ["", f"{group}: {', '.join(_options(CONFIG_DIR / group))} (default: {default})"]
        lines += _lines([CONFIG_DIR / f"_{group}.yaml", CONFIG_DIR / group / f"{default}.yaml"], f"{group}.")
    for root in (CONFIG_DIR / "experiment", CONFIG_DIR / "arm", CONFIG_DIR / "search", PROJECT_ROOT / "sweeps"):
        lines += ["", f"+{root.name}: {', '.join(_options(root))}"]
    return "\n".join(lines) + "\n"


def explain_key(asked: str) -> str:
    """What a key means, with its default in each option that sets it; of a group, what each option is, and its keys.
    Raises `ConfigError`: there is none of this name."""
    asked = asked.lstrip("+").partition("=")[0]
    root = next((root / asked for root in (CONFIG_DIR, PROJECT_ROOT) if (root / asked).is_dir()), None)
    options = [] if root is None else [f"{asked}={name}: {_about(root / f'{name}.yaml')}" for name in _options(root)]
    found = [key for key in _keys() if key.name == asked or key.name.startswith(f"{asked}.")]
    if not found and not options:
        names = {key.name: key.name.rpartition(".")[2] for key in _keys()}
        near = difflib.get_close_matches(asked, [*names, *names.values()], n=3)
        hint = " or ".join(name for name, last in names.items() if name in near or last in near)
        raise ConfigError(f"there is no key {asked}; {f'did you mean {hint}?' if hint else '--help lists all'}")
    lines = options
    for name in dict.fromkeys(key.name for key in found):
        of = [key for key in found if key.name == name]
        said = dict.fromkeys(key.comment for key in of if key.comment)
        values = ", ".join(f"{key.default} ({key.option})" for key in of if key.default)
        lines.append(f"{name}: {'; '.join(said)}\n    default: {values or 'a group of keys'}")
    return "\n".join(lines)


def _options(root: Path) -> list[str]:
    files = (path.relative_to(root) for path in root.rglob("*.yaml") if path.parent.name != "wandb")
    return sorted(path.with_suffix("").as_posix() for path in files)


def _about(path: Path) -> str:
    """The sentence after the command at the top of an option's file."""
    head = re.match(r"(?:#.*\n)*", path.read_text(encoding="utf-8"))
    said = [line.lstrip("# ") for line in (head[0] if head else "").splitlines()]
    return " ".join(line for line in said if line and not line.startswith(("python -m", "@package"))) or "–"


def _lines(paths: Sequence[Path], prefix: str) -> list[str]:
    """A line for each key; a later file changes defaults of an earlier one."""
    found: dict[str, Key] = {}
    for key in (key for path in paths if path.exists() for key in _read(path, prefix) if key.default):
        found[key.name] = key._replace(comment=key.comment or getattr(found.get(key.name), "comment", ""))
    return [f"  {f'{key.name}={key.default}':<{WIDTH}} {key.comment}".rstrip() for key in found.values()]


def _keys() -> Iterator[Key]:
    """The keys of every file; the one that all options of a group extend comes first."""
    yield from _read(CONFIG_DIR / "config.yaml", "")
    for path in sorted(CONFIG_DIR.glob("_*.yaml")):
        group = {"_on_policy": "method"}.get(path.stem, path.stem.removeprefix("_"))
        yield from _read(path, f"{group}.")
    for path in sorted(CONFIG_DIR.glob("*/*.yaml")):
        if "@package" not in path.read_text(encoding="utf-8"):
            yield from _read(path, f"{path.parent.name}.")


def _read(path: Path, prefix: str) -> Iterator[Key]:
    """The keys of a file, but those of Hydra. A comment stands behind a key, or on the lines before it."""
    within: list[tuple[int, str]] = []
    above: list[str] = []
    option = path.stem if path.stem == "config" or path.stem.startswith("_") else f"{path.parent.name}={path.stem}"
    for line in path.read_text(encoding="utf-8").splitlines():
        found = LINE.match(line)
        if found is None:
            above = [*above, line.lstrip("# ")] if line.lstrip().startswith("#") else []
            continue
        if found[2] in ("defaults", "hydra") and not found[1]:
            within = [(0, "")] if found[2] == "defaults" else within
            if found[2] == "hydra":
                return
            above = []
            continue
        within = [(depth, name) for depth, name in within if depth < len(found[1])]
        name = ".".join([name for _, name in within if name] + [found[2]])
        yield Key(f"{prefix}{name}", found[3].strip(), found[4] or " ".join(above), option)
        within.append((len(found[1]), found[2]))
        above = []
