"""Replies of several processes and several runs in one file: held by one evaluation, each key once, in the order of documents and tasks.

In: an evaluation's folder. Each process appends to a file of its own where a launcher started several (`replies.part-1.jsonl`); process 0 takes these into
`replies.jsonl`, also those that killed processes left. Out: the same bytes however many processes there were and wherever they were stopped.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import islice
from pathlib import Path

from docward import processes
from docward.keyed import KeyedRows, KeyTable
from docward.records import KeyedLog, Rows, whole_file
from docward.types import Document, Reply

PART = "replies.part-{}.jsonl"
AT_A_TIME = 1000  # rows taken in before the disk is waited for


def own_file(folder: Path) -> Path:
    """Where this process appends its replies."""
    return folder / (PART.format(processes.rank()) if processes.count() > 1 else "replies.jsonl")


def share(documents: Sequence[Document]) -> set[str]:
    """The ids of this process's documents: dealt out from the longest to the shortest, so that all have about as much to read."""
    dealt = sorted(documents, key=lambda document: -len(document.text))
    return {document.id for document in dealt[processes.rank() :: processes.count()]}


def take_in(folder: Path) -> set[str]:
    """Move the rows of all processes' own files into `replies.jsonl`; gives the keys that are there now.

    Raises:
        RunError: a process that is thought dead still writes.
    """
    with KeyedLog(folder / "replies.jsonl") as log:
        for part in sorted(folder.glob(PART.format("*"))):
            with KeyedLog(part) as rows:  # held and mended: the process may have been killed while it wrote
                replies: Iterable[Reply] = Rows(part, Reply) if rows.keys else ()
                rest = iter(replies)
                while some := list(islice(rest, AT_A_TIME)):
                    log.append(some)
                part.unlink()
        return log.keys


def put_in_order(path: Path, keys: Sequence[str]) -> int:
    """Make `keys` the first rows of a keyed JSONL, in that order, and leave the others behind them as they stand; gives how many of `keys` are there."""
    wanted = KeyTable((key, 1) for key in keys)
    with KeyedRows(path, lambda _, line: line) as rows:
        there = sum(key in rows.places for key in keys)
        if all(key == found for key, found in zip((key for key in keys if key in rows.places), rows, strict=False)):
            return there
        with whole_file(path) as draft, draft.open("w", encoding="utf-8", errors="surrogateescape", newline="") as out:
            out.writelines(rows[key] for key in keys if key in rows.places)
            out.writelines(rows[key] for key in rows if key not in wanted)
    return there
