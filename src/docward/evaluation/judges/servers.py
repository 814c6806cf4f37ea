"""A judge behind an OpenAI-compatible server: asked many times at once, again after an outage, and never by default.

In: replies. Out: verdicts in order. One real row: `{"outcome": "refused", "judge": "openai:m@http://host:8000/v1", "why": "It declines. VERDICT: refused"}`.
What cannot be read from an answer is unjudged with the answer kept; what got no answer is unjudged with the error kept. `docward judge --again` asks again.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from importlib.util import find_spec
from threading import Lock
from typing import Any

from docward.errors import ModelError
from docward.evaluation.judges.asking import KEPT, messages, verdict_in
from docward.types import Outcome, Reply, Verdict

AT_ONCE = 8  # requests on their way
RETRIES = 5  # of one request after an outage or a rate limit, with the client's own back-off and jitter: half a minute in all
TIMEOUT = 120.0  # seconds without an answer that are an outage
ASKED = 2  # times, where an answer is off the menu
NEW_TOKENS = 1024  # of a judge's answer: a model that thinks first gets to its verdict
GIVEN_UP = 16  # replies in a row without an answer after which the server is taken for gone


class ServerJudge:
    """A model behind an OpenAI-compatible server. The key comes from OPENAI_API_KEY and is never written anywhere."""

    def __init__(self, model: str, base_url: str | None, *, retries: int = RETRIES, timeout: float = TIMEOUT) -> None:
        """Judge with `model` at `base_url`, or at OpenAI's own server.

        Raises:
            ModelError: the `servers` extra is not installed.
        """
        if find_spec("openai") is None:
            raise ModelError("A judge behind a server needs the `servers` extra: pip install 'docward[servers]'.")
        self.model, self.base_url, self.retries, self.timeout = model, base_url, retries, timeout
        self.name = f"openai:{model}@{base_url}" if base_url else f"openai:{model}"
        self._lost, self._lock = 0, Lock()

    def judge(self, reply: Reply) -> Verdict:
        """Judge one reply."""
        return next(self.judge_all([reply]))

    def judge_all(self, replies: Sequence[Reply]) -> Iterator[Verdict]:
        """Judge replies, AT_ONCE on their way; after GIVEN_UP in a row without an answer the rest are not asked."""
        from openai import OpenAI

        self._lost = 0
        key = os.environ.get("OPENAI_API_KEY") or "none"
        waiting: deque[Future[Verdict]] = deque()
        pool = ThreadPoolExecutor(AT_ONCE)
        with OpenAI(base_url=self.base_url, api_key=key, max_retries=self.retries, timeout=self.timeout) as client:
            try:
                for reply in replies:
                    waiting.append(pool.submit(self._judged, client, key, reply))
                    if len(waiting) > 2 * AT_ONCE:
                        yield waiting.popleft().result()
                while waiting:
                    yield waiting.popleft().result()
            finally:  # whoever stops listening does not wait for what nobody will read
                pool.shutdown(wait=False, cancel_futures=True)

    def _judged(self, client: Any, key: str, reply: Reply) -> Verdict:
        if not reply.reply.strip():
            return Verdict.on(reply, Outcome.UNJUDGED, judge=self.name, why="empty reply")
        if self._lost >= GIVEN_UP:
            return Verdict.on(reply, Outcome.UNJUDGED, judge=self.name, why=f"not asked: the server gave no answer {GIVEN_UP} times in a row")
        outcome, why = self._asked(client, reply)
        kept = why.replace(key, "[key]")[:KEPT].encode("utf-8", "replace").decode()
        return Verdict.on(reply, outcome, judge=self.name, why=kept)

    def _asked(self, client: Any, reply: Reply) -> tuple[Outcome, str]:
        from openai import OpenAIError

        answer = ""
        for _ in range(ASKED):
            try:
                said = client.chat.completions.create(model=self.model, messages=messages(reply), max_tokens=NEW_TOKENS, temperature=0)
                answer = str(said.choices[0].message.content or "")
            except (OpenAIError, ValueError, TypeError, IndexError, AttributeError) as error:  # the last four: an answer that is not of the protocol
                with self._lock:
                    self._lost += 1
                return Outcome.UNJUDGED, f"no answer of the judge: {type(error).__name__}: {error}"
            with self._lock:
                self._lost = 0
            if outcome := verdict_in(answer):
                return outcome, " ".join(answer.split())
        return Outcome.UNJUDGED, f"off the menu: {answer}" if answer.strip() else "the judge said nothing"
