"""The surface baseline beside a model: the rates of a classifier that sees nothing of what a document says.

In: the documents that it is fitted on, and those that a model is evaluated on. Out: what `metrics.json` holds under `surface`. One real row:
`{"fitted_on": "the starter", "training_documents": 435, "pooled": {"malicious": {"hits": 4, "judged": 18, ...}}, "balance": {...}, "sets": [...]}`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from docward.dataset.surface import surface_refuses
from docward.evaluation.rates import balance, classifier_verdicts, pooled
from docward.evaluation.sets import Places, set_metrics
from docward.records import write_json
from docward.types import Document


def surface_baseline(train: Sequence[Document], test: Sequence[Document]) -> dict[str, Any] | None:
    """The rates that surface alone reaches on `test`, with intervals; None where there is nothing to fit on or to decide.

    Short prompts are left out on both sides: length, opener and layout are those of documents.
    """
    fitted_on, tested = ([one for one in documents if not one.is_prompt] for documents in (train, test))
    refuses = surface_refuses(fitted_on, tested)
    if not refuses:
        return None
    verdicts = classifier_verdicts(refuses, {one.id: one.label for one in tested})
    rates = {name: asdict(rate) for name, rate in pooled(verdicts).items()}
    found = {"training_documents": len(fitted_on), "pooled": rates, "balance": (b := balance(verdicts)) and asdict(b)}
    return found | {"sets": set_metrics(verdicts, Places(tested))["sets"]}


def add_surface(folder: Path, metrics: dict[str, Any], train: Sequence[Document], test: Sequence[Document], *, fitted_on: str) -> dict[str, Any]:
    """Add `surface` to the metrics of an evaluation and write its `metrics.json` anew; `fitted_on` says in words where `train` is from."""
    found = surface_baseline(train, test)
    both = metrics | {"surface": found and {"fitted_on": fitted_on} | found}
    write_json(folder / "metrics.json", both)
    return both
