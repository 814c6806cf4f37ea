"""Who goes where: documents are split by group (a triple, or one document), never inside one.

In: documents, some of which say their own split. Out: the same documents, each with a split.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace

from docward.records import text_hash
from docward.types import Document, Split


def split_documents(documents: Sequence[Document], *, validation_share: float, test_share: float, seed: int) -> list[Document]:
    """Give every document a split.

    Held-out documents stay held out. Groups that say `train` may go to validation; groups that say nothing go anywhere. The order of groups
    is that of a seeded hash of their names, so adding documents does not move the others much.

    Args:
        documents: those of one `triple` stay together.
        validation_share: share of the groups that are not for testing.
        test_share: share of the groups that do not say their split.
        seed: another seed, another order.
    """
    groups: dict[str, list[Document]] = defaultdict(list)
    for document in documents:
        groups[document.triple or document.id].append(document)
    split_of: dict[str, Split] = {}
    said = {name: {document.split for document in group if document.split} for name, group in groups.items()}
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
    return [replace(document, split=split_of.get(document.triple or document.id, Split.TRAIN)) for document in documents]
