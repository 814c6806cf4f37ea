"""A judge behind an OpenAI-compatible server, asked through the one client for servers (`docward.servers`), and never by default.

In: replies. Out: verdicts in order. One real row: `{"outcome": "refused", "judge": "openai:m@http://host:8000/v1", "why": "It declines. VERDICT: refused"}`.
What cannot be read from an answer is unjudged with the answer kept; what got no answer is unjudged with the error kept. `docward judge --again` asks again.
"""

from __future__ import annotations

import os
from collections.abc import Generator, Iterator, Sequence

from docward.errors import ModelError
from docward.evaluation.judges.asking import KEPT, question, verdict_in
from docward.questions import Answer, Failure
from docward.servers import AT_ONCE, Server
from docward.types import Outcome, Reply, Verdict

OPENAI = "https://api.openai.com/v1"
TOGETHER = 4 * AT_ONCE  # replies that are asked about before the next ones are: few enough to lose little by a stop, many enough to keep a server busy
TRIES = (0.0, 0.5)  # temperatures, the second where an answer is off the menu: asked greedily again, a model says the same again
NEW_TOKENS = 1024  # of a judge's answer: a model that thinks first gets to its verdict
GONE = "not asked: the server gave no answer any more"
REMEDY = "A judge's system prompt and number of new tokens are always the same, so judge by another model (--judge)."


class ServerJudge:
    """A model behind an OpenAI-compatible server. The key comes from OPENAI_API_KEY and is never written anywhere."""

    def __init__(self, model: str, base_url: str | None) -> None:
        """Judge with `model` at `base_url`, or where OPENAI_BASE_URL says, or at OpenAI's own server.

        Raises:
            ModelError: the `servers` extra is not installed, the address is none or holds a password, or OPENAI_API_KEY cannot be a key.
        """
        self.server = Server(base_url or os.environ.get("OPENAI_BASE_URL") or OPENAI, model, remedy=REMEDY)
        self.name = f"openai:{model}@{base_url}" if base_url else f"openai:{model}"

    def judge(self, reply: Reply) -> Verdict:
        """Judge one reply."""
        return next(self.judge_all([reply]))

    def judge_all(self, replies: Sequence[Reply]) -> Iterator[Verdict]:
        """Judge replies, many on their way at once; after the server has given up on questions for good the rest are not asked.

        Whoever takes no more verdicts loses at most TOGETHER answers that had come or were on their way. Before an error comes what had been answered.

        Raises:
            ModelError: the server knows no such model, or the key is wrong.
        """
        alive = True
        for start in range(0, len(replies), TOGETHER):
            some = replies[start : start + TOGETHER]
            if alive:
                alive = yield from self._some(some)
            else:
                yield from (self._verdict(reply, None) for reply in some)

    def _some(self, replies: Sequence[Reply]) -> Generator[Verdict, None, bool]:
        """Verdicts in order, each as soon as it and those before it are known; returns whether the server still answers."""
        said: dict[int, Answer | Failure] = {}
        waiting = {place for place, reply in enumerate(replies) if reply.reply.strip()}
        given, alive = 0, True
        try:
            for turn in range(len(TRIES)):
                asked = sorted(waiting) if alive else []
                came = 0
                for batch in self._answers([(str(place), replies[place]) for place in asked], turn) if asked else ():
                    came += len(batch)
                    said |= {int(one.key): one for one in batch}
                    waiting -= {int(one.key) for one in batch if isinstance(one, Failure) or verdict_in(one.text) or turn == len(TRIES) - 1}
                    known = min(waiting, default=len(replies))
                    yield from (self._verdict(replies[place], said.get(place)) for place in range(given, known))
                    given = known
                alive = alive and came == len(asked)
        except ModelError:  # what was paid for comes before it
            yield from (self._verdict(replies[place], said.get(place)) for place in range(given, max(said, default=-1) + 1))
            raise
        yield from (self._verdict(replies[place], said.get(place)) for place in range(given, len(replies)))
        return alive

    def _answers(self, asked: Sequence[tuple[str, Reply]], turn: int) -> Iterator[list[Answer | Failure]]:
        return self.server.ask((question(key, reply) for key, reply in asked), max_new_tokens=NEW_TOKENS, temperature=TRIES[turn], seed=turn)

    def _verdict(self, reply: Reply, said: Answer | Failure | None) -> Verdict:
        outcome, why = self._read(reply, said)
        return Verdict.on(reply, outcome, judge=self.name, why=why[:KEPT].encode("utf-8", "replace").decode())

    def _read(self, reply: Reply, said: Answer | Failure | None) -> tuple[Outcome, str]:
        if not reply.reply.strip():
            return Outcome.UNJUDGED, "empty reply"
        if said is None:
            return Outcome.UNJUDGED, GONE
        if isinstance(said, Failure):
            return Outcome.UNJUDGED, f"no answer of the judge: {said.why}"
        if outcome := verdict_in(said.text):
            return outcome, " ".join(said.text.split())
        return Outcome.UNJUDGED, f"off the menu: {said.text}" if said.text else "the judge said nothing"
