"""How the model of a method is sampled for the evaluation."""

import dataclasses
from dataclasses import dataclass
from typing import Any

from mipo_exp.config.groups import SamplingConfig


@dataclass(frozen=True)
class Decoding:
    """How a method's model answers the held-out prompts; by default as `before` does.

    Attributes:
        context: whether the context is in the prompt.
        alpha: the weight of context-aware decoding against the prompt without the context; None: none.
        temperature: in place of that in `evaluation.sampling`.
        top_p: the same.
    """

    context: bool = True
    alpha: float | None = None
    temperature: float | None = None
    top_p: float | None = None

    @property
    def identity(self) -> dict[str, Any] | None:
        """What responses depend on beside `sampling`; None where the prompts are answered as they stand."""
        return {"context": self.context, "alpha": self.alpha} if self.about_context else None

    @property
    def about_context(self) -> bool:
        """Whether it does something with the context."""
        return not self.context or self.alpha is not None

    @property
    def passes(self) -> int:
        """Forward passes for each token of a response."""
        return 1 if self.alpha is None else 2

    def sampling(self, usual: SamplingConfig) -> SamplingConfig:
        """`evaluation.sampling` with its own temperature and top_p."""
        temperature = usual.temperature if self.temperature is None else self.temperature
        return dataclasses.replace(
            usual, temperature=temperature, top_p=usual.top_p if self.top_p is None else self.top_p
        )
