"""What is asked of a model behind a server, and what comes of it.

One real row: `Answer("fraud-01-m|case|0", "I can't help with that.", finished=True)`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from docward.fitting import TooLong


@dataclass(frozen=True, slots=True)
class Question:
    """What is asked of a model; `key` names the answer. `document` is the part of `text` that may be cut in its middle, where all of it is too long."""

    key: str
    text: str
    system: str = ""
    document: str = ""

    def cut_to(self, characters: int) -> Question:
        """The same on a document of which only so many characters are left, half of them of its beginning and half of its end."""
        before, document, after = self.text.partition(self.document)
        tail = characters // 2
        left = document[: characters - tail] + document[len(document) - tail :]
        return replace(self, text=before + left + after, document=left)


@dataclass(frozen=True, slots=True)
class Answer:
    """What was answered; `finished` is False where the token limit ended it. `prompt_tokens` is what the server says of the prompt's length, if it does.

    `dropped` document tokens were cut from the middle, about: a server lends its tokenizer to nobody, so they are reckoned by the prompt's mean length of one.
    """

    key: str
    text: str
    finished: bool
    prompt_tokens: int | None = None
    dropped: int = 0


@dataclass(frozen=True, slots=True)
class Failure:
    """A question without an answer, also after all retries, and why. `own`: it lies with this question (it is too long, say), not with the server.

    `withheld`: the server will not answer it the next time either, as a filter of its own does; it answers others. `status` is that of HTTP, where one came.
    """

    key: str
    why: str
    own: bool = False
    unreachable: bool = False
    too_long: TooLong | None = None
    withheld: bool = False
    status: int = 0
