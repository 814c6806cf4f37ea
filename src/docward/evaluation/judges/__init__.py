"""Judges by name: each reads a Reply and gives a Verdict.

In: the name of a judge. Out: an object with `name` and `judge(reply) -> Verdict`. One real use:
`get_judge("rules").judge(reply).outcome` is `Outcome.REFUSED` for the reply "Sorry, but I can't assist with that."
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from docward.errors import RecipeError
from docward.evaluation.judges.rules import RuleJudge, Ruling, judge_text
from docward.types import Reply, Verdict

__all__ = ["JUDGES", "Judge", "RuleJudge", "Ruling", "get_judge", "judge_text"]


class Judge(Protocol):
    """Whatever gives verdicts. `judge` never raises for a strange reply: it gives UNJUDGED and says why."""

    @property
    def name(self) -> str:
        """The name that stands in every verdict row."""

    def judge(self, reply: Reply) -> Verdict:
        """Give the verdict on one reply."""


JUDGES: dict[str, Callable[[], Judge]] = {"rules": RuleJudge}


def get_judge(name: str) -> Judge:
    """Give the judge of that name.

    Raises:
        RecipeError: no judge has that name; the message names the nearest one and all of them.
    """
    if name in JUDGES:
        return JUDGES[name]()
    from difflib import get_close_matches

    near = get_close_matches(name.lower(), JUDGES, n=1, cutoff=0.5)
    hint = f" Did you mean `{near[0]}`?" if near else ""
    raise RecipeError(f"There is no judge `{name}`.{hint} Known judges: {', '.join(JUDGES)}.")
