"""Robustness suites by name: the same documents, or the model, changed one way, at several levels.

In: the name of a suite. Out: a `Suite`, with its levels and how a request is changed at each. One real use:
`get_suites(["length"])[0].levels[0]` is `Level("100 tokens", 100, "tokens", tokens=100)`.
"""

from __future__ import annotations

from collections.abc import Sequence

from docward.errors import RecipeError
from docward.evaluation.suites import drifting, lengths, prompts, texts
from docward.evaluation.suites.suite import UNCHANGED, Asked, Kit, Level, Suite

__all__ = ["EVERY", "SUITES", "UNCHANGED", "Asked", "Kit", "Level", "Suite", "get_suites"]

SUITES: dict[str, Suite] = {suite.name: suite for suite in (*prompts.SUITES, *texts.SUITES, *lengths.SUITES, *drifting.SUITES)}
EVERY = "all"  # the name that stands for all of them


def get_suites(names: Sequence[str]) -> list[Suite]:
    """Give the suites of those names, each once, in the table's order; `all` names every one.

    Raises:
        RecipeError: no suite has that name; the message has the nearest one and all that are.
    """
    from difflib import get_close_matches

    for name in names:
        if name != EVERY and name not in SUITES:
            near = get_close_matches(name.lower(), SUITES, n=1, cutoff=0.5)
            hint = f" Did you mean `{near[0]}`?" if near else ""
            raise RecipeError(f"There is no suite `{name}`.{hint} Known suites: {', '.join(SUITES)}, or {EVERY}.")
    return [suite for name, suite in SUITES.items() if EVERY in names or name in names]
