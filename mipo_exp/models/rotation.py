"""Rotary embeddings that turn by other frequencies in a pass with a long sequence (`longrope`: Phi-3 and Phi-4-mini):
what is computed beside such a sequence then depends on it."""

from collections.abc import Mapping
from typing import Any


def rotation_limit(config: Any) -> int | None:
    """Up to how many positions in a pass the frequencies stay the same; None where they do for every length that the
    model has positions for. `config` is that of the language model, as transformers has it."""
    parameters = getattr(config, "rope_parameters", None) or {}
    kinds = [value for value in parameters.values() if isinstance(value, Mapping)] or [parameters]
    limits = [
        int(kind.get("original_max_position_embeddings") or config.max_position_embeddings)
        for kind in kinds
        if kind.get("rope_type") == "longrope"
    ]
    return min(limits, default=None)
