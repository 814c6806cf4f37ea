"""Values on their way to people: read with care from a file that may be old, partial or hostile, and written as they are read.

In: what a JSON file holds. Out: numbers that are numbers, names that are short and printable, and percentages, intervals and durations as text.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

NAME = 48  # characters of a name


def mapping(value: Any) -> Mapping[str, Any]:
    """A mapping as it is; anything else as an empty one."""
    return value if isinstance(value, Mapping) else {}


def number(value: Any) -> float | None:
    """A finite number as it is; anything else as None."""
    finite = isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max  # an int may be too large for a float
    return value if finite else None


def share(value: Any) -> float | None:
    """A number from 0 to 1 as it is; anything else as None."""
    found = number(value)
    return found if found is not None and 0 <= found <= 1 else None


def count(value: Any) -> int:
    """A count; what is none counts as nothing."""
    found = number(value)
    return max(0, int(found)) if found is not None else 0


def counts(value: Any) -> dict[str, int]:
    """The counts in a mapping, by name."""
    return {str(name): count(one) for name, one in mapping(value).items() if number(one) is not None}


def shown(name: Any, room: int = NAME) -> str:
    """A name as one short line: printable characters only, cut."""
    line = " ".join("".join(letter if letter.isprintable() else " " for letter in str(name)).split())
    return line if len(line) <= room else line[: room - 1] + "…"


def percent(share: float | None) -> str:
    """A share in percent, or that there is none."""
    return "not measured" if share is None else f"{100 * share:.1f}".removesuffix(".0") + "%"


def interval(rate: Mapping[str, Any]) -> str:
    """A rate's interval in percent; empty where it has none."""
    low, high = rate.get("low"), rate.get("high")
    return "" if low is None or high is None else f"{percent(low)} to {percent(high)}"


def signed(value: float | None) -> str:
    """A number with its sign."""
    return "not measured" if value is None else f"{round(value, 2) + 0.0:+.2f}".replace("-", "−")  # adding 0.0 turns -0.0 into 0.0


def points(share: float) -> str:
    """A difference of shares in points, with its sign."""
    return f"{100 * share + 0.0:+.1f}".replace("-", "−")


def measure(value: float | None, measure: str) -> str:
    """A utility value: shares as percent, chrF as it is given (0 to 100, or 0 to 1)."""
    if value is None:
        return "not measured"
    return percent(value) if measure.endswith("accuracy") else f"{value:.1f}" if abs(value) > 1 else f"{value:.2f}"


def duration(seconds: float) -> str:
    """Seconds in the units that people use."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{seconds:.1f} s"
