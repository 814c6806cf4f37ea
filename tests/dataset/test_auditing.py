"""The audit counts what is there, and the surface baseline sees what surface gives away and nothing else."""

import json
import re
from dataclasses import replace
from random import Random

import pytest

from docward.dataset import auditing, surface
from docward.dataset.auditing import ExampleCounts, audit, distance, giveaways, sampled, warnings
from docward.dataset.building import Plan, general_examples, plan_examples
from docward.dataset.splitting import split_documents
from docward.dataset.surface import opens_like_an_answer, surface_auc, surface_features, surface_refuses, surface_weights
from docward.tasks import get_tasks
from docward.types import Document, Label, Split
from tiny import some_documents

WORDS = ["bread", "water", "oven", "salt", "flour", "loaf", "crust", "table", "window", "garden", *sorted(surface.FUNCTION_WORDS["en"])]


@pytest.fixture(autouse=True)
def few_draws(monkeypatch):
    """The interval's 400 draws take a second."""
    monkeypatch.setattr(surface, "DRAWS", 100)


def text(random: Random, *, words: int = 60, mark: str = ".") -> str:
    return " ".join(random.choice(WORDS) + (mark if random.random() < 0.15 else "") for _ in range(words))


def pairs(many: int, seed: int, **malicious) -> list[Document]:
    """Matched pairs of random words; malicious ones are made with other settings, where some are given."""
    random = Random(seed)
    return [
        Document(f"{place}-{label[0]}", text(random, **(malicious if label == Label.MALICIOUS else {})), label, triple=str(place))
        for place in range(many)
        for label in (Label.MALICIOUS, Label.SENSITIVE)
    ]


@pytest.mark.parametrize("planted", [{"words": 90}, {"mark": "!"}], ids=["length", "punctuation"])
def test_a_planted_surface_difference_is_seen(planted):
    found = surface_auc(pairs(40, 1, **planted), seed=0)
    assert found["auc"] > 0.9
    assert found["low"] <= found["auc"] <= found["high"]
    assert found["low"] > 0.8


def test_under_the_weights_a_giveaway_is_as_common_on_either_side():
    """Two in three malicious documents and one in three sensitive ones are long."""
    given = [one for place in range(100) for one in pairs(3, place, words=90)[: 2 + 2 * (place % 2)]]
    given = [Document(f"{place}-{d.id}", d.text, d.label if place % 3 else _other(d.label), triple=f"{place // 2}") for place, d in enumerate(given)]
    weights = surface_weights(given)
    shares = {}
    for label in (Label.MALICIOUS, Label.SENSITIVE):
        mine = [(weights[d.id], surface_features(d)[0] > 0.75) for d in given if d.label == label]
        assert sum(weight for weight, _ in mine) == pytest.approx(len(mine))
        shares[label] = (sum(long for _, long in mine) / len(mine), sum(weight for weight, long in mine if long) / len(mine))
    (before_m, after_m), (before_s, after_s) = shares[Label.MALICIOUS], shares[Label.SENSITIVE]
    assert before_m - before_s > 0.25
    assert abs(after_m - after_s) < 0.4 * (before_m - before_s)


def _other(label: Label) -> Label:
    return Label.SENSITIVE if label == Label.MALICIOUS else Label.MALICIOUS


def test_few_documents_weigh_the_same():
    assert set(surface_weights(pairs(4, 0)).values()) == {1.0}


def test_random_labels_are_near_a_coin_toss():
    found = [surface_auc(pairs(60, seed), seed=0) for seed in range(3)]
    assert abs(sum(one["auc"] for one in found) / 3 - 0.5) < 0.12  # one AUC of 60 against 60 has a standard error of 0.053, a mean of three 0.03
    assert sum(one["low"] < 0.5 < one["high"] for one in found) >= 2


def test_content_is_seen_by_the_bag_of_words_and_not_by_the_surface():
    fruit = {Label.MALICIOUS: "apple", Label.SENSITIVE: "grape"}
    given = [Document(d.id, re.sub("bread|water|oven|salt|flour", fruit[d.label], d.text), d.label, triple=d.triple) for d in pairs(40, 3)]
    found = surface_auc(given, seed=0)
    assert found["bag_of_words_auc"] > 0.95
    assert abs(found["auc"] - 0.5) < 0.25


def test_the_same_seed_gives_the_same_figures():
    given = pairs(20, 5)
    assert surface_auc(given, seed=1) == surface_auc(given, seed=1)


def test_too_few_documents_are_not_measured_rather_than_guessed():
    assert surface_auc(pairs(9, 1), seed=0) == {"auc": None, "low": None, "high": None, "bag_of_words_auc": None, "tells": {}}
    assert surface_auc([one for one in pairs(40, 1) if one.label == Label.MALICIOUS], seed=0)["auc"] is None
    one_group = [Document(d.id, d.text, d.label, triple="t") for d in pairs(20, 1)]
    assert surface_auc(one_group, seed=0)["auc"] is None


def test_the_surface_baseline_refuses_what_looks_like_its_training_documents():
    refused = surface_refuses(pairs(40, 1, mark="!"), pairs(10, 2, mark="!"))
    right = sum(refused[one.id] == (one.label == Label.MALICIOUS) for one in pairs(10, 2, mark="!"))
    assert len(refused) == 20
    assert right >= 16  # by chance: 0.006
    assert surface_refuses([one for one in pairs(40, 1) if one.label == Label.SENSITIVE], pairs(2, 2)) == {}
    assert surface_refuses(pairs(40, 1), []) == {}


@pytest.mark.parametrize(
    ("opener", "like"),
    [("Sure, here is", True), ("Here’s a list", True), ("1. Take", True), ("Title: Bread", True), ("Dear all,", False), ("Surely he came", False)],
)
def test_an_answer_s_opener_is_known(opener, like):
    assert opens_like_an_answer(f"{opener} and so on.") is like


@pytest.fixture
def audited():
    documents = split_documents(some_documents(12), validation_share=0.25, test_share=0.25, seed=0)
    planned = plan_examples(documents, Plan(tuple(get_tasks(["summarize", "case"])))) + general_examples([("g", "Name a tree.")])
    counts = ExampleCounts()
    first = next(one for one in planned if one.split == Split.TRAIN)
    counts.add(replace(one, response=one.response or "An answer.") for one in planned if one is not first)
    counts.drop(first, "loops")
    return of(documents, counts)


def of(documents, counts=None, **found):
    known = {"removed": {"duplicates": 3}, "clusters": {"largest": 0}} | found
    return audit(documents, [len(one.text.split()) for one in documents], counts or ExampleCounts(), documents, **known)


def test_the_audit_counts_every_document_and_example(audited):
    assert audited["documents"] == {
        "train": {"malicious": 7, "sensitive": 7, "ordinary": 7},
        "validation": {"malicious": 2, "sensitive": 2, "ordinary": 2},
        "test": {"malicious": 3, "sensitive": 3, "ordinary": 3},
    }
    assert audited["categories"] == {"fraud": {"malicious": 12, "sensitive": 12, "ordinary": 12}}
    assert (audited["matched_groups"], audited["crossing"], audited["prompts"], audited["removed"]) == (12, 0, 0, {"duplicates": 3})
    trained = [sum(cell.values()) for cell in audited["examples"]["train"].values()]
    assert sorted(trained) == [1, 20, 21]  # one was dropped
    assert sum(audited["origins"].values()) == sum(sum(one.values()) for one in audited["wordings"].values()) == 72
    assert audited["dropped_examples"] in ({"summarize": {"loops": 1}}, {"case": {"loops": 1}})
    assert audited["answer_words"]["refuse"]["examples"] + audited["answer_words"]["comply"]["examples"] == 72
    assert all(sum(one["histogram"].values()) == one["count"] == 12 and one["lowest"] <= one["median"] <= one["highest"] for one in audited["words"].values())


def test_lengths_and_openers_are_of_documents_and_not_of_short_prompts():
    documents = some_documents(4)
    prompts = [replace(one, id=f"{one.id}-q", text="Sure, a question?", form="prompt") for one in documents if one.label != Label.ORDINARY]
    found, without = of([*documents, *prompts]), of(documents)
    assert (found["prompts"], without["prompts"]) == (8, 0)
    assert found["words"] == without["words"]
    assert found["length_distance"] == without["length_distance"]
    assert found["sample"]["of"] == without["sample"]["of"] == 12
    alone = of(prompts)
    assert (alone["words"], alone["length_distance"], alone["openers"]) == ({}, {}, {})


def test_the_audit_is_plain_json(audited):
    assert json.loads(json.dumps(audited, allow_nan=False)) == audited


def test_a_triple_that_crosses_splits_is_counted():
    first, *rest = split_documents(some_documents(6), validation_share=0, test_share=0, seed=0)
    assert of([replace(first, split=Split.TEST), *rest])["crossing"] == 1


def test_a_cluster_that_crosses_splits_is_counted():
    documents = [replace(one, split=Split.TRAIN, cluster="c" if one.triple in ("t0", "t1") else "") for one in some_documents(4)]
    assert of(documents)["crossing"] == 0
    assert of([replace(one, split=Split.TEST if one.triple == "t1" else one.split) for one in documents])["crossing"] == 1  # the triples are whole


def test_one_label_only_can_be_audited():
    found = of([one for one in some_documents(3) if one.label == Label.ORDINARY])
    assert set(found["words"]) == {"ordinary"}
    assert found["length_distance"] == {}
    assert found["giveaways"] == {}


def test_a_word_of_one_label_only_is_a_giveaway_and_one_of_two_labels_is_not():
    assert giveaways(some_documents(8)) == {
        "malicious": {"them": 8, "trick": 8, "all": 8},
        "sensitive": {"they": 8, "tricked": 8, "were": 8},
        "ordinary": {"bake": 8, "bread": 8},
    }
    rare = [Document(str(i), f"Plain words. {'Rare.' if i == 0 else ''}", label) for i in range(30) for label in Label]
    assert giveaways(rare) == {}


def test_the_distance_of_lengths_is_that_of_kolmogorov_and_smirnov():
    assert distance([1, 2, 3, 4], [1, 2, 3, 4]) == 0
    assert distance([1, 2, 3], [7, 8, 9]) == 1
    assert distance([1, 2, 3, 4], [3, 4, 5, 6]) == 0.5


def test_the_sample_holds_whole_triples_and_is_the_same_for_a_seed(monkeypatch):
    monkeypatch.setattr(auditing, "SAMPLE", 3)
    documents = some_documents(9)
    chosen = sampled(documents, seed=1)
    assert len(chosen) == 9
    assert len({one.triple for one in chosen}) == 3
    assert sampled(list(reversed(documents)), seed=1) == list(reversed(chosen))
    assert {one.triple for one in sampled(documents, seed=2)} != {one.triple for one in chosen}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"prompts": 4}, "4 texts are short prompts"),
        ({"surface": {"limit": 1.0, "default_limit": 0.75}}, "was set to 1.0 by the recipe (default 0.75)"),
        ({"crossing": 2}, "2 matched groups stand in more than one split"),
        ({"licenses": {"MIT": {"malicious": 30}}}, "6 documents have no licence stated"),
        ({"licenses": {"CC-BY-NC-4.0": {"malicious": 6}, "MIT": {"malicious": 30}}}, "forbid commercial use: CC-BY-NC-4.0."),
        ({"length_distance": {"malicious and ordinary": 0.5}}, "malicious and ordinary documents are 0.50 apart"),
        ({"openers": {"malicious": {"answer_like": 0.9}, "sensitive": {"answer_like": 0.1}}}, "90% of malicious ones, 10% of sensitive ones"),
        ({"giveaways": {"sensitive": {"court": 9}}}, "court (sensitive)"),
        ({"examples": {"train": {"case": {"refuse": 9, "comply": 1}}}}, "case: 9 examples to refuse and only 1 to do"),
        ({"clusters": {"largest": 30}, "sample": {"of": 36}}, "One cluster of near copies holds 30 documents"),
    ],
)
def test_what_a_reader_should_not_miss_is_said(audited, change, said):
    plain = audited | {"giveaways": {}, "length_distance": {}, "licenses": {"MIT": {"malicious": 36}}}
    assert warnings(plain) == []
    (found,) = warnings(plain | change)
    assert said in found
