"""Sources: what a recipe's `documents:` names becomes rows with the fields of a document.

In: `Source` sections. Out: rows one by one, in constant memory, each with the place it came from. One real row:
`Row("mine.csv:7", {"text": "...", "label": "ordinary", "source": "mine.csv", "license": "CC-BY-4.0"})`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from hashlib import sha256
from itertools import islice
from pathlib import Path
from typing import Any

from docward.documents.reading import FIELDS, OWN, Row, file_rows, folder_files, is_folder, own_path
from docward.documents.texts import closed, shown
from docward.errors import DocumentError
from docward.presets import Preset, get_preset
from docward.recipe import Source, as_text
from docward.records import file_hash, text_hash
from docward.tasks import GOLD_COLUMN
from docward.types import Label


def source_rows(source: Source) -> Iterator[Row]:
    """Give a source's rows with the fields of a document, at most `source.limit`.

    Raises:
        DocumentError: a file or data set cannot be read, or a column or a label is not what the recipe says.
    """
    preset = get_preset(source.preset) if source.preset else None
    return islice(_named_rows(source, preset), source.limit)


def _named_rows(source: Source, preset: Preset | None) -> Iterator[Row]:
    said = {"source": source.preset or source.hub or Path(source.title).name, "license": source.license or (preset.license if preset else None)}
    said["language"] = source.language or (preset.language if preset else None)
    if preset and preset.prompts:
        said["form"] = "prompt"
    for row in _raw_rows(source, preset):
        for place, values in enumerate(_preset_rows(preset, row) if preset else [row.values]):
            fields = _fields(source, Row(row.where, dict(values)))
            fields = {name: value for name, value in said.items() if value is not None} | fields
            if preset and preset.name not in OWN and "id" not in fields:
                fields["id"] = f"{preset.name}-{text_hash(str(fields.get('text')))}" + (f"-{place}" if place else "")
            yield Row(row.where, fields)


def _preset_rows(preset: Preset, row: Row) -> Iterator[dict[str, Any]]:
    if missing := [name for name in preset.columns if name not in row.values]:
        raise DocumentError(
            f"{row.where}: the source {preset.name} needs the columns {', '.join(preset.columns)}, and {', '.join(missing)} is not there "
            f"(found {', '.join(sorted(row.values))}). Is this the right file of {preset.hub}?"
        )
    yield from preset.rows(row.values)


def _fields(source: Source, row: Row) -> dict[str, Any]:
    """A row by the names of a document's fields. Columns that are none of its fields are left out."""
    values = {name: value for name, value in row.values.items() if name in FIELDS or name == "gold" or str(name).startswith(GOLD_COLUMN)}
    for field, column in source.columns.items():
        if column not in row.values:
            raise DocumentError(f"{row.where}: there is no column {column!r} for `{field}`. There are: {', '.join(map(str, sorted(row.values)))[:300]}.")
        values[field] = row.values[column]
    if "text" not in values:
        raise DocumentError(
            f"{row.where}: a document needs a `text` field with a string (fields {', '.join(map(str, sorted(row.values)))[:300] or 'none'}). "
            "Name its column: columns: {text: ...}"
        )
    if source.labels and "label" in values:
        found = _label_text(values["label"])
        found = found.lower() if found in ("True", "False") and found not in source.labels else found  # as Python writes them into a CSV
        if found not in source.labels:
            raise DocumentError(f"{row.where}: the label column says {shown(found)}, which `labels` does not have. It has: {', '.join(source.labels)}.")
        values["label"] = source.labels[found]
    if source.label and "label" not in source.columns and values.get("label") not in list(Label):
        values["label"] = source.label  # a column of that name which means something else
    if not isinstance(values.get("id"), str | None):
        values["id"] = str(values["id"])
    return {name: value for name, value in values.items() if name == "text" or value not in (None, "")}  # an empty cell says nothing


def _label_text(value: Any) -> str:
    return as_text(int(value) if isinstance(value, float) and value.is_integer() else value)  # 1.0: what pandas makes of 1 in a column with gaps


def _raw_rows(source: Source, preset: Preset | None) -> Iterator[Row]:
    if source.path:
        return file_rows(Path(source.path), encoding=source.encoding, delimiter=source.delimiter)
    if preset and preset.name in OWN:
        return file_rows(own_path(preset.name))
    if preset:
        return hub_rows(preset.hub, name=source.name or preset.config, split=source.split or preset.split, revision=source.revision, streaming=source.streaming)
    return hub_rows(str(source.hub), name=source.name, split=source.split or "train", revision=source.revision, streaming=source.streaming)


def hub_rows(place: str, *, name: str | None, split: str, revision: str | None, streaming: bool) -> Iterator[Row]:
    """Give the rows of a data set on the Hub, or of a local folder in its form.

    Raises:
        DocumentError: there is no such set, configuration or split, it is gated, or the Hub cannot be reached.
    """
    import datasets

    local = Path(place).expanduser()
    try:
        found = datasets.load_dataset(str(local) if local.is_dir() else place, name, split=split, revision=revision, streaming=streaming)
        for number, row in enumerate(found, 1):
            yield Row(f"{place} ({split}), row {number}", dict(row))
    except DocumentError:
        raise
    except Exception as error:  # hub, network, parsers and scripts: each fails in its own class
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise DocumentError(
            f"The data set {place!r} (split {split!r}) cannot be read: {first[:300]} Check `hub:`, `name:` and `split:`; a gated one wants its terms "
            "accepted on its page and `hf auth login`. Without the Hub, download its file and give it with `path:`."
        ) from error


def source_hash(source: Source) -> str:
    """What tells whether a source is still the same: the hash of its files, or the name of what the Hub holds.

    Raises:
        DocumentError: the file or folder is not there.
    """
    if not source.path:
        return file_hash(own_path(source.preset)) if source.preset in OWN else f"{source.title}@{source.revision or 'latest'}"
    path = Path(source.path)
    if not is_folder(path):
        return _hash(path)
    total = sha256()
    for one in folder_files(path):
        total.update(os.fsencode(one.relative_to(path)) + f":{_hash(one)}\n".encode())
    return total.hexdigest()


def _hash(path: Path) -> str:
    try:
        return file_hash(path)
    except OSError as error:
        raise closed(path, error) from error
