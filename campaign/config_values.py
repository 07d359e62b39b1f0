"""Bad values of the config, drawn by hypothesis from the schema: each is refused in words that name its key."""

import functools
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, is_dataclass
from types import NoneType
from typing import Annotated, Any, Literal, NamedTuple, cast, get_args, get_origin

import yaml
from hydra import compose, initialize_config_dir
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from omegaconf import DictConfig, OmegaConf

from campaign.runs import run, wrong_message, wrong_words
from campaign.tries import Held, Part, Try
from mipo_exp import cli
from mipo_exp.config.fields import Between
from mipo_exp.config.parsing import VARIANTS, parse
from mipo_exp.config.registry import load_variants
from mipo_exp.config.schema import Config
from mipo_exp.errors import ConfigError

BATCH = 25  # values of one try: one of a new process would take longer than all of them
BY_COMMAND = 2  # of these, by the command line in a process each
NAMES = ("name", "strategy")  # keys that say which variant a group is


class Value(NamedTuple):
    """A key with a value that it must not have, and the groups' options with which the key exists."""

    groups: tuple[str, ...]
    key: str
    value: Any


@functools.cache
def keys() -> dict[str, tuple[tuple[str, ...], Any]]:
    """Every key of the schema, with the groups' options that it needs and its type; those of all variants."""
    load_variants()
    found: dict[str, tuple[tuple[str, ...], Any]] = {}
    for item in fields(cast(Any, Config)):
        variants: Mapping[str, Any] = VARIANTS.get(item.name, {"": item.type})
        for name, variant in variants.items():
            group = "judge@reward_judge" if item.name == "reward_judge" else item.name
            if group.startswith("judge") and name not in ("", "none", "endpoint"):
                continue  # whose model is one more group
            for key, kind in _leaves(getattr(variant, "keys", variant), item.name):
                found.setdefault(key, ((f"{group}={name}",) if name else (), kind))
    return {key: of for key, of in found.items() if not key.endswith(NAMES) and _composes(of[0])}


def _leaves(kind: Any, key: str) -> list[tuple[str, Any]]:
    if not is_dataclass(kind):
        return [(key, kind)]
    return [leaf for item in fields(kind) for leaf in _leaves(item.type, f"{key}.{item.name}")]


def _composes(groups: tuple[str, ...]) -> bool:
    try:
        composed(groups)
    except Exception:  # noqa: BLE001 - Hydra's many; an option without a file of its own
        return False
    return True


@functools.cache
def composed(groups: tuple[str, ...]) -> DictConfig:
    """The config of some groups' options on the tiny model."""
    cli.register_resolvers()
    with initialize_config_dir(str(cli.CONFIG_DIR), version_base="1.3"):
        return compose("config", overrides=["+debug=quick", "paths.output=unused", *groups])


TEXTS = st.text(min_size=1, max_size=20) | st.sampled_from(
    ["a\0b", "\ud800", "é" * 300, "💥", "'", "${x}", "{", "a: b"]
)
NUMBERS = st.integers(-(10**30), 10**30) | st.floats() | st.sampled_from([float("nan"), float("inf"), 1e300, -1])
GROUPS = st.dictionaries(st.sampled_from("abc"), st.integers(), min_size=1, max_size=2)
LISTS = st.lists(st.lists(st.integers(), max_size=2), min_size=1, max_size=3)


def bad(kind: Any) -> st.SearchStrategy[Any] | None:
    """Values that a key of this type must refuse; None where it takes anything."""
    inner = get_args(kind)
    if NoneType in inner:
        return bad(inner[0])
    if get_origin(kind) is Annotated:
        base, *limits = inner
        bounds = next((limit for limit in limits if isinstance(limit, Between)), None)
        if bounds is not None:
            return NUMBERS.filter(functools.partial(_outside, bounds, base)) | _no_number() | LISTS | GROUPS
        return None if base is Any else bad(base) if get_origin(base) else _no_option() | LISTS | GROUPS
    if get_origin(kind) is Literal:
        return _no_option() | LISTS | GROUPS | NUMBERS
    if get_origin(kind) is list:
        return GROUPS | LISTS
    if get_origin(kind) is dict:
        return _no_number() | NUMBERS | LISTS
    if kind is bool:
        return _no_number() | NUMBERS | LISTS | GROUPS
    if kind is str:
        return LISTS | GROUPS | st.sampled_from(["a\0b", "\ud800"])
    return None


def _outside(bounds: Between, base: type, value: float) -> bool:
    if base is int and isinstance(value, float):
        return not value.is_integer()
    least = 0 if bounds.or_zero else bounds.least
    inside = least <= value <= bounds.most and not (bounds.or_zero and 0 < value < bounds.least)
    return not inside


def _no_number() -> st.SearchStrategy[str]:
    return st.from_regex(r"\A[g-su-xz][a-z]{2,9}\Z")  # no true, false, yes, nan, inf, e


def _no_option() -> st.SearchStrategy[str]:
    return st.from_regex(r"\A[a-z]{1,4}[0-9_-]{3,6}\Z") | st.sampled_from(["", "a\0b", "\ud800", "é" * 300, "💥"])


@functools.cache
def strategy() -> st.SearchStrategy[Value]:
    """A key and a value that it must refuse, or a key that does not exist."""
    found = keys()
    drawn = {key: (groups, values) for key, (groups, kind) in found.items() if (values := bad(kind)) is not None}

    def of(key: str) -> st.SearchStrategy[Value]:
        groups, values = drawn[key]
        return values.map(lambda value: Value(groups, key, value))

    misspelt = st.sampled_from(sorted(found)).map(lambda key: Value(found[key][0], f"{key}_x", 1))
    known = st.sampled_from(sorted(drawn)).flatmap(of)
    return st.one_of(known, known, known, known, known, known, known, misspelt)


def draw(count: int, number: int, take: Callable[[Value], None]) -> None:
    """Give so many bad values to a function; the same ones for the same number."""

    @seed(number)
    @settings(
        max_examples=count,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(strategy())
    def each(value: Value) -> None:
        take(value)

    each()


def wrong(bad_value: Value) -> str | None:
    """What is wrong with how the config with a bad value is refused, without the command line."""
    raw = composed(bad_value.groups).copy()
    started = time.process_time()
    try:
        OmegaConf.update(raw, bad_value.key, bad_value.value, merge=True, force_add=True)
    except Exception:  # noqa: BLE001 - what OmegaConf does not take, Hydra would have refused
        return None
    try:
        parse(raw)
    except ConfigError as error:
        return wrong_words(f"error: {error}", _names(bad_value), time.process_time() - started)
    except Exception as error:  # noqa: BLE001 - any other one is what is looked for
        return f"{type(error).__name__}: {error}"
    return "accepted"


def _names(bad_value: Value) -> Sequence[str]:
    """What a message may call the key: it, or the group that it is in, or one that takes its value from it."""
    parts = bad_value.key.split(".")
    return (bad_value.key, ".".join(parts[:-1]) or bad_value.key, f".{parts[-1]}=")


def written(value: Any) -> str:
    """A value as an override writes it."""
    if isinstance(value, str):
        escaped = value.replace("\\", "\\\\").replace('"', '\\"')
        return f'"{escaped}"'
    if isinstance(value, list):
        return f"[{','.join(map(written, value))}]"
    if isinstance(value, dict):
        return "{" + ",".join(f"{key}:{written(item)}" for key, item in value.items()) + "}"
    return str(yaml.safe_dump(value)).split("\n")[0].lstrip(".")


def attempt(one: Try) -> Held:
    """A batch of bad values, some by the command line too."""
    values: list[Value] = []
    draw(BATCH, one.random.randrange(2**32), values.append)
    said = [f"{value.key}={value.value!r}: {found}" for value in values if (found := wrong(value)) is not None]
    for value in one.random.sample(values, min(BY_COMMAND, len(values))):
        override = f"++{value.key}={written(value.value)}"
        if not _passes_a_shell(override):
            continue
        done = run("+debug=quick", "plan=true", *value.groups, override, cwd=one.folder)
        if (found := wrong_message(done, _names(value))) is not None:
            said.append(f"{override} on the command line: {found}")
    return Held(f"{len(values)} values, {BY_COMMAND} of them by the command line", "; ".join(said) or None)


def _passes_a_shell(text: str) -> bool:
    try:
        return b"\0" not in text.encode()
    except UnicodeEncodeError:
        return False


ODD = (
    *("", " ", "-", "~", "..", "/", "a/b/c", "é💥", "x" * 300, "a b", "%s", "{}", "<b>", "None", "true", "1e5", "\\n"),
    *("auto", "cuda:0", "https://example.invalid/x", "file:///etc/passwd", "$HOME", "`id`", "; ls", "*", "a,b"),
)


def odd_text(one: Try) -> Held:
    """A text that the schema does not bound, by the command line; a run with it ends well, or says what is wrong."""
    local = {key: of for key, of in keys().items() if not any(group.startswith("task=") for group in of[0])}
    texts = {key: groups for key, (groups, kind) in local.items() if str in (kind, *get_args(kind))}
    key = one.random.choice(sorted(set(texts) - {"paths.output"}))
    text = one.random.choice(ODD)
    override = f"++{key}={written(text)}"
    case = " ".join((*texts[key], override))
    done = run("+debug=quick", "method=base", *texts[key], override, cwd=one.folder)
    if done.returncode in (0, 3) and "Traceback" not in done.stderr:
        return Held(case, None, True)
    # One that is found when a judge, a hub or a model is asked takes longer, and may be named by what was asked.
    return Held(case, wrong_message(done._replace(seconds=0.0)))


PARTS = [
    Part("texts", "odd texts for every key that takes any text", 60, odd_text),
    Part("config", f"bad values of every key of the config, {BATCH} in each try", 100, attempt),
]
