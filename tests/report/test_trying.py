"""Attempts at the task on the page and on the terminal: beside the rates, told where they are few, and no trouble where a file has none."""

from __future__ import annotations

import json

import pytest

from docward.cli.showing import percent
from docward.report.page import write_report
from docward.report.trying import idle, tried

CELL = {"set": "ordinary", "task": "translate", "complied": 9, "attempted": 4, "reasons": {"wrong language": 5}, "value": 4 / 9, "low": 0.19, "high": 0.73}
FULL = {"set": "ordinary", "task": "summarize", "complied": 8, "attempted": 8, "reasons": {}, "value": 1.0, "low": 0.68, "high": 1.0}


def with_attempts(run, found) -> str:
    path = run / "metrics.json"
    metrics = json.loads(path.read_text())
    metrics["models"]["untuned"]["attempts"] = found
    path.write_text(json.dumps(metrics))
    return write_report(run).read_text()


def test_the_page_says_beside_a_rate_how_many_complied_without_trying(run):
    page = with_attempts(run, [CELL, FULL])
    assert page.count("5 no attempt") == 1
    assert "Complied replies that try the task" in page
    assert "4 of 9" in page
    assert "5 wrong language" in page


def test_where_nothing_is_amiss_the_page_says_nothing_of_it(run):
    page = with_attempts(run, [FULL])
    assert "no attempt" not in page
    assert "Complied replies that try the task" not in page


@pytest.mark.parametrize("found", [None, [], "nonsense", [7], [{"set": "ordinary"}], {"a": 1}])
def test_a_file_that_is_old_or_broken_tells_of_no_idle_replies(found):
    assert idle({"a": {"attempts": found}}) == []


def test_reasons_of_a_hostile_file_are_escaped(run):
    page = with_attempts(run, [CELL | {"reasons": {"<script>alert(1)</script>": 5, "x": "many"}}])
    assert "<script>alert(1)" not in page
    assert "&lt;script&gt;alert(1)" in page


def test_sets_stand_in_their_order_and_all_tasks_last():
    cells = [CELL | {"task": "all"}, CELL, CELL | {"set": "malicious"}]
    assert [row[:2] for row in idle({"a": {"attempts": cells}, "b": {}})] == [("malicious", "translate"), ("ordinary", "translate"), ("ordinary", "all")]
    assert tried({"attempts": [CELL]})["ordinary", "translate"]["reasons"] == {"wrong language": 5}


def test_the_terminal_says_it_in_the_cell_of_the_rate():
    rate = {"set": "ordinary", "task": "translate", "hits": 1, "judged": 10, "unjudged": 2, "value": 0.1, "low": 0.02, "high": 0.4}
    assert percent(rate, {"attempts": [CELL]}) == "10.0 (2.0 to 40.0), 2 unjudged, 5 no attempt"
    assert percent(rate, {"attempts": [FULL]}) == percent(rate, {}) == percent(rate) == "10.0 (2.0 to 40.0), 2 unjudged"
