"""The base model with the context in its prompt, as `before` of every method, or without it: no training."""

from mipo_exp.config.fields import schema
from mipo_exp.config.schema import METHODS, Decoding, MethodConfig


@METHODS.register("base")
@METHODS.register("prompted")
@schema
class Prompted(MethodConfig):
    """`context` says whether the user context is in the prompt."""

    trains_on = None
    context: bool

    @property
    def decoding(self) -> Decoding | None:
        """See `MethodConfig.decoding`."""
        return None if self.context else Decoding(context=False)
