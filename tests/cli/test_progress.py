"""Progress says how much is done, how fast it goes and how long it will still take, on a terminal and in a log."""

from __future__ import annotations

import re
from types import SimpleNamespace

import pytest

from docward.cli import showing


@pytest.fixture
def clock(monkeypatch):
    """Seconds that a test sets."""
    now = SimpleNamespace(seconds=1000.0)
    monkeypatch.setattr(showing, "time", SimpleNamespace(monotonic=lambda: now.seconds))
    return now


@pytest.mark.parametrize(
    ("after", "done", "said"),
    [
        (20, 64, "examples: 64/164, 3.2/s, 31 s left"),
        (20, 10, "examples: 10/164, 2.0 s each, 308 s left"),
        (120, 10, "examples: 10/164, 12 s each, 1848 s left"),
    ],
)
def test_a_line_says_how_many_are_done_how_fast_and_how_long_it_will_still_take(clock, capsys, after, done, said):
    with showing.bars() as progress:
        progress("examples", 0, 164)
        clock.seconds += after
        progress("examples", done, 164)
    assert capsys.readouterr().err.splitlines() == ["examples: 0/164", said]


def test_what_was_done_before_is_no_part_of_the_rate(clock, capsys):
    with showing.bars() as progress:
        progress("examples", 100, 200)
        clock.seconds += 25
        progress("examples", 150, 200)
    assert capsys.readouterr().err.splitlines()[-1] == "examples: 150/200, 2.0/s, 25 s left"


def test_lines_come_now_and_then_and_at_the_end(clock, capsys):
    with showing.bars() as progress:
        for done in range(101):
            progress("examples", done, 100)
            clock.seconds += 0.5
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(",")[0] for line in lines] == ["examples: 0/100", "examples: 40/100", "examples: 80/100", "examples: 100/100"]


def test_what_is_only_said_is_a_line_by_itself(capsys):
    with showing.bars() as progress:
        progress("documents are not shared", 0, 0)
    assert capsys.readouterr().err == "documents are not shared\n"


def test_a_terminal_shows_the_same_beside_a_bar(monkeypatch, capsys):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "120")
    with showing.bars() as progress:
        for done in range(0, 51, 10):
            progress("examples", done, 100)
    text = re.sub(r"\x1b\[[\d;?]*[a-zA-Z]", "", capsys.readouterr().err)
    assert re.search(r"examples .*50/100 +[\d.]+/s +0:00:\d\d left", text), text
