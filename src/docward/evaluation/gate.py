"""The gate: does a model meet stated thresholds, with its uncertainty counted against it.

In: a folder with `metrics.json` (a run's, or that of `docward evaluate`) and thresholds. Out: one `Held` a threshold, as JUnit XML or a Markdown table too.
A threshold is held against the interval's safe end: the lower end of the block rate, the upper end of the two others. One real row:
`Held("block rate", "malicious", Interval(0.95, 0.87, 0.98), 0, 0.9, False, "undecided: ...; 80 documents cannot decide it, about 139 ...")`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from docward.errors import UsageError
from docward.evaluation.sizes import documents_to_pass
from docward.evaluation.statistics import Interval
from docward.types import Label

MEASURES = {Label.MALICIOUS: "block rate", Label.SENSITIVE: "over-refusal", Label.ORDINARY: "false refusal"}
OPTIONS = {Label.MALICIOUS: "--min-block-rate", Label.SENSITIVE: "--max-over-refusal", Label.ORDINARY: "--max-false-refusal"}
DEFENDED = "defended"
ROUNDING = 1e-9  # an end may be that much on the wrong side of its value


@dataclass(frozen=True, slots=True)
class Held:
    """A threshold held against a pooled rate. The interval is None where nothing was judged, which never passes."""

    measure: str
    set: Label
    interval: Interval | None
    unjudged: int
    threshold: float
    passed: bool
    says: str

    @property
    def wanted(self) -> str:
        """The threshold in words."""
        return f"at {'least' if self.set == Label.MALICIOUS else 'most'} {_percent(self.threshold)}"

    @property
    def found(self) -> str:
        """The rate and its interval in words."""
        if self.interval is None:
            return "not judged"
        unjudged = f", {self.unjudged} unjudged" if self.unjudged else ""
        return f"{_percent(self.interval.value)} ({_percent(self.interval.low)} to {_percent(self.interval.high)}){unjudged}"


def read_metrics(run: Path, model: str | None = None) -> tuple[str, dict[str, Any]]:
    """The name and the metrics of the model to gate.

    Args:
        run: a run folder, or the folder of an evaluation.
        model: of a run folder; default: the defended one.

    Raises:
        UsageError: there are no metrics, or none of that model, or they are not what Docward writes.
    """
    path = run / "metrics.json"
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(
            f"Cannot read {path}: {error.strerror}. Give the folder of a finished docward run, or the --output-dir of a finished docward evaluate."
        ) from error
    except ValueError as error:
        raise UsageError(f"{path} is not JSON ({error}). Run the command that made the folder again.") from error
    models = found.get("models") if isinstance(found, dict) else None
    if models is None:
        if model is not None:
            raise UsageError(f"{path} is of one model only: --model {model} is for a run folder. Leave it out.")
        return "the model", _checked(found, path)
    name = model or DEFENDED
    if not isinstance(models, dict) or name not in models:
        raise UsageError(f"{path} has no model {name!r}. It has: {', '.join(models) or 'none'}.")
    return name, _checked(models[name], path)


def _checked(metrics: Any, path: Path) -> dict[str, Any]:
    rates = metrics.get("pooled") if isinstance(metrics, dict) else None
    if not isinstance(rates, dict) or not all(isinstance(rate, dict) and _is_rate(rate) for rate in rates.values()):
        raise UsageError(f"{path} holds no pooled rates with value, low and high from 0 to 1. Run the command that made the folder again.")
    missing = metrics.get("missing")
    if isinstance(missing, dict) and missing.get("replies"):
        raise UsageError(f"{path} is of an unfinished evaluation: {missing['replies']} replies did not come. Run the same docward evaluate again, then gate.")
    return dict(metrics)


def _is_rate(rate: Mapping[str, Any]) -> bool:
    ends: list[Any] = [rate.get(name) for name in ("low", "value", "high")]
    measured = all(type(end) in (int, float) for end in ends) and 0 <= ends[0] <= ends[1] + ROUNDING <= ends[2] + 2 * ROUNDING <= 1 + 3 * ROUNDING
    return type(rate.get("unjudged")) is int and (measured or ends == [None] * 3)


def hold(metrics: Mapping[str, Any], thresholds: Mapping[Label, float]) -> list[Held]:
    """Hold each threshold against its rate.

    Raises:
        UsageError: there is no threshold, or one is no share from 0 to 1.
    """
    if not thresholds:
        raise UsageError(f"No threshold was given, so nothing can be held. Give at least one of {', '.join(OPTIONS.values())}, such as --min-block-rate 0.9.")
    for label, threshold in thresholds.items():
        if not 0 <= threshold <= 1:  # NaN is neither
            hint = f" Did you mean {threshold / 100:g}?" if 1 < threshold <= 100 else ""
            raise UsageError(f"{OPTIONS[label]} {threshold:g}: wanted a share from 0 to 1.{hint}")
    return [_held(label, metrics, thresholds[label]) for label in MEASURES if label in thresholds]


def _held(label: Label, metrics: Mapping[str, Any], threshold: float) -> Held:
    rate = metrics["pooled"].get(label.value) or {"value": None, "unjudged": 0}
    if rate["value"] is None:
        why = f"all {rate['unjudged']} replies are unjudged" if rate["unjudged"] else "there were none"
        return Held(MEASURES[label], label, None, rate["unjudged"], threshold, False, f"no reply to {label} documents was judged ({why})")
    interval = Interval(rate["value"], rate["low"], rate["high"])
    safe, other = (interval.low, interval.high) if label == Label.MALICIOUS else (interval.high, interval.low)
    value_meets, safe_meets, other_meets = (end >= threshold if label == Label.MALICIOUS else end <= threshold for end in (interval.value, safe, other))
    side = "lower" if label == Label.MALICIOUS else "upper"
    if safe_meets:
        says = f"the {side} end of the interval meets the threshold"
    elif value_meets:
        says = f"undecided: the rate meets the threshold, the {side} end of its interval does not{_more(metrics, label, interval, threshold)}"
    else:
        says = "the rate does not meet the threshold" + (", though its interval does not rule out that the model does" if other_meets else "")
    return Held(MEASURES[label], label, interval, rate["unjudged"], threshold, safe_meets, says)


def _more(metrics: Mapping[str, Any], label: Label, rate: Interval, threshold: float) -> str:
    """How many documents would decide."""
    counts = metrics.get("documents")
    documents = counts.get(label.value) if isinstance(counts, dict) else None
    if not isinstance(documents, int) or documents < 1:
        return ""
    enough = documents_to_pass(rate, documents, threshold)
    if enough is None:
        return "; no number of documents would change that"
    return f"; {documents:,} documents cannot decide it, about {enough:,} with the same rate would"


def _percent(share: float) -> str:
    return f"{100 * share:.4g}%"


def junit(held: Sequence[Held], model: str) -> str:
    """The result as JUnit XML, one test case a threshold."""
    counts = {"tests": str(len(held)), "failures": str(sum(not one.passed for one in held)), "errors": "0", "skipped": "0", "time": "0"}
    root = ElementTree.Element("testsuites", {"name": "docward gate", **{name: counts[name] for name in ("tests", "failures", "errors", "time")}})
    suite = ElementTree.SubElement(root, "testsuite", {"name": f"docward gate: {model}", **counts})
    for one in held:
        case = ElementTree.SubElement(suite, "testcase", classname="docward.gate", name=f"{one.measure} {one.wanted}", time="0")
        said = f"{one.measure}: {one.found}, wanted {one.wanted}: {one.says}."
        if one.passed:
            ElementTree.SubElement(case, "system-out").text = said
        else:
            ElementTree.SubElement(case, "failure", type="threshold", message=said).text = said
    ElementTree.indent(root)
    return ElementTree.tostring(root, encoding="unicode", xml_declaration=True) + "\n"


def markdown(held: Sequence[Held], model: str) -> str:
    """The result as a Markdown table with a heading, for the summary of a CI job."""
    failed = sum(not one.passed for one in held)
    title = f"{failed} of {len(held)} thresholds not met" if failed else "all thresholds met"
    lines = [f"### Docward gate, {model}: {title}", "", "| measure | documents | found (95% interval) | wanted | result | why |", "|---|---|---|---|---|---|"]
    lines += [f"| {one.measure} | {one.set} | {one.found} | {one.wanted} | {'pass' if one.passed else '**FAIL**'} | {one.says} |" for one in held]
    return "\n".join(lines) + "\n"
