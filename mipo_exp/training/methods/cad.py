"""Context-aware decoding (arXiv 2305.14739): the base model's logits with the context against those without it.

Context steering (arXiv 2405.01768) samples from log p(y|c,x) + λ (log p(y|c,x) − log p(y|x)): the same, at any
temperature, with α = λ. It also takes λ < 0, by which a context counts less; at −1 it does not count at all.
"""

from typing import Annotated

from pydantic import model_validator

from mipo_exp.config.decoding import Decoding
from mipo_exp.config.fields import Between, schema
from mipo_exp.config.schema import METHODS, MethodConfig
from mipo_exp.errors import ConfigError


@METHODS.register("cad")
@schema
class Cad(MethodConfig):
    """No training: MIPO can be seen as its training-time form."""

    trains_on = None
    alpha: Annotated[float, Between(-1, 10)]  # published: 0.5 to 3

    @model_validator(mode="after")
    def _check(self) -> "Cad":
        if self.alpha == 0:
            raise ConfigError("method.alpha=0 contrasts nothing; use method=prompted, or another number from -1 to 10")
        return self

    @property
    def decoding(self) -> Decoding:
        """See `MethodConfig.decoding`."""
        return Decoding(alpha=self.alpha)
