"""What Hydra could not compose and has no message for: a YAML file or an override, which one, and what to do."""

import contextlib
from collections.abc import Iterable, Sequence
from pathlib import Path

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import OmegaConf
from yaml.error import MarkedYAMLError, YAMLError
from yaml.reader import ReaderError


def unreadable(error: Exception, folders: Iterable[Path], arguments: Sequence[str]) -> str:
    """A message that names the file and the line, or the override. `folders` are where configs are read from; the codec
    does not say which file it failed on."""
    if isinstance(error, MarkedYAMLError) and error.problem_mark is not None:
        mark = error.problem_mark
        return f"{mark.name}, line {mark.line + 1}: not valid YAML ({error.problem}); correct it"
    if isinstance(error, ReaderError):
        text = Path(error.name).read_text(encoding="utf-8")
        line = text.count("\n", 0, error.position) + 1
        return f"{error.name}, line {line}: the character {error.character!r} is not allowed in YAML; remove it"
    known = [folder for folder in folders if folder.is_dir()]
    return _long_number(arguments) or _wrong_file(error, known) or f"the config cannot be composed: {error}"


def _wrong_file(error: Exception, folders: Sequence[Path]) -> str | None:
    """The first file that cannot be read for the same reason."""
    for path in sorted({path for folder in folders for path in folder.rglob("*.yaml")}):
        content = path.read_bytes()
        try:
            OmegaConf.create(content.decode())
        except UnicodeDecodeError as wrong:
            if isinstance(error, UnicodeDecodeError):
                line, byte = content.count(b"\n", 0, wrong.start) + 1, content[wrong.start]
                return f"{path}, line {line}: not valid UTF-8 (byte 0x{byte:02x}); save the file as UTF-8"
        except (YAMLError, ValueError) as wrong:
            if str(wrong) == str(error):  # a number of more digits than Python reads
                return f"{path} cannot be read ({wrong}); correct it"
    return None


def _long_number(arguments: Sequence[str]) -> str | None:
    """The first override with a number of more digits than Python reads."""
    parser = OverridesParser.create()
    for text in arguments:
        with contextlib.suppress(HydraException):
            try:
                parser.parse_override(text).value()
            except ValueError as error:
                return f"cannot read the override {text[:60]}… ({error}); write a shorter number"
    return None
