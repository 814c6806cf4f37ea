"""What a command did that a test called; `docward` in tests/cli/conftest.py calls it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Called:
    """What a command did."""

    code: int
    out: str
    err: str

    @property
    def message(self) -> str:
        """The one error, after whatever progress there was."""
        assert self.err.count("Error:") == 1, self.err
        assert "Traceback" not in self.out + self.err
        return " ".join(self.err.partition("Error: ")[2].split())


Docward = Callable[..., Called]
