"""The keys and values of a batch that is being sampled, with room for its responses from the start.

transformers' default cache copies everything that it holds for each new token. This one writes new tokens behind the
old ones; it holds the same numbers.
"""

from typing import TYPE_CHECKING, Any

import torch
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class RoomyLayer(DynamicLayer):
    """One layer's keys and values, (B, H, T, D) each, as a view of tensors with room for `room` more tokens."""

    def __init__(self, room: int) -> None:
        super().__init__()
        self.room = room
        self.keys: torch.Tensor
        self.values: torch.Tensor
        self._whole: list[torch.Tensor] = []

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Add the states of further tokens, (B, H, n, D) each; all that are known are returned."""
        start = self.get_seq_length()
        stop = start + key_states.shape[-2]
        # Full, or not what was written here: rows were selected or repeated.
        if self._whole and (stop > self._whole[0].shape[-2] or self.keys.data_ptr() != self._whole[0].data_ptr()):
            return super().update(key_states, value_states, *args, **kwargs)
        states = key_states, value_states
        if not self._whole:
            self.lazy_initialization(*states)
            self._whole = [of.new_empty(*of.shape[:-2], stop + self.room, of.shape[-1]) for of in states]
        for whole, of in zip(self._whole, states, strict=True):
            whole[..., start:stop, :] = of
        self.keys, self.values = (whole[..., :stop, :] for whole in self._whole)
        return self.keys, self.values


def roomy_cache(model: "PreTrainedModel", room: int) -> DynamicCache | None:
    """A cache with room for `room` tokens behind the prompt's; None for a model whose layers keep something else."""
    if model._is_stateful or not model._supports_default_dynamic_cache():
        return None
    cache = DynamicCache(config=model.config)
    if any(type(layer) is not DynamicLayer for layer in cache.layers):
        return None
    cache.layers = [RoomyLayer(room) for _ in cache.layers]
    return cache
