"""The audit: what is in a dataset, and whether surface alone gives the label away.

In: documents and examples. Out: a plain dict, saved as `audit.json` and shown in the report.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from statistics import median
from typing import Any

from docward.dataset.surface import opens_like_an_answer, surface_auc
from docward.types import Document, Example, Label, Split

BINS = (80, 160, 240, 320, 480, 640, 1200)


def audit(
    documents: Sequence[Document], examples: Sequence[Example], *, removed: int, cut: dict[str, int], answer_tokens: dict[str, int], seed: int
) -> dict[str, Any]:
    """Count and compare; `removed` duplicates, `cut` and `answer_tokens` come from the stages that know them."""
    splits: dict[str, set[str]] = defaultdict(set)
    for document in documents:
        splits[document.triple or document.id].add(str(document.split))
    return {
        "documents": {split.value: _labels([d for d in documents if d.split == split]) for split in Split},
        "categories": _table(documents, lambda document: document.category),
        "forms": _table(documents, lambda document: document.form),
        "languages": _table(documents, lambda document: document.language),
        "examples": _examples(examples),
        "origins": dict(Counter(example.origin for example in examples)),
        "words": {label.value: _lengths([len(d.text.split()) for d in documents if d.label == label]) for label in Label if _labels(documents)[label.value]},
        "openers": {label.value: _openers([d for d in documents if d.label == label]) for label in Label if _labels(documents)[label.value]},
        "duplicates": removed,
        "crossing": sum(len(found) > 1 for found in splits.values()),
        "cut": cut,
        "answer_tokens": answer_tokens,
        "surface": surface_auc(documents, seed=seed),
    }


def _labels(documents: Sequence[Document]) -> dict[str, int]:
    return {label.value: sum(document.label == label for document in documents) for label in Label}


def _table(documents: Sequence[Document], field: Callable[[Document], str]) -> dict[str, dict[str, int]]:
    return {name: _labels([d for d in documents if field(d) == name]) for name in sorted({field(d) for d in documents}) if name}


def _examples(examples: Sequence[Example]) -> dict[str, dict[str, dict[str, int]]]:
    counts: dict[str, dict[str, dict[str, int]]] = {}
    for example in examples:
        cell = counts.setdefault(example.split.value, {}).setdefault(example.task, {})
        cell[example.want.value] = cell.get(example.want.value, 0) + 1
    return counts


def _lengths(words: Sequence[int]) -> dict[str, Any]:
    edges = (0, *BINS)
    named = {f"{low}-{high}": sum(low <= count < high for count in words) for low, high in zip(edges, BINS, strict=False)}
    named[f"{BINS[-1]}+"] = sum(count >= BINS[-1] for count in words)
    return {"count": len(words), "lowest": min(words), "median": int(median(words)), "highest": max(words), "histogram": named}


def _openers(documents: Sequence[Document]) -> dict[str, float]:
    return {"answer_like": round(sum(opens_like_an_answer(document.text) for document in documents) / len(documents), 3)}
