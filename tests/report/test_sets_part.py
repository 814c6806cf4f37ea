"""Outside sets on the page: set by set, short prompts apart from documents, categories folded, the surface baseline beside a lone evaluation."""

import re

import pytest
from invented_run import SCRIPT, SECRET, TASKS, write_outside
from pages import change, embedded, render, words

from docward.errors import RunError
from docward.report import sets, values


@pytest.fixture
def outside(tmp_path):
    """An evaluation on documents and short prompts of several sets."""
    return write_outside(tmp_path / "outside")


@pytest.fixture
def metrics(outside):
    found = {}
    change(outside / "metrics.json", found.update)
    return found


def part(page, name):
    """A section of the page."""
    return re.search(rf'<section id="{name}".*?</section>', page, re.DOTALL).group()


def said(rate):
    """A rate as the page writes it."""
    return f"{values.percent(rate['value'])} {values.interval(rate)} {rate['hits']} of {rate['judged']} judged · {rate['unjudged']} unjudged"


# ---- documents, set by set


def test_each_set_of_documents_has_its_rate_and_the_surface_baseline_s_beside_it(outside, metrics):
    text = words(part(render(outside), "sets"))
    assert len(metrics["sets"]) == 5
    for model, surface in zip(metrics["sets"], metrics["surface"]["sets"], strict=True):
        assert f"{model['source']} {model['documents']} documents {said(model)} {said(surface)}" in text
    assert text.index("longsafety 21") < text.index("docward-starter 12") < text.index("harmbench_contextual 9"), "the largest first"


def test_categories_are_folded_under_their_table_with_no_column_of_the_baseline(outside, metrics):
    page = part(render(outside), "sets")
    folded = " ".join(words(found) for found in re.findall(r"<details>.*?</details>", page, re.DOTALL))
    rows = [row for row in metrics["categories"] if row["form"] == "document"]
    assert len(rows) == 9
    for row in rows:
        name = f"{row['source']} {row['category']}" if row["set"] == "malicious" else row["category"]
        assert f"{name} {row['documents']} documents {said(row)}" in folded
    open_page = words(re.sub(r"<details>.*?</details>", "", page, flags=re.DOTALL))
    assert not any(row["category"] in open_page for row in rows)
    assert "surface baseline" not in folded
    assert "Malicious documents by category (5)" in folded


def test_one_set_a_label_without_categories_is_said_by_the_rates_alone(outside):
    def one(metrics):
        metrics["sets"] = [row for row in metrics["sets"] if row["source"] == "docward-starter"]
        metrics["categories"] = []

    change(outside / "metrics.json", one)
    page = render(outside)
    assert 'id="sets"' not in page
    assert 'href="#sets"' not in page
    assert 'id="prompts"' in page


def test_metrics_without_single_sets_render_as_before(run):
    page = render(run)
    assert not any(f'id="{name}"' in page for name in ("sets", "prompts"))


def test_very_many_sets_are_cut_and_the_rest_is_counted(outside):
    def many(metrics):
        row = metrics["sets"][0]
        metrics["sets"] = [{**row, "source": f"source-{number:03}"} for number in range(sets.MOST + 7)]
        metrics["categories"] = [{**row, "source": "source-001", "category": f"kind-{number:03}"} for number in range(sets.MOST + 1_234)]

    change(outside / "metrics.json", many)
    text = words(part(render(outside), "sets"))
    assert len(set(re.findall(r"source-\d+", text))) == len(set(re.findall(r"kind-\d+", text))) == sets.MOST
    assert "7 more sets: metrics.json" in text
    assert "1,234 more categories: metrics.json" in text


def test_a_set_that_one_model_was_not_asked_is_not_measured(run, outside, metrics):
    change(run / "metrics.json", lambda whole: whole["models"]["defended"].update(sets=metrics["sets"]))
    text = words(part(render(run), "sets"))
    assert f"longsafety 21 documents not measured {said(metrics['sets'][1])} not measured" in text


# ---- by length


def test_rates_stand_by_length_the_shortest_first(outside):
    def lengths(metrics):
        row = {**metrics["sets"][0], "source": "", "documents": 9}
        names = ["800 words and more", "under 100 words", "200 to 399 words"]
        metrics["lengths"] = [{**row, "set": label, "category": name} for label in ("ordinary", "malicious") for name in names]

    change(outside / "metrics.json", lengths)
    page = render(outside)
    text = words(part(page, "by-length"))
    for title in ("Block rate: malicious documents refused ↑ higher is better", "False refusal: ordinary documents refused ↓ lower is better"):
        after = text[text.index(title) :]
        assert after.index("under 100 words 9 documents") < after.index("200 to 399 words") < after.index("800 words and more")
    assert "Over-refusal" not in text
    assert 'href="#by-length"' in page


def test_labels_that_each_have_a_length_of_their_own_are_shown(outside):
    """A model could then go by length alone: the very thing to see."""

    def apart(metrics):
        row = {**metrics["sets"][0], "source": ""}
        named = {"malicious": "under 100 words", "ordinary": "800 words and more"}
        metrics["lengths"] = [{**row, "set": label, "category": name} for label, name in named.items()]

    change(outside / "metrics.json", apart)
    text = words(part(render(outside), "by-length"))
    assert text.index("malicious documents") < text.index("under 100 words") < text.index("ordinary documents") < text.index("800 words and more")


def test_documents_that_are_about_as_long_make_no_part_of_their_own(outside):
    def alike(metrics):
        row = {**metrics["sets"][0], "source": "", "category": "under 100 words"}
        metrics["lengths"] = [{**row, "set": label} for label in ("malicious", "ordinary")]

    change(outside / "metrics.json", alike)
    assert "by-length" not in render(outside)


# ---- short prompts


def test_short_prompts_stand_in_a_part_of_their_own_and_in_no_number_of_documents(outside, metrics):
    page = render(outside)
    text = words(part(page, "prompts"))
    assert len(metrics["prompts"]) == 4
    for row in metrics["prompts"]:
        assert f"{row['source']} {row['documents']} prompts {said(row)}" in text
    for row in (row for row in metrics["categories"] if row["form"] == "prompt"):
        assert f"{row['category']} {row['documents']} prompts {said(row)}" in text
    assert "Block rate: harmful prompts refused ↑ higher is better" in text
    assert "False refusal: safe prompts refused ↓ lower is better" in text
    assert "surface baseline" not in text.replace("The surface baseline does not apply to them.", "")
    rest = words(page.replace(part(page, "prompts"), ""))
    assert not {"xstest", "or_bench", "jailbreakbench"} & set(rest.split())
    assert "was tested on 42 malicious, 12 sensitive, 12 ordinary documents and 53 short prompts." in rest
    without = words(render(write_outside(outside.parent / "alone" / "outside", ["document"])))
    assert "36.6% 95%: 22% to 52.1%" in words(part(page, "headline"))
    assert words(part(page, "headline")).replace(" and 53 short prompts", "") in without


def test_short_prompts_alone_make_no_headline_of_documents(tmp_path):
    page = render(write_outside(tmp_path / "prompts", ["prompt"]))
    text = words(page)
    assert "No documents were measured here, only short prompts" in text
    assert "What big does with short prompts: harmful ones should be declined, safe ones answered." in text
    assert "was tested on 53 short prompts." in text
    assert "not measured" not in words(part(page, "headline"))
    assert 'id="sets"' not in page


# ---- the surface baseline of a lone evaluation


def test_a_lone_evaluation_shows_its_surface_baseline(outside):
    page = render(outside)
    text = words(part(page, "trade-off"))
    assert "it was fitted on 435 training documents of the starter." in text
    assert "Over-refusal 41.7%" in text
    assert "Balance +0.04 −0.26 to +0.33" in text
    assert "whether the model beats the baseline is undecided." in words(page)
    assert [trace["name"] for trace in embedded(page)["figures"]["trade-off"]["data"]] == ["big", "surface baseline"]


def test_the_surface_baseline_needs_no_trade_off(outside):
    def malicious(metrics):
        for place in (metrics, metrics["surface"]):
            place["pooled"] = {"malicious": place["pooled"]["malicious"]}
            place["balance"] = None

    change(outside / "metrics.json", malicious)
    text = words(part(render(outside), "trade-off"))
    assert "the trade-off needs both malicious and sensitive documents" in text
    assert "Block rate 45.2%" in text
    change(outside / "metrics.json", lambda metrics: metrics.update(surface=None))
    assert "Block rate" not in words(part(render(outside), "trade-off"))


# ---- broken and hostile


@pytest.mark.parametrize("name", sets.PARTS)
@pytest.mark.parametrize("broken", [{}, "xstest", [3], [{"source": "xstest"}]])
def test_broken_rates_of_single_sets_are_refused_with_their_path(outside, name, broken):
    change(outside / "metrics.json", lambda metrics: metrics.update({name: broken}))
    with pytest.raises(RunError, match=rf"metrics\.json, model big.*{name}.*docward evaluate"):
        render(outside)
    assert not (outside / "report.html").exists()


def test_hostile_names_of_sets_and_categories_are_escaped(outside):
    def hostile(metrics):
        for row in (metrics["sets"][0], metrics["prompts"][0], metrics["categories"][0]):
            row.update(source=SCRIPT, category=SCRIPT if row["category"] else "")
        metrics["surface"]["fitted_on"] = SCRIPT

    change(outside / "metrics.json", hostile)
    page = render(outside)
    assert "window.ran = true</script>" not in page
    assert "<img" not in re.sub(r"<script.*?</script>", "", page, flags=re.DOTALL)
    assert "&lt;/script&gt;" in part(page, "sets")
    assert "&lt;/script&gt;" in part(page, "prompts")


# ---- samples


def test_the_sample_browser_keeps_prompts_apart_from_documents_of_the_same_label(outside):
    browser = embedded(render(outside))["browser"]
    prompts = {"harmful prompts", "safe prompts"}
    assert {sample["kind"] for sample in browser["samples"]} == {"malicious", "sensitive", "ordinary", *prompts}
    assert all((sample["kind"] in prompts) == sample["prompt"] == (sample["task"] not in TASKS) for sample in browser["samples"])
    assert {name: count["all"] for name, count in browser["counts"].items()} == {
        "malicious": 210,
        "sensitive": 60,
        "ordinary": 60,
        "harmful prompts": 22,
        "safe prompts": 31,
    }
    assert browser["counts"]["safe prompts"]["mistakes"] == 8
    assert {sample["source"] for sample in browser["samples"] if sample["prompt"]} == {"xstest", "or_bench", "jailbreakbench"}


def test_harmful_prompts_are_veiled_and_safe_ones_are_not(outside):
    page = render(outside)
    browser = embedded(page)["browser"]
    assert SECRET not in page
    for sample in (sample for sample in browser["samples"] if sample["prompt"]):
        places = [sample["document"], *(place for reply in sample["replies"] for place in (reply["text"], reply["why"]))]
        assert all(("veiled" in browser["texts"][place]) == (sample["kind"] == "harmful prompts") for place in places)
    assert "Malicious documents and harmful prompts, the replies to them" in words(page)


def choose(browser, label, value):
    browser.ask(
        f"(select => {{ select.value = '{value}'; select.dispatchEvent(new Event('change')); }})"
        f"([...document.querySelectorAll('.tools label')].find(label => label.textContent.startsWith('{label}')).querySelector('select'))"
    )


def test_a_reader_filters_prompts_and_sets(outside, browser):
    render(outside)
    browser.open(outside / "report.html")
    choose(browser, "Set", "safe prompts")
    assert set(browser.ask("[...document.querySelectorAll('.sample .badge:first-child')].map(node => node.textContent)")) == {"safe prompts"}
    assert set(browser.ask("[...document.querySelectorAll('.sample .column:first-child .top')].map(node => node.textContent)")) == {"Prompt"}
    assert browser.ask("document.querySelectorAll('.sample .instruction').length") == 0
    choose(browser, "From", "or_bench")
    assert browser.ask("document.querySelector('.pager span').textContent") == "1 to 6 of 11"
    choose(browser, "Set", "harmful prompts")
    assert browser.ask("document.querySelector('.pager span').textContent") == "No sample fits these filters."
    choose(browser, "From", "jailbreakbench")
    assert browser.ask("document.querySelector('.veil span').textContent").startswith("Veiled prompt: ")
    browser.ask("document.querySelector('button.show').click()")
    assert SECRET in browser.ask("document.querySelector('.list .text').textContent")
    assert browser.complaints() == []
    assert browser.requests() == []


@pytest.mark.parametrize("width", [400, 1280])
def test_the_tables_of_sets_fit_the_page(run, metrics, browser, width):
    def both(whole):
        for model in whole["models"].values():
            model.update({name: metrics[name] for name in sets.PARTS})
        whole["surface"]["sets"] = metrics["surface"]["sets"]

    change(run / "metrics.json", both)
    render(run)
    browser.open(run / "report.html", width=width)
    assert browser.ask("document.documentElement.scrollWidth") <= width
    browser.ask("document.querySelectorAll('details').forEach(one => { one.open = true; })")
    tables = "[...document.querySelectorAll('#sets .scroll, #prompts .scroll')]"
    assert browser.ask(f"{tables}.length") == 10
    assert browser.ask(f"{tables}.filter(one => one.scrollWidth > one.clientWidth + 1).length") == 0
    heads = f"{tables}.every(one => {{ const ends = row => [...row.children].slice(1).map(cell => Math.round(cell.getBoundingClientRect().left)).join();"
    assert browser.ask(f"{heads} return [...one.querySelectorAll('tbody tr')].every(row => ends(row) === ends(one.querySelector('thead tr'))); }})"), (
        "a column's cells stand under its head"
    )
