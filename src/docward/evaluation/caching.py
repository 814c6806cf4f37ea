"""A cache of keys and values with room to grow: the usual one copies all of itself at every token.

In: a prefilled transformers cache, one row a document. Out: the same cache with one row a prompt, ready for decoding.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers.cache_utils import DynamicLayer


class RoomyLayer(DynamicLayer):
    """A layer whose keys and values, each (rows, heads, tokens, size), are views into buffers with free places behind them."""

    def __init__(self, layer: DynamicLayer, owner: torch.Tensor, room: int) -> None:
        """Take over `layer`: row i gets the states of row `owner[i]`, and `room` more tokens fit."""
        super().__init__()  # type: ignore[no-untyped-call]
        assert layer.keys is not None
        assert layer.values is not None
        self.lazy_initialization(layer.keys, layer.values)
        self.buffers = (_roomy(layer.keys, owner, room), _roomy(layer.values, owner, room))
        self._show(layer.keys.shape[2])

    def _show(self, stop: int) -> None:
        self.stop = stop
        self.keys, self.values = (buffer[:, :, :stop] for buffer in self.buffers)

    def update(self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any) -> tuple[torch.Tensor, torch.Tensor]:
        """Write new states, each (rows, heads, new tokens, size), into the room and return all states so far."""
        stop = self.stop + key_states.shape[2]
        assert stop <= self.buffers[0].shape[2], "the room was counted wrongly"
        for buffer, states in zip(self.buffers, (key_states, value_states), strict=True):
            buffer[:, :, self.stop : stop] = states
        self._show(stop)
        return self.buffers[0][:, :, :stop], self.buffers[1][:, :, :stop]


def _roomy(states: torch.Tensor, owner: torch.Tensor, room: int) -> torch.Tensor:
    buffer = states.new_empty(len(owner), states.shape[1], states.shape[2] + room, states.shape[3])
    buffer[:, :, : states.shape[2]] = states[owner]
    return buffer


def spread(cache: Any, owner: torch.Tensor, *, room: int) -> None:
    """Give each prompt its document's keys and values, in place.

    Args:
        cache: filled with one row a document.
        owner: (prompts,) the row of each prompt's document.
        room: most tokens that will be added to a row.
    """
    for place, layer in enumerate(cache.layers):
        cache.layers[place] = RoomyLayer(layer, owner, room)
