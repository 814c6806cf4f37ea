"""The dataset folder: Parquet per split, a dataset card, the audit. It opens with `datasets.load_dataset(folder)`.

In: examples and an audit. Out: `train.parquet, validation.parquet, test.parquet, README.md, audit.json`; the audit is written last and marks the
folder as whole.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from docward.records import read_parquet, write_json, write_parquet, write_text
from docward.types import Document, Example, Split

CARD = """---
license: {license}
language: [{languages}]
task_categories: [text-generation]
tags: [safety, refusal, docward]
configs:
- config_name: default
  data_files:
{data_files}---

# Defense dataset

Made by Docward. Each row is one document under one task with the answer to learn: a refusal for a malicious document, the task done for a sensitive or an
ordinary one. The form is that of "Cross-Task Defense" (arXiv 2405.15202).

| split | documents (malicious / sensitive / ordinary) | examples to refuse | examples to do |
|---|---|---|---|
{rows}

- `document` is the text as the model sees it, `instruction` what is asked, `response` the answer to learn, `want` refuse or comply.
- `origin` of a response: `refusal`, `gold` (the data set itself has the answer) or `untuned` (the untuned model's own reply). Origins: {origins}.
- Test rows whose answer only a model could give have an empty `response`.
- Sources: {sources}. Licences: {licenses}.
- Malicious documents of the starter corpus carry the intent and form of malicious text and nothing operational.
- Surface baseline (length, opener, punctuation, function words), malicious against sensitive, cross-validated: AUC {auc}. See `audit.json`.
"""


def save_dataset(folder: Path, documents: Sequence[Document], examples: Sequence[Example], audit: dict[str, Any]) -> None:
    """Write a dataset folder; `audit.json` comes last."""
    parts = {split: [example for example in examples if example.split == split] for split in Split}
    for split, part in parts.items():
        if part:
            write_parquet(folder / f"{split.value}.parquet", part)
    write_text(folder / "README.md", _card(documents, parts, audit))
    write_json(folder / "audit.json", audit)


def read_split(folder: Path, split: Split) -> list[Example]:
    """Read one split back; empty if the dataset has none of it."""
    path = folder / f"{split.value}.parquet"
    return read_parquet(path, Example) if split == Split.TRAIN or path.is_file() else []


def _card(documents: Sequence[Document], parts: dict[Split, list[Example]], audit: dict[str, Any]) -> str:
    licenses = sorted({document.license for document in documents if document.license})
    wants = {split: audit["examples"].get(split.value, {}).values() for split in parts}
    return CARD.format(
        license=licenses[0].lower() if len(licenses) == 1 else "other",
        languages=", ".join(sorted({document.language for document in documents})),
        data_files="".join(f"  - split: {split.value}\n    path: {split.value}.parquet\n" for split, part in parts.items() if part),
        rows="\n".join(
            f"| {split.value} | {' / '.join(str(n) for n in audit['documents'][split.value].values())} | "
            f"{sum(cell.get('refuse', 0) for cell in wants[split])} | {sum(cell.get('comply', 0) for cell in wants[split])} |"
            for split in parts
        ),
        origins=", ".join(f"{name} {count}" for name, count in audit["origins"].items()),
        sources=", ".join(sorted({document.source for document in documents if document.source})) or "not stated",
        licenses=", ".join(licenses) or "not stated",
        auc=audit["surface"]["auc"] if audit["surface"]["auc"] is not None else "not measured (too few documents)",
    )
