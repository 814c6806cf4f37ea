"""Rows of several processes and several runs in one file: held by one evaluation, each key once, in the order of documents and tasks.

In: an evaluation's folder. Each process appends to a file of its own where a launcher started several (`replies.part-1.jsonl`); process 0 takes these into
`replies.jsonl`, also those that killed processes left; likewise `likelihoods.jsonl`. Out: the same bytes however many processes there were and wherever they
were stopped.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import islice
from pathlib import Path
from typing import IO, Any

from docward import processes
from docward.errors import RunError, StorageError
from docward.records import KeyedLog, Rows, whole_file
from docward.types import Document

REPLIES, LIKELIHOODS = "replies", "likelihoods"  # the names of the files, and whose rows they hold
PART = "{}.part-{}.jsonl"
AT_A_TIME = 1000  # rows taken in before the disk is waited for


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Hold a folder for one evaluation (process 0 holds it for all), by a lock file that is there as long.

    Raises:
        RunError: another evaluation holds it.
        StorageError: the folder cannot be made.
    """
    place = folder / ".lock"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = place.open("w")
    except OSError as error:
        raise StorageError(f"Cannot write to {folder}: {error.strerror}. Choose another --output-dir.") from error
    with lock:
        if not _locked(lock, place):
            raise RunError(f"Another process is evaluating into {folder}. Wait for it, or choose another --output-dir.")
        try:
            yield
        finally:
            place.unlink(missing_ok=True)


def _locked(lock: IO[str], place: Path) -> bool:
    """Whether the lock is ours, and still the one at its place: who held it before may have taken it away since it was opened."""
    with suppress(BlockingIOError, FileNotFoundError):
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return os.fstat(lock.fileno()).st_ino == place.stat().st_ino
    return False


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
    places: dict[str, int] = {}
    with path.open("rb") as rows:
        place = 0
        for line in rows:
            places[json.loads(line)["key"]] = place
            place += len(line)
        there = [key for key in keys if key in places]
        wanted = set(there)
        order = there + [key for key in places if key not in wanted]
        if order != list(places):
            with whole_file(path) as draft, draft.open("wb") as out:
                for key in order:
                    rows.seek(places[key])
                    out.write(rows.readline())
    return len(there)
