"""What a server finds too long, and how much of a document is left when it is cut to fit.

In: the error of a server, as its body has it, or a count of tokens. Out: `TooLong` records and numbers of characters. One real error, of vLLM:
`{"message": "This model's maximum context length is 2048 tokens. However, you requested 2300 tokens (2276 in the messages, 24 in the completion). ..."}`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

TOO_LONG = re.compile(r"context[ _](length|size|window)|prompt (is|was) too (long|large)|max_tokens must be at least 1, got", re.IGNORECASE)
LIMIT = re.compile(r"context (?:length|size|window)(?: is| of)? ?\(?(\d[\d,]*)", re.IGNORECASE)
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


def stated(body: Mapping[str, Any]) -> TooLong | None:
    """What an error says of a prompt that is too long; None where it is about something else.

    OpenAI and vLLM write numbers into the message, llama.cpp has fields for them. A number that is `at least` so high is none to reckon with.
    """
    message = str(body.get("message") or "")
    if not TOO_LONG.search(" ".join([message, *(str(body.get(name)) for name in ("type", "code"))])):
        return None
    fields = [body.get(name) for name in ("n_ctx", "n_prompt_tokens")]
    numbers = [int(one.replace(",", "")) for one in re.findall(r"\d[\d,]{0,11}", message)]
    told = LIMIT.search(message)
    limit = fields[0] if isinstance(fields[0], int) else int(told[1].replace(",", "")) if told else None
    asked = fields[1] if isinstance(fields[1], int) else max(numbers, default=0)
    return TooLong(limit, asked if asked > (limit or asked) and "at least" not in message else None)


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
