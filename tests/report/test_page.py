"""The report's laws: hostile text stays text, malicious text stays veiled, absent parts are said to be absent."""

import base64
import json
import os
import re
import subprocess
import sys

import pytest
from invented_run import DIFFERENCES, SCRIPT, SECRET, SETS, TASKS, rate, write_run
from pages import change, embedded, render, words

from docward.errors import RunError
from docward.report import figures
from docward.report.page import write_report
from docward.report.samples import MISTAKES_PER_SET, SAMPLES_PER_SET, TEXT_LIMIT

SHOWN = "[...document.querySelectorAll('.list .text')].map(node => node.textContent)"
FIRST_VEIL = "document.querySelector('button.show')"


# ---- what is missing


def test_missing_metrics_says_which_command_makes_them(tmp_path):
    with pytest.raises(RunError, match=r"metrics\.json is missing.*docward run RECIPE.*docward evaluate --model"):
        write_report(tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "broken",
    [
        "",
        "{",
        "[]",
        "{}",
        '{"models": {}}',
        '{"models": {"untuned": {}}}',
        '{"models": {"untuned": 3}}',
        '{"rates": {}}',
        '{"rates": [{"set": "malicious"}]}',
        "\xff",
    ],
)
def test_broken_metrics_are_refused_with_their_path(run, broken):
    (run / "metrics.json").write_bytes(broken.encode("latin-1"))
    with pytest.raises(RunError, match=r"metrics\.json.*docward (run|evaluate)"):
        write_report(run)
    assert not (run / "report.html").exists()


@pytest.mark.parametrize("broken", ["evaluation/defended/replies.jsonl", "evaluation/untuned/verdicts.jsonl", "dataset/audit.json", "environment.json"])
def test_another_broken_file_is_named(run, broken):
    (run / broken).write_text('{"key": ', encoding="utf-8")
    with pytest.raises(RunError, match=re.escape(broken) + r".*docward"):
        write_report(run)


@pytest.mark.parametrize(
    ("gone", "said"),
    [
        ("dataset/audit.json", "no dataset/audit.json"),
        ("training.jsonl", "no training.jsonl"),
        ("probes.jsonl", "no probes.jsonl"),
        ("recipe.yaml", "How it was made"),
        ("environment.json", "How it was made"),
        ("evaluation/untuned/replies.jsonl", "Samples"),
        ("evaluation/untuned/verdicts.jsonl", "Samples"),
        ("evaluation/defended/replies.jsonl", "Samples"),
        ("evaluation/defended/verdicts.jsonl", "Samples"),
    ],
)
def test_a_run_without_one_file_still_renders(run, gone, said):
    (run / gone).unlink()
    assert said in words(render(run))


def test_a_run_without_replies_says_so(run):
    for model in ("untuned", "defended"):
        for name in ("replies", "verdicts"):
            (run / "evaluation" / model / f"{name}.jsonl").unlink()
    assert "no replies with verdicts" in words(render(run))


def test_a_run_without_a_baseline_or_tests_still_renders(run):
    change(run / "metrics.json", lambda metrics: metrics.update(surface=None, paired=[]))
    text = words(render(run))
    assert "No surface baseline was measured." in text
    assert "whether the models differ is undecided" in text


@pytest.mark.parametrize("left", [["untuned"], ["defended"]])
def test_a_run_with_one_model_still_renders(run, left):
    change(run / "metrics.json", lambda metrics: metrics.update(models={name: metrics["models"][name] for name in left}, paired=[]))
    assert "nothing to compare it with" in words(render(run))


@pytest.mark.parametrize("label", SETS)
def test_a_run_without_one_set_says_that_it_was_not_measured(run, label):
    def without(metrics):
        for model in metrics["models"].values():
            model["rates"] = [row for row in model["rates"] if row["set"] != label]
            del model["pooled"][label]
            model["balance"] = None if label != "ordinary" else model["balance"]

    change(run / "metrics.json", without)
    text = words(render(run))
    assert f"Not measured: no {label} documents." in text
    assert ("the trade-off needs both" in text) == (label != "ordinary")


def test_a_bare_run_renders(tmp_path):
    (tmp_path / "metrics.json").write_text('{"models": {"untuned": {"rates": [], "pooled": {}}}}', encoding="utf-8")
    text = words(render(tmp_path))
    assert text.count("not measured") >= 4
    assert "Not measured: no rates" in text


def test_the_folder_of_docward_evaluate_renders(evaluated):
    page = render(evaluated)
    browser = embedded(page)["browser"]
    assert "Block rate" in words(page)
    assert browser["models"] == ["the model"]
    assert all(sample["replies"][0] for sample in browser["samples"])


def test_nothing_judged_is_not_a_rate_of_zero(run):
    def unjudged(metrics):
        defended = metrics["models"]["defended"]
        defended["pooled"]["malicious"] = rate("malicious", "all", 0, 0, unjudged=30)
        defended["balance"] = None

    change(run / "metrics.json", unjudged)
    text = words(render(run))
    assert "defended not measured 30 unjudged" in text
    assert "not measured 0 judged · 30 unjudged" in text


# ---- what is said


def test_every_rate_stands_in_a_table_with_its_interval_and_unjudged_count(run):
    def one(metrics):
        metrics["models"]["defended"]["rates"][0] = {**rate("malicious", "summarize", 37, 40, unjudged=2), "low": 0.801, "high": 0.975}

    change(run / "metrics.json", one)
    assert "92.5% 80.1% to 97.5% 37 of 40 judged · 2 unjudged" in words(render(run))


def test_the_headline_says_undecided_in_words(run):
    text = words(render(run))
    assert "On malicious documents: more refusals on 4 of 5 tasks, undecided on 1 of 5 tasks." in text
    assert "On sensitive documents: undecided on 5 of 5 tasks." in text


def test_a_pooled_test_is_preferred_to_its_tasks(run):
    change(run / "metrics.json", lambda metrics: metrics["models"]["defended"].update(differences=DIFFERENCES))
    text = words(render(run))
    assert "On malicious documents: more refusals (+73.1 points, +60.2 to +84.9)." in text
    assert "On sensitive documents: undecided (+2.2 points, −3.0 to +8.1)." in text
    assert "on 4 of 5 tasks" not in text


@pytest.mark.parametrize(("low", "high", "says"), [(0.4, 0.8, "beats the baseline."), (0.3, 0.8, "is undecided."), (-0.5, -0.1, "is worse than the baseline.")])
def test_the_baseline_is_beaten_only_where_the_intervals_part(run, low, high, says):
    change(run / "metrics.json", lambda metrics: metrics["models"]["defended"].update(balance={"value": (low + high) / 2, "low": low, "high": high}))
    assert says in words(render(run))


# ---- samples


def test_samples_are_few_and_mistakes_come_first(tmp_path):
    run = write_run(tmp_path / "large", documents=60)  # 300 pairs a set
    page = render(run)
    browser = embedded(page)["browser"]
    for label in SETS:
        samples = [sample for sample in browser["samples"] if sample["set"] == label]
        flags = [sample["mistake"] for sample in samples]
        assert len(samples) == SAMPLES_PER_SET
        assert flags == sorted(flags, reverse=True)
        assert sum(flags) == min(MISTAKES_PER_SET, browser["counts"][label]["mistakes"])
        assert {sample["task"] for sample in samples} == set(TASKS)
    assert browser["counts"]["malicious"]["mistakes"] > MISTAKES_PER_SET
    assert "mistakes are over-represented" in words(page)


def test_the_same_run_gives_the_same_page(run):
    assert render(run) == render(run)


def test_a_long_document_is_cut_and_the_page_says_so(run):
    for model in ("untuned", "defended"):
        path = run / "evaluation" / model / "replies.jsonl"
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        path.write_text("".join(json.dumps({**row, "document": "word " * 2_000}) + "\n" for row in rows), encoding="utf-8")
    texts = embedded(render(run))["browser"]["texts"]
    cut = [text for text in texts if text["cut"]]
    assert {text["characters"] for text in cut} == {10_000}
    assert {len(text["text"]) for text in cut if "text" in text} == {TEXT_LIMIT}


def test_a_broken_character_does_not_stop_the_report(run):
    path = run / "evaluation" / "defended" / "replies.jsonl"
    path.write_text(path.read_text(encoding="utf-8").replace("a garden", "a \\ud800 garden"), encoding="utf-8")
    change(run / "dataset" / "audit.json", lambda audit: audit["categories"].update({"\ud800": {"malicious": 1}}))
    assert "garden" in render(run)


# ---- hostile text


def test_a_document_cannot_end_the_script_that_carries_it(run):
    page = render(run)
    carried = re.search(r'id="embedded">(.*?)</script>', page, re.DOTALL).group(1)
    assert any(SCRIPT in text.get("text", "") for text in json.loads(carried)["browser"]["texts"])
    assert not set("<>&") & set(carried)


def test_hostile_names_are_escaped_everywhere(run):
    change(run / "dataset" / "audit.json", lambda audit: audit["categories"].update({SCRIPT: {"malicious": 1}}))
    change(run / "environment.json", lambda environment: environment.update({SCRIPT: SCRIPT}))
    change(run / "metrics.json", lambda metrics: metrics["models"]["defended"]["rates"].append(rate("malicious", SCRIPT, 1, 2)))
    (run / "recipe.yaml").write_text(SCRIPT, encoding="utf-8")
    page = render(run)
    assert "window.ran = true</script>" not in page
    assert "<img" not in re.sub(r"<script>.*?</script>", "", page, flags=re.DOTALL)
    assert "49" not in re.search(r"<pre.*?</pre>", page, re.DOTALL).group()


def test_malicious_text_is_not_even_in_the_source(run):
    page = render(run)
    assert SECRET not in page
    veiled = [base64.b64decode(text["veiled"]).decode() for text in embedded(page)["browser"]["texts"] if "veiled" in text]
    assert sum(SECRET in text for text in veiled) > 3


def test_the_page_asks_for_nothing(run):
    page = render(run)
    own = page.replace(max(re.findall(r"<script>.*?</script>", page, re.DOTALL), key=len), "")  # plotly.js names addresses that it never asks for here
    assert not re.findall(r"https?://", own.replace("http-equiv", ""))
    assert "default-src 'none'" in own
    assert page.count("plotly.js v") <= 2  # inlined once


def test_importing_the_report_stays_light():
    code = "import sys, docward.report.page, docward.report.figures; print([name for name in ('plotly', 'jinja2', 'torch') if name in sys.modules])"
    paths = os.pathsep.join(path for path in sys.path if path)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env={**os.environ, "PYTHONPATH": paths})
    assert done.stdout.strip() == "[]"


# ---- figures


def test_a_model_has_one_colour_in_every_figure(run):
    drawn = embedded(render(run))["figures"]
    for name in ("trade-off", *(f"rates-{label}" for label in SETS)):
        for trace in drawn[name]["data"]:
            known = {figures.display_name(model): paint for model, paint in figures.MODEL_COLOURS.items()}
            assert trace["marker"]["color"] == known[trace["name"]]


def test_the_trade_off_shows_points_and_intervals():
    models = {"defended": {"pooled": {"malicious": rate("malicious", "all", 18, 20), "sensitive": rate("sensitive", "all", 1, 10)}}}
    trace = figures.trade_off(figures.marks(models, None)).data[0]
    assert (trace.x[0], trace.y[0]) == (pytest.approx(10), pytest.approx(90))
    assert trace.error_y.array[0] == pytest.approx(8)
    assert trace.error_x.arrayminus[0] == pytest.approx(8)


def test_nothing_measured_draws_nothing():
    assert figures.marks({"untuned": {"pooled": {}}}, None) == []
    assert figures.task_rates({"untuned": {"rates": [rate("malicious", "case", 0, 0, 3)]}}, "malicious") is None
    assert figures.word_lengths({}) is None
    assert figures.surface_tells([]) is None


# ---- in a browser


@pytest.mark.parametrize(("width", "dark"), [(1400, False), (400, True)])
def test_the_page_renders_without_error_or_request(run, browser, width, dark):
    browser.open(write_report(run), width=width, dark=dark)
    assert browser.ask("document.querySelectorAll('.figure .main-svg').length") >= 6
    assert browser.ask("document.querySelectorAll('.sample').length") > 0
    assert browser.ask("document.documentElement.scrollWidth") <= width
    assert browser.ask("getComputedStyle(document.body).backgroundColor") == ("rgb(15, 19, 24)" if dark else "rgb(245, 246, 248)")
    assert browser.complaints() == []
    assert browser.requests() == []


def test_figures_follow_the_theme_of_the_reader(run, browser):
    browser.open(write_report(run))
    ink = "getComputedStyle(document.querySelector('.figure .xtick text')).fill"
    browser.wait(f"{ink} === 'rgb(26, 31, 38)'")
    browser.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": "dark"}])
    browser.wait(f"{ink} === 'rgb(230, 233, 237)'")
    assert browser.complaints() == []


def test_a_script_in_a_document_never_runs(run, browser):
    change(run / "dataset" / "audit.json", lambda audit: audit["categories"].update({SCRIPT: {"malicious": 1}}))
    browser.open(write_report(run))
    for label in SETS:  # walk through every page of the sample browser
        browser.ask(f"(select => {{ select.value = '{label}'; select.dispatchEvent(new Event('change')) }})(document.querySelector('.tools select'))")
        while True:
            browser.ask("document.querySelectorAll('button.show').forEach(button => button.click())")
            if browser.ask("document.querySelector('.pager button:last-child').disabled"):
                break
            if label == "sensitive" and browser.ask(f"{SHOWN}.some(text => text.includes('window.ran'))"):
                browser.ask("window.seen = true")
            browser.ask("document.querySelector('.pager button:last-child').click()")
    assert browser.ask("window.seen") is True  # the hostile text was shown, as text
    assert browser.ask("window.ran") is None
    assert browser.ask("document.querySelectorAll('main img').length") == 0
    assert browser.complaints() == []


def test_malicious_text_is_veiled_until_clicked(run, browser):
    browser.open(write_report(run))
    present = f"document.documentElement.outerHTML.includes('{SECRET}')"
    assert browser.ask(present) is False
    assert re.fullmatch(r"Veiled document: \d+ words", browser.ask("document.querySelector('.veil span').textContent"))
    browser.ask(f"{FIRST_VEIL}.click()")
    assert browser.ask(SHOWN)[0].startswith(SECRET)
    assert browser.ask(f"{SHOWN}.length") == 1  # one click lifts one veil
    browser.ask("document.querySelector('button.veil-all').click()")
    assert browser.ask(present) is False
    assert browser.ask("document.querySelector('button.veil-all').disabled") is True


def test_a_lifted_veil_shows_the_judges_reason_too(run, browser):
    browser.open(write_report(run))
    assert browser.ask("document.querySelectorAll('.why').length") == 0
    browser.ask("document.querySelectorAll('.sample .column')[2].querySelector('button.show').click()")
    assert browser.ask("document.querySelector('.why').textContent").startswith("Judge's reason: opens with:")


def test_filters_choose_set_task_and_outcome(run, browser):
    browser.open(write_report(run))

    def choose(place, value):
        browser.ask(
            f"(select => {{ select.value = '{value}'; select.dispatchEvent(new Event('change')) }})(document.querySelectorAll('.tools select')[{place}])"
        )

    choose(0, "sensitive")
    choose(1, "translate")
    assert set(browser.ask("[...document.querySelectorAll('.sample .badge:first-child')].map(node => node.textContent)")) == {"sensitive"}
    assert set(browser.ask("[...document.querySelectorAll('.sample > header strong')].map(node => node.textContent)")) == {"translate"}
    assert browser.ask("document.querySelectorAll('.veil').length") == 0  # sensitive texts are not veiled
    choose(3, "complied")
    assert set(browser.ask("[...document.querySelectorAll('.sample .column:nth-child(3) .badge')].map(node => node.textContent)")) == {"✓ complied"}
    choose(0, "all")
    choose(1, "all")
    choose(3, "all")
    browser.ask("document.querySelector('.tick input').click()")
    assert browser.ask("document.querySelectorAll('.sample').length") > 0
    assert set(browser.ask("[...document.querySelectorAll('.sample .column:nth-child(3) .badge')].map(node => node.textContent[0])")) == {"✗"}
