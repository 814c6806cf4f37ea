"""Presets: each public set's own columns become documents with the right label, and what is nothing for Docward is left out.

The samples under `presets/` have the sets' columns and file formats; their texts are invented for these tests and harmless.
"""

import csv
import json
import re
from pathlib import Path

import pytest

from docward.cli.listing import show_list
from docward.documents.reading import OWN, file_rows, to_document
from docward.documents.sources import source_rows
from docward.errors import DocumentError, RecipeError
from docward.presets import CATEGORIES, PRESETS, get_preset
from docward.recipe import Source, load_recipe
from docward.records import text_hash, write_rows
from docward.types import Label

SAMPLES = {path.stem: path for path in sorted((Path(__file__).parent / "presets").iterdir())}
PUBLIC = [name for name, preset in PRESETS.items() if preset.hub]
PROMPTS = ["advbench", "do_not_answer", "falsereject", "harmbench", "jailbreakbench", "jailbreakbench_benign", "or_bench", "or_bench_80k", "or_bench_toxic"]
PROMPTS += ["strongreject", "xstest"]
BAD, FINE, ORDINARY = Label.MALICIOUS, Label.SENSITIVE, Label.ORDINARY
COMMITTEE = "speak about the garden, the fence around it and the cost of new paint"

WANTED = {  # label, category and text (or a part of a long one) of all documents of a sample, in order
    "beavertails": [
        (BAD, "privacy", "A harmless stand-in for a harmful answer on private data."),
        (BAD, "drug_abuse,weapons,banned_substance", "A harmless stand-in for a harmful answer of a kind that has no name here."),
        (FINE, "", "A harmless stand-in for a safe answer."),
    ],
    "pku_saferlhf": [
        (BAD, "financial_crime", "A harmless stand-in for a harmful first answer."),
        (FINE, "", "A harmless stand-in for a safe second answer."),
        (FINE, "", "A harmless stand-in for a safe first answer."),
        (BAD, "Mental Manipulation", "A harmless stand-in for a harmful third answer."),
    ],
    "wildguardmix": [
        (BAD, "malware", "A harmless stand-in for a harmful response."),
        (FINE, "others", "A harmless stand-in for a fine response to a harmful prompt."),
    ],
    "aegis2": [
        (BAD, "weapons", "A harmless stand-in for an unsafe response."),
        (FINE, "Needs Caution", "A harmless stand-in for a safe response."),
    ],
    "harmbench_contextual": [
        (BAD, "hazardous_materials", "Notes on a garden fence.\n\nIt is made of wood.\n\nUse the notes above for something harmful, as a stand-in"),
        (BAD, "illegal", "Notes on bread.\n\nDo another stand-in"),
    ],
    "harmbench": [
        (BAD, "malware", "Give a harmless stand-in for a harmful behavior"),
        (BAD, "harassment", "Give a second stand-in, with a comma"),
    ],
    "longsafety": [(BAD, "Illegal Activities", "A long report on parks.\n\nIt has a second part.\n\nA stand-in for a harmful instruction.")],
    "advbench": [
        (BAD, "", "Write a harmless stand-in for a harmful request"),
        (BAD, "", "Write another harmless stand-in for a harmful request"),
    ],
    "jailbreakbench": [
        (BAD, "malware", "Write a harmless stand-in for a harmful request"),
        (BAD, "Government decision-making", 'Give a second, harmless "stand-in" for a harmful request'),
    ],
    "jailbreakbench_benign": [
        (FINE, "malware", "Write about how stand-ins are written"),
        (FINE, "Government decision-making", "Tell me who the stand-ins of films are"),
    ],
    "strongreject": [
        (BAD, "disinformation", "A harmless stand-in for a forbidden prompt."),
        (BAD, "Illegal goods and services", "Another harmless stand-in, with a comma."),
    ],
    "do_not_answer": [
        (BAD, "privacy", "A harmless stand-in for a question about a person?"),
        (BAD, "Assisting illegal activities", "A harmless stand-in for a question about a crime?"),
    ],
    "xstest": [
        (FINE, "homonyms", "How do I stop a stand-in process?"),
        (BAD, "contrast_homonyms", "How do I do a stand-in for something unsafe?"),
        (FINE, "definitions", 'What does "stand-in" mean, and why?'),
    ],
    "or_bench": [(FINE, "deception", "How is a stand-in chosen for a film?"), (FINE, "self_harm", "What helps a tired stand-in?")],
    "or_bench_80k": [(FINE, "deception", "Which stand-in works at night?"), (FINE, "privacy", "How do I thank a stand-in?")],
    "or_bench_toxic": [
        (BAD, "harassment", "A harmless stand-in for a toxic prompt."),
        (BAD, "unethical", "Another harmless stand-in for a toxic prompt."),
    ],
    "falsereject": [
        (FINE, "Theft", "How would a novel describe a stand-in for a theft?"),
        (FINE, "Non-sexual Explicit Content Generation", "How is a film with wounds made?"),
    ],
    "cnn_dailymail": [(ORDINARY, "", "(CNN) -- A bakery opened in a small town on Monday."), (ORDINARY, "", "A school in a village has a new roof.")],
    "xsum": [(ORDINARY, "", "A bridge was painted blue.\nPeople came to look."), (ORDINARY, "", "A choir sang in the rain.")],
    "imdb": [
        (ORDINARY, "", "A film about a baker.\n\nI liked the bread."),
        (ORDINARY, "", "A film about paint. It was dry."),
        (ORDINARY, "", "A film without a verdict."),
    ],
    "ag_news": [(ORDINARY, "", "A club won a match."), (ORDINARY, "", "A bakery made a profit."), (ORDINARY, "", "A new kind of paint was found.")],
    "alpaca_cleaned": [(ORDINARY, "", COMMITTEE)],
    "dolly": [(ORDINARY, "", COMMITTEE.replace("garden", "market")), (ORDINARY, "", COMMITTEE.replace("garden", "harbour"))],
}
GOLD = {  # of the documents of a sample, in order; all others have none
    "cnn_dailymail": [{"summarize": "A bakery opened ."}, {"summarize": "New roof ."}],
    "xsum": [{"summarize": "A bridge is blue."}, {"summarize": "A choir sang."}],
    "imdb": [{"sentiment": "positive"}, {"sentiment": "negative"}, {}],
    "ag_news": [{"topic": "sports"}, {"topic": "business"}, {"topic": "science and technology"}],
    "dolly": [{}, {"summarize": "The committee spoke about paint."}],
}


def documents(source: Source):
    return [to_document(row.values, label=None, where=row.where) for row in source_rows(source)]


def sample(name: str, **more) -> Source:
    return Source(preset=name, path=str(SAMPLES[name]), **more)


def raw(name: str):
    return [row.values for row in file_rows(SAMPLES[name])]


def test_every_preset_has_a_sample_and_every_sample_a_preset():
    assert sorted(SAMPLES) == sorted(set(PRESETS) - {*OWN}) == sorted([*WANTED, "paper"])


@pytest.mark.parametrize("name", PUBLIC)
def test_a_sets_rows_become_documents(name):
    found = documents(sample(name))
    shown = [
        (one.label, one.category, text if text in one.text and len(text) > 60 else one.text) for one, (_, _, text) in zip(found, WANTED[name], strict=True)
    ]
    assert shown == WANTED[name]
    preset = PRESETS[name]
    assert {(one.source, one.license, one.language) for one in found} == {(name, preset.license, "en")}
    assert {one.form for one in found} == ({"prompt"} if name in PROMPTS else {""})
    assert preset.prompts is (name in PROMPTS)


@pytest.mark.parametrize("name", PUBLIC)
def test_what_a_set_has_for_a_right_answer_is_gold(name):
    found = documents(sample(name))
    assert [one.gold for one in found] == GOLD.get(name, [{}] * len(found))


def test_gold_that_went_through_a_csv_is_the_same_and_a_file_without_it_is_read_all_the_same(tmp_path):
    for name in ("imdb", "ag_news"):
        path = tmp_path / f"{name}.csv"
        with path.open("w", newline="", encoding="utf-8") as out:
            writer = csv.DictWriter(out, ["text", "label"])
            writer.writeheader()
            writer.writerows(raw(name))
        assert [one.gold for one in documents(Source(preset=name, path=str(path)))] == GOLD[name]
    write_rows(tmp_path / "cnn.jsonl", [{"article": row["article"]} for row in raw("cnn_dailymail")])
    assert [one.gold for one in documents(Source(preset="cnn_dailymail", path=str(tmp_path / "cnn.jsonl")))] == [{}, {}]


@pytest.mark.parametrize("name", PUBLIC)
def test_ids_are_unique_and_the_same_on_every_reading(name):
    first, second = ([one.id for one in documents(sample(name))] for _ in range(2))
    assert first == second
    assert len(set(first)) == len(first)
    assert all(re.fullmatch(rf"{name}-[0-9a-f]{{16}}(-1)?", one) for one in first)


@pytest.mark.parametrize(("name", "column"), [(name, column) for name in PUBLIC for column in PRESETS[name].columns])
def test_a_file_without_a_column_that_is_needed_is_refused(name, column, tmp_path):
    rows = [{key: value for key, value in row.items() if key not in column.split("|")} for row in raw(name)]
    write_rows(tmp_path / "mine.jsonl", rows)
    with pytest.raises(DocumentError) as caught:
        list(source_rows(Source(preset=name, path=str(tmp_path / "mine.jsonl"))))
    message = str(caught.value)
    assert f"{tmp_path / 'mine.jsonl'}:1: the source {name} needs the columns {', '.join(PRESETS[name].columns).replace('|', ' or ')}, and " in message
    found = ", ".join(sorted(rows[0]))
    assert f", and {column.replace('|', ' or ')} is not there (found {found}). Is this the right file of {PRESETS[name].page}?" in message


TWO_FORMS = [(name, column) for name in PUBLIC for column in PRESETS[name].columns if "|" in column]


@pytest.mark.parametrize(("name", "column"), TWO_FORMS)
def test_a_sets_file_elsewhere_and_its_copy_on_the_hub_are_both_read(name, column, tmp_path):
    one, other = column.split("|")
    here, there = (one, other) if one in raw(name)[0] else (other, one)
    write_rows(tmp_path / "other.jsonl", [{there if key == here else key: value for key, value in row.items()} for row in raw(name)])
    assert documents(Source(preset=name, path=str(tmp_path / "other.jsonl"))) == documents(sample(name))


def test_one_file_of_harmbench_holds_its_plain_and_its_contextual_behaviours():
    (one,) = documents(Source(preset="harmbench_contextual", path=str(SAMPLES["harmbench"])))
    assert (one.text, one.form, one.category) == ("Notes on a garden fence.\n\nUse the notes above for a stand-in", "", "illegal")
    assert all("above" not in plain.text and "protected" not in plain.text for plain in documents(sample("harmbench")))


def test_every_column_that_a_preset_names_is_in_its_sample():
    assert [(name, PRESETS[name].lacking(raw(name)[0])) for name in PUBLIC if PRESETS[name].lacking(raw(name)[0])] == []


def test_answers_to_one_prompt_share_a_triple():
    first, second, third, fourth = documents(sample("pku_saferlhf"))
    assert first.triple == second.triple == fourth.triple == f"pku_saferlhf-{text_hash('A stand-in question.')}"
    assert third.triple not in ("", first.triple)


def test_a_harmful_and_a_benign_goal_of_one_number_are_matched():
    harmful, benign = ([one.triple for one in documents(sample(name))] for name in ("jailbreakbench", "jailbreakbench_benign"))
    assert harmful == benign == ["JBB-Behaviors-1", "JBB-Behaviors-2"]


@pytest.mark.parametrize("words", [39, 40])
@pytest.mark.parametrize(("name", "column"), [("alpaca_cleaned", "input"), ("dolly", "context")])
def test_an_input_is_a_document_from_forty_words_on(name, column, words, tmp_path):
    write_rows(tmp_path / "mine.jsonl", [{column: " ".join(["word"] * words)}])
    assert len(documents(Source(preset=name, path=str(tmp_path / "mine.jsonl")))) == (words >= 40)


TEXTS = {"beavertails": ["response"], "pku_saferlhf": ["response_0", "response_1"], "wildguardmix": ["response"], "aegis2": ["response"]}


@pytest.mark.parametrize("nothing", [None, "", " \n"])
@pytest.mark.parametrize("name", PUBLIC)
def test_a_row_without_a_text_gives_nothing(name, nothing, tmp_path):
    gone = TEXTS.get(name) or [column for column in raw(name)[0] if any(column in needed.split("|") for needed in PRESETS[name].columns)]
    keep = {"category", "types_of_harm", "category_text", "Category", "Index", "type", "safety_type", "instruction", "SemanticCategory"}
    rows = [{key: nothing if key in gone and key not in keep else value for key, value in row.items()} for row in raw(name)]
    write_rows(tmp_path / "mine.jsonl", rows)
    assert documents(Source(preset=name, path=str(tmp_path / "mine.jsonl"))) == []


@pytest.mark.parametrize("name", ["beavertails", "pku_saferlhf", "wildguardmix", "aegis2"])
def test_an_answer_without_a_verdict_gives_nothing(name, tmp_path):
    verdicts = ("is_safe", "is_response_0_safe", "is_response_1_safe", "response_harm_label", "response_label")
    write_rows(tmp_path / "mine.jsonl", [{key: None if key in verdicts else value for key, value in row.items()} for row in raw(name)])
    assert documents(Source(preset=name, path=str(tmp_path / "mine.jsonl"))) == []


def test_words_that_stand_for_nothing_are_no_text_and_no_category(tmp_path):
    first, second = raw("aegis2")[:2]
    write_rows(tmp_path / "aegis.jsonl", [first | {"response": "None"}, second | {"response": "REDACTED"}, second])
    assert len(documents(Source(preset="aegis2", path=str(tmp_path / "aegis.jsonl")))) == 1
    write_rows(tmp_path / "wild.jsonl", [raw("wildguardmix")[0] | {"subcategory": "benign"}])
    (one,) = documents(Source(preset="wildguardmix", path=str(tmp_path / "wild.jsonl")))
    assert (one.label, one.category) == (BAD, "")


def test_a_verdict_that_went_through_a_csv_keeps_its_meaning(tmp_path):
    write_rows(tmp_path / "mine.jsonl", [row | {"is_safe": str(row["is_safe"])} for row in raw("beavertails")])
    assert documents(Source(preset="beavertails", path=str(tmp_path / "mine.jsonl"))) == documents(sample("beavertails"))


def test_categories_that_went_through_a_csv_are_refused_and_not_passed_over(tmp_path):
    write_rows(tmp_path / "mine.jsonl", [row | {"category": str(row["category"])} for row in raw("beavertails")])
    with pytest.raises(DocumentError, match="The column category holds a str, wanted names with true or false"):
        documents(Source(preset="beavertails", path=str(tmp_path / "mine.jsonl")))


def test_rows_on_sexual_matters_or_children_are_left_out_under_every_name_of_a_category(tmp_path):
    names = [
        "sexual",
        "Sexual/Adult content",
        "Adult Content",
        "Child-related Crimes",
        "child_abuse",
        "sexually_explicit,adult_content",
        "Sexual (minor)",
        "Minors",
    ]
    kept = ["Non-sexual Explicit Content Generation", "Hate against minorities", "Homosexuality in the news"]
    write_rows(tmp_path / "mine.jsonl", [{"prompt": f"A stand-in for {name}", "category": name} for name in (*names, *kept)])
    assert [one.category for one in documents(Source(preset="or_bench", path=str(tmp_path / "mine.jsonl")))] == kept


def test_our_categories_are_told_apart_by_name():
    theirs = [name for names in CATEGORIES.values() for name in names.split(" | ")]
    assert len(set(theirs)) == len(theirs)
    assert not set(theirs) & set(CATEGORIES)
    assert all(name == name.lower() for name in theirs)


def test_a_set_can_be_limited():
    assert [one.id for one in documents(sample("pku_saferlhf", limit=3))] == [one.id for one in documents(sample("pku_saferlhf"))][:3]
    assert len(documents(sample("beavertails", limit=100))) == 3


def test_a_recipe_can_say_another_licence_and_language():
    (one, *_) = documents(sample("imdb", license="CC0-1.0", language="de"))
    assert (one.license, one.language) == ("CC0-1.0", "de")


@pytest.fixture
def no_hub(tmp_path, monkeypatch):
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)


@pytest.fixture
def hub_folder(tmp_path, no_hub):
    import datasets

    (tmp_path / "owner" / "set" / "data").mkdir(parents=True)
    datasets.Dataset.from_list(raw("do_not_answer")).to_parquet(tmp_path / "owner" / "set" / "data" / "train-00000-of-00001.parquet")
    return tmp_path / "owner" / "set"


@pytest.mark.parametrize("streaming", [False, True])
def test_a_set_in_the_hubs_form_is_read_by_its_columns(hub_folder, streaming):
    columns = {"text": "question", "category": "types_of_harm", "id": "id"}
    source = Source(hub=str(hub_folder), label="malicious", columns=columns, streaming=streaming, license="CC-BY-NC-SA-4.0")
    found = documents(source)
    assert [(one.id, one.label, one.text, one.category) for one in found] == [
        (str(row["id"]), BAD, row["question"], row["types_of_harm"]) for row in raw("do_not_answer")
    ]
    assert {(Path(one.source).name, one.license) for one in found} == {("set", "CC-BY-NC-SA-4.0")}
    assert len(documents(source.model_copy(update={"limit": 2}))) == 2


@pytest.mark.parametrize("streaming", [False, True])
def test_a_preset_is_read_from_the_hub_as_from_its_file(hub_folder, streaming, monkeypatch):
    import datasets

    asked = []
    load = datasets.load_dataset

    def fake(place, name, *, split, revision, streaming):
        asked.append((place, name, split, revision, streaming))
        return load(str(hub_folder), split="train", streaming=streaming)

    monkeypatch.setattr(datasets, "load_dataset", fake)
    assert documents(Source(preset="do_not_answer", streaming=streaming)) == documents(sample("do_not_answer"))
    assert asked == [("LibrAI/do-not-answer", None, "train", None, streaming)]


@pytest.mark.parametrize("name", PUBLIC)
def test_a_preset_asks_the_hub_for_its_configuration_and_split(name, monkeypatch):
    import datasets

    asked = []

    def fake(place, config, *, split, revision, streaming):
        asked.append((place, config, split))
        return raw(name)

    monkeypatch.setattr(datasets, "load_dataset", fake)
    found, preset = documents(Source(preset=name)), PRESETS[name]
    assert found == documents(sample(name))
    assert asked == [(preset.hub, preset.config, preset.split)]
    assert preset.hub.count("/") == 1


@pytest.mark.parametrize(
    ("wrong", "nearest"), [("beavertail", "beavertails"), ("or-bench", "or_bench"), ("WildGuardMix", "wildguardmix"), ("cnn-dailymail", "cnn_dailymail")]
)
def test_a_wrong_name_in_a_recipe_gives_the_nearest(wrong, nearest, tmp_path):
    (tmp_path / "my.yaml").write_text(f"documents: [{wrong}]", encoding="utf-8")
    with pytest.raises(RecipeError) as caught:
        load_recipe(tmp_path / "my.yaml")
    said = f"line 1, documents.0: No source is called {wrong!r} (did you mean {nearest!r}?). Known: starter, plain, languages, beavertails, "
    assert said in str(caught.value)


def test_a_name_like_none_gives_all_names():
    with pytest.raises(RecipeError, match=re.escape(f"No source is called 'zzz'. Known: {', '.join(PRESETS)}. Or give a file or folder")):
        get_preset("zzz")


def test_where_a_set_needs_more_than_its_name_and_whether_its_terms_must_be_accepted():
    places = {name: (PRESETS[name].config, PRESETS[name].split) for name in PUBLIC}
    assert {name: place for name, place in places.items() if place != (None, "train")} == {
        "beavertails": (None, "330k_train"),
        "wildguardmix": ("wildguardtrain", "train"),
        "harmbench_contextual": ("contextual", "train"),
        "harmbench": ("standard", "train"),
        "jailbreakbench": ("behaviors", "harmful"),
        "jailbreakbench_benign": ("behaviors", "benign"),
        "or_bench": ("or-bench-hard-1k", "train"),
        "or_bench_80k": ("or-bench-80k", "train"),
        "or_bench_toxic": ("or-bench-toxic", "train"),
        "cnn_dailymail": ("3.0.0", "train"),
    }
    assert [name for name in PUBLIC if PRESETS[name].gated] == ["wildguardmix", "harmbench_contextual", "harmbench", "advbench", "strongreject"]


def test_licences_that_forbid_commercial_use_are_known():
    assert [name for name in PUBLIC if PRESETS[name].noncommercial] == ["beavertails", "pku_saferlhf", "do_not_answer", "falsereject", "alpaca_cleaned"]


def test_what_a_preset_is_stands_in_one_plain_line():
    assert [name for name, preset in PRESETS.items() if not 10 < len(preset.what) < 120 or "\n" in preset.what or preset.what.endswith(".")] == []


def test_the_list_of_sources_has_them_all(capsys):
    show_list("sources")
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 130
    first = [cell for line in lines if line.startswith("│") and (cell := line.split("│")[1].strip())]
    assert first == [*PRESETS, "{path: FILE or FOLDER}", "{hub: owner/name}"]
    whole = " ".join(" ".join(lines).split())
    assert "non-commercial" in whole
    assert json.dumps(whole).count("…") == 0
