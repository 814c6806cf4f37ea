"""Fixtures of the command line."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from calling import Called, Docward
from docward.cli.main import main


@pytest.fixture
def docward(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Docward:
    """Call the command line in this process, in an empty folder."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments: object) -> Called:
        monkeypatch.setattr(sys, "argv", ["docward", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            main()
        captured = capsys.readouterr()
        return Called(int(end.value.code or 0), captured.out, captured.err)

    return call
