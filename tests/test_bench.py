"""What the benchmark of evaluation prints, with invented measurements: nothing is measured here."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path

import pytest

BENCH = Path(__file__).parents[1] / "bench"


@pytest.fixture
def evaluation(monkeypatch):
    """`bench/evaluation.py` as a module, with measurements that are made up."""
    for name in ("evaluation", "tuning"):
        monkeypatch.delitem(sys.modules, name, raising=False)  # tests have folders of these names
    monkeypatch.syspath_prepend(BENCH)
    module = importlib.import_module("evaluation")
    rates = {"generate": 2.0, "shared": 4.0, "verdicts": 8.0, "continuous": 1.0, "paper": 0.5}
    asked = []

    def measured(given, name, length, tasks):
        asked.append((name, length, given.documents))
        said = "It is a ferry. It runs" if name != "verdicts" else "It is a ferry."
        return {"rate": rates[name] * 600 / length, "mib": 100, "dtype": "bfloat16", "replies": {"a": said, "b": "No." if name == "shared" else said}}

    monkeypatch.setattr(module, "measured", measured)
    yield module, asked
    for name in ("evaluation", "tuning"):
        sys.modules.pop(name, None)


def printed(evaluation, monkeypatch, capsys, *arguments: str) -> tuple[list[str], dict]:
    monkeypatch.setattr(sys, "argv", ["evaluation.py", *arguments])
    evaluation.main()
    *lines, last = capsys.readouterr().out.splitlines()
    return lines, json.loads(last)


def test_quick_asks_about_fewer_documents_and_leaves_the_slow_batching_out(evaluation, monkeypatch, capsys):
    module, asked = evaluation
    printed(module, monkeypatch, capsys)
    whole = asked.copy()
    asked.clear()
    printed(module, monkeypatch, capsys, "--quick")
    assert {documents for *_, documents in whole} == {12}
    assert {documents for *_, documents in asked} == {3}
    assert {name for name, *_ in whole} - {name for name, *_ in asked} == {"continuous"}


def test_the_last_line_has_every_length(evaluation, monkeypatch, capsys):
    _, found = printed(evaluation[0], monkeypatch, capsys, "--lengths", "600", "1200", "2400")
    assert found["prompts_per_second"] == 4.0
    assert {length: one["prompts_per_second"] for length, one in found["lengths"].items()} == {"1200": 2.0, "2400": 1.0}
    assert "lengths" not in printed(evaluation[0], monkeypatch, capsys)[1]


def test_what_cutting_at_the_verdict_saves_stands_beside_whole_replies(evaluation, monkeypatch, capsys):
    lines, found = printed(evaluation[0], monkeypatch, capsys)
    assert (found["speedup_of_verdicts"], found["speedup_vs_generate"]) == (2.0, 2.0)
    assert "speedup_vs_verdicts" not in found
    agree = {line.split()[2]: line.split()[5] for line in lines[1:] if line.split()[2] != "paper"}
    assert agree == {"generate": "2/2", "shared": "1/2", "verdicts": "2/2", "continuous": "2/2"}
