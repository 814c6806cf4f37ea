"""Layers below the first adapted one never change, so each row goes through them once, not once a pass.

In: training rows and the number of the first adapted layer. Out: rows that carry the states which enter that layer, and a model that starts there while the
`with` block lasts. Nothing is lost: loss and gradients are those of the whole model (a test compares them).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch

from docward.models import Loaded
from docward.tuning.trainer import Rows

MOST_BYTES = 4 << 30  # of states to hold; beyond that rows go through the whole model each time


class Skip(torch.nn.Module):
    """Stands in for a decoder layer and changes nothing."""

    def forward(self, hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Give the states back, (rows, length, size)."""
        return hidden_states


class _Reached(Exception):  # noqa: N818 - it ends a forward pass early, nothing went wrong
    """Carries the states that enter the first adapted layer."""

    def __init__(self, states: torch.Tensor) -> None:
        super().__init__()
        self.states = states


@contextmanager
def frozen_below(loaded: Loaded, rows: Rows, first: int, progress: Callable[[str, int, int], None] = lambda *_: None) -> Iterator[bool]:
    """Give `rows` their states at layer `first` and let the model start there; yields whether that was done.

    It is not done for `first` = 0, for decoders that are no list of layers from embeddings up, and where the states would not fit in memory.
    """
    decoder = _decoder(loaded)
    layers = getattr(decoder, "layers", None)
    size = sum(len(row.rendered.ids) for row in rows.rows) * int(loaded.model.config.hidden_size) * loaded.model.dtype.itemsize
    if not first or not isinstance(layers, torch.nn.ModuleList) or size > MOST_BYTES or not _starts_from_embeddings(loaded, decoder):
        yield False
        return
    whole = list(rows.rows)
    for place, row in enumerate(whole):
        rows.rows[place] = replace(row, states=states_at(loaded, row.rendered.ids, first))
        progress(f"rows through the {first} layers that stay as they are", place + 1, len(whole))
    below = [layers[place] for place in range(first)]
    try:
        for place in range(first):
            layers[place] = Skip()
        yield True
    finally:
        rows.rows = whole
        for place, layer in enumerate(below):
            layers[place] = layer


def _decoder(loaded: Loaded) -> Any:
    model: Any = loaded.model
    return model.get_decoder()


def states_at(loaded: Loaded, ids: list[int], first: int) -> torch.Tensor:
    """The states (length, size) that enter layer `first` for one row of ids."""
    return _entering(_decoder(loaded), first, input_ids=torch.tensor([ids], device=loaded.model.device))[0]


def _starts_from_embeddings(loaded: Loaded, decoder: Any) -> bool:
    """Whether `inputs_embeds` enter layer 0 as they are (some models scale them first)."""
    probe = torch.randn(1, 3, int(loaded.model.config.hidden_size), dtype=loaded.model.dtype, device=loaded.model.device)
    return torch.equal(_entering(decoder, 0, inputs_embeds=probe), probe)


def _entering(decoder: Any, layer: int, **given: torch.Tensor) -> torch.Tensor:
    def reached(_: Any, positional: tuple[torch.Tensor, ...]) -> None:
        raise _Reached(positional[0])

    hook = decoder.layers[layer].register_forward_pre_hook(reached)
    try:
        with torch.no_grad():
            decoder(**given, use_cache=False)
    except _Reached as end:
        return end.states
    finally:
        hook.remove()
    raise AssertionError("the decoder never called its layer")
