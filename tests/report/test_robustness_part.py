"""The robustness part of the report: there only where suites were run, a figure a suite, only what is decided said to be so."""

import json

import pytest
from invented_run import SCRIPT, SETS
from pages import change, embedded, render, words

from docward.errors import RunError
from docward.evaluation.suites import SUITES

SEEN = "[...document.querySelectorAll('#robustness .js-plotly-plot')].map(node => node.querySelectorAll('.scatterlayer .point').length)"


def difference(value, *, decided):
    says = "undecided" if not decided else "more refusals" if value > 0 else "fewer refusals"
    tested = {"p": 0.001 if decided else 0.4, "p_holm": 0.01 if decided else 1.0, "decided": decided, "says": says}
    return {"set": "malicious", "documents": 18, "value": value, "low": value - 0.12, "high": value + 0.1, **tested}


def row(suite, level, label, place):
    """Block rate falls along the levels, over-refusal rises a little; a third level on malicious documents is decided."""
    value = {"malicious": max(0.05, 0.9 - 0.06 * place), "sensitive": 0.2 + 0.02 * place, "ordinary": 0.05}[label]
    measured = {"hits": round(90 * value), "judged": 90, "unjudged": place % 2, "value": value, "low": max(0, value - 0.1), "high": min(1, value + 0.09)}
    test = (
        None if place == 0 else difference({"malicious": -0.06, "sensitive": 0.02, "ordinary": 0.0}[label] * place, decided=label == "malicious" and place > 2)
    )
    where = {"suite": suite, "level": level.name if level else "unchanged", "amount": level and level.amount, "curve": level.curve if level else ""}
    return {**where, "set": label, "task": "all", **measured, "documents": 18, "changed": 18 if place else 0, "against_unchanged": test}


def write_suites(folder):
    """A `suites.json` with all suites, as an evaluation leaves it."""
    found = []
    for suite in SUITES.values():
        rows = [row(suite.name, level, label, place) for place, level in enumerate([None, *suite.levels]) for label in SETS]
        left_out = ["9000 tokens"] if suite.name == "length" else []
        found.append({"name": suite.name, "what": suite.what, "axis": suite.axis, "seed": 0, "left_out": left_out, "rows": rows})
    (folder / "suites.json").write_text(json.dumps({"suites": found}), encoding="utf-8")
    return folder


def test_without_suites_there_is_no_robustness_part(evaluated):
    assert "Robustness" not in words(render(evaluated))


@pytest.mark.parametrize("where", ["evaluated", "run"])
def test_each_suite_has_a_figure_and_a_table_with_the_same_numbers(where, request):
    folder = request.getfixturevalue(where)
    write_suites(folder if where == "evaluated" else folder / "evaluation" / "defended")
    page = render(folder)
    drawn = embedded(page)["figures"]
    assert {f"suite-{name}" for name in SUITES} <= set(drawn)
    text = words(page)
    for suite in SUITES.values():
        assert f"{suite.name}: " in text
        points = [point for trace in drawn[f"suite-{suite.name}"]["data"] for point in trace["y"]]
        assert len(points) == 3 * (len(suite.levels) + 1)
    assert "84% 74% to 93% 76 of 90 judged · 1 unjudged −6.0 points (−18.0 to +4.0): undecided" in text


def test_only_decided_differences_are_said_to_be_so(evaluated):
    write_suites(evaluated)
    text = words(render(evaluated))
    assert "in points: block rate: unseen 3 −18.0. All other differences: undecided." in text
    assert "unseen 2 −" not in text
    change(evaluated / "suites.json", lambda found: [row.update(against_unchanged=None) for suite in found["suites"] for row in suite["rows"]])
    assert words(render(evaluated)).count("No difference to the unchanged documents is decided.") == len(SUITES)


def test_a_line_joins_levels_of_one_curve_only(evaluated):
    write_suites(evaluated)
    drawn = embedded(render(evaluated))["figures"]
    joined = {len(trace["x"]) for trace in drawn["suite-length"]["data"]}
    assert joined == {1, len(SUITES["length"].levels)}
    assert {len(trace["x"]) for trace in drawn["suite-task"]["data"]} == {1}
    assert sum(trace["showlegend"] for trace in drawn["suite-dilution"]["data"]) == 3


def test_a_level_that_nothing_was_judged_at_is_said_not_to_be_measured(evaluated):
    write_suites(evaluated)

    def empty(found):
        found["suites"][0]["rows"][3].update(hits=0, judged=0, unjudged=90, value=None, low=None, high=None, against_unchanged=None)

    change(evaluated / "suites.json", empty)
    assert "not measured 0 of 0 judged · 90 unjudged" in words(render(evaluated))


def test_levels_that_were_left_out_are_named(evaluated):
    write_suites(evaluated)
    assert "Longer than the model's context, so not asked: 9000 tokens." in words(render(evaluated)).replace("&#39;", "'")


@pytest.mark.parametrize(
    "broken", ["{", "[]", "{}", '{"suites": [{"name": "length"}]}', '{"suites": [{"name": "a", "what": "", "axis": "", "left_out": [], "rows": [{}]}]}']
)
def test_a_broken_file_of_suites_is_named(evaluated, broken):
    (evaluated / "suites.json").write_text(broken, encoding="utf-8")
    with pytest.raises(RunError, match=r"suites\.json.*docward evaluate"):
        render(evaluated)


def test_whose_verdicts_a_suite_has_is_said_where_it_is_known_and_several_are_flagged(evaluated):
    write_suites(evaluated)
    assert "Verdicts of" not in words(render(evaluated)).partition("Each suite changes")[2]

    def judge(found):
        found["suites"][0]["judges"] = {"rules": 40}
        found["suites"][1]["judges"] = {SCRIPT: 30, "rules": 1200}

    change(evaluated / "suites.json", judge)
    page = render(evaluated)
    assert "Verdicts of rules ." in words(page)
    assert page.count('<span class="flag">Verdicts of several judges</span>') == 1
    assert "30, rules 1,200." in words(page)
    assert "<script>window.ran" not in page


def test_hostile_names_stay_text(evaluated):
    write_suites(evaluated)

    def spoil(found):
        found["suites"][0].update(name=SCRIPT, what=SCRIPT)
        for one in found["suites"][0]["rows"]:
            one.update(suite=SCRIPT, level=SCRIPT + one["level"])

    change(evaluated / "suites.json", spoil)
    assert "<script>window.ran" not in render(evaluated)


@pytest.mark.parametrize("width", [1400, 390])
def test_the_figures_are_drawn_and_fit_the_page(evaluated, browser, width):
    write_suites(evaluated)
    render(evaluated)
    browser.open(evaluated / "report.html", width=width)
    browser.wait(f"{SEEN}.length === {len(SUITES)}")
    assert browser.ask(SEEN) == [3 * (len(suite.levels) + 1) for suite in SUITES.values()]
    assert browser.ask("document.documentElement.scrollWidth <= document.documentElement.clientWidth")
    assert browser.complaints() == []
