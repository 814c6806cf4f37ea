"""What the terminal says of differences, of utility kept and of how many documents a question takes."""

from __future__ import annotations

from docward.cli.showing import console, corrected_column, show_advice, show_pooled

DIFFERENCE = {"documents": 18, "p": 0.2, "decided": False}
METRICS = {
    "differences": [
        DIFFERENCE | {"set": "malicious", "value": 0.6, "low": 0.4, "high": 0.8, "p_holm": 0.001, "says": "more refusals"},
        DIFFERENCE | {"set": "sensitive", "value": 0.05, "low": -0.02, "high": 0.12, "p_holm": 0.4, "says": "undecided"},
    ],
    "retention": [
        {"task": "case", "measure": "case_accuracy", "documents": 36, "value": 0.99, "low": 0.91, "margin": 0.95, "says": "undecided"},
        {"task": "title", "measure": "chrf_vs_untuned", "documents": 0, "value": None, "low": None, "margin": 0.95, "says": "undecided"},
    ],
    "advice": {"malicious": "18 documents cannot tell two models 5 points apart on a task; about 303 can."},
}


def test_what_is_not_decided_is_called_undecided(capsys):
    show_pooled(console(), METRICS)
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert "malicious all +60.0 points (40.0 to 80.0), p = 0.001: more refusals" in lines
    assert "sensitive all +5.0 points (-2.0 to 12.0), p = 0.4: undecided" in lines
    assert "case case_accuracy 0.990 (at least 0.910): undecided" in lines
    assert "title chrf_vs_untuned not measured (no bound): undecided" in lines
    assert any("at least 0.95 is wanted" in line for line in lines)


def test_the_advice_stands_whole_on_a_line(capsys):
    show_advice(console(), METRICS)
    assert capsys.readouterr().out == f"malicious: {METRICS['advice']['malicious']}\n"


def test_metrics_of_an_earlier_version_show_nothing_of_it(capsys):
    show_pooled(console(), {})
    show_advice(console(), {})
    assert corrected_column({}) == {}
    assert capsys.readouterr().out == ""
