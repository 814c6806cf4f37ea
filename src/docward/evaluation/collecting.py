"""Rows of several processes and several runs in one file: held by one evaluation, each key once, in the order of documents and tasks.

In: an evaluation's folder. Each process appends to a file of its own where a launcher started several (`replies.part-1.jsonl`); process 0 takes these into
`replies.jsonl`, also those that killed processes left; likewise `likelihoods.jsonl`. Out: the same bytes however many processes there were and wherever they
were stopped.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from docward import processes
from docward.keyed import KeyedRows, KeyTable
from docward.records import KeyedLog, Rows, whole_file
from docward.types import Document

REPLIES, LIKELIHOODS = "replies", "likelihoods"  # the names of the files, and whose rows they hold
PART = "{}.part-{}.jsonl"
AT_A_TIME = 1000  # rows taken in before the disk is waited for


def own_file(folder: Path, name: str) -> Path:
    """Where this process appends its rows."""
    return folder / (PART.format(name, processes.rank()) if processes.count() > 1 else f"{name}.jsonl")


def share(documents: Sequence[Document]) -> set[str]:
    """The ids of this process's documents: dealt out from the longest to the shortest, so that all have about as much to read."""
    dealt = sorted(documents, key=lambda document: -len(document.text))
    return {document.id for document in dealt[processes.rank() :: processes.count()]}


def take_in(folder: Path, name: str, kind: type[Any]) -> set[str]:
    """Move the rows of all processes' own files, records of `kind`, into `<name>.jsonl`; gives the keys that are there now.

    Raises:
        RunError: a process that is thought dead still writes.
    """
    with KeyedLog(folder / f"{name}.jsonl") as log:
        for part in sorted(folder.glob(PART.format(name, "*"))):
            with KeyedLog(part) as rows:  # held and mended: the process may have been killed while it wrote
                rest = iter(Rows(part, kind) if rows.keys else ())
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
