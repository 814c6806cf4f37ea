"""Rows of one document become a group, groups become passes: what goes through the model at once, as tensors.

In: rendered rows. Out: `Group`s (rows with their longest common prefix) and passes (dictionaries of tensors), in one of two computes that give the same loss:

    rows     each row by itself, padded to the longest              (rows, length)
    shared   the prefix once, then each row's own tokens, no padding (1, prefix + own + own + ...)

Both hold the same description of the loss: token j of example i adds -log p(target[pair[j]]), read at the pass's kept position source[pair[j]].
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch

from docward.errors import RecipeError
from docward.evaluation.generating import common_prefix
from docward.rendering import Rendered

Compute = Literal["shared", "rows"]
LossOn = Literal["answers", "everything"]


@dataclass(frozen=True, slots=True)
class Row:
    """One training row: token ids, where the answer starts, its factor in the loss, its term and its task."""

    rendered: Rendered
    factor: float
    term: str
    task: str = ""


@dataclass(slots=True, eq=False)
class Group:
    """Rows of one document whose first `prefix` token ids are the same; a row alone is all prefix.

    `states` is what enters the first adapted layer, where those below are frozen: one (tokens, size) for the whole group in the shared layout, else one a row.
    """

    rows: tuple[Row, ...]
    prefix: int
    document: str
    matched: str
    states: tuple[torch.Tensor, ...] = field(default=())

    @property
    def own(self) -> tuple[int, ...]:
        """Tokens of each row behind the prefix; none for a row alone."""
        return tuple(len(row.rendered.ids) - self.prefix for row in self.rows) if len(self.rows) > 1 else ()

    @property
    def shared_tokens(self) -> int:
        """Tokens of the shared layout."""
        return self.prefix + sum(self.own)

    @property
    def width(self) -> int:
        """Tokens of the longest row."""
        return max(len(row.rendered.ids) for row in self.rows)


@dataclass(frozen=True, slots=True)
class Layout:
    """Where documents lie in a shared pass: for each, the start of its prefix, the prefix's length, and (start, length) of each branch."""

    documents: tuple[tuple[int, int, tuple[tuple[int, int], ...]], ...]


def group_of(rows: Iterable[Row], *, document: str, matched: str) -> Group:
    """Put rows of one document together."""
    rows = tuple(rows)
    ids = [row.rendered.ids for row in rows]
    return Group(rows, common_prefix(ids) if len(ids) > 1 else len(ids[0]), document, matched)


def fit_passes(groups: Sequence[Group], most: int, compute: Compute) -> list[list[Group]]:
    """Divide groups among passes of at most `most` tokens each (padding counts), longest first, so that like lengths go together.

    A group that is too large is divided among several passes, each with the prefix of its own.

    Raises:
        RecipeError: a single row is longer than `most`.
    """
    passes: list[list[Group]] = []
    room: list[int] = []  # of each pass: tokens, or of padded rows how many; the first group is the widest
    for group in sorted((part for whole in groups for part in _parts(whole, most, compute)), key=lambda one: (-one.width, one.document)):
        takes = group.shared_tokens if compute == "shared" else len(group.rows)
        home = next((place for place, left in enumerate(room) if left >= takes), None)
        if home is None:
            passes.append([group])
            room.append((most if compute == "shared" else most // group.width) - takes)
        else:
            passes[home].append(group)
            room[home] -= takes
    return passes


def size_of(groups: Sequence[Group], compute: Compute) -> int:
    """Tokens that a pass of these groups takes, padding counted."""
    if compute == "shared":
        return sum(group.shared_tokens for group in groups)
    return sum(len(group.rows) for group in groups) * max(group.width for group in groups)


def _parts(group: Group, most: int, compute: Compute) -> list[Group]:
    if size_of([group], compute) <= most:
        return [group]
    if len(group.rows) == 1:
        raise too_long(group, most)
    half = len(group.rows) // 2
    parts = [group_of(rows, document=group.document, matched=group.matched) for rows in (group.rows[:half], group.rows[half:])]
    if group.states:
        _divide_states(group, parts, half, compute)
    return [smaller for part in parts for smaller in _parts(part, most, compute)]


def _divide_states(group: Group, parts: Sequence[Group], half: int, compute: Compute) -> None:
    if compute == "rows":
        parts[0].states, parts[1].states = group.states[:half], group.states[half:]
        return
    flat, starts = group.states[0], [group.prefix + sum(group.own[:place]) for place in range(len(group.rows))]
    whole = [torch.cat([flat[: group.prefix], flat[start : start + own]]) for start, own in zip(starts, group.own, strict=True)]
    for part, rows in zip(parts, (whole[:half], whole[half:]), strict=True):
        part.states = (torch.cat([rows[0][: part.prefix], *([row[part.prefix :] for row in rows] if part.own else [])]),)


def too_long(group: Group, most: int) -> RecipeError:
    """What to say of a row that no pass can hold."""
    return RecipeError(
        f"tuning.max_batch_tokens = {most}, and one row of the document {group.document} takes {group.width} tokens (document, instruction and answer). "
        f"Set it to at least {group.width}, or lower tuning.max_length."
    )


def pass_of(groups: Sequence[Group], *, compute: Compute, pad: int, loss_on: LossOn = "answers", weight: float = 1.0) -> dict[str, Any]:
    """The tensors of one pass.

    Args:
        groups: what goes through together.
        compute: the layout.
        pad: token id that fills short rows.
        loss_on: `answers` (the method's loss) or `everything` (the published code's: documents and instructions are learned as well).
        weight: multiplies all factors; 0 for a pass that only keeps step with other processes.

    Returns:
        `input_ids` (rows, length); `attention_mask` or `position_ids` with `layout`; `inputs_embeds` in place of ids where layers are frozen;
        `keep` boolean (rows, length), where logits are wanted; `source` and `target` (pairs,): a kept position and the token that it must predict;
        `pair` and `owner` (tokens,): which pair a learned token is, and whose; `first` (examples,): each answer's first token among those;
        `answer` boolean (tokens,); `prompts`, `documents` and `answers`, of each example the flat places of what stands before its answer, of its
        document, and of its answer;
        `factors` (examples,); `terms` and `tokens` (a plain list and number).
    """
    lay = _lay_shared(groups) if compute == "shared" else _lay_rows(groups, pad)
    given, places = lay
    rows = [row for group in groups for row in group.rows]
    pairs: dict[tuple[int, int], int] = {}
    pair: list[int] = []
    owner: list[int] = []
    first: list[int] = []
    answer: list[bool] = []
    for number, (row, at) in enumerate(zip(rows, places, strict=True)):
        ids, start = row.rendered.ids, row.rendered.answer_start
        for place in range(1 if loss_on == "everything" else max(1, start), len(ids)):
            if place == max(1, start):
                first.append(len(pair))
            pair.append(pairs.setdefault((at[place - 1], ids[place]), len(pairs)))
            owner.append(number)
            answer.append(place >= start)
    shape = given["inputs_embeds"].shape[:2] if "inputs_embeds" in given else given["input_ids"].shape
    kept = sorted({source for source, _ in pairs})
    order = {source: place for place, source in enumerate(kept)}
    keep = torch.zeros(shape, dtype=torch.bool)
    keep.view(-1)[kept] = True
    return given | {
        "keep": keep,
        "source": torch.tensor([order[source] for source, _ in pairs]),
        "target": torch.tensor([target for _, target in pairs]),
        "pair": torch.tensor(pair),
        "owner": torch.tensor(owner),
        "first": torch.tensor(first),
        "answer": torch.tensor(answer),
        "prompts": [torch.tensor(at[: row.rendered.answer_start]) for row, at in zip(rows, places, strict=True)],
        "documents": [torch.tensor([at[place] for place in row.rendered.document], dtype=torch.long) for row, at in zip(rows, places, strict=True)],
        "answers": [torch.tensor(at[row.rendered.answer_start :], dtype=torch.long) for row, at in zip(rows, places, strict=True)],
        "factors": torch.tensor([row.factor * weight for row in rows], dtype=torch.float32),
        "terms": [row.term for row in rows],
        "tokens": sum(group.shared_tokens for group in groups) if weight else 0,
        "counted": bool(weight),
    }


def _lay_rows(groups: Sequence[Group], pad: int) -> tuple[dict[str, Any], list[Sequence[int]]]:
    """Padded rows, and for each row the flat position of each of its tokens."""
    rows = [row.rendered.ids for group in groups for row in group.rows]
    width = max(map(len, rows))
    states = [states for group in groups for states in group.states]
    given: dict[str, Any] = {"input_ids": torch.tensor([ids + [pad] * (width - len(ids)) for ids in rows])}
    if states:
        given = {"inputs_embeds": torch.nn.utils.rnn.pad_sequence(states, batch_first=True)}
    given["attention_mask"] = torch.tensor([[1] * len(ids) + [0] * (width - len(ids)) for ids in rows])
    return given, [range(number * width, number * width + len(ids)) for number, ids in enumerate(rows)]


def _lay_shared(groups: Sequence[Group]) -> tuple[dict[str, Any], list[Sequence[int]]]:
    ids: list[int] = []
    positions: list[int] = []
    documents: list[tuple[int, int, tuple[tuple[int, int], ...]]] = []
    places: list[Sequence[int]] = []
    for group in groups:
        start, prefix = len(ids), group.prefix
        ids += group.rows[0].rendered.ids[:prefix]
        positions += range(prefix)
        branches = []
        for row, own in zip(group.rows, group.own or (0,), strict=True):
            branch = len(ids)
            places.append([*range(start, start + prefix), *range(branch, branch + own)])
            if own:
                branches.append((branch, own))
                ids += row.rendered.ids[prefix:]
                positions += range(prefix, prefix + own)
        documents.append((start, prefix, tuple(branches)))
    given: dict[str, Any] = {"input_ids": torch.tensor([ids])}
    if groups[0].states:
        given = {"inputs_embeds": torch.cat([group.states[0] for group in groups]).unsqueeze(0)}
    return given | {"position_ids": torch.tensor([positions]), "layout": Layout(tuple(documents))}, places
