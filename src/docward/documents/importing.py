"""Importing: sources become shards on disk, cleaned and fingerprinted; then one light entry a document says what to keep.

In: sources. Out: `shards/documents-00000.parquet ...` in a work folder, each whole or not there, so a stopped import goes on; and `Entry` records, about
1 kB a document, from which duplicates, clusters and splits are decided. One real row:
`Entry(shard=0, row=17, id="fraud-01-m", label="malicious", words=230, folded="9c1b...", triple="fraud-01", ...)`.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from sys import intern
from typing import TYPE_CHECKING, Any

from docward.documents.cleaning import clean, tidy, whole
from docward.documents.duplicates import PERMUTATIONS, clusters, fingerprint, near_pairs, windows, words_of
from docward.documents.pooling import in_order
from docward.documents.reading import Row, own_id, to_document, two_labels
from docward.documents.sources import source_rows
from docward.errors import DocumentError
from docward.recipe import Source
from docward.records import typed, whole_file
from docward.tasks import TASKS
from docward.types import PROMPT, Document, Label, Split

if TYPE_CHECKING:
    import numpy as np

SHARD, LARGE = 1000, 2**24  # rows, or characters if those are reached first: half a second of work, and 3 MB in memory, or 16
FIELDS = ("id", "text", "label", "category", "source", "license", "language", "form", "triple", "split")
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, slots=True)
class Entry:
    """A document without its text: where it lies, and what keeping and counting need."""

    shard: int
    row: int
    id: str
    label: Label
    category: str
    source: str
    license: str
    language: str
    form: str
    triple: str
    split: Split | None
    words: int
    folded: str
    cluster: str = ""

    @property
    def is_prompt(self) -> bool:
        """As `Document.is_prompt`."""
        return self.form == PROMPT

    @property
    def matched(self) -> str:
        """As `Document.matched`."""
        return self.triple or self.id

    @property
    def group(self) -> str:
        """As `Document.group`."""
        return self.cluster or self.matched


@dataclass(frozen=True, slots=True)
class Job:
    """The rows of one shard and how to read them."""

    path: Path
    label: Label | None
    tidy: bool
    rows: list[Row]
    contaminated: Path | None
    tasks: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Kept:
    """What stays of an import, and why the rest does not.

    `removed` counts: empty, duplicates, near_duplicates, conflicts, contaminated. `cleaned` counts documents by what was done to them.
    """

    entries: list[Entry]
    removed: dict[str, int]
    cleaned: dict[str, int]
    clusters: dict[str, int]


def import_shards(
    sources: Sequence[Source],
    work: Path,
    *,
    tidy: bool,
    num_proc: int | None,
    contaminated: Path | None,
    tasks: Collection[str] = TASKS,
    progress: Progress,
) -> None:
    """Read sources into shards; shards that are there already are not made again.

    Args:
        sources: where the documents are.
        work: where the shards go.
        tidy: mend mojibake and drop boilerplate.
        num_proc: processes; default: one a core.
        contaminated: the word windows of evaluation sets (see `write_forbidden`); documents that have one are left out.
        tasks: the names that documents may have gold for.
        progress: told how many documents were read.

    Raises:
        DocumentError: a source or a row of it cannot be used.
    """
    place = work / "shards"
    done = 0
    jobs = _jobs(sources, place, tidy=tidy, contaminated=contaminated, tasks=tuple(tasks))
    for rows in in_order(_write_shard, jobs, num_proc=num_proc):
        done += rows
        progress("documents read", done, 0)


def _jobs(sources: Sequence[Source], place: Path, **how: Any) -> Iterator[Job]:
    number = 0
    for source in sources:
        label = Label(source.label) if source.label else None
        rest, first = source_rows(source), number
        while rows := _some(rest):
            yield Job(place / f"documents-{number:05}.parquet", label, rows=rows, **how)
            number += 1
        if number == first:
            raise DocumentError(f"{source.title} gives no documents: it is empty.")


def _some(rows: Iterator[Row]) -> list[Row]:
    """The next rows, as many as a shard holds."""
    found, characters = [], 0
    for row in rows:
        found.append(row)
        characters += len(row.values["text"]) if isinstance(row.values.get("text"), str) else 0
        if len(found) == SHARD or characters >= LARGE:
            break
    return found


def _write_shard(job: Job) -> int:
    """Clean, check and fingerprint the rows of a job into its file."""
    import pyarrow
    import pyarrow.parquet

    if job.path.is_file():
        return len(job.rows)
    counts: Counter[str] = Counter()
    columns: dict[str, list[Any]] = {name: [] for name in (*FIELDS, "gold", "words", "folded", "signature", "place")}
    forbidden = _forbidden(job.contaminated)
    for row in job.rows:
        document = to_document(row.values, label=job.label, where=row.where, clean=_counted_tidy(counts) if job.tidy else clean, tasks=job.tasks)
        if document is None:
            counts["empty"] += 1
            continue
        if forbidden is not None and not forbidden.isdisjoint(windows(document.text)):
            counts["contaminated"] += 1
            continue
        mark = fingerprint(document.text)
        for name in FIELDS:
            value = getattr(document, name)
            columns[name].append(str(value) if isinstance(value, str) else value)
        columns["gold"].append(list(document.gold.items()))
        columns["words"].append(len(words_of(document.text)))
        columns["folded"].append(mark.folded)
        columns["signature"].append(mark.signature)
        columns["place"].append(whole(row.where))
    strings = {name: pyarrow.string() for name in (*FIELDS, "folded", "place")}
    types = strings | {"gold": pyarrow.map_(pyarrow.string(), pyarrow.string()), "words": pyarrow.int64(), "signature": pyarrow.binary(4 * PERMUTATIONS)}
    schema = pyarrow.schema(list(types.items()), metadata={"counts": json.dumps(counts)})
    with whole_file(job.path) as draft:
        pyarrow.parquet.write_table(pyarrow.table([pyarrow.array(columns[name], types[name]) for name in types], schema=schema), draft)
    return len(job.rows)


def _counted_tidy(counts: Counter[str]) -> Callable[[str], str]:
    def counted(text: str) -> str:
        cleaned = tidy(text)
        counts.update(f"cleaned {change}" for change in cleaned.changes)
        return cleaned.text

    return counted


_FORBIDDEN: dict[tuple[Path, int], frozenset[int]] = {}


def _forbidden(place: Path | None) -> frozenset[int] | None:
    """The evaluation sets' word windows, read once a process."""
    if place is None:
        return None
    known = (place, place.stat().st_mtime_ns)
    if known not in _FORBIDDEN:
        import numpy as np

        _FORBIDDEN.clear()
        _FORBIDDEN[known] = frozenset(np.load(place).tolist())
    return _FORBIDDEN[known]


def write_forbidden(sources: Sequence[Source], place: Path) -> None:
    """Write the word windows of evaluation sets, for decontamination."""
    import numpy as np

    found: set[int] = set()
    for source in sources:
        for row in source_rows(source):
            text = row.values.get("text")
            if not isinstance(text, str):
                raise DocumentError(f"{row.where}: an evaluation set needs a `text` in every row. Name its column: columns: {{text: ...}}.")
            found |= windows(clean(text)) | windows(tidy(text).text)  # as its copies among the documents are, tidied or not
    with whole_file(place) as draft, draft.open("wb") as out:
        np.save(out, np.array(sorted(found), dtype=np.uint64))


def shard_paths(work: Path) -> list[Path]:
    """The shards, in order."""
    return sorted((work / "shards").glob("documents-*.parquet"))


def resolve(work: Path, *, threshold: float, drop_near: bool, conflicts: str) -> Kept:
    """Decide what stays: exact copies go, near copies of one label share a cluster or go, one text under two labels is an error or goes.

    Args:
        work: where the shards are.
        threshold: Jaccard similarity of word 5-grams from which texts are near copies.
        drop_near: keep the first near copy of each label only.
        conflicts: `error` or `drop`.

    Raises:
        DocumentError: nothing stays, or one text stands under two labels.
    """
    entries, signatures, counts = _read_entries(work)
    dropped: Counter[str] = Counter({name: counts[name] for name in ("empty", "contaminated")})
    keep = _exact(work, entries, conflicts, dropped)
    entries, signatures = [entries[place] for place in keep], signatures[keep]
    if not entries:
        why = ", ".join(f"{count} {name}" for name, count in dropped.items() if count)
        raise DocumentError(f"No document is left ({why}). Look at the files under `documents:`, or add others.")
    if drop_near:
        keep = _firsts(entries, signatures, threshold)
        dropped["near_duplicates"] = len(entries) - len(keep)
        entries, signatures = [entries[place] for place in keep], signatures[keep]
    entries, sizes = _clustered(_own_ids(entries), list(near_pairs(signatures, threshold=threshold)))
    removed = {name: dropped[name] for name in ("empty", "duplicates", "near_duplicates", "conflicts", "contaminated")}
    cleaned = {name.removeprefix("cleaned "): count for name, count in sorted(counts.items()) if name.startswith("cleaned ")}
    return Kept(entries, removed, cleaned, sizes)


def _read_entries(work: Path) -> tuple[list[Entry], np.ndarray, Counter[str]]:
    import numpy as np
    import pyarrow.parquet

    entries: list[Entry] = []
    signatures, counts = [np.empty((0, PERMUTATIONS), np.uint32)], Counter[str]()
    names = [name for name in FIELDS if name != "text"] + ["words", "folded", "signature"]
    for shard, path in enumerate(shard_paths(work)):
        table = pyarrow.parquet.read_table(path, columns=names)
        counts.update(json.loads(table.schema.metadata[b"counts"]))
        signatures.append(np.frombuffer(b"".join(table.column("signature").to_pylist()), np.uint32).reshape(-1, PERMUTATIONS))
        columns = {name: table.column(name).to_pylist() for name in names if name != "signature"}
        for name in ("category", "source", "license", "language", "form"):
            columns[name] = [intern(value) for value in columns[name]]
        columns["label"] = [Label(value) for value in columns["label"]]
        columns["split"] = [value and Split(value) for value in columns["split"]]
        entries += [Entry(shard, row, **dict(zip(columns, values, strict=True))) for row, values in enumerate(zip(*columns.values(), strict=True))]
    return entries, np.concatenate(signatures), counts


def _exact(work: Path, entries: Sequence[Entry], conflicts: str, dropped: Counter[str]) -> list[int]:
    """The places of the first of each text, but of none that stands under two labels."""
    first: dict[str, int] = {}
    torn: set[str] = set()
    for place, entry in enumerate(entries):
        before = entries[first.setdefault(entry.folded, place)]
        if before.label == entry.label:
            continue
        if conflicts == "error":
            names = (f"{one.id} ({_place(work, one)})" for one in (before, entry))
            raise two_labels(next(names), before.label, next(names), entry.label, advice="Keep one, or drop both: dataset: {conflicts: drop}")
        torn.add(entry.folded)
    keep = [place for folded, place in first.items() if folded not in torn]
    dropped["conflicts"] = sum(entry.folded in torn for entry in entries)
    dropped["duplicates"] = len(entries) - len(keep) - dropped["conflicts"]
    return keep


def _place(work: Path, entry: Entry) -> str:
    """Where a document stood: file and line."""
    import pyarrow.parquet

    return str(pyarrow.parquet.read_table(shard_paths(work)[entry.shard], columns=["place"])["place"][entry.row])


def _firsts(entries: Sequence[Entry], signatures: np.ndarray, threshold: float) -> list[int]:
    """The places of the first of all near copies under a label."""
    found: list[int] = []
    for label in Label:
        places = [place for place, entry in enumerate(entries) if entry.label == label]
        lowest = clusters(len(places), near_pairs(signatures[places], threshold=threshold))
        found += [places[one] for one in sorted(set(lowest))]
    return sorted(found)


def _own_ids(entries: Iterable[Entry]) -> list[Entry]:
    taken: set[str] = set()
    found = []
    for entry in entries:
        own = entry if entry.id not in taken else replace(entry, id=own_id(entry.id, entry.folded, taken))
        taken.add(own.id)
        found.append(own)
    return found


def _clustered(entries: list[Entry], pairs: Sequence[tuple[int, int]]) -> tuple[list[Entry], dict[str, int]]:
    """Join near copies and triples; a cluster that is more than one triple gets the name of its first document's group."""
    by_triple: dict[str, int] = {}
    triples = [(by_triple.setdefault(entry.triple, place), place) for place, entry in enumerate(entries) if entry.triple]
    lowest = clusters(len(entries), [*pairs, *triples])
    near = {lowest[place] for pair in pairs for place in pair if entries[pair[0]].matched != entries[pair[1]].matched}
    sizes = Counter(place for place in lowest if place in near)
    named = [replace(entry, cluster=entries[place].matched) if place in near else entry for entry, place in zip(entries, lowest, strict=True)]
    return named, {"clusters": len(sizes), "documents": sum(sizes.values()), "largest": max(sizes.values(), default=0)}


def shard_documents(path: Path, entries: Sequence[Entry]) -> list[Document]:
    """The documents of one shard that `entries` keep, in their order, with the ids, splits and clusters decided since."""
    import pyarrow.parquet

    rows = pyarrow.parquet.read_table(path, columns=[*FIELDS, "gold"]).to_pylist(maps_as_pydicts="strict")
    return [
        typed(Document, rows[entry.row] | {"id": entry.id, "split": entry.split, "cluster": entry.cluster}, where=f"{path}, row {entry.row}")
        for entry in entries
    ]
