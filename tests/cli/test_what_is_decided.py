"""What the terminal says of differences, of utility kept and of how many documents a question takes."""

from __future__ import annotations

from docward.cli.showing import console, corrected_column, show_advice, show_pooled, show_utility

DIFFERENCE = {"documents": 18, "p": 0.2, "decided": False}
METRICS = {
    "differences": [
        DIFFERENCE | {"set": "malicious", "value": 0.6, "low": 0.4, "high": 0.8, "p_holm": 0.001, "says": "more refusals"},
        DIFFERENCE | {"set": "sensitive", "value": 0.05, "low": -0.02, "high": 0.12, "p_holm": 0.4, "says": "undecided"},
    ],
    "retention": [
        {"task": "case", "measure": "case_accuracy", "against": "gold", "documents": 36, "value": 0.99, "low": 0.91, "margin": 0.95, "says": "undecided"},
        {"task": "title", "measure": "chrf_vs_untuned", "against": "untuned", "documents": 0, "value": None, "low": None, "margin": 0.95, "says": "undecided"},
    ],
    "advice": {"malicious": "18 documents cannot tell two models 5 points apart on a task; about 303 can."},
}


def test_what_is_not_decided_is_called_undecided(capsys):
    show_pooled(console(), METRICS)
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert "malicious all +60.0 points (40.0 to 80.0), p = 0.001: more refusals" in lines
    assert "sensitive all +5.0 points (-2.0 to 12.0), p = 0.4: undecided" in lines


def test_utility_of_both_models_stands_beside_what_is_kept(capsys):
    untuned = {"utility": [{"task": "case", "measure": "case_accuracy", "against": "gold", "n": 36, "value": 0.9, "low": 0.85, "high": 0.94, "unread": 0}]}
    untuned["utility"].append({"task": "topic", "measure": "accuracy", "against": "gold", "n": 9, "value": 0.5, "low": 0.2, "high": 0.8, "unread": 3})
    ratio = {"against": "untuned", "rows": 40, "tokens": 1800, "ratio": 1.1, "low": 1.05, "high": 1.16}
    show_utility(console(), {"untuned": untuned, "defended": METRICS | {"perplexity": ratio}})
    text = capsys.readouterr().out
    rows = [[cell.strip() for cell in line.strip("│").split("│")] for line in text.splitlines() if line.startswith("│")]
    assert rows == [
        ["case", "case_accuracy", "gold", "0.900 (0.850 to 0.940)", "", "0.990 (at least 0.910): undecided"],
        ["topic", "accuracy", "gold", "0.500 (0.200 to 0.800), 3 unread", "", ""],
        ["title", "chrf_vs_untuned", "untuned", "", "", "not measured (no bound): undecided"],
    ]
    assert "at least 0.95 is wanted" in text
    assert "Perplexity of general answers, defended / untuned: 1.100 (1.050 to 1.160), 40 answers, 1800 tokens." in text


def test_the_advice_stands_whole_on_a_line(capsys):
    show_advice(console(), METRICS)
    assert capsys.readouterr().out == f"malicious: {METRICS['advice']['malicious']}\n"


def test_metrics_of_an_earlier_version_show_nothing_of_it(capsys):
    show_pooled(console(), {})
    show_utility(console(), {"untuned": {}, "defended": {}})
    show_advice(console(), {})
    assert corrected_column({}) == {}
    assert capsys.readouterr().out == ""
