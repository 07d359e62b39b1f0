"""What only makes the same numbers faster. Each part is a module, and `kernels=` of the config names those that are
used. Without any (`kernels=plain`) everything is computed the plain way, with the same results but for rounding."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedModel

IGNORED = -100  # the label of a position that is not scored


@contextmanager
def attending_by(model: "PreTrainedModel", name: str, function: Any) -> Iterator[None]:
    """While it lasts, the model's layers call `function`, one of transformers' attention functions, as `name`. Raises
    `ValueError`: the model takes none from outside."""
    from transformers import AttentionInterface

    AttentionInterface.register(name, function)
    before = model.config._attn_implementation
    model.set_attn_implementation(name)
    try:
        if model.config._attn_implementation != name:
            raise ValueError("the model's attention cannot be set from outside")
        yield
    finally:
        model.set_attn_implementation(before)
