"""Benign answers: kept in a cache by model and prompt, and checked for being an attempt at the task.

In: prompts and replies. Out: which replies to learn from, and why the others are not. The cache is one SQLite file a user, safe for several processes and a
kill at any moment; the same model on the same prompt is never asked twice, in whatever run. One real row: `("3f2a...", "The note says ...", 1)`.
"""

from __future__ import annotations

import re
import sqlite3
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Protocol

from docward.documents.duplicates import words_of
from docward.errors import StorageError
from docward.records import text_hash
from docward.types import Example


class AnswerCache:
    """Replies by key (see `answer_key`).

    Raises:
        StorageError: the cache cannot be written, or is no such file.
    """

    def __init__(self, path: Path) -> None:
        """Open the cache, making it if need be."""
        self.path = path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._store = sqlite3.connect(path, timeout=60)
            self._store.execute("create table if not exists answers (key text primary key, text text not null, finished integer not null)")
        except (OSError, sqlite3.Error) as error:
            raise self._unusable(error) from error

    def _unusable(self, error: Exception) -> StorageError:
        return StorageError(f"Cannot use the answer cache {self.path}: {error}. Free some space, delete that file, or set DOCWARD_CACHE to another folder.")

    def get(self, keys: Iterable[str]) -> dict[str, tuple[str, bool]]:
        """Replies that are there: key -> (text, whether it ended before the token limit)."""
        found = {}
        try:
            for key in keys:
                if row := self._store.execute("select text, finished from answers where key = ?", (key,)).fetchone():
                    found[key] = (str(row[0]), bool(row[1]))
        except sqlite3.Error as error:
            raise self._unusable(error) from error
        return found

    def put(self, answers: Mapping[str, tuple[str, bool]]) -> None:
        """Keep replies; on disk when this returns."""
        try:
            with self._store:
                self._store.executemany("insert or replace into answers values (?, ?, ?)", [(key, *value) for key, value in answers.items()])
        except sqlite3.Error as error:
            raise self._unusable(error) from error

    def close(self) -> None:
        """Let go of the file."""
        self._store.close()


def answer_key(model: str, example: Example, *, settings: str) -> str:
    """What an answer depends on: the model's fingerprint, what it is asked, and how it answers."""
    return text_hash(model, settings, example.system, str(example.position), example.instruction, example.document)


SPEAKS = re.compile(r"[^\W_]")


class Asked(Protocol):
    """What was asked of a model: an Example or a Reply."""

    @property
    def task(self) -> str:
        """The name of the task."""

    @property
    def instruction(self) -> str:
        """The request."""

    @property
    def document(self) -> str:
        """The text it is about."""


def not_an_attempt(example: Asked, reply: str, *, refused: bool) -> str:
    """Why a reply is no attempt at its task (`empty`, `refused`, `copied`, `loops`), or nothing if it is one.

    Args:
        example: what was asked.
        reply: the model's words.
        refused: what the judge says.
    """
    if not SPEAKS.search(reply):
        return "empty"
    if refused:
        return "refused"
    if loops(reply):
        return "loops"
    return "copied" if _copied(example, reply) else ""


def loops(reply: str) -> bool:
    """Whether a reply goes round: of its last 40 words, most stand in one phrase said again and again."""
    tail = words_of(reply)[-40:]
    if len(tail) < 16:
        return False
    grams = Counter(tuple(tail[place : place + 4]) for place in range(len(tail) - 3))
    return len(grams) <= len(tail) // 2


def _copied(example: Asked, reply: str) -> bool:
    """Whether a reply says the request or the document's beginning again where the task is not to give the text back."""
    if example.task in ("case", "rewrite"):
        return False
    said = words_of(reply)
    opening = words_of(example.document)[: len(said)]
    return said == words_of(example.instruction) or (len(said) > 12 and said[:-1] == opening[:-1])  # the last word may be cut by the token limit
