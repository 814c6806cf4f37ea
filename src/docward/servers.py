"""Models behind a server of the OpenAI protocol (vLLM, `transformers serve`, llama.cpp's, the cloud ones): one client for teachers, judges and evaluation.

In: the server's address, a model's name there, `Question` records. Out: `Answer` and `Failure` records as they come, not in the order of the questions.
One real row: `Answer("fraud-01-m|case|0", "I can't help with that.", finished=True)`. The key comes from OPENAI_API_KEY and stands in nothing that goes out.
"""

from __future__ import annotations

import json
import math
import os
import random
import re
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from email.utils import parsedate_to_datetime
from functools import cached_property
from queue import Empty, SimpleQueue
from threading import Event, Lock, Thread
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from docward.errors import ModelError
from docward.fitting import CUTS, LETTERS, NO_LIMIT, NO_ROOM, TooLong, kept, stated, words
from docward.questions import Answer, Failure, Question
from docward.records import text_hash

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

AT_ONCE = 8  # requests on their way to a server
TIMEOUT = 120.0  # seconds from a question to the last byte of its answer
CONNECT = 15.0  # seconds of them until the server has picked up
RETRIES = 5  # of one question
FIRST_WAIT, LONGEST_WAIT = 1.0, 30.0  # seconds, doubled from try to try: half a minute over five retries, a quarter on average
LONGEST_ASKED = 300.0  # seconds that a server may ask for by Retry-After; one that asks for more is not waited for
IN_A_ROW = 25  # questions without an answer, after which a plain one finds out whether the server answers at all
LARGEST = 16 * 2**20  # bytes of an answer: one without an end must not fill the memory
SECRET = 8  # characters: a shorter key is a stand-in such as EMPTY, and a word that a reply may hold
TRANSIENT = frozenset({408, 409, 425, 429})  # besides 500 and above: what may be otherwise the next time
REFUSED = frozenset({403, 404})  # of a plain question: what no other one will change. Of another it may be a filter's word on that one alone
PLAIN = "Say yes."  # what no server has anything against: whether it is answered tells whose fault it is that another question is not
PLAIN_TOKENS = 16  # of its answer, once it is known that the limit of the others is taken
AGAIN = 2  # times a question is asked again before it is withheld for good: neither a moment nor one replica of two, each in its turn, decides that
INSTEAD = {"max_tokens": "max_completion_tokens", "temperature": "", "seed": ""}  # what not all servers take: its other name, or none
NAMED = re.compile(rf"\b({'|'.join(INSTEAD)})\b")
UNKNOWN = re.compile(r"max_completion_tokens|unsupported|not support|extra|unknown|unrecogni[sz]ed|unexpected", re.IGNORECASE)  # not: too large a max_tokens
REMEDY = "Change what it names (a system prompt, the number of new tokens), or ask another model."


class _Trouble(Exception):  # noqa: N818 - one try that failed; not for callers
    def __init__(self, why: str, *, retry: bool = True, after: float | None = None, **more: Any) -> None:
        super().__init__(why)
        self.why, self.retry, self.after = why, retry, after
        self.more = more  # of the Failure that it becomes if it stays


class _GoneError(Exception):
    """The server answers nothing any more; not for callers."""


class Server:
    """A model behind a server. `fingerprint` is of its address and name: what stands behind them cannot be looked at.

    `tokenizer` is the model's own where it is at hand here too, else None.
    """

    adapter = None

    def __init__(
        self,
        base_url: str,
        model: str,
        *,
        concurrency: int = AT_ONCE,
        timeout: float = TIMEOUT,
        remedy: str = REMEDY,
        tokenizer: PreTrainedTokenizerBase | None = None,
    ) -> None:
        """Get ready to ask `model` at `base_url`, such as http://localhost:8000/v1; nothing is sent yet.

        `remedy` is said where the server will not have what is sent beside every question. `tokenizer` is the model's own, where it is at hand: see
        `docward.models.only_tokenizer`.

        Raises:
            ModelError: the `servers` extra is not installed, the address is none or holds a password, or OPENAI_API_KEY cannot be a key.
        """
        try:
            from openai import OpenAI, Timeout
        except ImportError as error:
            raise ModelError("A model behind a server needs the `servers` extra: pip install 'docward[servers]'.") from error
        self.base_url, self.name, self.concurrency, self.timeout = _checked(base_url), model, concurrency, timeout
        self.fingerprint, self.remedy, self.tokenizer = text_hash(self.base_url, model), remedy, tokenizer
        self._key = os.environ.get("OPENAI_API_KEY", "").strip()
        if not (self._key.isascii() and self._key.isprintable()):
            raise ModelError("OPENAI_API_KEY holds characters that no key has (a line end, an accent). Set it again.")
        self._changed: dict[str, str] = {}  # parameters that the server does not take, and what is sent instead
        self._answers = False  # whether it has answered a question at its limit of tokens
        self._counting = Lock()  # a tokenizer is not made for several threads at once
        self._in_a_row = 0  # questions without an answer, also over several times of asking: a judge asks about few at a time
        self._not_before = 0.0  # by the monotonic clock: the server asked to be left alone until then
        self._client: Any = OpenAI(base_url=self.base_url, api_key=self._key or "none", max_retries=0, timeout=Timeout(timeout, connect=min(timeout, CONNECT)))

    def ask(
        self, questions: Iterable[Question], *, max_new_tokens: int, max_length: int | None = None, temperature: float = 0.0, seed: int = 0
    ) -> Iterator[list[Answer | Failure]]:
        """Ask with `concurrency` questions always on their way, begun in the order given; yields what has come since the last time.

        A document that is too long, for `max_length` tokens with the reply's or for the server's own limit, is cut in its middle until it fits; where a
        server neither counts nor refuses, its tokenizer counts, or a token is LETTERS characters. Ends early, without a word on the questions not yet asked,
        where the server cannot be reached or answers nothing any more. Parameters that it does not take are renamed or left out (see `not_taken`).

        Raises:
            ModelError: the server knows no such model, or the key is wrong, or it takes no question at all.
        """
        how = {"model": self.name, "max_tokens": max_new_tokens, "temperature": temperature, "seed": seed}
        rest, turn, counting, stop = iter(questions), Lock(), Lock(), Event()
        came: SimpleQueue[Answer | Failure | Exception | None] = SimpleQueue()

        def work() -> None:
            try:
                while True:
                    with turn:  # held while one finds out whether the server is gone: nobody begins another question before that is known
                        question = None if stop.is_set() else next(rest, None)
                        if question is not None and self._in_a_row >= IN_A_ROW:
                            plain = self._plain(how, question.system, stop)
                            if isinstance(plain, Failure) and self._in_a_row >= IN_A_ROW:  # an answer may have come meanwhile
                                stop.set()
                                raise ModelError(self._takes_none(plain)) if plain.own else _GoneError
                            with counting:
                                self._in_a_row = 0
                    if question is None:
                        break
                    said = self._settled(question, how, stop, max_length)
                    came.put(said)
                    with counting:
                        self._in_a_row = 0 if isinstance(said, Answer) else self._in_a_row + (not said.own)
            except Exception as error:  # raised again where the answers are taken
                came.put(error)
            finally:
                came.put(None)

        for _ in range(self.concurrency):
            Thread(target=work, daemon=True).start()  # daemons: a hanging request must not keep the program
        try:
            yield from self._taken(came)
        finally:
            stop.set()

    def _taken(self, came: SimpleQueue[Answer | Failure | Exception | None]) -> Iterator[list[Answer | Failure]]:
        working = self.concurrency
        while working:
            batch: list[Answer | Failure] = []
            for one in _waiting(came):
                if isinstance(one, Exception):
                    if batch:
                        yield batch
                    if isinstance(one, _GoneError):
                        return
                    raise one
                working -= one is None
                batch += [one] if one is not None else []
            if batch:
                yield batch
            if any(isinstance(one, Failure) and one.unreachable for one in batch):
                return

    @property
    def not_taken(self) -> list[str]:
        """The parameters that the server did not take, so that it was asked without. Without `temperature` its answers are drawn as it likes."""
        return sorted(name for name, other in self._changed.items() if not other)

    def told(self) -> str:
        """That, in a sentence; empty where the server took everything."""
        drawn = " It draws at its own temperature: another run may give other answers." if "temperature" in self.not_taken else ""
        return f"{self.name}: the server takes no {' and no '.join(self.not_taken)}, so it is asked without.{drawn}" if self.not_taken else ""

    def _settled(self, question: Question, how: dict[str, Any], stop: Event, max_length: int | None) -> Answer | Failure:
        """One question; where the server will not have it, a plain one tells whether it lies with this one, with what is sent beside it, or with the server."""
        refused = 0
        while True:
            changed = len(self._changed)
            said = self._fitted(question, how, stop, max_length)
            self._answers = self._answers or isinstance(said, Answer)
            if isinstance(said, Answer) or not said.own or said.too_long or said.withheld:
                return said
            if refused == AGAIN:
                return replace(said, withheld=True)
            if not refused and isinstance(self._plain(how, question.system, stop), Failure):
                return replace(said, own=False)
            refused += len(self._changed) == changed

    def _plain(self, how: dict[str, Any], system: str, stop: Event) -> Answer | Failure:
        """What comes to a plain question. A parameter that the server names when it will not have even that is renamed or left out from then on.

        Its answer is short, but where it is the number of new tokens that the server may not have: before it has answered anything, and if short is refused.

        Raises:
            ModelError: the key is wrong, or there is no such model.
        """
        full = int(how["max_tokens"])
        tokens = min(PLAIN_TOKENS, full) if self._answers else full
        while True:
            changed = set(self._changed)
            said = self._answer(Question("", PLAIN, system), how | {"max_tokens": tokens}, stop)
            if isinstance(said, Answer):
                return said
            if said.status in REFUSED:
                raise ModelError(self._refusal(said.status, said.why, system))
            named = next((name for name in _foreign(said.why) if name not in changed), None) if said.status in (400, 422) else None
            if named:
                self._changed[named] = INSTEAD[named]
            elif said.own and tokens < full:
                tokens = full  # a model that thinks first may want more than a few
            else:
                return said

    def _takes_none(self, said: Failure) -> str:
        return f"The server {self.base_url} takes no question to {self.name!r}, not even a plain one ({said.why}). {self.remedy} What was answered is kept."

    def _fitted(self, question: Question, how: dict[str, Any], stop: Event, max_length: int | None) -> Answer | Failure:
        """One question, its document cut as often as it is too long."""
        now, keep, density = question, len(question.document), 1 / LETTERS  # in tokens a character
        said = self._answer(now, how, stop)
        count = None if isinstance(said, Failure) else self._count  # a server that has refused refuses again
        for _ in range(CUTS):
            found = _too_long(said, now.text, int(how["max_tokens"]), max_length, count)
            if not found or not question.document:
                break
            limit = min((one for one in (max_length, found.limit, self.context) if one), default=None)
            keep = kept(keep, len(now.text), found, limit) if limit else 0
            if not keep:
                why = said.why if isinstance(said, Failure) else f"{found.asked} tokens with the reply's"
                return Failure(question.key, f"too long for the server ({why}). {NO_ROOM if limit else NO_LIMIT}", own=True, too_long=found)
            density = found.asked / len(now.text) if found.asked else density
            now = question.cut_to(keep)
            said = self._answer(now, how, stop)
        if isinstance(said, Failure) or now is question:
            return said
        density = said.prompt_tokens / len(now.text) if said.prompt_tokens else density
        return replace(said, dropped=max(1, round((len(question.document) - keep) * density)))

    def _count(self, text: str) -> int:
        """About how many tokens a text has."""
        if not self.tokenizer:
            return len(text) // LETTERS
        with self._counting:
            return len(self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])

    @cached_property
    def context(self) -> int | None:
        """The context that the server states for the model, in tokens, as vLLM does; None where it states none."""
        try:
            stated = next((getattr(one, "max_model_len", None) for one in self._client.models.list().data if one.id == self.name), None)
        except Exception:  # whatever a server says or does not say: then its limit is not known
            return None
        return stated if isinstance(stated, int) and stated > 0 else None

    def _answer(self, question: Question, how: dict[str, Any], stop: Event) -> Answer | Failure:
        """One question, until it is answered or RETRIES are used up: exponential back-off with full jitter (AWS Architecture Blog, 2015)."""
        last = _Trouble("not asked any more")
        for turn in range(RETRIES + 1):
            if stop.wait(max(0.0, self._not_before - time.monotonic())):
                break
            try:
                return self._try(question, how)
            except _Trouble as trouble:
                last = trouble
            if not last.retry or (last.after or 0) > LONGEST_ASKED or turn == RETRIES:
                break
            if last.after is not None:
                self._not_before = max(self._not_before, time.monotonic() + last.after)  # holds for all: they are one client to the server
            stop.wait(random.uniform(0, min(LONGEST_WAIT, FIRST_WAIT * 2**turn)))  # also then: it may ask for no time at all
        return Failure(question.key, self._clean(last.why), own=not last.retry, **last.more)

    def _try(self, question: Question, how: dict[str, Any]) -> Answer:
        from openai import APIConnectionError, APIStatusError, APITimeoutError, OpenAIError

        messages = [{"role": "system", "content": question.system}] if question.system else []
        messages.append({"role": "user", "content": question.text})
        end = time.monotonic() + self.timeout
        try:
            with self._client.chat.completions.with_streaming_response.create(messages=messages, **self._sent(how)) as response:
                said = self._body(response, end)
        except APIStatusError as error:
            raise self._status_trouble(error) from None
        except APIConnectionError as error:
            cause = type(error.__cause__).__name__  # of httpx, whichever one openai came with
            if cause in ("ConnectError", "ConnectTimeout"):
                raise _Trouble("the server cannot be reached", unreachable=True) from None
            raise (self._late() if isinstance(error, APITimeoutError) else _Trouble("the connection broke")) from None
        except OpenAIError as error:
            raise _Trouble(f"{type(error).__name__}") from None
        return self._read(question.key, said)

    def _sent(self, how: dict[str, Any]) -> dict[str, Any]:
        sent = {self._changed.get(name, name): value for name, value in how.items()}
        sent.pop("", None)
        return sent

    def _body(self, response: Any, end: float) -> bytes:
        """The whole answer, within the time and size allowed: a server may send a byte a minute for ever."""
        said = bytearray()
        try:
            for some in response.iter_bytes():
                said += some
                if time.monotonic() > end:
                    raise self._late()
                if len(said) > LARGEST:
                    raise _Trouble(f"an answer of over {LARGEST // 2**20} MiB")
        except _Trouble:
            raise
        except Exception as error:  # of httpx again
            raise (self._late() if "Timeout" in type(error).__name__ else _Trouble("the connection broke in the middle of an answer")) from None
        return bytes(said)

    def _late(self) -> _Trouble:
        return _Trouble(f"no answer within {self.timeout:g} seconds")

    def _read(self, key: str, said: bytes) -> Answer:
        try:
            whole = json.loads(said)
            choice = whole["choices"][0]
            words = choice["message"]
            tokens = (whole.get("usage") or {}).get("prompt_tokens")
            text = words.get("content") or words.get("refusal") or ""
            if not isinstance(text, str):
                raise TypeError("content is no text")
        except (ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError):
            raise _Trouble("an answer that is not of the protocol") from None
        if choice.get("finish_reason") == "content_filter":
            raise _Trouble("the server's own filter held the answer back (finish_reason content_filter)", retry=False, withheld=True)
        text = text.encode("utf-8", "replace").decode("utf-8")  # a server may cut a character of two halves in its middle
        return Answer(key, self._clean(text).strip(), choice.get("finish_reason") != "length", tokens if isinstance(tokens, int) else None)

    def _status_trouble(self, error: Any) -> _Trouble:
        status = int(error.status_code)
        body = error.body if isinstance(error.body, dict) else {"message": error.body}  # a text, of {"error": "..."} or where the body is no JSON
        line = "".join(letter if letter.isprintable() else " " for letter in self._clean(words(body)))[:200].strip()
        why = f"HTTP {status}" + (f": {line}" if line else "")
        if found := stated(body, status):
            return _Trouble(why, retry=False, too_long=found)
        if status == 401:
            raise ModelError(self._refusal(status, why))
        if status < 500 and status not in TRANSIENT:
            return _Trouble(why, retry=False, status=status)
        after = _seconds(error.response.headers.get("retry-after"))
        return _Trouble(why + (f", asking for {after:.0f} seconds" if (after or 0) > LONGEST_ASKED else ""), after=after)

    def _refusal(self, status: int, why: str, system: str = "") -> str:
        if status != 404:
            filtered = f" Or a filter of its own refuses the system prompt that is sent with every question. {self.remedy}" if system else ""
            return f"The server {self.base_url} lets nobody in with this key ({why}). Set OPENAI_API_KEY to a key of that server.{filtered}"
        known = self.models()
        if not known:
            return f"The server {self.base_url} has no model {self.name!r} at that address ({why}), and lists none. Most addresses end in /v1."
        return f"The server {self.base_url} has no model {self.name!r} ({why}). It has: {', '.join(known)}."

    def models(self) -> list[str]:
        """The names that the server lists, at most 20; none where it lists none or cannot be asked."""
        try:
            return [self._clean(str(one.id)) for one in self._client.models.list().data][:20]
        except Exception:  # only ever asked on the way to an error
            return []

    def _clean(self, text: str) -> str:
        return text.replace(self._key, "[OPENAI_API_KEY]") if len(self._key) >= SECRET else text


def _too_long(said: Answer | Failure, text: str, reply: int, max_length: int | None, count: Callable[[str], int] | None) -> TooLong | None:
    """Whether a prompt is too long, by the server's word, by its count of an answered one, or by `count`."""
    if isinstance(said, Failure):
        return said.too_long
    if not max_length:
        return None
    prompt = said.prompt_tokens or (count(text) if count else 0)
    return TooLong(asked=prompt + reply) if prompt and prompt + reply > max_length else None


def _checked(base_url: str) -> str:
    try:
        parts = urlsplit(base_url)
        fine = parts.scheme in ("http", "https") and bool(parts.hostname)
        secret = "@" in parts.netloc or bool(parts.query or parts.fragment)
    except ValueError:
        fine, secret = False, False
    if secret:
        raise ModelError(
            "The address of the server holds a password or a query. Give it bare, such as http://localhost:8000/v1; the key comes from OPENAI_API_KEY."
        )
    if not fine:
        raise ModelError(f"{base_url!r} is no address of a server. Wanted is one such as http://localhost:8000/v1.")
    return base_url.rstrip("/")


def _waiting(came: SimpleQueue[Any]) -> Iterator[Any]:
    """What has come: at least one, waited for, and all that stand behind it."""
    yield came.get()
    while True:
        try:
            yield came.get_nowait()
        except Empty:
            return


def _foreign(why: str) -> list[str]:
    """The parameters that an error says a server does not take, in its order. One that names `max_tokens` may only find them too many."""
    return [name for name in NAMED.findall(why) if name != "max_tokens" or UNKNOWN.search(why)]


def _seconds(header: str | None) -> float | None:
    """A Retry-After header (RFC 9110, 10.2.3: seconds or a date) as seconds from now; None where there is none, or it is in the past."""
    try:
        found = float(header or "")
    except ValueError:
        try:
            found = parsedate_to_datetime(header or "").timestamp() - time.time()
        except ValueError:
            return None
    return found if math.isfinite(found) and found >= 0 else None
