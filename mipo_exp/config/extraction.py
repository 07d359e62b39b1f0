"""How answers are extracted from responses by the model that gave them."""

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Extraction:
    """How the evaluated model itself is asked for the answer where `reads` finds none in its response: by `asks`, with
    `{response}` in it, in one more sampled turn. `joins` puts its reply behind the response, where the scorer finds it.
    """

    reads: Callable[[str], object]
    asks: str
    joins: Callable[[str, str], str]
