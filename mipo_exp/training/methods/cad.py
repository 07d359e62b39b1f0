"""Context-aware decoding (arXiv 2305.14739): the base model's logits with the context against those without it."""

from typing import Annotated

from mipo_exp.config.fields import Between, schema
from mipo_exp.config.schema import METHODS, Decoding, MethodConfig


@METHODS.register("cad")
@schema
class Cad(MethodConfig):
    """No training: MIPO can be seen as its training-time form."""

    trains_on = None
    alpha: Annotated[float, Between(0.001, 10)]  # published: 0.5 to 3

    @property
    def decoding(self) -> Decoding:
        """See `MethodConfig.decoding`."""
        return Decoding(alpha=self.alpha)
