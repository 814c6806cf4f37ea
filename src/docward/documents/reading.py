"""Documents from files: rows of JSONL, JSON, CSV or Parquet, folders of text, and the starter corpus.

In: a path. Out: rows, each with the place where it stood, or `Document` records. One real row:
`Row("mine.jsonl:3", {"text": "Dear all, ...", "label": "ordinary"})`.
"""

from __future__ import annotations

import codecs
import csv
import json
import os
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.resources import files
from itertools import chain, count
from pathlib import Path
from typing import IO, Any

from docward.documents.cleaning import clean, whole
from docward.documents.gold import gold_of
from docward.documents.paper import is_paper_file, paper_documents
from docward.documents.texts import MARKUP, OFFICE, PLAIN, closed, encoding_of, misread, read_text, shown
from docward.errors import DocumentError
from docward.records import LONGEST_LINE, read_lines, text_hash, typed
from docward.tasks import TASKS
from docward.types import Document, Label

TABLES = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet")
DELIMITERS = {",": "comma", ";": "semicolon", "\t": "tab", "|": "bar"}


@dataclass(frozen=True, slots=True)
class Row:
    """A row as its file has it. `where` names the place: file and line."""

    where: str
    values: dict[str, Any]


def file_rows(path: Path, *, encoding: str = "utf-8", delimiter: str | None = None) -> Iterator[Row]:
    """Give the rows of a file, or of a folder's files, one after another, in constant memory (a .json file is read whole).

    Args:
        path: .jsonl, .json, .csv, .tsv, .parquet, a text (.txt, .md, .html, .pdf, .docx), or a folder of texts. A text is one row with `text` and `id`.
        encoding: of text files that have no byte order mark.
        delimiter: of a .csv; by default a comma.

    Raises:
        DocumentError: the file cannot be read as what it says it is.
    """
    if is_folder(path):
        yield from _folder_rows(path, encoding)
        return
    readers: dict[str, Callable[[Path], Iterator[Row]]] = {
        ".jsonl": lambda one: _jsonl_rows(one, encoding),
        ".ndjson": lambda one: _jsonl_rows(one, encoding),
        ".json": lambda one: _json_rows(one, encoding),
        ".csv": lambda one: _csv_rows(one, encoding, delimiter or ","),
        ".tsv": lambda one: _csv_rows(one, encoding, delimiter or "\t"),
        ".parquet": _parquet_rows,
    }
    suffix = path.suffix.lower()
    if suffix in readers:
        yield from readers[suffix](path)
    elif suffix in (*PLAIN, *MARKUP, *OFFICE):
        yield Row(str(path), {"text": read_text(path, encoding=encoding), "id": path.name})
    else:
        raise DocumentError(
            f"{path}: cannot read a {suffix or 'file without an ending'}. Allowed: {', '.join((*TABLES, *PLAIN, *MARKUP, *OFFICE))}, or a folder."
        )


def is_folder(path: Path) -> bool:
    """Whether a path is a folder; else it is a file.

    Raises:
        DocumentError: it is neither, or may not be looked at.
    """
    try:
        if path.is_dir():
            return True
        if path.is_file():
            return False
    except OSError as error:
        raise closed(path, error) from error
    raise DocumentError(f"There is no document file or folder {path}. Paths in a recipe are seen from the recipe's folder.")


def _jsonl_rows(path: Path, encoding: str) -> Iterator[Row]:
    if (name := codecs.lookup(encoding_of(path, encoding)).name).startswith(("utf-16", "utf-32")):
        raise DocumentError(f"{path}: this is {name.upper()} text, wanted UTF-8 for JSONL. Convert it: iconv -f {name.upper()} -t UTF-8 {path.name}")
    return (Row(f"{path}:{number}", row) for number, row in read_lines(path, encoding=name.removesuffix("-sig")))


def _json_rows(path: Path, encoding: str) -> Iterator[Row]:
    """A list of objects, an object that holds one such list, or the paper's test file: `{"instructions": [...], "inputs": [...]}`."""
    encoding = encoding_of(path, encoding)
    try:
        found = json.loads(path.read_text(encoding=encoding))
    except UnicodeError as error:
        raise misread(path, encoding) from error
    except (ValueError, RecursionError) as error:
        line = f":{error.lineno}" if isinstance(error, json.JSONDecodeError) else ""
        raise DocumentError(f"{path}{line}: not valid JSON ({error}). One object a line goes into a file that ends in .jsonl.") from error
    if is_paper_file(found):
        rows: Any = [{"text": text} for text in paper_documents(found, where=str(path))]
    else:
        lists = [value for value in found.values() if isinstance(value, list)] if isinstance(found, dict) else [found]
        rows = lists[0] if len(lists) == 1 else None
    if not isinstance(rows, list):
        raise DocumentError(f'{path}: wanted a list of objects, or the paper\'s {{"instructions": [...], "inputs": [...]}}.')
    for place, row in enumerate(rows):
        if not isinstance(row, dict):
            raise DocumentError(f'{path}[{place}]: found a {type(row).__name__}, wanted a list of objects, such as {{"text": ..., "label": ...}}.')
        yield Row(f"{path}[{place}]", row)


def _csv_rows(path: Path, encoding: str, delimiter: str) -> Iterator[Row]:
    csv.field_size_limit(LONGEST_LINE)
    encoding, begin = encoding_of(path, encoding), 1
    names: list[str] = []
    try:
        with path.open(encoding=encoding, newline="") as source:
            reader = csv.reader(_csv_lines(path, source), delimiter=delimiter, strict=True)
            for values in reader:
                where, begin = f"{path}:{begin}", reader.line_num + 1
                if values and not names:
                    names = values
                    _check_header(path, names, delimiter)
                elif values and len(values) != len(names):
                    raise DocumentError(
                        f"{where}: the row has {len(values)} fields, the header {len(names)} ({', '.join(map(shown, names))}). "
                        "A field with line ends or the delimiter in it must stand in double quotes."
                    )
                elif values:
                    yield Row(where, dict(zip(names, values, strict=True)))
    except UnicodeError as error:
        raise misread(path, encoding) from error
    except csv.Error as error:
        raise DocumentError(
            f"{path}:{begin}: not valid CSV in the row that begins here ({error}): is a double quote left open, or a text over {LONGEST_LINE // 2**20} MiB? "
            "Put texts in double quotes, those in them doubled, or save the file as .jsonl."
        ) from error
    if not names:
        raise DocumentError(f"{path} is empty: no header in it.")


def _csv_lines(path: Path, source: IO[str]) -> Iterator[str]:
    for number, line in enumerate(iter(lambda: source.readline(LONGEST_LINE + 1), ""), 1):
        if len(line) > LONGEST_LINE:
            raise DocumentError(f"{path}:{number}: the line is longer than {LONGEST_LINE // 2**20} MiB, which no document is. Split it, or take it out.")
        if "\0" in line:
            raise DocumentError(f"{path}:{number}: this is a binary file (it holds NUL bytes), wanted CSV text.")
        yield line


def _check_header(path: Path, names: Sequence[str], delimiter: str) -> None:
    if len(names) == 1 and (other := next((mark for mark in DELIMITERS if mark != delimiter and mark in names[0]), None)):
        raise DocumentError(
            f"{path}: with a {DELIMITERS.get(delimiter, repr(delimiter))} as delimiter the header is the one column {shown(names[0])}. "
            f"Say `delimiter: {json.dumps(other)}` in the recipe."
        )
    if twice := next((name for name in names if name and names.count(name) > 1), None):
        raise DocumentError(f"{path}: the header has the column {shown(twice)} twice. Rename one.")


def _parquet_rows(path: Path) -> Iterator[Row]:
    import pyarrow
    import pyarrow.parquet

    try:
        number = 0
        with pyarrow.parquet.ParquetFile(path) as source:
            for batch in source.iter_batches(batch_size=1000):
                for row in batch.to_pylist():
                    number += 1
                    yield Row(f"{path}, row {number}", row)
    except (OSError, ValueError, pyarrow.ArrowException) as error:  # ValueError: strings that are no UTF-8, two columns of one name
        raise DocumentError(f"{path}: cannot be read as Parquet ({shown(error)}). Write it again, or convert it to .jsonl.") from error


def folder_files(folder: Path) -> list[Path]:
    """The texts under a folder, in order of their names. Links to folders are not followed, so a loop of them does no harm.

    Raises:
        DocumentError: a folder may not be looked into, or a text is no file but a link to nothing, say.
    """
    found = _of_kind(folder, (*PLAIN, *MARKUP, *OFFICE))
    for path in found:
        try:
            there = path.is_file()
        except OSError as error:
            raise closed(path, error) from error
        if not there:  # a pipe would never end
            raise DocumentError(f"{path} is no file but a link to nothing, or a pipe. Take it out of the folder.")
    return found


def _of_kind(folder: Path, endings: Collection[str]) -> list[Path]:
    def unseen(error: OSError) -> None:
        raise closed(Path(error.filename), error) from error

    found = []
    for root, folders, names in os.walk(folder, onerror=unseen):
        folders.sort()
        found += [Path(root) / name for name in sorted(names) if Path(name).suffix.lower() in endings]
    return found


def _folder_rows(folder: Path, encoding: str) -> Iterator[Row]:
    if tables := _of_kind(folder, TABLES):
        raise DocumentError(
            f"The folder {folder} holds {', '.join(path.relative_to(folder).as_posix() for path in tables[:3])}. "
            "Name tables one by one under `documents:`; a folder is for texts."
        )
    found = folder_files(folder)
    if not found:
        raise DocumentError(f"The folder {folder} holds no texts. Wanted files that end in {', '.join((*PLAIN, *MARKUP, *OFFICE))}.")
    for path in found:
        yield Row(str(path), {"text": read_text(path, encoding=encoding), "id": path.relative_to(folder).as_posix()})


FIELDS = frozenset(field for field in Document.__slots__ if field not in ("cluster", "gold"))


def to_document(
    values: Mapping[str, Any], *, label: Label | None, where: str, clean: Callable[[str], str] = clean, tasks: Collection[str] = TASKS
) -> Document | None:
    """Make a document of a row with the fields of `Document`; None if its text is empty.

    Args:
        values: the row; gold stands in it as `gold_of` says.
        label: what all rows are; a row that says otherwise is an error.
        where: the row's place, for messages.
        clean: what is done to its text.
        tasks: the names that gold may be for.

    Raises:
        DocumentError: no text, no label, or one that is not allowed, or gold that cannot be used.
    """
    text = values.get("text")
    if not isinstance(text, str):
        found = f"`text` is a {type(text).__name__}" if "text" in values else f"fields {', '.join(map(str, sorted(values)))[:300] or 'none'}"
        raise DocumentError(f"{where}: a document needs a `text` field with a string ({found}).")
    said = values.get("label", label)
    if said in (None, ""):
        raise DocumentError(f"{where}: the document has no `label`. Allowed: {', '.join(Label)}. Or say it for the whole file.")
    if said not in list(Label):
        raise DocumentError(f"{where}: unknown label {shown(said)}. Allowed: {', '.join(Label)}.")
    if label is not None and said != label:
        raise DocumentError(f"{where}: the row says {said!r}, but the file was given as {label.value!r} documents.")
    if not (text := clean(text)):
        return None
    known: dict[str, Any] = {field: whole(value) if isinstance(value, str) else value for field in FIELDS if (value := values.get(field)) not in (None, "")}
    known |= {"text": text, "label": said, "id": str(known.get("id", text_hash(text))), "gold": gold_of(values, tasks=tasks, where=where)}
    return typed(Document, known, where=where)


def read_documents(path: Path, *, label: Label | None = None) -> list[Document]:
    """Read all documents of a file or folder, as they are but for control characters and line ends.

    Args:
        path: what `file_rows` reads; `text` is required in a row, and `label` unless it is given here.
        label: what all rows are; a row that says otherwise is an error.

    Raises:
        DocumentError: the file or a row cannot be used; the message names file and line.
    """
    found = []
    for row in file_rows(path):
        document = to_document(row.values, label=label, where=row.where)
        if document is None:
            raise DocumentError(f"{row.where}: the document's `text` is empty.")
        found.append(document)
    return found


OWN = ("starter", "plain", "languages")  # the presets that come with the package


def own_path(preset: str) -> Path:
    """The file of documents written for this project."""
    return Path(str(files("docward.corpus") / f"{preset}.jsonl"))


def own_documents(preset: str = "starter") -> list[Document]:
    """Documents written for this project; each says in `split` whether it is for training or held out."""
    return read_documents(own_path(preset))


def general_instructions() -> list[tuple[str, str]]:
    """The starter's instructions without a document: (id, instruction)."""
    path = Path(str(files("docward.corpus") / "general.jsonl"))
    return [(str(row["id"]), str(row["instruction"])) for _, row in read_lines(path)]


def unique_documents(documents: Iterable[Document]) -> list[Document]:
    """Keep one of each text under a label, and give every document an id of its own. Of short prompts each set keeps its own: they are counted by set.

    Raises:
        DocumentError: one text stands under two labels.
    """
    kept: dict[tuple[str, str], Document] = {}
    taken: set[str] = set()
    for document in documents:
        folded = (document.source if document.is_prompt else "", " ".join(document.text.lower().split()))
        first = kept.get(folded)
        if first is None:
            fresh = document if document.id not in taken else replace(document, id=own_id(document.id, text_hash(document.text), taken))
            kept[folded] = fresh
            taken.add(fresh.id)
        elif first.label != document.label:
            raise two_labels(first.id, first.label, document.id, document.label)
    return list(kept.values())


def fair_share(documents: Sequence[Document], limit: int | None) -> list[Document]:
    """At most `limit` documents of each set under each label, in order of label: the first of every category, then the second ones, and so on.

    Public sets stand in order of category, so their first rows would be of one alone. The starter's categories take turns: of its first 24 a label it is those.
    """
    ranks: list[int] = []
    seen: Counter[tuple[str, Label, str]] = Counter()
    for document in documents:
        ranks.append(seen[document.source, document.label, document.category])
        seen[document.source, document.label, document.category] += 1
    groups: dict[tuple[str, Label], list[int]] = defaultdict(list)
    for place in sorted(range(len(documents)), key=ranks.__getitem__):
        groups[documents[place].source, documents[place].label].append(place)
    kept = {place for group in groups.values() for place in group[:limit]}
    return [document for label in Label for place, document in enumerate(documents) if place in kept and document.label == label]


def own_id(name: str, digest: str, taken: Collection[str] = ()) -> str:
    """An id for a document whose own one is taken."""
    tries = (f"{name}-{digest[:size]}" for size in (6, len(digest)))
    return next(one for one in chain(tries, (f"{name}-{digest}-{number}" for number in count(2))) if one not in taken)


def two_labels(first: str, one: Label, second: str, other: Label, *, advice: str = "Keep one.") -> DocumentError:
    """The error for one text under two labels."""
    return DocumentError(f"Documents {first!r} ({one.value}) and {second!r} ({other.value}) are the same text under two labels. {advice}")
