"""Documents from files: JSONL rows with `text` and `label`, or the starter corpus.

In: paths. Out: `Document` records, cleaned, each id once. One real row: `{"text": "Dear all, ...", "label": "ordinary"}`.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from typing import Any

from docward.errors import DocumentError
from docward.records import read_lines, text_hash, typed
from docward.types import Document, Label

CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ue000\ue001]")


def clean(text: str) -> str:
    """Normalise line ends and Unicode form, drop control characters and outer white space. Words stay as they are."""
    whole = text.encode("utf-8", "replace").decode("utf-8")  # half a surrogate pair, as JSON's \\ud800 gives, fits in no file
    return CONTROL.sub("", unicodedata.normalize("NFC", whole.replace("\r\n", "\n").replace("\r", "\n"))).strip()


def read_documents(path: Path, *, label: Label | None = None) -> list[Document]:
    """Read documents from a JSONL file.

    Args:
        path: one JSON object a line; `text` is required, and `label` unless it is given here.
        label: what all rows are; a row that says otherwise is an error.

    Raises:
        DocumentError: the file or a row cannot be used; the message names file and line.
    """
    return [_document(row, label, where=f"{path}:{number}") for number, row in read_lines(path)]


def _document(row: dict[str, Any], label: Label | None, *, where: str) -> Document:
    text = row.get("text")
    if not isinstance(text, str):
        found = f"fields {', '.join(sorted(row)) or 'none'}" if "text" not in row else f"`text` is a {type(text).__name__}"
        raise DocumentError(f"{where}: a document needs a `text` field with a string ({found}).")
    if not clean(text):
        raise DocumentError(f"{where}: the document's `text` is empty.")
    said = row.get("label", label)
    if said is None:
        raise DocumentError(f"{where}: the document has no `label`. Allowed: {', '.join(Label)}. Or say it for the whole file.")
    if said not in list(Label):
        raise DocumentError(f"{where}: unknown label {said!r}. Allowed: {', '.join(Label)}.")
    if label is not None and said != label:
        raise DocumentError(f"{where}: the row says {said!r}, but the file was given as {label.value!r} documents.")
    known = {field: row[field] for field in Document.__slots__ if row.get(field) is not None}
    return typed(Document, known | {"text": clean(text), "label": said, "id": str(row.get("id") or text_hash(clean(text)))}, where=where)


def starter_path() -> Path:
    """The file of the documents written for this project."""
    return Path(str(files("docward.corpus") / "starter.jsonl"))


def starter_documents() -> list[Document]:
    """The documents written for this project; each says in `split` whether it is for training or held out."""
    return read_documents(starter_path())


def general_instructions() -> list[tuple[str, str]]:
    """The starter's instructions without a document: (id, instruction)."""
    path = Path(str(files("docward.corpus") / "general.jsonl"))
    return [(str(row["id"]), str(row["instruction"])) for _, row in read_lines(path)]


def unique_documents(documents: Iterable[Document]) -> list[Document]:
    """Keep one of each text under a label, and give every document an id of its own.

    Raises:
        DocumentError: one text stands under two labels.
    """
    kept: dict[str, Document] = {}
    ids: set[str] = set()
    for document in documents:
        folded = " ".join(document.text.lower().split())
        first = kept.get(folded)
        if first is None:
            fresh = document if document.id not in ids else replace(document, id=f"{document.id}-{text_hash(document.text)[:6]}")
            kept[folded] = fresh
            ids.add(fresh.id)
        elif first.label != document.label:
            raise DocumentError(
                f"Documents {first.id!r} ({first.label.value}) and {document.id!r} ({document.label.value}) are the same text under two labels. Keep one."
            )
    return list(kept.values())


def by_label(documents: Sequence[Document], label: Label) -> list[Document]:
    """The documents of one label, in order."""
    return [document for document in documents if document.label == label]
