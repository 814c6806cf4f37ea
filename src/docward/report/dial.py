"""The refusal token's dial, as people read it: where calibration set it on validation documents, and what more or less of it would refuse there.

In: a run folder; its calibration.json may be missing, of a version without a curve, or edited by hand. A row of the curve that cannot be read is left out,
counted, and said to be left out. Only numbers leave here, no text of the file. Out: plain values for the page's figure and template. A real row of the curve:
`{"bias": -9.313, "malicious": 0.41, "sensitive": 0.01, "ordinary": 0.0}`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from docward.report.figures import SETS
from docward.report.values import count, mapping, number, percent, share, signed

NAME = "calibration.json"
LARGEST_BIAS = 10**4
"""A bias beyond this is a slip of the hand: it would squeeze the whole figure into one edge."""
STRICT = 0.01
"""The share of prompts on ordinary documents at which the page says where the dial would stand."""
LIMITS = {"sensitive": "max_over_refusal", "ordinary": "max_false_refusal"}


class Dial(NamedTuple):
    """What calibration.json says. `there` tells whether there is a file, `whole` whether it could be read; `odd` counts rows that could not.

    `sets` has the prompts and the share refused of each label there is, `limits` the share that calibration allowed, `rows` the curve in order of the bias.
    """

    there: bool
    whole: bool = False
    bias: float | None = None
    sets: Mapping[str, Mapping[str, Any]] = {}
    limits: Mapping[str, float] = {}
    rows: Sequence[Mapping[str, Any]] = ()
    odd: int = 0


def read(run: Path) -> Dial:
    """How the dial of a run was set."""
    path = next((path for folder in ("model", "adapter") if (path := run / folder / NAME).is_file()), None)
    if path is None:
        return Dial(there=False)
    try:
        found = json.loads(path.read_bytes())
    except (ValueError, RecursionError):  # besides torn JSON: another encoding, 100,000 brackets
        found = None
    if not isinstance(found, Mapping):
        return Dial(there=True)
    told = {label: mapping(found.get(label)) for label in SETS}
    sets = {label: {"prompts": count(one.get("prompts")), "refused": part} for label, one in told.items() if (part := share(one.get("refused"))) is not None}
    limits = {label: limit for label, name in LIMITS.items() if (limit := share(found.get(name, found.get(LIMITS["sensitive"])))) is not None}
    given = found.get("curve")
    listed = given if isinstance(given, list) else []
    rows = sorted((row for one in listed if (row := _row(mapping(one)))), key=lambda row: row["bias"])
    odd = len(listed) - len(rows) + (given is not None and not isinstance(given, list))
    return Dial(there=True, whole=True, bias=_bias(found), sets=sets, limits=limits, rows=rows, odd=odd)


def _bias(row: Mapping[str, Any]) -> float | None:
    bias = number(row.get("bias"))
    return bias if bias is not None and abs(bias) <= LARGEST_BIAS else None


def _row(given: Mapping[str, Any]) -> dict[str, Any] | None:
    bias, shares = _bias(given), {label: share(given.get(label)) for label in SETS}
    return None if bias is None or all(one is None for one in shares.values()) else {"bias": bias, **shares}


def words(dial: Dial) -> list[str]:
    """Where the dial stands and what it was set for, and where it would stand for few refusals on ordinary documents."""
    return [said for said in (_stands(dial), _strict(dial)) if said]


def _stands(dial: Dial) -> str:
    if dial.bias is None:
        return ""
    said = f"The dial stands at {signed(dial.bias)}, added to the refusal token's logit"
    if dial.limits:
        said += f", set for at most {_listed([f'{percent(limit)} of prompts on {label}' for label, limit in dial.limits.items()])} documents"
    shares = [f"{percent(one['refused'])} of {one['prompts']:,} prompts on {label}" for label, one in dial.sets.items()]
    return f"{said}. Refused there: {_listed(shares)} documents." if shares else f"{said}."


def _strict(dial: Dial) -> str:
    row = next((row for row in reversed(dial.rows) if row["ordinary"] is not None and row["ordinary"] <= STRICT), None)
    others = [f"{percent(row[label])} of those on {label}" for label in SETS[:2] if row and row[label] is not None]
    if row is None or not others:
        return ""
    prompts = dial.sets.get("ordinary", {}).get("prompts", 0)
    none = f" (none of {prompts:,})" if 0 < prompts < 1 / STRICT else ""
    return f"For at most {percent(STRICT)} of prompts on ordinary documents{none} it would stand at {signed(row['bias'])} and refuse {_listed(others)} ones."


def _listed(parts: Sequence[str]) -> str:
    return " and ".join([", ".join(parts[:-1]), parts[-1]] if parts[1:] else parts)


def odd_words(dial: Dial) -> str:
    """What of the file is not shown; empty where all is."""
    if dial.there and not dial.whole:
        return f"{NAME} could not be read and is not shown here."
    if not dial.odd:
        return ""
    return f"{dial.odd:,} {'row' if dial.odd == 1 else 'rows'} of the curve in {NAME} could not be read and {'is' if dial.odd == 1 else 'are'} not shown here."
