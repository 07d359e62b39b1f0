"""The variants of a group of the config by name, and where they come from: this package, entry points, `plugins=`.

A variant registers itself in the file that owns it. This package's own are imported by their modules' names, exactly as
those from outside are.
"""

import difflib
import importlib
from collections.abc import Callable, Sequence
from functools import partial
from importlib.metadata import entry_points
from typing import Any, TypeVar

from mipo_exp.errors import ConfigError

GROUP = "mipo_exp"  # of entry points
BUILT_IN = (
    *("mipo_exp.data.tasks", "mipo_exp.pairing.negatives", "mipo_exp.pairing.controls"),
    "mipo_exp.execution.workers",
    *(f"mipo_exp.generation.{name}_engine" for name in ("transformers", "continuous", "openvino", "vllm")),
    *("mipo_exp.judging.endpoint", "mipo_exp.judging.local", "mipo_exp.training.methods"),
    "mipo_exp.evaluation.accuracy",
)

T = TypeVar("T")
Variant = TypeVar("Variant")


class Registry(dict[str, T]):
    """What `group=NAME` means, by NAME. `make` gives what is kept of a variant, where it is not the variant itself."""

    def __init__(self, group: str, make: Callable[..., T] = lambda variant: variant) -> None:
        super().__init__()
        self.group, self._make = group, make
        self._registered_by: dict[str, str] = {}

    def register(self, name: str, **facts: Any) -> Callable[[Variant], Variant]:
        """A decorator for the variant of that name; `make` is given `facts` too. Raises `ConfigError`: the name is
        taken."""

        def add(variant: Any) -> Any:
            where = f"{variant.__module__}.{variant.__qualname__}"
            if (first := self._registered_by.setdefault(name, where)) != where:
                raise ConfigError(
                    f"{self.group}={name} is registered twice, by {first} and by {where}; give one of them another name"
                )
            self[name] = self._make(variant, **facts)
            return variant

        return add

    def find(self, name: str, key: str) -> T:
        """The variant that `key` asks for. Raises `ConfigError`: there is none of this name; the nearest ones are named
        first."""
        if name not in self:
            names = sorted(self, key=lambda known: -difflib.SequenceMatcher(None, name, known).ratio())
            raise ConfigError(f"{key}={name!r} is not a {self.group}; choose one of {', '.join(names)}")
        return self[name]


def load_variants(plugins: Any = ()) -> None:
    """Import what registers variants: this package's modules, those of entry points, and `plugins`, as the config has
    them: names of modules. Raises `ConfigError`: one cannot be imported, or registers a name that is taken."""
    for module in BUILT_IN:
        importlib.import_module(module)
    for point in entry_points(group=GROUP):
        _load(f"the entry point {point.name} of {point.dist.name if point.dist else point.value}", point.load)
    for module in [plugins] if isinstance(plugins, str) else plugins if isinstance(plugins, Sequence) else ():
        _load(f"plugins=[{module}]", partial(importlib.import_module, module))


def _load(what: str, load: Callable[[], Any]) -> None:
    try:
        load()
    except ConfigError as error:
        raise ConfigError(f"{what}: {error}") from error
    except Exception as error:
        raise ConfigError(
            f"{what} cannot be imported ({type(error).__name__}: {error}); install its package, or put the folder "
            "above it on PYTHONPATH"
        ) from error
