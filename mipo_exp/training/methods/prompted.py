"""The base model with the context in its prompt, as `before` of every method, or without it: no training."""

from mipo_exp.config.decoding import Decoding
from mipo_exp.config.fields import Temperature, TopP, schema
from mipo_exp.config.schema import METHODS, MethodConfig


@METHODS.register("base")
@METHODS.register("prompted")
@schema
class Prompted(MethodConfig):
    """`context` says whether the user context is in the prompt."""

    trains_on = None
    context: bool
    temperature: Temperature | None
    top_p: TopP | None

    @property
    def decoding(self) -> Decoding:
        """See `MethodConfig.decoding`."""
        return Decoding(self.context, temperature=self.temperature, top_p=self.top_p)
