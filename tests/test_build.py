"""The build stage on the tiny model: what stays, what is asked, what stops it, and what a stopped one leaves."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from docward import asking, servers
from docward.build import build_dataset
from docward.dataset.saving import read_split
from docward.documents import importing
from docward.errors import DatasetError, DocumentError, ModelError, RecipeError
from docward.models import load
from docward.recipe import Recipe, load_recipe
from docward.records import read_rows, write_rows
from docward.tasks import SYSTEM_PROMPTS, TASKS
from docward.types import Document, Label, Split, Want
from serving_stub import strictest
from tiny import some_documents

GOLD = {"tasks": ["case", "next_sentence"], "answers": "gold", "general": 0}


@pytest.fixture
def built(tiny_folder, tmp_path):
    """Build from documents in memory; a fresh folder each time unless one is named."""

    def run(documents, *, folder="run", progress=lambda *_: None, tuning=None, own=(), **dataset):
        write_rows(tmp_path / "documents.jsonl", documents)
        values = {"dataset": {"max_new_tokens": 8, "num_proc": 1, "max_surface_auc": 1, **dataset}, "tuning": {"max_length": 800, **(tuning or {})}}
        values |= {"model_name_or_path": str(tiny_folder), "documents": [{"path": str(tmp_path / "documents.jsonl")}], "tasks": list(own)}
        recipe = Recipe.model_validate(values)
        return build_dataset(recipe, tmp_path / folder, lambda: load(str(tiny_folder), dtype="float32"), progress=progress)

    return run


def examples(folder: Path):
    return [one for split in Split for one in read_split(folder / "dataset", split)]


# ------------------------------------------------------------------------------------------------------------ what stays


def test_near_copies_do_not_cross_splits_and_copies_go(built, tmp_path):
    documents = some_documents(20)
    copies = [replace(one, id=f"copy-{one.id}", triple="", text=one.text.upper()) for one in documents[:6]]
    near = [replace(one, id=f"near-{one.id}", triple="", text="Well. " + one.text) for one in documents]
    audit = built([*documents, *copies, *near], near_duplicates=0.6, **GOLD)
    assert audit["removed"]["duplicates"] == 6
    assert audit["clusters"]["documents"] >= 40
    assert audit["crossing"] == 0
    split = {one.id: one.split for one in read_rows(tmp_path / "run" / "documents.jsonl", Document)}
    assert all(split[f"near-{one.id}"] == split[one.id] for one in documents)


def test_what_an_evaluation_set_shares_is_dropped_and_counted(built, tmp_path):
    documents = some_documents(6)
    evaluation = {"instructions": [f"{documents[0].text}\nWrite the next sentence."], "inputs": [""]}
    (tmp_path / "test_cloze.json").write_text(json.dumps(evaluation))
    audit = built(documents, decontaminate=[{"path": str(tmp_path / "test_cloze.json")}], **GOLD)
    assert audit["removed"]["contaminated"] >= 1
    assert documents[0].text not in {one.text for one in read_rows(tmp_path / "run" / "documents.jsonl", Document)}


def short_prompts(documents, **more):
    return [replace(one, id=f"{one.id}-q", triple="", text=f"Why is {one.id} so? Tell me. And why not? Please.", form="prompt", **more) for one in documents]


def test_no_task_is_trained_on_a_short_prompt_and_surface_is_that_of_documents(built, tmp_path):
    """A set of short harmful prompts would give the label away by length alone."""
    documents = some_documents(12)
    alone = built(documents, folder="alone", **GOLD)
    prompts = short_prompts([one for one in documents if one.label == Label.MALICIOUS])
    audit = built([*documents, *prompts], folder="both", **GOLD)
    kept = read_rows(tmp_path / "both" / "documents.jsonl", Document)
    assert {one.split for one in kept if one.is_prompt} == {Split.TEST}
    assert sum(one.is_prompt for one in kept) == audit["prompts"] == 12
    assert examples(tmp_path / "both") == examples(tmp_path / "alone")
    assert {name: audit[name] for name in ("surface", "words", "openers", "giveaways", "examples")} == {
        name: alone[name] for name in ("surface", "words", "openers", "giveaways", "examples")
    }
    assert "12 texts are short prompts, not documents: they are tested on, asked as they are, and no task is trained on them." in audit["warnings"]


def test_where_short_prompts_are_all_there_is_of_a_label_the_message_says_why_they_do_not_count(built, tmp_path):
    documents = some_documents(6)
    benign, prompts = [one for one in documents if one.label != Label.MALICIOUS], short_prompts([one for one in documents if one.label == Label.MALICIOUS])
    with pytest.raises(
        DocumentError, match=r"no malicious documents to train on \(12 documents in all.*The 6 short prompts there are tested on, asked as they are"
    ):
        built([*benign, *prompts], **GOLD)
    with pytest.raises(DocumentError, match=r"-q is a short prompt .* with `split: train`, as are 5 more"):
        built([*documents, *short_prompts(benign[:6], split=Split.TRAIN)], folder="marked", **GOLD)


def test_the_folder_of_a_build_holds_the_documents_and_the_dataset_and_no_half_done_work(built, tmp_path):
    audit = built(some_documents(), **GOLD)
    assert sorted(one.name for one in (tmp_path / "run").iterdir()) == ["dataset", "documents.jsonl"]
    assert audit == json.loads((tmp_path / "run" / "dataset" / "audit.json").read_text())
    assert sum(sum(cell.values()) for tasks in audit["examples"].values() for cell in tasks.values()) == len(examples(tmp_path / "run"))


# ------------------------------------------------------------------------------------------------------------ surface


def planted(many: int = 30) -> list[Document]:
    marked = [replace(one, text=one.text.replace(".", "!") if one.label == Label.MALICIOUS else one.text) for one in some_documents(many)]
    return [replace(one, text=f"{one.text} And so on, {one.id}.") for one in marked]


def test_a_dataset_that_surface_gives_away_fails_its_build_and_says_what_tells(built, tmp_path):
    with pytest.raises(DatasetError, match=r"at AUC (0\.9|1\.0).*What tells most: .*\(less in malicious\).*--set dataset\.max_surface_auc=1"):
        built(planted(), max_surface_auc=0.75, **GOLD)
    assert not (tmp_path / "run" / "dataset").exists()


def test_the_limit_can_be_raised_and_that_is_recorded(built):
    surface = built(planted(), max_surface_auc=1, **GOLD)["surface"]
    assert surface["auc"] > 0.9
    assert (surface["limit"], surface["default_limit"]) == (1, 0.75)


# ------------------------------------------------------------------------------------------------------------ stopping


class StopError(Exception):
    pass


@pytest.mark.parametrize("moment", ["documents read", "documents planned", "answers of"])
def test_a_stopped_build_goes_on_and_ends_with_the_same_bytes(built, tmp_path, monkeypatch, moment):
    monkeypatch.setattr(importing, "SHARD", 7)
    documents = some_documents(12)
    built(documents, folder="whole", general=2)
    seen = Counter()

    def stop(what, done, total):
        seen[what.split(" /")[0]] += 1
        if what.startswith(moment) and sum(count for name, count in seen.items() if name.startswith(moment)) == 2:
            raise StopError

    with pytest.raises(StopError):
        built(documents, folder="stopped", general=2, progress=stop)
    assert not (tmp_path / "stopped" / "dataset" / "audit.json").exists()
    built(documents, folder="stopped", general=2)
    for name in ("train.parquet", "validation.parquet", "test.parquet", "audit.json", "README.md"):
        if (tmp_path / "whole" / "dataset" / name).exists():
            assert (tmp_path / "stopped" / "dataset" / name).read_bytes() == (tmp_path / "whole" / "dataset" / name).read_bytes()


def test_several_processes_give_the_same_bytes_as_one(built, tmp_path, monkeypatch):
    monkeypatch.setattr(importing, "SHARD", 7)
    for folder, processes in (("one", 1), ("two", 2)):
        built(some_documents(14), folder=folder, **(GOLD | {"num_proc": processes}))
    one, two = ({path.name: path.read_bytes() for path in (tmp_path / folder / "dataset").iterdir()} for folder in ("one", "two"))
    assert one == two


def test_an_answer_is_asked_once_whatever_the_run(built, monkeypatch):
    documents = some_documents(4)
    built(documents, general=1)
    monkeypatch.setattr(asking.LocalVoice, "answers", lambda *_: pytest.fail("asked again"))
    built(documents, folder="another", general=1)
    with pytest.raises(pytest.fail.Exception):
        built(documents, folder="longer", general=1, max_new_tokens=9)


# ------------------------------------------------------------------------------------------------------------ what cannot be built


def test_nothing_to_refuse_is_found_before_any_model_is_asked(built, monkeypatch):
    monkeypatch.setattr(asking.LocalVoice, "answers", lambda *_: pytest.fail("a model was asked"))
    with pytest.raises(DocumentError, match="There are no malicious documents to train on"):
        built([one for one in some_documents() if one.label != Label.MALICIOUS])


def test_a_length_without_room_is_found_before_any_model_is_asked(built, monkeypatch):
    monkeypatch.setattr(asking.LocalVoice, "answers", lambda *_: pytest.fail("a model was asked"))
    with pytest.raises(RecipeError, match="max_length = 40 leaves no room"):
        built(some_documents(), tuning={"max_length": 40})


def test_documents_too_short_for_their_only_task_are_not_trained_on(built):
    short = [replace(one, text=f"Only one sentence here, {one.id}.") for one in some_documents()]
    with pytest.raises(DocumentError, match="has no next sentence"):
        built(short, **(GOLD | {"tasks": ["next_sentence"]}))


# ------------------------------------------------------------------------------------------------------------ how documents are asked


def test_gold_answers_alone_drop_what_has_none_and_count_it(built, tmp_path):
    audit = built(some_documents(), **(GOLD | {"tasks": ["case", "summarize"]}))
    trained = read_split(tmp_path / "run" / "dataset", Split.TRAIN)
    assert {one.origin for one in trained if one.want == Want.COMPLY} == {"gold"}
    assert set(audit["dropped_examples"]) == {"summarize"}
    assert set(audit["dropped_examples"]["summarize"]) == {"no gold answer"}
    assert any(said.startswith("summarize: ") and "only 0 to do" in said for said in audit["warnings"])


def test_a_task_of_one_s_own_is_built_like_any_other(built, tmp_path):
    own = {
        "name": "legal_risk",
        "wordings": ["Does this text carry a legal risk?", "Name the legal risks of the text above."],
        "unseen": ["Any law broken here?"],
    }
    audit = built(some_documents(), own=[own], tasks=["case", "legal_risk"], general=0)
    asked = {one.instruction for one in examples(tmp_path / "run") if one.task == "legal_risk"}
    assert asked <= set(own["wordings"])
    assert audit["examples"]["train"]["legal_risk"]["refuse"]


def test_matched_documents_share_one_of_the_system_prompts(built, tmp_path):
    built(some_documents(20), system_prompts=["none", "careful", "You work for a library."], **GOLD)
    found = {}
    for one in examples(tmp_path / "run"):
        found.setdefault((one.document_id.split("-")[0], one.task), set()).add(one.system)
    assert all(len(systems) == 1 for systems in found.values())
    assert {next(iter(systems)) for systems in found.values()} == {"", SYSTEM_PROMPTS["careful"], "You work for a library."}


def test_a_document_is_asked_and_refused_in_its_own_language(built, tmp_path):
    built([replace(one, language="de") for one in some_documents()], **GOLD)
    for one in examples(tmp_path / "run"):
        assert one.language == "de"
        assert one.instruction in TASKS[one.task].asked("de")
        if one.origin == "refusal":
            assert "document" not in one.response.split()


def test_susceptible_weights_follow_the_untuned_model_and_add_up_to_one(built, monkeypatch):
    def voice(self, given):
        yield {one.id: ("I'm sorry, but I can't help with this text.", True) if one.task == "case" else ("It is a note about a number.", True) for one in given}

    monkeypatch.setattr(asking.LocalVoice, "answers", voice)
    weights = built(some_documents(), tuning={"task_weights": "susceptible"}, tasks=["case", "summarize", "sentiment"])["task_weights"]
    assert weights == {"case": 0.0, "summarize": 0.5, "sentiment": 0.5}


# ------------------------------------------------------------------------------------------------------------ teachers


def test_a_teacher_that_does_not_refuse_leaves_the_forms_and_is_counted(built, tiny_folder, tmp_path):
    audit = built(some_documents(), refusals="teacher", teacher={"model_name_or_path": str(tiny_folder), "max_new_tokens": 4}, **GOLD)
    assert audit["teacher"]["kept"] == 0
    assert audit["teacher"]["not a refusal"] == sum(one.origin == "refusal" and one.split != Split.TEST for one in examples(tmp_path / "run"))


def test_refusals_of_a_server_are_kept_where_the_judge_says_refused(built, tmp_path, server):
    server.replies = ["I'm sorry, but I can't help with this document.", "Sure! Here is your summary."]
    audit = built(some_documents(), refusals="teacher", teacher={"model_name_or_path": "big", "base_url": server.url}, **GOLD)
    origins = Counter(one.origin for one in examples(tmp_path / "run") if one.want == Want.REFUSE and one.split != Split.TEST)
    assert origins["teacher"] == audit["teacher"]["kept"] > 0
    assert origins["refusal"] == audit["teacher"]["not a refusal"] > 0
    asked = server.requests[0]
    assert (asked["model"], asked["temperature"]) == ("big", 0.7)
    assert asked["messages"][-1]["content"].count("\n\n") == 1


def test_answers_of_a_server_are_the_benign_answers(built, tmp_path, server):
    server.replies = ["It is a short note."]
    built(some_documents(), answers="teacher", teacher={"model_name_or_path": "big", "base_url": server.url}, tasks=["summarize"], general=0)
    assert {one.response for one in examples(tmp_path / "run") if one.origin == "teacher"} == {"It is a short note."}


def test_what_a_teacher_s_server_withholds_is_dropped_and_the_build_goes_on(built, tmp_path, server):
    server.replies = ["It is a short note."]
    server.filters = lambda asked: "bake" in asked["messages"][-1]["content"]
    audit = built(some_documents(), answers="teacher", teacher={"model_name_or_path": "big", "base_url": server.url}, tasks=["summarize"], general=0)
    assert {one.response for one in examples(tmp_path / "run") if one.origin == "teacher"} == {"It is a short note."}
    assert set(audit["dropped_examples"]["summarize"]) == {"withheld by the teacher"}
    asked = len(server.requests)
    assert asked == sum(audit["dropped_examples"]["summarize"].values()) + sum(one.origin == "teacher" for one in examples(tmp_path / "run"))


def test_refusals_that_a_teacher_s_server_withholds_are_counted_as_such_and_what_it_does_not_take_is_told_once(built, server):
    server.filters, server.objects, told = lambda asked: asked["messages"][-1]["content"] != servers.PLAIN, strictest, list[str]()
    teacher = {"model_name_or_path": "big", "base_url": server.url}
    audit = built(some_documents(), refusals="teacher", teacher=teacher, progress=lambda what, *_: told.append(what), **GOLD)
    assert {name for name, many in audit["teacher"].items() if many} == {"withheld by the teacher"}
    assert [what for what in told if "no seed and no temperature" in what] == [
        "big: the server takes no seed and no temperature, so it is asked without. It draws at its own temperature: another run may give other answers."
    ]


@pytest.mark.parametrize("trouble", ["500", "nonsense", "no choices"])
def test_a_server_in_trouble_ends_the_build_with_one_error_and_what_was_answered_is_kept(built, server, monkeypatch, trouble):
    monkeypatch.setattr(servers, "RETRIES", 0)
    server.trouble, server.after = trouble, 8
    given = {"answers": "teacher", "teacher": {"model_name_or_path": "big", "base_url": server.url}, "tasks": ["summarize"], "general": 0}
    with pytest.raises(ModelError, match="gave no answer of big"):
        built(some_documents(8), **given)
    server.trouble, before = "", len(server.requests)
    built(some_documents(8), **given)
    assert len(server.requests) > before


def test_a_teacher_must_be_named_where_one_is_wanted(tmp_path):
    (tmp_path / "r.yaml").write_text("dataset: {refusals: teacher}")
    with pytest.raises(RecipeError, match="there is no `teacher:"):
        load_recipe(tmp_path / "r.yaml")


def test_documents_without_a_word_leave_nothing_to_build(built):
    with pytest.raises(DocumentError, match="No document is left"):
        built([{"text": " \u200b ", "label": "malicious"}], **GOLD)
