"""The dial's part of the page: the curve and the words are those of calibration.json, odd rows are counted and stop nothing, no text gets in."""

import json
import re

import pytest
from invented_run import SCRIPT, SECRET, SETS, calibration
from pages import assert_note_and_legend_fit, change, embedded, render, words

from docward.report import dial as dials
from docward.report import figures

NONE = "No curve over the dial to draw: calibration.json has none."
STANDS = (
    "The dial stands at −3.25, added to the refusal token&#39;s logit, set for at most 12.5% of prompts on sensitive and 5% of prompts on ordinary documents. "
    "Refused there: 62.1% of 670 prompts on malicious, 12.1% of 650 prompts on sensitive and 4.7% of 90 prompts on ordinary documents."
)
STRICT = (
    "For at most 1% of prompts on ordinary documents (none of 90) it would stand at −4.50 and refuse 53.5% of those on malicious and 5.8% of those on "
    "sensitive ones."
)
FLATTERS = "Read on the validation documents that the dial was set on, so it flatters."
JUNK = (None, 3, -1, 1.5, "x", SECRET, [], {}, [1], {"x": "y"}, True, float("nan"), float("inf"), 1e308, 10**400, "\ud800")


@pytest.fixture
def path(run):
    return run / "adapter" / dials.NAME


def test_the_curve_is_that_of_the_file_and_the_dial_is_marked(run):
    figure = embedded(render(run))["figures"]["dial"]
    rows, bias = calibration()["curve"], calibration()["bias"]
    for label, trace in zip(SETS, figure["data"], strict=True):
        assert trace["name"].startswith(figures.RATE_NAMES[label])
        assert trace["line"]["color"] == figures.LABEL_COLOURS[label]
        assert trace["x"] == [row["bias"] for row in rows]
        assert trace["y"] == pytest.approx([100 * row[label] for row in rows])
    assert [(shape["x0"], shape["x1"]) for shape in figure["layout"]["shapes"]] == [(bias, bias)]
    assert [(note["x"], note["text"]) for note in figure["layout"]["annotations"]] == [(bias, "<b>the dial: −3.25</b>")]
    low, high = figure["layout"]["xaxis"]["range"]
    assert low < rows[0]["bias"] < rows[-1]["bias"] < high


def test_words_say_where_the_dial_stands_where_it_would_and_that_this_flatters(run):
    text = words(render(run))
    for said in (STANDS, STRICT, FLATTERS):
        assert said in text


def test_one_percent_of_many_prompts_is_not_called_none(run, path):
    change(path, lambda found: found["ordinary"].update(prompts=100))
    assert "For at most 1% of prompts on ordinary documents it would stand at −4.50" in words(render(run))


def test_the_folded_table_has_every_row_and_the_dial_in_one(run):
    page = render(run)
    text = words(page).partition("Share of prompts refused, by what is added")[2]
    assert "−3.80 58.3% 9.2% 2.3% −3.25 the dial 62.1% 12.1% 4.7% −2.50 67.3% 16.2% 8.2%" in text
    assert "<details><summary>The curve over the dial (18)</summary>" in page
    assert re.findall(r'<tr class="total"><th scope="row">([^<]*)<small>the dial', page) == ["−3.25"]


def test_a_fully_tuned_model_has_its_dial_too(run, path):
    (run / "model").mkdir()
    path.rename(run / "model" / dials.NAME)
    assert STANDS in words(render(run))


# ---- what is missing or odd


def test_without_a_calibration_nothing_is_said_of_a_dial(run, path):
    path.unlink()
    page = render(run)
    assert "dial" not in words(page)
    assert "dial" not in embedded(page)["figures"]


def test_a_folder_with_nothing_but_a_dial_and_its_dataset_shows_it(run):
    for name in ("metrics.json", "training.jsonl", "probes.jsonl"):
        (run / name).unlink()
    page = render(run)
    assert STANDS in words(page)
    assert "dial" in embedded(page)["figures"]


def test_a_calibration_of_before_says_where_the_dial_stands_and_that_there_is_no_curve(run, path):
    change(path, lambda found: (found.pop("curve"), found.pop("max_false_refusal")))
    page = render(run)
    assert NONE in words(page)
    assert STANDS.replace("and 5%", "and 12.5%") in words(page)
    assert "it would stand" not in words(page)
    assert "dial" not in embedded(page)["figures"]


def test_a_file_that_cannot_be_read_is_said_to_be_left_out(run, path):
    for content in (b"", b"[]", b"3", b"\xff\xfe", b"[" * 99_999, b"PK\x03\x04", b"{"):
        path.write_bytes(content)
        found = dials.read(run)
        assert (found.there, found.whole, dials.words(found)) == (True, False, []), content[:6]
    text = words(render(run))
    assert "calibration.json could not be read and is not shown here." in text
    assert not [said for said in ("The dial", NONE, FLATTERS) if said in text]


def test_rows_that_cannot_be_read_are_left_out_and_counted(run, path):
    whole = embedded(render(run))["figures"]["dial"]
    change(path, lambda found: found["curve"].extend([3, {"bias": "x", "malicious": 0.1}, {"bias": 1e9, "malicious": 0.1}, {"bias": 2, "malicious": 1.2}]))
    page = render(run)
    assert "4 rows of the curve in calibration.json could not be read and are not shown here." in words(page)
    assert embedded(page)["figures"]["dial"] == whole
    change(path, lambda found: found.update(curve="none"))
    assert "1 row of the curve in calibration.json could not be read and is not shown here." in words(render(run))


def test_rows_out_of_order_are_drawn_in_order_and_a_share_that_is_none_is_not_zero(run, path):
    change(path, lambda found: found.update(curve=found["curve"][::-1]))
    change(path, lambda found: found["curve"][0].update(ordinary=-1))
    data = embedded(render(run))["figures"]["dial"]["data"]
    assert [trace["x"] == sorted(trace["x"]) for trace in data] == [True] * 3
    assert [len(trace["x"]) for trace in data] == [18, 18, 17]
    assert "100% 100% not measured" in words(render(run))


def test_a_dial_that_stands_outside_its_curve_is_still_in_the_figure(run, path):
    change(path, lambda found: found.update(bias=40))
    layout = embedded(render(run))["figures"]["dial"]["layout"]
    assert layout["xaxis"]["range"][1] > 40
    assert layout["annotations"][0]["xanchor"] == "right"


def places(value, here=()):
    if here:
        yield here
    for name, one in value.items() if isinstance(value, dict) else enumerate(value[:2]) if isinstance(value, list) else ():
        yield from places(one, (*here, name))


def planted(tree, path, junk):
    first, *rest = path
    copy = tree.copy()
    copy[first] = planted(tree[first], rest, junk) if rest else junk
    return copy


@pytest.mark.parametrize("junk", JUNK, ids=lambda junk: repr(junk)[:12])
def test_no_single_odd_value_stops_the_report_or_brings_text_in(tmp_path, junk):
    (tmp_path / "adapter").mkdir()
    for place in places(calibration()):
        (tmp_path / "adapter" / dials.NAME).write_text(json.dumps(planted(calibration(), place, junk)), encoding="utf-8")
        found = dials.read(tmp_path)
        figure = figures.dial_curves(found.rows, bias=found.bias)
        said = " ".join([*dials.words(found), dials.odd_words(found), figure.to_json() if figure else ""])
        assert SECRET not in said
        assert "nan" not in said.lower()
        assert all(one["bias"] is not None for one in found.rows)


@pytest.mark.parametrize("junk", [None, SECRET, float("nan")], ids=str)
def test_a_page_of_odd_values_still_renders(run, path, junk):
    path.write_text(json.dumps({name: JUNK if name == "curve" else junk for name in calibration()}), encoding="utf-8")
    page = render(run)
    assert f"{len(JUNK)} rows of the curve in calibration.json could not be read" in words(page)
    assert SECRET not in page


def test_no_text_of_the_file_reaches_the_page(run, path):
    def hostile(found):
        found.update({SCRIPT: SECRET, "token": SECRET, SECRET: found["ordinary"]})
        for row in (*found["curve"], *(found[label] for label in SETS)):
            row.update({SECRET: 0.5, "note": SECRET})

    change(path, hostile)
    page = render(run)
    assert SECRET not in page
    assert STANDS in words(page)


# ---- in a browser


@pytest.mark.parametrize(("width", "bias"), [(1300, -3.251), (1300, -14.001), (400, 12.501)])
def test_the_mark_of_the_dial_is_inside_its_figure_and_over_no_legend(run, path, browser, width, bias):
    change(path, lambda found: found.update(bias=bias))
    render(run)
    browser.open(run / "report.html", width=width, dark=width < 600)
    browser.wait("document.querySelector('[data-figure=dial] .annotation-text') !== null")
    assert_note_and_legend_fit(browser, "dial")
    assert browser.ask("document.documentElement.scrollWidth") <= width
    assert browser.complaints() == []
