"""Layers below the first adapted one never change, so each document goes through them once, not once a pass.

In: groups of training rows and the number of the first adapted layer. Out: groups that carry the states which enter that layer, and a model that starts
there while the `with` block lasts. Nothing is lost: loss and gradients are those of the whole model (a test compares them).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from docward.models import Loaded
from docward.tuning.losses import forward_inputs
from docward.tuning.packing import Compute, Group, pass_of

TOGETHER = 2048  # tokens of documents that go through the frozen layers at once
MOST_BYTES = 4 << 30  # of states to hold; beyond that rows go through the whole model each time


class Skip(torch.nn.Module):
    """Stands in for a decoder layer and changes nothing."""

    def forward(self, hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Give the states back, (rows, length, size)."""
        return hidden_states


class _Reached(Exception):  # noqa: N818 - it ends a forward pass early, nothing went wrong
    """Carries the states that enter a module."""

    def __init__(self, states: torch.Tensor) -> None:
        super().__init__()
        self.states = states


class Frozen:
    """A decoder whose first layers are skipped; `done` tells whether they are."""

    def __init__(self, layers: Any, first: int) -> None:
        """Skip the first layers of `layers`, none where `first` is 0."""
        self.layers, self.below = layers, [layers[place] for place in range(first)]
        self.done = bool(self.below)
        self._skip()

    def _skip(self) -> None:
        for place in range(len(self.below)):
            self.layers[place] = Skip()

    def restore(self) -> None:
        """Put the layers back."""
        for place, layer in enumerate(self.below):
            self.layers[place] = layer

    @contextmanager
    def whole(self) -> Iterator[None]:
        """The model is whole while the block lasts, to generate."""
        self.restore()
        try:
            yield
        finally:
            self._skip()


@contextmanager
def frozen_below(
    loaded: Loaded, groups: Sequence[Group], first: int, compute: Compute, progress: Callable[[str, int, int], None] = lambda *_: None
) -> Iterator[Frozen]:
    """Give `groups` their states at layer `first` and let the model start there; yields what was done.

    It is not done for `first` = 0, for decoders that are no list of layers from embeddings up, and where the states would not fit in memory.
    """
    decoder = _decoder(loaded)
    layers = getattr(decoder, "layers", None)
    size = sum(_tokens(group, compute) for group in groups) * int(loaded.model.config.get_text_config().hidden_size) * loaded.model.dtype.itemsize
    if not first or not isinstance(layers, torch.nn.ModuleList) or size > MOST_BYTES or not _starts_from_embeddings(decoder):
        yield Frozen(layers, 0)
        return
    _give_states(loaded, groups, first, compute, progress)
    frozen = Frozen(layers, first)
    try:
        yield frozen
    finally:
        frozen.restore()
        for group in groups:
            group.states = ()


def _give_states(loaded: Loaded, groups: Sequence[Group], first: int, compute: Compute, progress: Callable[[str, int, int], None]) -> None:
    """Documents of like lengths go together where the layout holds several, TOGETHER tokens at a time."""
    order = sorted(groups, key=lambda group: -group.shared_tokens)
    done = 0
    while done < len(order):
        most = done + (max(1, TOGETHER // order[done].shared_tokens) if compute == "shared" else 1)
        for group, states in zip(order[done:most], states_at(loaded, order[done:most], first, compute), strict=True):
            group.states = states
        done = min(most, len(order))
        progress(f"documents through the {first} layers that stay as they are", done, len(order))


def _tokens(group: Group, compute: Compute) -> int:
    return group.shared_tokens if compute == "shared" else sum(len(row.rendered.ids) for row in group.rows)


def _decoder(loaded: Loaded) -> Any:
    model: Any = loaded.model
    return model.get_decoder()


def states_at(loaded: Loaded, groups: Sequence[Group], first: int, compute: Compute) -> list[tuple[torch.Tensor, ...]]:
    """The states that enter layer `first`, of each group: (tokens, size) of its shared layout, or one of each row."""
    device = loaded.model.device
    if compute == "shared":
        batch = pass_of(groups, compute="shared", pad=0)
        given = {name: batch[name].to(device) for name in ("input_ids", "position_ids")} | {"layout": batch["layout"]}
        whole = entering(_decoder(loaded), _decoder(loaded).layers[first], **given)[0]
        return [(states.clone(),) for states in torch.split(whole, [group.shared_tokens for group in groups])]
    decoder = _decoder(loaded)
    layer = decoder.layers[first]
    return [tuple(entering(decoder, layer, input_ids=torch.tensor([row.rendered.ids], device=device))[0] for row in group.rows) for group in groups]


def _starts_from_embeddings(decoder: Any) -> bool:
    """Whether `inputs_embeds` enter layer 0 as they are (some models scale them first)."""
    weight = next(decoder.parameters())
    probe = torch.randn(1, 3, int(decoder.config.get_text_config().hidden_size), dtype=weight.dtype, device=weight.device)
    return torch.equal(entering(decoder, decoder.layers[0], inputs_embeds=probe), probe)


@contextmanager
def from_layer(decoder: Any, number: int, batch: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """A pass with the states that enter a layer, and a decoder that starts there while the block lasts, to try several things in that layer.

    Both stay as they are where the decoder scales the states that it is given.
    """
    if not number or not _starts_from_embeddings(decoder):
        yield batch
        return
    given = {name: value for name, value in batch.items() if name != "input_ids"}
    given["inputs_embeds"] = entering(decoder, decoder.layers[number], **forward_inputs(batch))
    frozen = Frozen(decoder.layers, number)
    try:
        yield given
    finally:
        frozen.restore()


def entering(decoder: Any, module: torch.nn.Module, **given: Any) -> torch.Tensor:
    """What enters a module of a decoder that is given this, (rows, length, size); nothing behind it is computed."""

    def reached(_: Any, positional: tuple[torch.Tensor, ...]) -> None:
        raise _Reached(positional[0])

    hook = module.register_forward_pre_hook(reached)
    try:
        with torch.no_grad():
            decoder(**given, use_cache=False)
    except _Reached as end:
        return end.states
    finally:
        hook.remove()
    raise AssertionError("the decoder never called it")
