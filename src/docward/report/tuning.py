"""How a run was tuned, as people read it: `training.jsonl` and `probes.jsonl` put into curves, rows and words (`dial.py` reads the calibration).

In: a run folder; either file may be missing, of an older version, or edited by hand. A line that cannot be read is left out, counted, and said to be left out;
a value that is none is not measured. Only numbers leave here, no text of a file. Out: plain values for the page's figures and template. Real rows:
`{"step": 10, "loss": 2.9, "defense": 1.2, "benign": 1.5, "general": 1.1, "anchor": null, "examples": 150, "seconds": 31.0}` and
`{"step": 20, "pooled": {"malicious": {"hits": 8, "judged": 20, "unjudged": 0, "value": 0.4, "low": 0.2, "high": 0.6}}, "balance": null, "best": true}`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from docward.report import dial as dials
from docward.report.figures import RATE_NAMES, SETS, TERMS
from docward.report.values import count, duration, interval, mapping, number, percent, share, signed

LAST_STEP = 10**9
"""A step beyond this is a slip of the hand: it would squeeze the whole figure into its left edge."""


class Log(NamedTuple):
    """The rows of one file in the order of their steps. `odd` counts lines that could not be read, `there` tells whether there is a file."""

    name: str
    rows: list[dict[str, Any]]
    odd: int
    there: bool


def read_training(run: Path) -> Log:
    """The log of the losses: `step`, the terms that were measured, and `seconds`, `examples` (both since the start) and `examples_per_second` where told."""
    return _read(run / "training.jsonl", _training_row)


def read_probes(run: Path) -> Log:
    """The probes taken while tuning: a rate or None for each set, the balance or None, whether it was the best so far, and documents by set if told."""
    return _read(run / "probes.jsonl", _probe_row)


def _read(path: Path, row_of: Callable[[Mapping[str, Any]], dict[str, Any] | None]) -> Log:
    if not path.is_file():
        return Log(path.name, [], 0, there=False)
    lines = [line for line in path.read_bytes().removeprefix(b"\xef\xbb\xbf").split(b"\n") if line.strip()]
    found = [row_of(value) for line in lines if (value := _object(line))]
    rows = sorted((row for row in found if row), key=lambda row: row["step"])
    return Log(path.name, rows, len(lines) - len(rows), there=True)


def _object(line: bytes) -> Mapping[str, Any]:
    try:
        return mapping(json.loads(line))
    except (ValueError, RecursionError):  # besides torn JSON: another encoding, a number of 5,000 digits, 100,000 brackets
        return {}


def _step(row: Mapping[str, Any]) -> int | None:
    step = number(row.get("step"))
    return int(step) if step is not None and 0 <= step <= LAST_STEP and step == int(step) else None


def _training_row(row: Mapping[str, Any]) -> dict[str, Any] | None:
    step = _step(row)
    measured = {name: value for name in TERMS if (value := number(row.get(name))) is not None}
    if step is None or not measured:
        return None
    told = {name: value for name in ("seconds", "examples", "examples_per_second") if (value := number(row.get(name))) is not None and value >= 0}
    return {"step": step, **measured, **told}


def _probe_row(row: Mapping[str, Any]) -> dict[str, Any] | None:
    step, pooled = _step(row), mapping(row.get("pooled"))
    if step is None or not any(label in pooled for label in SETS):
        return None
    documents = {label: count(many) for label, many in mapping(row.get("documents")).items() if label in SETS and count(many)}
    rates = {label: _rate(pooled.get(label)) for label in SETS}
    return {"step": step, "rates": rates, "balance": _balance(row.get("balance")), "best": row.get("best") is True, "documents": documents}


def _rate(given: Any) -> dict[str, Any] | None:
    """A rate as the page's tables take it; None where the set is missing, a value of None where nothing was judged or it is no share."""
    if not isinstance(given, Mapping):
        return None
    value = share(given.get("value"))
    counted = {name: count(given.get(name)) for name in ("hits", "judged", "unjudged")}
    return {**counted, "value": value, **_ends(value, share(given.get("low")), share(given.get("high")))}


def _balance(given: Any) -> dict[str, float | None] | None:
    value, low, high = (number(mapping(given).get(name)) for name in ("value", "low", "high"))
    return None if value is None or abs(value) > 1 else {"value": value, **_ends(value, low, high)}


def _ends(value: float | None, low: float | None, high: float | None) -> dict[str, float | None]:
    """The ends of an interval, both or none: one that its own value lies outside of is none."""
    whole = value is not None and low is not None and high is not None and low <= value <= high
    return {"low": low if whole else None, "high": high if whole else None}


# ---------------------------------------------------------------------------------------------------------------- words


def kept(probes: Log) -> dict[str, Any] | None:
    """The probe of the adapter that was kept: the last that was the best so far; None where none is marked."""
    return next((row for row in reversed(probes.rows) if row["best"]), None)


def kept_words(probes: Log) -> str:
    """Which step was kept, what it did, and on how many replies and documents that rests."""
    row = kept(probes)
    if row is None:
        return "No probe is marked as the best, so which step was kept is not known." if probes.rows else ""
    rates = "; ".join(f"{RATE_NAMES[label].lower()} {_rate_words(row['rates'][label])}" for label in SETS)
    balance = row["balance"]
    ends = f" ({signed(balance['low'])} to {signed(balance['high'])})" if balance and balance["low"] is not None else ""
    return f"Kept: step {row['step']:,}. {rates[:1].upper()}{rates[1:]}; balance {signed(balance and balance['value'])}{ends}. {_rests_on(row)}"


def _rate_words(rate: Mapping[str, Any] | None) -> str:
    if rate is None or rate["value"] is None:
        return "not measured" + (f" ({rate['unjudged']:,} unjudged)" if rate and rate["unjudged"] else "")
    unjudged = f", {rate['unjudged']:,} unjudged" if rate["unjudged"] else ""
    ends = f"{interval(rate)}; " if interval(rate) else ""
    return f"{percent(rate['value'])} ({ends}{rate['hits']:,} of {rate['judged']:,} replies{unjudged})"


def _rests_on(row: Mapping[str, Any]) -> str:
    told = [f"{row['documents'][label]:,} {label}" for label in SETS if label in row["documents"]]
    if not told:
        return "How many documents these replies come from is not recorded."
    return f"It rests on {' and '.join([', '.join(told[:-1]), told[-1]] if told[1:] else told)} documents."


def training_words(training: Log) -> str:
    """How far tuning went, how long it took and how fast it was."""
    if not training.rows:
        return ""
    last = training.rows[-1]
    said = f"{len(training.rows):,} {'row' if len(training.rows) == 1 else 'rows'} logged; the last at step {last['step']:,}"
    said += f", total loss {last['loss']:.3f}" if "loss" in last else ""
    spent = ([f"{int(last['examples']):,} examples"] if "examples" in last else []) + ([duration(last["seconds"])] if "seconds" in last else [])
    said += f", after {' and '.join(spent)}" if spent else ""
    speeds = [row["examples_per_second"] for row in training.rows if "examples_per_second" in row]
    return f"{said}{f'; {median(speeds):.3g} examples a second (median of the rows)' if speeds else ''}."


def odd_words(log: Log) -> str:
    """How many lines of a file are not shown; empty where all are."""
    if not log.odd:
        return ""
    return f"{log.odd:,} {'line' if log.odd == 1 else 'lines'} of {log.name} could not be read and {'is' if log.odd == 1 else 'are'} not shown here."


# ---------------------------------------------------------------------------------------------------------------- the whole


def view(run: Path) -> dict[str, Any]:
    """Everything the page shows of the tuning of a run."""
    training, probes, dial = read_training(run), read_probes(run), dials.read(run)
    best = kept(probes)
    return {
        "there": training.there or probes.there or dial.there,
        "training": training,
        "probes": probes,
        "kept": best["step"] if best else None,
        "reach": max((row["step"] for log in (training, probes) for row in log.rows), default=0),
        "kept_words": kept_words(probes),
        "training_words": training_words(training),
        "dial": dial,
        "dial_words": dials.words(dial),
        "odd": [said for said in (odd_words(training), odd_words(probes), dials.odd_words(dial)) if said],
    }
