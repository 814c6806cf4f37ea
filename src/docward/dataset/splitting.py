"""Who goes where: documents are split by group (a triple, a cluster of near copies, or one document), never inside one.

In: documents, or entries that stand for them, some of which say their own split. Out: the same ones, each with a split. Short prompts are tested on only.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from typing import Protocol, TypeVar

from docward.errors import DocumentError
from docward.records import text_hash
from docward.types import Split


class Grouped(Protocol):
    """A record that a split may not divide from others of its group: a `Document` or an `Entry`."""

    @property
    def id(self) -> str:
        """As in `Document`."""
        ...

    @property
    def is_prompt(self) -> bool:
        """As in `Document`."""
        ...

    @property
    def group(self) -> str:
        """As `Document.group`."""
        ...

    @property
    def split(self) -> Split | None:
        """Where it goes."""
        ...


Member = TypeVar("Member", bound=Grouped)


def split_documents(documents: Sequence[Member], *, validation_share: float, test_share: float, seed: int) -> list[Member]:
    """Give every document a split.

    Held-out documents stay held out, and short prompts are, with their groups: a task is trained on documents. Groups that say `train` may go to
    validation; groups that say nothing go anywhere. The order of groups is that of a seeded hash of their names, so adding documents does not move the
    others much.

    Args:
        documents: those of one group stay together.
        validation_share: share of the groups that are not for testing.
        test_share: share of the groups that do not say their split.
        seed: another seed, another order.

    Raises:
        DocumentError: a short prompt says that it is for training or validation.
    """
    _check_prompts(documents)
    groups: dict[str, list[Member]] = defaultdict(list)
    for document in documents:
        groups[document.group].append(document)
    split_of: dict[str, Split] = {}
    said = {name: {split for one in group if (split := Split.TEST if one.is_prompt else one.split)} for name, group in groups.items()}
    names = sorted(groups, key=lambda name: text_hash(str(seed), name))
    for name in names:
        if Split.TEST in said[name]:
            split_of[name] = Split.TEST
        elif Split.VALIDATION in said[name]:
            split_of[name] = Split.VALIDATION
    silent = [name for name in names if not said[name]]
    for name in silent[: round(len(silent) * test_share)]:
        split_of[name] = Split.TEST
    rest = [name for name in names if name not in split_of]
    for name in rest[: round(len(rest) * validation_share)]:
        split_of[name] = Split.VALIDATION
    return [replace(document, split=split_of.get(document.group, Split.TRAIN)) for document in documents]  # type: ignore[type-var]


def _check_prompts(documents: Sequence[Grouped]) -> None:
    """Raise a DocumentError where a short prompt is to be trained or validated on."""
    if wrong := [one for one in documents if one.is_prompt and one.split not in (None, Split.TEST)]:
        more = f", as are {len(wrong) - 1} more" if wrong[1:] else ""
        raise DocumentError(
            f"{wrong[0].id} is a short prompt (`form: prompt`) with `split: {wrong[0].split}`{more}. Tasks are trained on documents; short prompts are "
            "tested on, asked as they are. Leave their `split` out, or say `test`; where these texts are documents after all, leave their `form` out."
        )
