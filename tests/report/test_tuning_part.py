"""The tuning's part of the page: the curves are those of the files, the kept step is told, odd lines are counted and stop nothing, no text gets in."""

import json
import re

import pytest
from invented_run import SCRIPT, SECRET, SETS, audit, probe_rows, rate, training_rows, write_lines
from pages import assert_note_and_legend_fit, change, embedded, render, words

from docward.report import figures
from docward.report import tuning as tunings
from docward.report.page import write_report

JUNK = (None, 3, -1, 1.5, "x", SECRET, [], {}, [1], {"x": "y"}, True, float("nan"), float("inf"), 1e308, 10**400, "\ud800")
TERMS = ("loss", "defense", "benign", "general", "anchor")
KEPT = 80  # the step of the last best probe of the invented run
KEPT_WORDS = (
    "Kept: step 80. Block rate 76.7% (68.7% to 84.7%; 23 of 30 replies); over-refusal 13.8% (5.8% to 21.8%; 4 of 29 replies, 1 unjudged); "
    "false refusal 3.3% (0% to 11.3%; 1 of 30 replies); balance +0.63 (+0.46 to +0.78). It rests on 6 malicious, 6 sensitive and 6 ordinary documents."
)


def drawn(run, name):
    return embedded(render(run))["figures"][name]


def edit(run, edited):
    """Write the probes again, each changed by `edited`, which gets the row and changes it."""
    rows = list(probe_rows())
    for row in rows:
        edited(row)
    write_lines(run / "probes.jsonl", rows)


def lines_of(figure):
    """By name, the traces that are no band."""
    return {trace["name"]: trace for trace in figure["data"] if "fill" not in trace}


# ---- what is drawn


def test_each_term_is_drawn_where_it_was_measured_and_nowhere_else(run):
    traces = drawn(run, "loss")["data"]
    rows = list(training_rows())
    assert [trace["name"].split()[0] for trace in traces] == ["total", "defense", "benign", "general", "anchor"]
    for term, trace in zip(TERMS, traces, strict=True):
        assert list(zip(trace["x"], trace["y"], strict=True)) == [(row["step"], row[term]) for row in rows if row[term] is not None]
    assert len(traces[1]["x"]) < len(rows)  # the invented run has steps without a defense term


def test_the_anchor_has_a_panel_of_its_own_and_an_old_run_has_none(run):
    new = drawn(run, "loss")
    assert [trace["yaxis"] for trace in new["data"]] == ["y", "y", "y", "y", "y2"]
    assert new["layout"]["yaxis2"]["domain"][1] < new["layout"]["yaxis"]["domain"][0]
    gone = ("anchor", "examples", "examples_per_second")
    write_lines(run / "training.jsonl", [{name: value for name, value in row.items() if name not in gone} for row in training_rows()])
    old = drawn(run, "loss")
    assert len(old["data"]) == 4
    assert "yaxis2" not in old["layout"]
    assert "examples a second" not in words(render(run))


def test_rates_and_intervals_are_those_of_the_probes(run):
    figure = drawn(run, "probes")
    rows = list(probe_rows())
    assert len(figure["data"]) == 6
    for label, band, line in zip(SETS, figure["data"][:3], figure["data"][3:], strict=True):
        measured = [(row["step"], row["pooled"][label]) for row in rows if row["pooled"][label]["value"] is not None]
        assert line["name"].startswith(figures.RATE_NAMES[label])
        assert line["line"]["color"] == figures.LABEL_COLOURS[label]
        assert line["x"] == [step for step, _ in measured]
        assert line["y"] == pytest.approx([100 * one["value"] for _, one in measured])
        assert band["x"] == line["x"] + line["x"][::-1]
        upper, lower = ([100 * one[end] for _, one in measured] for end in ("high", "low"))
        assert band["y"] == pytest.approx(upper + lower[::-1])
    assert len(figure["data"][5]["x"]) == len(rows) - 1  # one probe had nothing ordinary to judge


def test_a_single_probe_has_bars_for_intervals(run):
    write_lines(run / "probes.jsonl", list(probe_rows())[3:4])
    data = drawn(run, "probes")["data"]
    assert [len(trace["x"]) for trace in data] == [1, 1, 1]
    assert data[0]["error_y"]["array"] == pytest.approx([8])
    assert data[1]["error_y"]["arrayminus"] == pytest.approx([8])


def test_losses_and_probes_have_the_same_steps_below_them(run):
    rows = [*training_rows(), {**next(training_rows()), "step": 170}]
    write_lines(run / "training.jsonl", rows)
    found = embedded(render(run))["figures"]
    low, high = found["loss"]["layout"]["xaxis"]["range"]
    assert found["probes"]["layout"]["xaxis"]["range"] == [low, high]
    assert low < 0
    assert 170 < high < 180
    assert len({found[name]["layout"]["margin"]["l"] for name in ("loss", "probes")}) == 1


def test_rows_out_of_order_are_drawn_in_the_order_of_their_steps(run):
    write_lines(run / "training.jsonl", list(training_rows())[::-1])
    write_lines(run / "probes.jsonl", list(probe_rows())[::-1])
    page = render(run)
    assert embedded(page)["figures"]["loss"]["data"][0]["x"] == list(range(10, 130, 10))
    assert KEPT_WORDS in words(page)
    said = "12 rows logged; the last at step 120, total loss 1.020, after 1,920 examples and 3 min 24 s; 9.6 examples a second (median of the rows)."
    assert said in words(page)


# ---- which step was kept


def test_the_last_best_probe_is_the_kept_one_in_words_table_and_both_figures(run):
    page = render(run)
    assert [row["step"] for row in probe_rows() if row["best"]][-1] == KEPT
    assert KEPT_WORDS in words(page)
    assert re.findall(r'<tr class="total"><th scope="row">(\d+)<small>kept', page) == [str(KEPT)]
    for name in ("loss", "probes"):
        layout = embedded(page)["figures"][name]["layout"]
        assert [(shape["x0"], shape["x1"]) for shape in layout["shapes"]] == [(KEPT, KEPT)]
        assert [(note["x"], note["text"]) for note in layout["annotations"]] == [(KEPT, f"<b>kept: step {KEPT}</b>")]
    edit(run, lambda row: row.update(best=row["step"] in (20, 100)))
    assert "Kept: step 100. Block rate 83.3%" in words(render(run))


def test_where_no_probe_is_the_best_none_is_said_to_be_kept(run):
    edit(run, lambda row: row.update(best="yes"))
    page = render(run)
    assert "No probe is marked as the best, so which step was kept is not known." in words(page)
    assert "Kept:" not in words(page)
    assert [name for name in ("loss", "probes") if "shapes" in embedded(page)["figures"][name]["layout"]] == []


def test_documents_that_are_not_recorded_are_not_guessed(run):
    edit(run, lambda row: row.pop("documents"))
    text = words(render(run))
    assert "How many documents these replies come from is not recorded." in text
    assert "It rests on" not in text


def test_a_set_that_was_not_probed_is_not_a_rate_of_zero(run):
    def without(row):
        del row["pooled"]["ordinary"]
        row["pooled"]["sensitive"] = rate("sensitive", "all", 0, 0, unjudged=29)
        row["balance"] = None

    edit(run, without)
    page = render(run)
    assert "over-refusal not measured (29 unjudged); false refusal not measured; balance not measured." in words(page)
    assert list(lines_of(embedded(page)["figures"]["probes"])) == ["Block rate (wanted: high)"]


def test_every_probe_stands_in_the_table_with_its_intervals_and_unjudged_counts(run):
    text = words(render(run)).partition("Share refused at each probe")[2]
    assert "60 best so far 53.3% 45.3% to 61.3% 16 of 30 judged · 0 unjudged 10.3% 2.3% to 18.3% 3 of 29 judged · 1 unjudged" in text
    assert "40 best so far 30% 22% to 38% 9 of 30 judged · 0 unjudged 3.4% 0% to 11.4% 1 of 29 judged · 1 unjudged not measured 0 judged" in text
    assert "+0.43 +0.26 to +0.58" in text


# ---- what is missing or odd


def test_a_tuned_folder_without_metrics_shows_its_tuning_too(tmp_path):
    (tmp_path / "dataset").mkdir()
    (tmp_path / "dataset" / "audit.json").write_text(json.dumps(audit()), encoding="utf-8")
    write_lines(tmp_path / "training.jsonl", training_rows())
    write_lines(tmp_path / "probes.jsonl", probe_rows())
    page = render(tmp_path)
    assert re.findall(r"<h2[^>]*>(.*?)</h2>", page) == ["The dataset", "Tuning", "How it was made"]
    assert {"loss", "probes"} <= set(embedded(page)["figures"])
    assert 'href="#tuning"' in page
    assert KEPT_WORDS in words(page)


def test_probes_without_losses_are_shown(run):
    (run / "training.jsonl").unlink()
    page = render(run)
    assert "no training.jsonl" in words(page)
    assert KEPT_WORDS in words(page)
    assert "loss" not in embedded(page)["figures"]


def test_lines_that_cannot_be_read_are_left_out_and_counted(run):
    whole = {name: embedded(render(run))["figures"][name] for name in ("loss", "probes")}
    odd = [b'{"step": 5, "loss": 2.', b"[1, 2]", b'{"loss": 1.0}', b'{"step": -1, "loss": 9}', b'{"step": 7.5, "loss": 9}', b'{"step": 8}']
    odd += [b"\xff\xfe", b"[" * 99_999]
    with (run / "training.jsonl").open("ab") as file:
        file.write(b"\n".join(odd) + b"\n\n")
    with (run / "probes.jsonl").open("ab") as file:
        file.write(b'{"step": 140, "pooled": {"malicious": {"val')  # torn
    page = render(run)
    assert "8 lines of training.jsonl could not be read and are not shown here." in words(page)
    assert "1 line of probes.jsonl could not be read and is not shown here." in words(page)
    assert {name: embedded(page)["figures"][name] for name in whole} == whole
    assert KEPT_WORDS in words(page)


@pytest.mark.parametrize("content", [b"", b"\n\n", b"{", b"[]", b"\xef\xbb\xbf", b"\x00\x01", b"PK\x03\x04"], ids=repr)
def test_files_without_one_good_line_say_so(run, content):
    for name in ("training", "probes"):
        (run / f"{name}.jsonl").write_bytes(content)
    page = render(run)
    assert "training.jsonl holds no row with a step and a loss" in words(page)
    assert "probes.jsonl holds no row with a step and a rate" in words(page)
    assert not {"loss", "probes"} & set(embedded(page)["figures"])


def test_a_rate_or_an_interval_that_can_be_none_is_not_shown():
    def read(**changed):
        return tunings._rate({**rate("malicious", "all", 5, 10), **changed})

    assert (read()["value"], read()["low"], read()["high"]) == (0.5, pytest.approx(0.42), pytest.approx(0.58))
    assert read(value=1.2)["value"] is None
    for ends in ({"low": 0.6}, {"high": 0.4}, {"low": None}, {"high": float("nan")}):
        found = read(**ends)
        assert (found["value"], found["low"], found["high"]) == (0.5, None, None)
    assert tunings._balance({"value": 1.5, "low": 0, "high": 1}) is None
    assert tunings._balance({"value": 0.5, "low": 0.6, "high": 1}) == {"value": 0.5, "low": None, "high": None}


def planted(tree, path, junk):
    first, *rest = path
    return {**tree, first: planted(tree[first], rest, junk) if rest else junk}


def places(value, here=()):
    if here:
        yield here
    if isinstance(value, dict):
        for name, one in value.items():
            yield from places(one, (*here, name))


@pytest.mark.parametrize("junk", JUNK, ids=lambda junk: repr(junk)[:12])
def test_no_single_odd_value_stops_the_report(tmp_path, junk):
    losses, probes = list(training_rows())[:2], list(probe_rows())[1:3]
    write_lines(tmp_path / "training.jsonl", [losses[0], *(planted(losses[1], path, junk) for path in places(losses[1]))])
    write_lines(tmp_path / "probes.jsonl", [probes[0], *(planted(probes[1], path, junk) for path in places(probes[1]))])
    seen = tunings.view(tmp_path)
    steps = {"reach": seen["reach"], "kept": seen["kept"]}
    curves = [figures.training_curves(seen["training"].rows, **steps), figures.probe_curves(seen["probes"].rows, **steps)]
    assert SECRET not in "".join([seen["kept_words"], seen["training_words"], *seen["odd"], *(figure.to_json() for figure in curves)])


@pytest.mark.parametrize("junk", JUNK, ids=lambda junk: repr(junk)[:12])
def test_a_page_of_odd_values_still_renders(run, junk):
    write_lines(run / "training.jsonl", [{**dict.fromkeys(row, junk), "step": row["step"]} for row in training_rows()])
    write_lines(run / "probes.jsonl", [{**dict.fromkeys(row, junk), "step": row["step"], "pooled": dict.fromkeys(SETS, junk)} for row in probe_rows()])
    page = render(run)
    assert "Tuning" in words(page)
    assert SECRET not in page


def test_no_text_of_the_files_reaches_the_page(run):
    hostile = {SCRIPT: SECRET, "note": SECRET, "epoch": SCRIPT}
    write_lines(run / "training.jsonl", [{**row, **hostile} for row in training_rows()])
    edit(run, lambda row: (row.update(hostile, documents={**row["documents"], SECRET: 3}), row["pooled"].update({SECRET: row["pooled"]["ordinary"]})))
    edited = [json.loads(line) for line in (run / "probes.jsonl").read_text(encoding="utf-8").splitlines()]
    for row in edited:
        row["pooled"]["malicious"].update(set=SECRET, task=SECRET)
    write_lines(run / "probes.jsonl", edited)
    page = render(run)
    assert SECRET not in page
    assert KEPT_WORDS in words(page)


def test_a_number_too_large_for_a_float_is_none(run):
    change(run / "dataset" / "audit.json", lambda found: found.update(matched_groups=10**400))
    assert "The dataset" in words(render(run))


# ---- in a browser


@pytest.mark.parametrize(("width", "kept"), [(1300, 0), (1300, KEPT), (400, 120)])
def test_the_kept_step_is_named_inside_its_figure_and_over_no_legend(run, browser, width, kept):
    edit(run, lambda row: row.update(best=row["step"] == kept))
    browser.open(write_report(run), width=width, dark=width < 600)
    browser.wait("document.querySelectorAll('#tuning .annotation-text').length === 3")
    for name in ("loss", "probes"):
        assert_note_and_legend_fit(browser, name)
    assert browser.ask("document.documentElement.scrollWidth") <= width
    assert browser.complaints() == []


def test_the_grid_of_both_panels_follows_the_theme(run, browser):
    browser.open(write_report(run), dark=True)
    grids = "[...new Set([...document.querySelectorAll('[data-figure=loss] .ygrid, [data-figure=loss] .y2grid')].map(line => line.style.stroke))]"
    browser.wait(f"{grids}.length === 1 && document.querySelectorAll('[data-figure=loss] .y2grid').length > 0")
