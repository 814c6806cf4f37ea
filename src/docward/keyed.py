"""Very many keys in little memory: a number for each, or the rows of a file, which stay on disk.

In: keys and numbers, or a keyed JSONL. Out: what is asked for by key. One real use: `KeyTable((verdict.key, 1) for verdict in rows).get("m|case|0")` is 1.
Keys are held as 64-bit hashes: among a million, two that are taken for one have a chance of 3 in 100 million.
"""

from __future__ import annotations

import json
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, TypeVar

from docward.errors import DocumentError

Value = TypeVar("Value")


class KeyTable:
    """A number for each key; where a key comes twice, the last one holds. 9 bytes a key for small numbers, 16 for large ones."""

    def __init__(self, pairs: Iterable[tuple[str, int]], *, large: bool = False) -> None:
        """Take numbers from -128 to 127, or (`large`) of 63 bits."""
        import numpy as np

        code: Literal["q", "b"] = "q" if large else "b"
        hashes, numbers = array("q"), array(code)
        for key, number in pairs:
            hashes.append(hash(key))
            numbers.append(number)
        order = np.argsort(np.asarray(hashes), kind="stable")
        self._hashes, self._numbers = np.asarray(hashes)[order], np.asarray(numbers)[order]

    def all(self, key: str) -> list[int]:
        """The numbers of a key, the last first."""
        place, wanted, found = int(self._hashes.searchsorted(hash(key), side="right")) - 1, hash(key), []
        while place >= 0 and self._hashes[place] == wanted:
            found.append(int(self._numbers[place]))
            place -= 1
        return found

    def get(self, key: str) -> int | None:
        """The number of a key; None where it is not there."""
        return next(iter(self.all(key)), None)

    def __contains__(self, key: object) -> bool:
        """Whether a key is there."""
        return isinstance(key, str) and self.get(key) is not None

    def __len__(self) -> int:
        """How many numbers there are."""
        return len(self._numbers)

    @property
    def repeats(self) -> bool:
        """Whether a key comes twice."""
        return bool((self._hashes[1:] == self._hashes[:-1]).any())


class KeyedRows(Mapping[str, Value]):
    """The rows of a keyed JSONL, each read from the file when it is asked for. 16 bytes a row are held."""

    def __init__(self, path: Path, value: Callable[[dict[str, Any], str], Value]) -> None:
        """Hold `path` open; `value` is given a row and its line, line end included, and makes of them what a key stands for.

        Raises:
            DocumentError: a line is no keyed row.
        """
        self.path, self.value = path, value
        self.places = KeyTable(self._keys(), large=True)
        self._file = path.open("rb")

    def _keys(self) -> Iterator[tuple[str, int]]:
        place = 0
        with self.path.open("rb") as lines:
            for number, line in enumerate(lines, 1):
                if line.strip():
                    try:
                        key = json.loads(line)["key"]
                    except (ValueError, KeyError, TypeError) as error:
                        raise DocumentError(f"{self.path}:{number}: not a keyed row ({error!r}). Each line must be a JSON object with a `key`.") from error
                    yield str(key), place
                place += len(line)

    def __getitem__(self, key: str) -> Value:
        """Read a row.

        Raises:
            KeyError: there is none of that key.
        """
        for place in self.places.all(key):
            self._file.seek(place)
            line = self._file.readline()
            row = json.loads(line)
            if str(row["key"]) == key:
                return self.value(row, line.decode("utf-8", "surrogateescape").removesuffix("\n") + "\n")
        raise KeyError(key)

    def __iter__(self) -> Iterator[str]:
        """The keys, in the order of the file as it is now."""
        return (key for key, _ in self._keys())

    def __len__(self) -> int:
        """How many rows there are."""
        return len(self.places)

    def __enter__(self) -> KeyedRows[Value]:
        """Use as a context manager."""
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Close the file."""
        self._file.close()
