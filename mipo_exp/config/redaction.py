"""Secrets stay out of what is written: refused in the config, and blotted out of texts that others send.

What the config holds goes into a dozen files (`.hydra/`, `summary.json`, `report.html`, manifests, W&B). So a config
with a secret in it is refused before the first of them is written. A server may still echo the key that it was sent:
`redact` takes it out of replies and messages.
"""

import base64
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache, partial
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, quote

from omegaconf import DictConfig, OmegaConf

from mipo_exp.errors import ConfigError

if TYPE_CHECKING:
    from hydra.core.config_loader import ConfigLoader

REDACTED = "[redacted]"
LEAST_CHARACTERS = 8  # a shorter value of a variable that is named like a key is none
LEAST_NAMED = 5  # the same for a variable that the config names as that of a key
KEPT_CONFIGS = 64  # of jobs that have not started, some 1 MB each

_WORDS = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+")
# What makes a name that of a secret wherever it stands in it, without its case and its separators.
_IN_NAME = re.compile(
    r"auth(?!or(?!i[sz]))|secret|passw(or)?d|passphrase|credential|cookie|bearer"
    r"|(api|access|hub|hf|private|session|refresh|signing|encryption|subscription|account|license|wandb)_?(key|token)"
)
_WHOLE_WORDS = {"pwd", "jwt", "pat"}
_ALONE = {"token", "pass"}  # with a word in front of it, a token is text and a key a label: pad_token, json_key
# In the environment, whose names are in capitals, and in the query of an address these are secrets as well.
_AT_THE_END = {"key", "token", "signature", "sig", "pass"}
# In front of them: what is no secret.
_HARMLESS = {"cache", "sort", "primary", "foreign", "partition", "public", "group", "column", "metric", "label"} | {
    *("pad", "eos", "bos", "unk", "sep", "cls", "mask", "image", "audio", "video", "special", "end", "start", "stop"),
    *("per", "answer", "max", "min", "num", "page", "next", "first", "last"),
}
_REFERENCES = {"env", "file", "path", "name", "names", "variable", "id", "ids"} | {
    *("url", "type", "count", "length", "size")
}
_VALUE = re.compile(
    r"\b(hf_[A-Za-z0-9]{20,}|sk-[A-Za-z0-9_-]{20,}|wandb_v\d+_\w{20,}|gh[a-z]_[A-Za-z0-9]{20,}|github_pat_\w{20,}"
    r"|gsk_[A-Za-z0-9]{16,}|r8_[A-Za-z0-9]{16,}|xai-[A-Za-z0-9-]{16,}|pplx-[A-Za-z0-9]{20,}|nvapi-[\w-]{20,}"
    r"|glpat-[\w-]{20,}|xox[a-z]-[\w-]{10,}|AKIA[0-9A-Z]{16}|AIza[\w-]{30,}|eyJ[\w-]{10,}\.eyJ[\w-]{10,}\.[\w-]+)"
)
_BEARER = re.compile(r"(?i)\bbearer\s+[\w.~+/=-]{8,}")
_BASIC = re.compile(r"(?i)\bbasic\s+([A-Za-z0-9+/_-]{4,}={0,2})")
_USERINFO = re.compile(r"(?<=://)(?:[^\s/?#@]*|[^\s/?#@:]*:(?!\d+/)[^\s@]*)@")
_QUERY = re.compile(r"(?<=[?&])([\w.%-]+)=([^&\s#'\"]+)")
_ADDRESS = re.compile(r"(^|_)(url|uri|address|endpoint)$")
_FROM_ENVIRONMENT = re.compile(r"\$\{\s*oc\.env\s*:\s*(\w+)")
_ASSIGNED = re.compile(r"([\w.@/-]+)['\"]?\s*[:=]\s*(['\"]?)([^\s,{}\[\]'\"]+)")
# NAME: value, NAME=value, "NAME": "value", also within a JSON text; a header's value may have its scheme in front.
_SAID = re.compile(
    r"(?<![\w.-])([A-Za-z][\w.-]*)(\\?['\"]?\s*[:=]\s*)"
    r"(?:(\\?['\"])(.+?)(\3|$)|(?:(?:basic|bearer|digest|token|apikey)\s+)?[^\s,;&{}()\[\]'\"\\]+)",
    re.IGNORECASE,
)
_IN_QUERY = {"code", "sign", "signed"}  # beside the names above
_USER = re.compile(r"(?i)(^|_)(user|username|login)$")
_HEADERS = re.compile(r"(?i)headers?(?=[.\[]|$)")
_HARMLESS_HEADERS = {"accept", "content-type", "user-agent", "http-referer", "referer", "x-title", "x-request-id"} | {
    *("accept-encoding", "accept-language", "cache-control", "anthropic-version", "anthropic-beta", "openai-beta")
}

_named: set[str] = set()  # variables that the config says hold a key


@cache
def is_secret_name(name: str) -> bool:
    """Whether a key of a config, a query or the environment is named like that of a secret."""
    words = [word.lower() for word in _WORDS.findall(name)]
    if not words or words[-1] in _REFERENCES:
        return False
    if _IN_NAME.search("_".join(words)) or _WHOLE_WORDS.intersection(words):
        return True
    return (len(words) == 1 and words[0] in _ALONE) or (
        len(words) > 1 and name.isupper() and _ends_like_a_secret(words)
    )


def has_secret_name(text: str) -> bool:
    """Whether a word of a text is named like a secret."""
    return any(is_secret_name(_last(word)) for word in re.findall(r"[\w.-]+", text))


def _ends_like_a_secret(words: Sequence[str]) -> bool:
    return words[-1] in _AT_THE_END and not _HARMLESS.intersection(words[-2:-1])


def name_variable(name: str) -> None:
    """Remember that this variable of the environment holds a key, whatever it is called."""
    _named.add(name)


def environment_secrets() -> list[str]:
    """The values of environment variables that hold keys, the longest first, in the forms in which a text may have
    them."""
    found: set[str] = set()
    for name, value in os.environ.items():
        text = value.strip()
        least = LEAST_NAMED if name in _named else LEAST_CHARACTERS
        if len(text) < least or not (name in _named or is_secret_name(name)):
            continue
        if text.startswith(("/", "~")) and name not in _named:
            continue  # a file that holds a secret, or the current folder
        found |= {text, quote(text, safe=""), json.dumps(text)[1:-1], repr(text)[1:-1]}
    return sorted(found, key=len, reverse=True)


def blot(text: str) -> str:
    """The text without the values of keys in the environment."""
    for secret in environment_secrets():
        text = text.replace(secret, REDACTED)
    return text


def redact(text: str) -> str:
    """The text without anything that is, or looks like, a secret: keys of the environment, passwords and keys in
    addresses, tokens of well-known services, and what stands behind a name such as `api_key:`."""
    text = _USERINFO.sub(f"{REDACTED}@", blot(text))
    text = _QUERY.sub(lambda found: f"{found[1]}={REDACTED}" if _is_secret_query(found[1]) else found[0], text)
    text = _SAID.sub(_without_value, text)
    text = _BASIC.sub(lambda found: f"Basic {REDACTED}" if _is_login(found[1]) else found[0], text)
    return _BEARER.sub(f"Bearer {REDACTED}", _VALUE.sub(REDACTED, text))


def _without_value(found: re.Match[str]) -> str:
    if not is_secret_name(_last(found[1])) or found[4] == REDACTED:
        return found[0]
    return f"{found[1]}{found[2]}{found[3] or ''}{REDACTED}{found[5] or ''}"


def _is_login(text: str) -> bool:
    """Whether it is USER:PASSWORD in base64, as behind `Basic`; the word stands in front of others as well."""
    try:
        return b":" in base64.b64decode(text.rstrip("=") + "=" * (-len(text.rstrip("=")) % 4), b"-_")
    except ValueError:
        return False


def without_secrets(value: Any, names: bool = True) -> Any:
    """A copy of plain data whose texts are redacted; with `names`, values under secret-sounding keys are blotted out as
    well."""
    if isinstance(value, Mapping):
        return {
            key: REDACTED
            if names and item is not None and not isinstance(item, Mapping | list | tuple) and is_secret_name(str(key))
            else without_secrets(item, names)
            for key, item in value.items()
        }
    if isinstance(value, list | tuple):
        return [without_secrets(item, names) for item in value]
    return redact(value) if isinstance(value, str) else value


def refuse_secrets(config: Mapping[str, Any], overrides: list[str]) -> None:
    """Raise `ConfigError` where a composed config, unresolved, or an override on the command line holds a secret. The
    message names the key and never the value."""
    _refuse_values({key: value for key, value in config.items() if key != "hydra"})
    for override in overrides:
        key, _, value = override.lstrip("+~").partition("=")
        # A value may be an object or, in a multirun, a list of choices.
        pairs = [(key, value), *((found[1], found[3]) for found in _ASSIGNED.finditer(override.lstrip("+~")))]
        for name, part in pairs:
            if reason := _secret_in(_last(name), part.strip("'\"")):
                raise ConfigError(f"{key} {reason}; {_way_out(key)}")
    _refuse_values({"hydra": config.get("hydra", {})})  # last: it repeats the overrides, under names that say less


def search(config: DictConfig) -> None:
    """Raise `ConfigError` where a config that Hydra has composed holds a secret."""
    plain: Any = OmegaConf.to_container(config, resolve=False)
    refuse_secrets(plain, [*config.hydra.overrides.task, *config.hydra.overrides.hydra])


def search_jobs(loader: "ConfigLoader") -> None:
    """Have the config of every job of a multirun searched as soon as it is composed.

    The multirun's own config lacks what a swept group chooses, Hydra calls no callback before it writes a job's config,
    and only the sweeper knows the jobs. Each of them is composed by this method, a whole batch before its first starts.
    """
    setattr(loader, "load_sweep_config", partial(_composed, loader.load_sweep_config))  # noqa: B010


_checked: dict[tuple[int, str], DictConfig] = {}  # by the multirun's config and a job's overrides


def _composed(
    compose: Callable[[DictConfig, list[str]], DictConfig], master_config: DictConfig, sweep_overrides: list[str]
) -> DictConfig:
    """A job's config, searched. Composing takes a second: what the sweeper has composed to check it, a launcher of this
    process gets when it starts the job."""
    job = (id(master_config), " ".join(sweep_overrides))
    if job in _checked:
        return _checked.pop(job)
    config = compose(master_config, sweep_overrides)
    search(config)
    if len(_checked) < KEPT_CONFIGS:
        _checked[job] = config
    return config


def _refuse_values(config: Mapping[str, Any]) -> None:
    for path, name, value in _leaves(config, "", ""):
        if reason := _secret_in(name, value) or _header_in(path, name, value):
            raise ConfigError(f"{path} {reason}; {_way_out(path)}")


def _leaves(value: Any, path: str, name: str) -> Iterator[tuple[str, str, Any]]:
    """The values of nested plain data with their path and the last name in it."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from _leaves(item, f"{path}.{key}" if path else str(key), _last(str(key)))
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            yield from _leaves(item, f"{path}[{index}]", name)
    else:
        yield path, name, value


def _last(key: str) -> str:
    return key.rpartition(".")[2]


def _secret_in(name: str, value: Any) -> str | None:
    """What secret a value under this name holds, None where it holds none."""
    if value is None or isinstance(value, bool):
        return None
    text = str(value).strip()
    if text in ("", "???", "null", REDACTED):
        return None
    for found in _FROM_ENVIRONMENT.finditer(text):
        if is_secret_name(name) or is_secret_name(found[1]):
            return f"takes a secret from the variable {found[1]}, which would be written to the run's files"
    if is_secret_name(name) and not text.startswith("${"):
        return "is a secret by its name, and what the config holds is written to the run's files"
    if name.endswith("_env") and text not in os.environ and not re.fullmatch(r"[A-Z_][A-Z0-9_]*", text):
        return "takes the name of a variable of the environment, and this looks like the key itself"
    if (_ADDRESS.search(name) and "@" in text) or (_USER.search(name) and ":" in text) or _USERINFO.search(text):
        return "contains a user or password"
    if any(_is_secret_query(key) for key, _ in parse_qsl(_query(text))):
        return "contains a key behind its ? or #"
    if _VALUE.search(text) or _BEARER.search(text) or any(_is_login(found[1]) for found in _BASIC.finditer(text)):
        return "contains what looks like the key of an account"
    if blot(text) != text:
        return "contains a key that stands in a variable of the environment"
    return None


def _header_in(path: str, name: str, value: Any) -> str | None:
    """Why a header for a judge's server is refused: servers have keys in headers of any name."""
    group, _, rest = path.partition(".extra.")
    if "judge" not in group or value is None or not _HEADERS.search(rest) or name.lower() in _HARMLESS_HEADERS:
        return None
    return "is a header, which may hold a key and would be written to the run's files"


def _query(text: str) -> str:
    """What stands behind ? and # in a text that may be an address."""
    return "&".join(re.split("[?#]", text)[1:])


def _is_secret_query(name: str) -> bool:
    words = [word.lower() for word in _WORDS.findall(name)]
    return name.lower() in _IN_QUERY or is_secret_name(name) or (bool(words) and _ends_like_a_secret(words))


def _way_out(path: str) -> str:
    if path.endswith("_env"):
        return f"put the key into a variable, export NAME=…, and set {path}=NAME"
    group = path.partition(".")[0]
    if "judge" in group:
        return f"put the key into a variable of the environment and name that: {group}.api_key_env=NAME"
    if "hub" in path:
        return "remove it, and put the token into the environment: HF_TOKEN"
    return "remove it, and give secrets in the environment only"
