"""Errors that a user can act on: each message names what is wrong, where, and the way out."""

from collections.abc import Iterator
from typing import Self

MOST_CHARACTERS = 500  # of another's words in a message


class UserError(Exception):
    """Bad input: a config value, a data file, a model folder, a place to write. Exit code 2, no traceback."""

    to_fetch = False  # whether it says of something that it is not on this machine yet, and a run would download it

    def named(self, name: str) -> Self:
        """The same of what its message calls by a shorter name."""
        other = type(self)(f"{name}: {self}")
        other.to_fetch = self.to_fetch
        return other


class ConfigError(UserError):
    """A config key or value that cannot work, alone or together with another one."""


class DataError(UserError):
    """A data file that is missing, damaged, or lacks what the task needs."""


class LibraryError(UserError):
    """An installed library that is too old or too new, or one that is missing."""


class ModelError(UserError):
    """A model that cannot be found, read or prompted."""


class JudgeError(UserError):
    """A judge that cannot be asked now, or whose replies cannot be read: the rest of the run is kept."""


class StorageError(UserError):
    """A folder that cannot be written, or a disk that is too small."""


class Terminated(KeyboardInterrupt):
    """SIGTERM, from `kill`, a launcher or a queue: a run ends as after Ctrl-C."""

    words = "terminated; rerun the same command to resume"
    exit_code = 128 + 15


def short(error: BaseException) -> str:
    """What a library says in an error, in one line that a message has room for."""
    text = " ".join(str(error).split())
    return text if len(text) <= MOST_CHARACTERS else f"{text[:MOST_CHARACTERS]}…"


def what_ended(error: BaseException) -> str:
    """How an error or an interruption is told in one line."""
    if isinstance(error, Terminated):
        return error.words
    if isinstance(error, KeyboardInterrupt):
        return "interrupted; rerun the same command to resume"
    return str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"


def interruption(error: BaseException) -> KeyboardInterrupt | None:
    """The interruption that an error has taken the place of: a library raised it while it cleaned up."""
    return next((cause for cause in causes(error) if isinstance(cause, KeyboardInterrupt)), None)


def causes(error: BaseException) -> Iterator[BaseException]:
    """An error, what it was raised from or while handling, and so on."""
    seen: BaseException | None = error
    for _ in range(10):
        if seen is None:
            return
        yield seen
        seen = seen.__cause__ or seen.__context__


def not_here_yet(kind: type[UserError], message: str) -> UserError:
    """The error for what a run would download, and something that downloads nothing, as a plan, does not."""
    error = kind(message)
    error.to_fetch = True
    return error


def gib(size: float) -> str:
    """A number of bytes as messages write it, in GiB."""
    return f"{size / 2**30:.1f} GiB"


# What torch says when memory is short and it raises no error of its own kind.
NO_MEMORY = ("out of memory", "not enough memory", "allocate memory", "ALLOC_FAILED", "bad_alloc")


def out_of_memory(error: Exception) -> bool:
    """Whether an error of torch says that memory has run out."""
    import torch

    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in NO_MEMORY)


def duration(took: float) -> str:
    """Seconds as a person says them."""
    if took < 100:
        return f"{took:.0f} s"
    return f"{took / 60:.0f} min" if took < 6000 else f"{took / 3600:.1f} h"
