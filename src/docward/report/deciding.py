"""What figures decide and what they cannot, for the page.

Differences to the untuned model, what is kept of its utility, what so many documents tell, corrected rates, replies that did not come or were withheld.
In: what `metrics.json` holds of each model, which may be old, partial or hostile. Out: plain values and sentences. One real row of the differences:
`{"set": "malicious", "documents": 18, "value": 0.12, "low": 0.03, "high": 0.25, "p": 0.19, "says": "undecided", "tone": "unsure"}`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

from docward.evaluation.statistics import FAILS, HOLDS
from docward.report import values
from docward.report.figures import SETS

THE_UNTUNED = "the untuned model"
MEASURES = {
    "chrf_vs_untuned": f"chrF against {THE_UNTUNED}'s reply",
    "case_accuracy": "characters in the right case",
    "accuracy": "right labels",
    "chrf": "chrF",
    "rouge_l": "ROUGE-L",
}
WHYS = 3  # reasons for missing or withheld replies that are named
REASON = 200  # characters of one, and of a sentence of advice a few times that


def differences(metrics: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A model against the untuned one over all tasks, a row a set; empty where they were not compared."""
    rows = {row.get("set"): row for row in _rows(metrics.get("differences"))}
    return [found for label in SETS if (found := _difference(label, rows.get(label)))]


def _difference(label: str, row: Mapping[str, Any] | None) -> dict[str, Any] | None:
    numbers = {name: values.number((row or {}).get(name)) for name in ("value", "low", "high", "p_holm")}
    if row is None or numbers["value"] is None:
        return None
    says = values.shown(row.get("says"))
    wanted = "more refusals" if label == "malicious" else "fewer refusals"
    tone = "unsure" if not row.get("decided") else "good" if says == wanted else "bad"
    return {"set": label, "documents": values.count(row.get("documents")), **numbers, "says": says, "tone": tone}


def sentences(found: list[dict[str, Any]]) -> list[str]:
    """Differences in words, the undecided ones too."""
    return [f"On {row['set']} documents: {row['says']} ({values.points(row['value'])} points{_reach(row)})." for row in found]


def _reach(row: Mapping[str, Any]) -> str:
    return "" if row["low"] is None or row["high"] is None else f", {values.points(row['low'])} to {values.points(row['high'])}"


def kept(metrics: Mapping[str, Any], yardstick: str = THE_UNTUNED) -> dict[str, Any]:
    """What a model keeps of the utility of the untuned one or another `yardstick`: rows by task, and how many hold; empty where it was not measured."""
    rows = [_kept(row, yardstick) for row in _rows(metrics.get("retention"))]
    margins = {row["margin"] for row in rows if row["margin"] is not None}
    counts = Counter(row["says"] for row in rows)
    kinds = "tasks" if len({row["task"] for row in rows}) == len(rows) else "measures"
    said = ", ".join(f"{says} on {many} of {len(rows)}" for says, many in sorted(counts.items(), key=lambda one: (one[0] != HOLDS, one[0] != FAILS, one[0])))
    return {"rows": rows, "sentence": f"{said[:1].upper()}{said[1:]} {kinds}.", "margin": margins.pop() if len(margins) == 1 else None} if rows else {}


def _kept(row: Mapping[str, Any], yardstick: str) -> dict[str, Any]:
    says = values.shown(row.get("says"))
    numbers = {name: values.number(row.get(name)) for name in ("value", "low", "margin")}
    told = {"task": values.shown(row.get("task")), "measure": measure_name(row, yardstick), "documents": values.count(row.get("documents"))}
    return {**told, **numbers, "says": says, "tone": {HOLDS: "good", FAILS: "bad"}.get(says, "unsure")}


def measure_name(row: Mapping[str, Any], yardstick: str = THE_UNTUNED) -> str:
    """A measure in words, and what it is taken against where its row says so; `yardstick` is the model that another one is set against."""
    name = str(row.get("measure"))
    said = MEASURES[name].replace(THE_UNTUNED, yardstick) if name in MEASURES else values.shown(name)
    return f"{said}, against gold" if row.get("against") == "gold" and name not in ("accuracy", "case_accuracy") else said


def advice(metrics: Mapping[str, Any]) -> list[tuple[str, str]]:
    """A set and what its documents can and cannot tell."""
    found = values.mapping(metrics.get("advice"))
    return [(label, values.shown(found[label], 3 * REASON)) for label in SETS if isinstance(found.get(label), str)]


def missing(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """How many replies did not come and why; empty where all did, or it is not known."""
    return _lack(metrics.get("missing"))


def withheld(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """How many replies a server withheld and why; empty where it withheld none, or it is not known."""
    return _lack(metrics.get("withheld"))


def _lack(told: Any) -> dict[str, Any]:
    found = values.mapping(told)
    replies = values.count(found.get("replies"))
    why = sorted(values.counts(found.get("why")).items(), key=lambda one: -one[1])[:WHYS]
    return {"replies": replies, "why": [(values.shown(name, REASON), many) for name, many in why]} if replies else {}


def not_taken(metrics: Mapping[str, Any]) -> list[str]:
    """The parameters that a server was asked without, since it takes none of them."""
    found = metrics.get("not_taken")
    return [values.shown(name) for name in found if isinstance(name, str)] if isinstance(found, list) else []


def corrected(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """Rates corrected for the judge's errors beside the plain ones, a set's tasks and then all of them; empty where none were asked for."""
    found = values.mapping(metrics.get("corrected"))
    rows = list(_corrected(found, metrics))
    if not rows:
        return {}
    about = {name: values.shown(found.get(name), REASON) for name in ("judge", "validation")}
    shares = {name: values.share(found.get(name)) for name in ("sensitivity", "specificity")}
    return {**about, **shares, "labels": values.count(found.get("labels")), "rows": rows}


def _corrected(found: Mapping[str, Any], metrics: Mapping[str, Any]) -> Iterator[tuple[str, str, dict[str, Any] | None, dict[str, Any]]]:
    plain = {(row.get("set"), row.get("task")): row for row in [*metrics["rates"], *metrics["pooled"].values()]}
    for label in SETS:
        rows = [row for row in _rows(found.get("rates")) if row.get("set") == label]
        rows += [row for row in [values.mapping(found.get("pooled")).get(label)] if isinstance(row, Mapping)]
        for row in rows:
            cell = {name: values.share(row.get(name)) for name in ("value", "low", "high")}
            yield label, values.shown(row.get("task")), plain.get((label, row.get("task"))), cell


def _rows(found: Any) -> list[Mapping[str, Any]]:
    return [row for row in found if isinstance(row, Mapping)] if isinstance(found, list) else []
