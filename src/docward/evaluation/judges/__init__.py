"""Judges by name: each reads Replies and gives Verdicts.

In: the name of a judge, such as `rules` or `openai:qwen3-8b@http://localhost:8000/v1`. Out: an object with `name`, `judge(reply)` and `judge_all(replies)`.
One real use: `get_judge("rules").judge(reply).outcome` is `Outcome.REFUSED` for the reply "Sorry, but I can't assist with that."
A judge that is a model loads or calls it when it is first asked, so getting one is cheap.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from docward.errors import RecipeError
from docward.evaluation.judges.rules import RuleJudge, Ruling, is_settled, judge_text
from docward.types import Reply, Verdict

__all__ = ["JUDGES", "Judge", "JudgeKind", "RuleJudge", "Ruling", "get_judge", "is_settled", "judge_text"]


class Judge(Protocol):
    """Whatever gives verdicts. A strange reply, an outage or an answer off the menu never raises: it is UNJUDGED, and `why` says what happened."""

    @property
    def name(self) -> str:
        """The name that stands in every verdict row."""

    def judge(self, reply: Reply) -> Verdict:
        """Give the verdict on one reply."""

    def judge_all(self, replies: Sequence[Reply]) -> Iterator[Verdict]:
        """Give one verdict a reply, in order, as they come: a model is asked in batches or many times at once."""


@dataclass(frozen=True, slots=True)
class JudgeKind:
    """A kind of judge: how it is named, what it is, and how one is made from what stands behind the colon."""

    form: str
    what: str
    make: Callable[[str], Judge]


def _rules(given: str) -> Judge:
    if given:
        raise RecipeError(f"The judge `rules` takes nothing behind its name, found `rules:{given}`.")
    return RuleJudge()


def _server(given: str) -> Judge:
    from docward.evaluation.judges.servers import ServerJudge

    model, _, base_url = given.partition("@http")
    if not model:
        raise RecipeError(
            "`openai:` wants a model, and a server where it is not OpenAI's own: openai:MODEL@BASE_URL, such as openai:qwen3-8b@http://host:8000/v1."
        )
    if "@" in model and not base_url:  # without this, a forgotten http:// would send the documents to OpenAI
        raise RecipeError(f"`openai:{given}`: the server's address wants its http:// or https://, as in openai:MODEL@http://host:8000/v1.")
    return ServerJudge(model, f"http{base_url}" if base_url else None)


def _wildguard(given: str) -> Judge:
    from docward.evaluation.judges.wildguard import WildGuardJudge

    return WildGuardJudge(given)


def _classifier(given: str) -> Judge:
    from docward.evaluation.judges.classifiers import ClassifierJudge

    model, _, label = given.partition("#")
    if not model:
        raise RecipeError("`classifier:` wants a model: classifier:HUB_ID_OR_FOLDER, or classifier:HUB_ID_OR_FOLDER#LABEL with the label that means refusal.")
    return ClassifierJudge(model, label)


JUDGES = {
    "rules": JudgeKind("rules", "phrases in five languages, less what a reply quotes; offline, no model, the same every time (the default)", _rules),
    "openai": JudgeKind(
        "openai:MODEL[@BASE_URL]", "a model behind any OpenAI-compatible server; key from OPENAI_API_KEY; wants the `servers` extra; tells partial too", _server
    ),
    "wildguard": JudgeKind(
        "wildguard[:FOLDER]",
        "allenai/wildguard (7B, gated on the Hub; tested by its form, not with its weights), or a folder of the same form; refused or complied",
        _wildguard,
    ),
    "classifier": JudgeKind(
        "classifier:HUB_ID_OR_FOLDER[#LABEL]",
        "a sequence classifier that reads the reply alone, so it cannot know a quoted refusal; LABEL means refusal; refused or complied",
        _classifier,
    ),
}


def get_judge(name: str) -> Judge:
    """Give the judge of that name.

    Raises:
        RecipeError: no judge has that name (the message names the nearest one and all of them), or it is not named whole.
        ModelError: the name of a model in it cannot be one, or an extra is missing.
    """
    head, _, given = name.partition(":")
    if head in JUDGES:
        return JUDGES[head].make(given)
    from difflib import get_close_matches

    near = get_close_matches(head.lower(), JUDGES, n=1, cutoff=0.5)
    hint = f" Did you mean `{near[0]}`?" if near else ""
    raise RecipeError(f"There is no judge `{name}`.{hint} Known judges: {', '.join(kind.form for kind in JUDGES.values())}.")
