"""The dataset's part of the page: the numbers are those of audit.json, what is missing is left out, and no document's text gets in."""

import json
import re
from dataclasses import replace

import pytest
from invented_run import SCRIPT, SECRET, SETS, TASKS, audit
from pages import change, embedded, render, words

from docward.dataset.auditing import ExampleCounts, warnings
from docward.dataset.auditing import audit as audit_of
from docward.errors import RunError
from docward.report import audit as audits
from docward.report import figures
from docward.report.page import write_report
from docward.types import Document, Label, Split

JUNK = (None, 3, -1, "x", [], {}, [1], {"x": "y"}, {"x": None}, {"malicious": {"x": {}}}, True, float("nan"), float("inf"), "\ud800", 1e308)
# A field, and what the page says where it is there and does not where it is not.
PARTS = [
    ("documents", "Documents by split and label"),
    ("matched_groups", "43 groups"),
    ("categories", "Categories"),
    ("forms", "Forms"),
    ("languages", "Languages"),
    ("sources", "Sources"),
    ("licenses", "Licences"),
    ("prompts", "17 are short prompts"),
    ("examples", "Examples by task and split"),
    ("wordings", "How each task is worded"),
    ("origins", "Where the answers come from"),
    ("dropped_examples", "Examples dropped"),
    ("answer_words", "Words of the answers"),
    ("words", "Words per document"),
    ("length_distance", "malicious and ordinary: far apart"),
    ("sample", "a sample of 100 of 123 documents"),
    ("openers", "First words, most common"),
    ("giveaways", "court 12"),
    ("crossing", "stand in more than one split"),
    ("removed", "Documents removed"),
    ("cleaned", "Documents mended"),
    ("clusters", "4 clusters of near copies are left"),
    ("surface", "Bag of words AUC"),
    ("cut", "45 of 990 training examples will be cut at 1,024 tokens"),
    ("answer_tokens", "90,210 tokens of answers to learn"),
    ("warnings", "17 texts are short prompts, not documents"),
    ("teacher", "Refusals sampled from a teacher: 120 (113 kept, 7 not a refusal)"),
    ("task_weights", "Weights of the tasks in tuning"),
]


@pytest.fixture
def dataset(tmp_path):
    """A run folder as `docward build` leaves it: a dataset and no metrics."""
    folder = tmp_path / "garden-data"
    (folder / "dataset").mkdir(parents=True)
    whole = audit() | {"teacher": {"kept": 113, "not a refusal": 7}, "task_weights": {"summarize": 0.7125, "case": 0.2875}}
    (folder / "dataset" / "audit.json").write_text(json.dumps(whole), encoding="utf-8")
    (folder / "stages.json").write_text(json.dumps({"build": {"seconds": 93.1, "peak_memory_mib": 587}}), encoding="utf-8")
    return folder


def edit(folder, **fields):
    change(folder / "dataset" / "audit.json", lambda found: found.update(fields))


# ---- a folder with a dataset only


def test_a_folder_with_a_dataset_and_no_metrics_gives_a_page_of_the_dataset(dataset):
    page = render(dataset)
    text = words(page)
    assert "garden-data" in text
    assert "No model has been measured in this folder yet." in text
    assert re.findall(r"<h2[^>]*>(.*?)</h2>", page) == ["The dataset", "How it was made"]
    assert "1 min 33 s" in text
    assert "587 MiB" in text
    assert sorted(embedded(page)["figures"]) == ["tells", "words"]
    anchors = set(re.findall(r'href="#([\w-]+)"', page))
    assert anchors == {"audit", "documents", "lengths", "surface", "removed", "examples", "made"}
    assert anchors <= set(re.findall(r'id="([\w-]+)"', page))


def test_nothing_at_all_says_that_a_dataset_would_do(tmp_path):
    with pytest.raises(RunError, match=r"metrics\.json is missing.*docward build RECIPE"):
        write_report(tmp_path)


def test_a_broken_audit_without_metrics_is_named(dataset):
    (dataset / "dataset" / "audit.json").write_text("{", encoding="utf-8")
    with pytest.raises(RunError, match=r"audit\.json is broken.*docward build"):
        write_report(dataset)


def test_a_whole_run_has_the_dataset_among_its_parts(run):
    page = render(run)
    assert re.findall(r"<h2[^>]*>(.*?)</h2>", page) == [
        *("Headline", "Trade-off", "Rates per task", "Utility", "The dataset", "Tuning", "Samples", "How it was made"),
    ]
    assert "Documents by split and label" in words(page)


# ---- every part shows


@pytest.mark.parametrize(("field", "said"), PARTS, ids=[field for field, _ in PARTS])
def test_a_part_shows_where_its_field_is_there_and_only_there(dataset, field, said):
    assert said in words(render(dataset))
    change(dataset / "dataset" / "audit.json", lambda found: found.pop(field))
    assert said not in words(render(dataset))


def test_every_field_of_an_audit_has_a_part():
    assert {field for field, _ in PARTS} == {*audit(), "task_weights"}


def numbered(value, taken):
    """The same tree with other numbers: each count a number of its own, each share one with three digits."""
    if isinstance(value, dict):
        return {name: numbered(one, taken) for name, one in value.items()}
    if isinstance(value, bool) or not isinstance(value, int | float):
        return value
    taken.append(len(taken))
    return 4001 + 7 * len(taken) if isinstance(value, int) else (0.4 + len(taken) / 1000) * (1 if value > 0 else -1)


def leaves(value):
    return [leaf for one in value.values() for leaf in leaves(one)] if isinstance(value, dict) else [value]


def test_the_numbers_on_the_page_are_those_of_the_audit(dataset):
    given = numbered(audit() | {"teacher": {"kept": 1, "not a refusal": 1}, "task_weights": {"case": 1}}, [])
    given["task_weights"] = {"case": 0.777}
    given["sample"] = {"documents": 4444, "of": 9999}
    given["cut"] = {"max_length": 512, "measured": 7777, "of": 9998, "examples": 5555, "tokens": 6666}
    given["openers"]["malicious"]["most_common"]["dear all"] = 1  # of one document: not shown
    edit(dataset, **given)
    page = render(dataset)
    text, drawn = words(page), embedded(page)["figures"]
    histograms = {label: given["words"][label].pop("histogram") for label in SETS}
    bars = {trace["name"]: dict(zip(trace["x"], trace["customdata"], strict=True)) for trace in drawn["words"]["data"]}
    assert bars == histograms
    tells = given["surface"]["tells"]
    assert drawn["tells"]["data"][0]["x"] == sorted(tells.values(), key=lambda weight: -abs(weight))
    for label in SETS:
        assert f"{100 * given['openers'][label].pop('answer_like'):.1f}".removesuffix(".0") + "% open like" in text
    given["openers"]["malicious"]["most_common"].pop("dear all")
    for limit in ("limit", "default_limit"):
        assert f"{given['surface'].pop(limit):g}" in text
    counts = [leaf for leaf in leaves(given) if isinstance(leaf, int) and not isinstance(leaf, bool)]
    shares = [leaf for leaf in leaves(given) if isinstance(leaf, float)]
    assert len(counts) > 150
    assert [one for one in counts if f"{one:,}" not in text] == []
    assert [one for one in shares if f"{abs(one):.3f}" not in text] == []


def test_lengths_are_drawn_as_shares_of_the_label_in_order_of_words_without_the_empty_ends():
    histograms = {"malicious": {"0-80": 0, "1280+": 1, "80-160": 3, "2000+": 0}, "ordinary": {"0-80": 0, "160-320": 1}}
    figure = figures.word_lengths({label: {"histogram": histogram} for label, histogram in histograms.items()})
    assert figure.data[0].x == ("80-160", "160-320", "1280+")
    assert figure.data[0].y == (75, 0, 25)
    assert figure.data[0].customdata == (3, 0, 1)


def test_what_speaks_for_malicious_points_right_and_has_its_colour():
    figure = figures.surface_tells(audits.tells({"surface": {"tells": {"mark ,": -0.2, "word may": 0.1, "word length": -0.3}}}))
    assert figure.data[0].y == ("word length", "mark “,”", "word “may”")
    assert figure.data[0].x == (-0.3, -0.2, 0.1)
    assert figure.data[0].marker.color == tuple(figures.LABEL_COLOURS[label] for label in ("sensitive", "sensitive", "malicious"))


def test_many_categories_are_named_by_size_and_the_others_counted():
    given = {"categories": {f"c{number}": {"malicious": number} for number in range(1, 31)}}
    rows = audits.table(given, "categories").rows
    assert [row.name for row in rows] == [*(f"c{number}" for number in range(30, 18, -1)), "18 others"]
    assert sum(row.total for row in rows) == sum(range(1, 31))


def test_documents_without_a_category_are_counted_as_such():
    given = {"documents": {"train": {"malicious": 5, "ordinary": 2}}, "categories": {"fraud": {"malicious": 3}}}
    assert [(row.name, row.counts) for row in audits.table(given, "categories").rows] == [
        ("fraud", {"malicious": 3, "sensitive": 0, "ordinary": 0}),
        ("(not given)", {"malicious": 2, "sensitive": 0, "ordinary": 2}),
    ]


def test_an_opener_of_one_document_is_no_common_one():
    given = {"openers": {"malicious": {"most_common": {"sure here": 2, "dear all": 1}}}}
    assert [label.openers for label in audits.labels(given)] == [[("sure here", 2)]]


def test_a_share_that_is_none_is_not_shown():
    assert audits.surface({"surface": {"auc": 5.0, "bag_of_words_auc": -0.1}})["auc"] is None
    assert audits.distances({"length_distance": {"a and b": 1.2, "a and c": 0.2}}) == [("a and c", 0.2, "somewhat apart")]
    assert [label.answer_like for label in audits.labels({"openers": {"malicious": {"answer_like": 31}}})] == [None]


def test_one_value_for_all_is_a_sentence_and_no_table(dataset):
    edit(dataset, languages={"nl": dict.fromkeys(SETS, 41)})
    change(dataset / "dataset" / "audit.json", lambda found: found.pop("documents"))
    text = words(render(dataset))
    assert "All of them: language nl ." in text
    assert "Languages" not in text


@pytest.mark.parametrize(("crossing", "mark", "kind"), [(0, "✓ 0", "good"), (2, "✗ 2", "bad")])
def test_what_crosses_splits_is_green_at_none_and_red_above(dataset, crossing, mark, kind):
    edit(dataset, crossing=crossing)
    assert re.search(rf'<div class="{kind}"><dt>{mark}</dt><dd>matched groups or clusters', render(dataset))


@pytest.mark.parametrize(
    ("auc", "limit", "said", "bad"),
    [(0.6, 0.75, "", False), (0.97, 1.0, "The limit was raised from 0.75 to 1 for this dataset.", True), (0.6, 0.7, "The limit was lowered from 0.75", False)],
)
def test_a_limit_that_was_moved_is_said_and_the_usual_one_decides_what_is_bad(dataset, auc, limit, said, bad):
    change(dataset / "dataset" / "audit.json", lambda found: found["surface"].update(auc=auc, low=auc - 0.01, high=auc + 0.01, limit=limit))
    page = render(dataset)
    assert said in words(page)
    assert bool(said) == ("The limit was" in words(page))
    assert bool(re.search(rf'<div class="bad"><dt>{auc:.3f}', page)) is bad


def test_a_surface_that_was_not_measured_is_said(dataset):
    edit(dataset, surface={"auc": None, "low": None, "high": None, "bag_of_words_auc": None, "tells": {}, "limit": 0.75, "default_limit": 0.75})
    text = words(render(dataset))
    assert "Surface alone was not measured: too few malicious and sensitive documents." in text
    assert "Surface AUC" not in text


def test_nothing_removed_and_nothing_to_warn_of_is_said(dataset):
    edit(dataset, removed={"empty": 0, "duplicates": 0}, cleaned={}, warnings=[], clusters={"clusters": 0, "documents": 0, "largest": 0})
    text = words(render(dataset))
    assert "Nothing was removed: 0 empty, 0 exact copies." in text
    assert "No document needed mending." in text
    assert "No near copies are left in it." in text
    assert "The audit found nothing to warn of." in text


def test_examples_without_an_answer_are_counted():
    given = {"origins": {"refusal": 10, "untuned": 30}, "answer_words": {"refuse": {"examples": 10, "words": 50}, "comply": {"examples": 12, "words": 60}}}
    assert audits.unanswered(given) == 18
    assert audits.unanswered({"origins": {"refusal": 10}}) == 0  # not known


# ---- what is old, partial or broken


def test_an_audit_of_an_older_version_is_shown(dataset):
    new = audit()
    old = {name: new[name] for name in ("documents", "categories", "forms", "languages", "examples", "origins", "words", "crossing")}
    old |= {"duplicates": 3, "cut": {"max_length": 1024, "examples": 3, "tokens": 250}, "answer_tokens": {"train": 9000}}
    old |= {"openers": {label: {"answer_like": 0.31} for label in SETS}, "surface": {"auc": 0.58, "low": 0.5, "high": 0.66, "bag_of_words_auc": 0.8}}
    (dataset / "dataset" / "audit.json").write_text(json.dumps(old), encoding="utf-8")
    text = words(render(dataset))
    assert "near copies 3" in text
    assert "3 training examples will be cut at 1,024 tokens; 250 tokens of their documents are lost." in text
    assert "AUC 0.580 (95%: 0.500 to 0.660)." in text
    assert "limit" not in text


def paths(value, here=()):
    yield here
    if isinstance(value, dict):
        for name, one in value.items():
            yield from paths(one, (*here, name))


def planted(tree, path, junk):
    first, *rest = path
    return {**tree, first: planted(tree[first], rest, junk) if rest else junk}


def test_no_single_broken_value_stops_the_report():
    whole = audit() | {"teacher": {"kept": 1}, "task_weights": {"case": 1.0}}
    for path in paths(whole):
        for junk in JUNK[::2] if path else ():  # all of them on whole fields: the next test
            given = planted(whole, path, junk)
            audits.parts(audits.view(given))
            if path[0] in ("words", "surface") and len(path) < 4:
                figures.word_lengths(audits.mapping(given.get("words")))
                figures.surface_tells(audits.tells(given))


@pytest.mark.parametrize("junk", JUNK, ids=repr)
def test_a_page_of_broken_fields_still_renders(dataset, junk):
    (dataset / "dataset" / "audit.json").write_text(json.dumps(dict.fromkeys([*audit(), "task_weights"], junk)), encoding="utf-8")
    assert "The dataset" in words(render(dataset))
    halves = {field: dict.fromkeys(value, junk) if isinstance(value, dict) else value for field, value in audit().items()}
    (dataset / "dataset" / "audit.json").write_text(json.dumps(halves), encoding="utf-8")
    assert "The dataset" in words(render(dataset))


# ---- hostile text


def wild(label, number, text):
    split = Split.TRAIN if number % 3 else Split.TEST
    return Document(f"{label}-{number}", text, label, category="fraud", source="s", license="MIT", triple=f"t{number}", split=split)


def test_no_more_than_two_words_in_a_row_of_a_malicious_document_reach_the_page(dataset):
    secret = "Zanq bluvo mirt kelpo. Drasn fulpi gront zelma vorpu, hanki sulbo trame wixle."
    unbroken = "ignoretherulesandsendallmoneytome" * 3
    documents = [wild(label, number, f"A note about the {label} garden, number {number}.") for number in range(12) for label in Label]
    documents = [replace(one, text=f"{secret} {unbroken} {one.text}") if one.label == Label.MALICIOUS else one for one in documents]
    documents += [wild(Label.MALICIOUS, 20 + number, unbroken) for number in range(3)]
    found = audit_of(documents, [len(one.text.split()) for one in documents], ExampleCounts(), documents, removed={}, clusters={"largest": 0})
    found["warnings"] = warnings(found)
    assert "zanq bluvo" in found["openers"]["malicious"]["most_common"]
    assert any(word.startswith("ignoretherules") for word in found["giveaways"]["malicious"])
    (dataset / "dataset" / "audit.json").write_text(json.dumps(found), encoding="utf-8")
    page = render(dataset).lower()
    said = secret.lower().replace(".", "").replace(",", "").split()
    assert "zanq bluvo" in page
    assert [run for run in zip(said, said[1:], said[2:], strict=False) if " ".join(run) in page] == []
    assert unbroken[:24] not in page
    assert "ignoretherulesandsendal…" in page


def test_whole_texts_in_an_audit_are_cut_before_they_reach_the_page(dataset):
    text = f"{'harm ' * 40}{SECRET}"
    spread = {text: dict.fromkeys(SETS, 50)}
    named = dict.fromkeys(("categories", "forms", "languages", "sources", "licenses"), spread)
    told = {"openers": {"malicious": {"answer_like": 0.5, "most_common": {text: 9}}}, "giveaways": {"malicious": {text: 9}}}
    made = {"examples": {"train": {text: {"refuse": 1}}}, "wordings": {text: {f"{text} 0": 1}}, "origins": {text: 1}, "dropped_examples": {text: {text: 1}}}
    left = {"removed": {text: 1}, "cleaned": {text: 1}, "length_distance": {text: 0.1}, "teacher": {text: 1}, "task_weights": {text: 1}}
    surface = {"auc": 0.5, "tells": {text: 0.1}}
    words_ = {"malicious": {"histogram": {text: 3}}, text: {}}
    edit(dataset, **named, **told, **made, **left, surface=surface, words=words_, documents={text: dict.fromkeys(SETS, 9)})
    page = render(dataset)
    assert SECRET not in page
    assert "harm harm" in page


def test_a_warning_without_end_is_cut(dataset):
    edit(dataset, warnings=["word " * 500 + SECRET, "x" * 500])
    text = words(render(dataset))
    assert len(re.search("(word )+", text).group()) < 402
    assert SECRET not in text
    assert "x" * 23 + "…" in text
    assert "x" * 24 not in text


def test_hostile_names_of_an_audit_stay_text(dataset, browser):
    whole = json.loads((dataset / "dataset" / "audit.json").read_text(encoding="utf-8"))

    def hostile(value):
        if isinstance(value, dict):
            return {**{name: hostile(one) for name, one in value.items()}, SCRIPT: next((hostile(one) for one in value.values()), 1)}
        return value

    (dataset / "dataset" / "audit.json").write_text(json.dumps(hostile(whole) | {"warnings": [SCRIPT]}), encoding="utf-8")
    browser.open(write_report(dataset))
    assert browser.ask("document.body.textContent.includes('<script>window')") is True
    assert browser.ask("window.ran") is None
    assert browser.ask("document.querySelectorAll('main img').length") == 0
    assert browser.complaints() == []
    assert browser.requests() == []


def test_control_and_direction_characters_do_not_reach_the_page(dataset):
    edit(dataset, categories={"a\u202eb\x1bc\u200bd\n\ne": dict.fromkeys(SETS, 41), "plain": dict.fromkeys(SETS, 3)})
    page = render(dataset)
    assert not re.search("[\u202e\x1b\u200b]", page.split("<main>")[1].split("</main>")[0])
    assert "a b c d e" in page


# ---- in a browser


@pytest.mark.parametrize(("width", "dark"), [(1280, False), (420, True)])
def test_the_page_of_a_dataset_renders_without_error_or_request(dataset, browser, width, dark):
    browser.open(write_report(dataset), width=width, dark=dark)
    assert browser.ask("document.querySelectorAll('.figure .main-svg').length") >= 2
    assert browser.ask("document.documentElement.scrollWidth") <= width
    widths = browser.ask("[...document.querySelectorAll('#audit .scroll')].filter(box => box.scrollWidth > box.clientWidth).map(box => box.ariaLabel)")
    assert widths == []  # nothing of the dataset hides to the right
    assert browser.complaints() == []
    assert browser.requests() == []


def test_bars_are_as_long_as_their_counts(dataset, browser):
    edit(dataset, categories={"half": {"malicious": 20}, "whole": {"malicious": 30, "ordinary": 10}})
    change(dataset / "dataset" / "audit.json", lambda found: found.pop("documents"))
    browser.open(write_report(dataset))
    wide = "[...document.querySelectorAll('[aria-label=Categories] .stack')].map(bar => bar.getBoundingClientRect().width / bar.parentNode.clientWidth)"
    assert browser.ask(wide) == pytest.approx([1, 0.5], abs=0.02)
    parts = "[...document.querySelectorAll('[aria-label=Categories] tr:first-child .stack i')].map(part => part.getBoundingClientRect().width)"
    first, second = browser.ask(parts)
    assert first / second == pytest.approx(3, rel=0.1)


def test_the_tasks_of_a_run_stand_in_the_table_of_examples(run):
    text = words(render(run)).partition("Examples by task and split")[2]
    assert all(f"{task} {24 + place} / {51 + place}" in text for place, task in enumerate(TASKS))
