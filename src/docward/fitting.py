"""What a server's error says, whether that is that a prompt is too long, and how much of a document is left when it is cut to fit.

In: the error of a server, as its body has it, or a count of tokens. Out: `TooLong` records and numbers of characters. One real error, of vLLM:
`{"message": "This model's maximum context length is 2048 tokens. However, you requested 2300 tokens (2276 in the messages, 24 in the completion). ..."}`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

TGI = r"inputs` must have less than |inputs` tokens \+ `max_new_tokens` must be <= "  # text-generation-inference has no word for a context
TOO_LONG = re.compile(rf"context[ _](length|size|window)|(prompt|input) (is|was) too (long|large)|max_tokens must be at least 1, got|{TGI}", re.IGNORECASE)
LIMIT = re.compile(rf"(?:context (?:length|size|window)(?: is| of)? ?\(?|{TGI})(\d[\d,]*)", re.IGNORECASE)
TOO_LARGE = 413  # the status of a request that is, whatever its body says
CUTS = 50  # of one document: 0.8 ** 50 leaves nothing of any
LESS = 0.8  # of a document is left by a cut where the server does not say how much is too much
SPARE = 1.05  # times the characters that are too many: a document's tokens are not all of one length
LETTERS = 4  # characters of a token, where a server does not count them
NO_LIMIT = "Its limit is not known: give its context in tokens by --max-length and a new --output-dir, and documents are cut in their middle."
NO_ROOM = "That leaves no room for a document."


@dataclass(frozen=True, slots=True)
class TooLong:
    """What is said of a prompt that is too long: the server's limit and what was asked of it, in tokens (mostly with the reply's); None: it does not say."""

    limit: int | None = None
    asked: int | None = None


def words(body: Mapping[str, Any]) -> str:
    """What an error says; not the whole of it, which may quote the document. FastAPI's lists places and what is wrong there; a page of HTML says nothing."""
    found: Any = body
    while isinstance(found, Mapping):
        found = found.get("message") or found.get("detail")
    if isinstance(found, list):
        wrong = [one for one in found if isinstance(one, str) or (isinstance(one, Mapping) and isinstance(one.get("loc"), list))]
        return "; ".join(one if isinstance(one, str) else f"{'.'.join(map(str, one['loc']))}: {one.get('msg')}" for one in wrong)
    return found if isinstance(found, str) and not found.startswith("<") else ""


def stated(body: Mapping[str, Any], status: int = 0) -> TooLong | None:
    """What an error says of a prompt that is too long; None where it is about something else.

    OpenAI and vLLM write numbers into the message, TGI the prompt's tokens and the reply's apart, llama.cpp has fields for them. A number that is `at least` so
    high is none to reckon with.
    """
    message = words(body)
    if not TOO_LONG.search(" ".join([message, *(str(body.get(name)) for name in ("type", "code"))])):
        return TooLong() if status == TOO_LARGE else None
    fields = [body.get(name) for name in ("n_ctx", "n_prompt_tokens")]
    told, given = LIMIT.search(message), _numbers(message.partition("Given: ")[2])
    limit = fields[0] if isinstance(fields[0], int) else _numbers(told[1])[0] if told else None
    asked = fields[1] if isinstance(fields[1], int) else sum(given) or max(_numbers(message), default=0)
    return TooLong(limit, asked if asked > (limit or asked) and "at least" not in message else None)


def _numbers(text: str) -> list[int]:
    return [int(one.replace(",", "")) for one in re.findall(r"\d[\d,]{0,11}", text)]


def kept(characters: int, text: int, found: TooLong, limit: int) -> int:
    """How many characters of a document to keep, so that its prompt and reply fit.

    Args:
        characters: of the document, as it is now.
        text: characters of its prompt, as it is now.
        found: what is too long; without a count a part of the document goes.
        limit: in tokens, with the reply's.
    """
    if not found.asked or found.asked <= limit:
        return int(characters * LESS)
    excess = (found.asked - limit) * text / found.asked
    return max(0, characters - int(excess * SPARE) - 1, int((characters - excess) * LESS))
