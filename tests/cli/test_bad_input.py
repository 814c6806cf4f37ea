"""Whatever is asked for wrongly: one message that names it, the right exit code, nothing lost and nothing left behind."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from docward.records import write_rows
from tiny import some_documents

ANSWERLESS = "dataset: {tasks: [case], general: 0}\n"  # all answers are in the documents: the model has none to give
GOOD = '{"text": "A harmless note on bread. It is short. There is a third.", "label": "malicious"}\n'


@pytest.fixture
def recipe(tmp_path: Path, tiny_folder: Path) -> Callable[..., Path]:
    """Write a recipe on the tiny model; a later key of the same name replaces an earlier one."""

    def write(text: str = "", *, documents: Path | None = None, model: object = tiny_folder) -> Path:
        sources = f"documents: [{{path: {documents}}}]\n" if documents else ""
        path = tmp_path / "my.yaml"
        path.write_text(f"model_name_or_path: {model}\n{sources}{text}", encoding="utf-8")
        return path

    return write


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


# ------------------------------------------------------------------------------------------------------------ recipes


@pytest.mark.parametrize("command", ["run", "build", "tune"])
@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (None, "Cannot read the recipe my.yaml: No such file or directory. Start from recipes/quickstart.yaml."),
        ("seed: [1", "my.yaml is not valid YAML"),
        ("- a\n- b", "my.yaml holds a list, wanted keys and values"),
        ("seed: 1\nsede: 2", "line 2, sede: no such key; did you mean 'seed'?"),
        ("dataset:\n  tasks: [sumarize]", "line 2, dataset.tasks: No such task: 'sumarize' (did you mean 'summarize'?). Known tasks: summarize, "),
        ("evaluation: {tasks: [cases]}", "line 1, evaluation.tasks: No such task: 'cases' (did you mean 'case'?)"),
        ("documents: [{path: none.jsonl}]", "There is no document file"),
    ],
)
def test_a_wrong_recipe_makes_no_run_folder(docward, tmp_path, command, text, problem):
    if text is not None:
        (tmp_path / "my.yaml").write_text(text)
    before = files(tmp_path)
    called = docward(command, "my.yaml", "--output-dir", "out")
    assert called.code == 2
    assert problem in called.message
    assert called.err.startswith("Error: ")
    assert files(tmp_path) == before
    assert not (tmp_path / "out").exists()


def test_all_mistakes_of_a_recipe_come_in_one_message(docward, recipe):
    called = docward("run", recipe("sede: 1\ntuning: {lora_r: 0}\n"), "--set", "evaluation.tasks=[cas]")
    assert called.code == 2
    assert "3 mistakes" in called.message
    assert all(part in called.message for part in ("sede", "tuning.lora_r", "--set evaluation.tasks=[cas]"))


# ------------------------------------------------------------------------------------------------------------ documents

BAD_FILES = {
    "missing": (None, "no such file|no document file"),
    "empty": (b"", "is empty"),
    "binary": (b"\x7fELF\x00\x00", "docs.jsonl:1: this is a binary file"),
    "latin-1": (GOOD.encode() + b'{"text": "caf\xe9"}\n', "docs.jsonl:2: not UTF-8"),
    "broken line": ((GOOD + '{"text": \n').encode(), "docs.jsonl:2: not valid JSON"),
    "no text": ((GOOD + '{"body": "x", "label": "malicious"}\n').encode(), "docs.jsonl:2: a document needs a `text` field"),
    "unknown label": ((GOOD + '{"text": "x", "label": "evil"}\n').encode(), "docs.jsonl:2: unknown label 'evil'. Allowed: malicious, sensitive, ordinary"),
    "two labels": (
        (GOOD + GOOD.replace("malicious", "ordinary").replace("A harm", "a  harm")).encode(),
        "same text under two labels|says 'ordinary', but the file was given as 'malicious'",
    ),
}


@pytest.mark.parametrize("way", ["recipe", "evaluate"])
@pytest.mark.parametrize(("content", "problem"), BAD_FILES.values(), ids=BAD_FILES)
def test_a_file_that_holds_no_documents_is_named_with_its_line(docward, recipe, tmp_path, tiny_folder, way, content, problem):
    path = tmp_path / "docs.jsonl"
    if content is not None:
        path.write_bytes(content)
    if way == "recipe":
        called = docward("build", recipe(ANSWERLESS, documents=path), "--output-dir", "out")
    else:
        called = docward("evaluate", "--model", tiny_folder, "--documents", f"malicious={path}", "--output-dir", "out")
    assert called.code == 2
    assert "docs.jsonl" in called.message or "two labels" in called.message
    assert any(part in called.message for part in problem.split("|"))
    assert called.err.startswith("Error: ")
    assert not (tmp_path / "out").exists()


def test_two_files_with_one_text_under_two_labels_cannot_be_evaluated(docward, tmp_path, tiny_folder):
    for label in ("malicious", "ordinary"):
        (tmp_path / f"{label}.jsonl").write_text('{"text": "The very same."}\n')
    sources = [part for label in ("malicious", "ordinary") for part in ("--documents", f"{label}={label}.jsonl")]
    called = docward("evaluate", "--model", tiny_folder, *sources, "--output-dir", "out")
    assert called.code == 2
    assert "the same text under two labels" in called.message
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("source", ["docs.jsonl", "evil=docs.jsonl", "malicious=", "=docs.jsonl"])
def test_a_source_that_is_not_label_and_file_says_what_is_wanted(docward, tiny_folder, source):
    called = docward("evaluate", "--model", tiny_folder, "--documents", source, "--output-dir", "out")
    assert called.code == 2
    assert f"--documents {source}: wanted LABEL=FILE with LABEL one of malicious, sensitive, ordinary" in called.message


@pytest.mark.parametrize(("label", "lacking"), [("malicious", "benign"), ("ordinary", "malicious")])
def test_one_side_alone_cannot_be_built_from(docward, recipe, tmp_path, label, lacking):
    write_rows(tmp_path / "docs.jsonl", [one for one in some_documents() if one.label == label])
    called = docward("build", recipe(ANSWERLESS, documents=tmp_path / "docs.jsonl"), "--output-dir", "out")
    assert called.code == 2
    assert f"There are no {lacking}" in called.message
    assert not (tmp_path / "out").exists()


def test_a_dataset_that_surface_gives_away_is_not_built_and_then_is_where_that_is_accepted(docward, recipe, tmp_path):
    path = tmp_path / "docs.jsonl"
    marked = [(one, one.text.replace(".", "!") if one.label == "malicious" else one.text) for one in some_documents(20)]
    write_rows(path, [{"text": f"{text} It is {one.id}.", "label": one.label, "triple": one.triple} for one, text in marked])
    called = docward("build", recipe(ANSWERLESS, documents=path), "--output-dir", "out")
    assert called.code == 1
    assert "Surface alone" in called.message
    assert not (tmp_path / "out").exists()
    assert docward("build", recipe(ANSWERLESS, documents=path), "--set", "dataset.max_surface_auc=1", "--output-dir", "out").code == 0
    assert "set to 1.0 by the recipe" in json.loads((tmp_path / "out" / "dataset" / "audit.json").read_text())["warnings"][0]


def test_a_mended_file_can_be_built_from_at_once(docward, recipe, tmp_path):
    path = tmp_path / "docs.jsonl"
    path.write_text(GOOD + "{\n")
    assert docward("build", recipe(ANSWERLESS, documents=path), "--output-dir", "out").code == 2
    write_rows(path, some_documents())
    called = docward("build", recipe(ANSWERLESS, documents=path), "--output-dir", "out")
    assert (called.code, called.out.splitlines()[-1]) == (0, "out/dataset")


# ------------------------------------------------------------------------------------------------------------ models, tasks, lengths


def test_a_misspelt_model_gets_the_nearest_and_what_is_known(docward, recipe, documents_file):
    for command in (
        ("evaluate", "--model", "smollm2-135", "--documents", f"malicious={documents_file.with_name('m.jsonl')}"),
        ("build", recipe(ANSWERLESS, documents=documents_file, model="smollm2-135")),
    ):
        write_rows(documents_file.with_name("m.jsonl"), [one for one in some_documents() if one.label == "malicious"])
        called = docward(*command, "--output-dir", "out")
        assert called.code == 2
        assert "No model is called 'smollm2-135'; did you mean 'smollm2-135m'? Known names: smollm2-135m. Or give the folder" in called.message
        assert not Path("out").exists()


@pytest.mark.parametrize(
    ("missing", "problem"),
    [("model.safetensors", "has a config.json but no weights"), ("config.json", "is not a model folder: it has no config.json")],
)
def test_a_model_folder_that_lacks_a_part_is_named(docward, tiny_copy, missing, problem):
    (tiny_copy / missing).unlink()
    called = docward("evaluate", "--model", tiny_copy, "--limit", 1, "--output-dir", "out")
    assert called.code == 2
    assert f"{tiny_copy} {problem}" in called.message
    assert not Path("out").exists()


def test_an_adapter_that_is_none_is_named(docward, tiny_folder, tmp_path):
    called = docward("evaluate", "--model", tiny_folder, "--adapter", tmp_path, "--limit", 1, "--output-dir", "out")
    assert called.code == 2
    assert f"{tmp_path} is not a LoRA adapter" in called.message
    assert not Path("out").exists()


@pytest.mark.parametrize(
    ("option", "problem"),
    [
        (("--tasks", "case,sumarize"), "No such task: 'sumarize' (did you mean 'summarize'?). Known tasks: "),
        (("--tasks", "case,case"), "Named twice: case."),
        (("--judge", "rulez"), "There is no judge `rulez`. Did you mean `rules`? Known judges: rules, openai:MODEL"),
        (("--wordings", "heard"), "allowed are seen and unseen"),
        (("--limit", "0"), "Invalid value for '--limit'"),
        (("--lmit", "3"), "--lmit"),
    ],
)
def test_a_wrong_option_is_named_before_anything_is_loaded(docward, option, problem):
    called = docward("evaluate", "--model", "nothing", *option, "--output-dir", "out")
    assert called.code == 2
    assert problem in called.message
    assert not Path("out").exists()


def test_a_length_that_leaves_no_room_says_how_much_is_wanted(docward, recipe, documents_file):
    path = recipe(ANSWERLESS + "tuning: {max_length: 64}\n", documents=documents_file)
    called = docward("build", path, "--output-dir", "out")
    assert called.code == 2
    assert "max_length = 64 leaves no room for a document (instruction " in called.message
    assert "Set it to at least " in called.message
    assert not Path("out").exists()
    assert docward("build", path, "--set", "tuning.max_length=800", "--output-dir", "out").code == 0


def test_a_reply_longer_than_the_context_is_refused_and_a_shorter_one_can_follow_in_the_same_folder(docward, tiny_folder):
    command = ("evaluate", "--model", tiny_folder, "--limit", 1, "--tasks", "case", "--output-dir", "out", "--max-new-tokens")
    called = docward(*command, 5000)
    assert called.code == 2
    assert "leaves no room for a document" in called.message
    assert docward(*command, 2).code == 0


def test_a_long_document_is_cut_in_its_middle_counted_and_reported(docward, recipe, tiny_folder, tmp_path):
    long = "This is the beginning of a note on bread. " + "And it goes on and on for a while. " * 200 + "This is how the note on bread ends."
    (tmp_path / "docs.jsonl").write_text(json.dumps({"text": long}) + "\n" + json.dumps({"text": "A short note."}) + "\n")
    command = ("evaluate", "--model", tiny_folder, "--documents", "ordinary=docs.jsonl", "--tasks", "summarize,case", "--max-new-tokens", 2)
    called = docward(*command, "--output-dir", "out")
    assert called.code == 0, called.err
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    rows = [json.loads(line) for line in (tmp_path / "out" / "replies.jsonl").read_text().splitlines()]
    dropped = [row["dropped"] for row in rows if row["document"].startswith(("This is the", "this is the"))]
    assert len(dropped) == 2
    assert all(len(long) - 2048 < one < len(long) for one in dropped)
    assert metrics["dropped"] == {"replies": 2, "tokens": sum(dropped)}
    assert f"2 prompts were longer than the model's context: {sum(dropped)} document tokens were cut" in " ".join(called.out.split())


def test_a_dataset_says_how_many_training_documents_were_cut(docward, recipe, documents_file):
    assert docward("build", recipe(ANSWERLESS + "tuning: {max_length: 300}\n", documents=documents_file), "--output-dir", "out").code == 0
    cut = json.loads(Path("out/dataset/audit.json").read_text())["cut"]
    assert cut["max_length"] == 300
    assert cut["examples"] > 0
    assert cut["tokens"] >= cut["examples"]


# ------------------------------------------------------------------------------------------------------------ folders


def test_a_folder_that_is_no_run_folder_stays_as_it_is(docward, recipe, documents_file, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "documents.jsonl").write_text("mine")
    called = docward("run", recipe(ANSWERLESS, documents=documents_file), "--output-dir", "out")
    assert called.code == 1
    assert "out is not empty and is no run folder (it holds documents.jsonl). Choose another --output-dir." in called.message
    assert files(tmp_path / "out") == {"documents.jsonl": b"mine"}


def test_another_recipe_s_run_is_refused_and_stays_as_it_is(docward, recipe, documents_file, tmp_path):
    path = recipe(ANSWERLESS, documents=documents_file)
    assert docward("build", path, "--output-dir", "out").code == 0
    before = files(tmp_path / "out")
    called = docward("build", path, "--set", "seed=5", "--set", "tuning.lora_r=2", "--output-dir", "out")
    assert called.code == 1
    assert "holds another recipe's run (seed: 0 there, 5 now; tuning.lora_r: 8 there, 2 now). Choose another --output-dir" in called.message
    assert docward("build", path, "--set", "model_name_or_path=nothing", "--output-dir", "out").code == 1
    assert files(tmp_path / "out") == before


def test_replies_of_somebody_else_are_never_overwritten(docward, tiny_folder, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "replies.jsonl").write_text('{"reply": "mine"}\n')
    called = docward("evaluate", "--model", tiny_folder, "--limit", 1, "--output-dir", "out")
    assert called.code == 1
    assert "no evaluation.json: it is not of an evaluation. Choose another --output-dir." in called.message
    assert files(tmp_path / "out") == {"replies.jsonl": b'{"reply": "mine"}\n'}


@pytest.mark.parametrize("command", ["build", "evaluate"])
def test_a_place_where_nothing_can_be_written_is_a_failure(docward, recipe, documents_file, tiny_folder, command):
    Path("file").touch()
    given = [recipe(ANSWERLESS, documents=documents_file)] if command == "build" else ["--model", tiny_folder, "--limit", 1]
    called = docward(command, *given, "--output-dir", "file/out")
    assert called.code == 1
    assert "file/out" in called.message
    assert "Not a directory" in called.message


def test_a_full_disk_loses_no_reply_and_the_same_command_goes_on(docward, tiny_folder, tmp_path, monkeypatch):
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    command = ("evaluate", "--model", tiny_folder, "--tasks", "case", "--max-new-tokens", 2, "--output-dir", "out", "--limit")
    assert docward(*command, 1).code == 0
    before = files(tmp_path / "out")
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        called = docward(*command, 2)
    assert called.code == 1
    assert "Cannot write out/replies.jsonl: No space left on device." in called.message
    after = files(tmp_path / "out")
    assert after.pop("replies.jsonl").startswith(before.pop("replies.jsonl"))
    assert after == before
    assert docward(*command, 2).code == 0
    keys = [json.loads(line)["key"] for line in (tmp_path / "out" / "replies.jsonl").read_text().splitlines()]
    assert len(keys) == len(set(keys)) == 6


# ------------------------------------------------------------------------------------------------------------ the other commands


@pytest.mark.parametrize(
    ("text", "options", "problem"),
    [
        (None, (), "Cannot open replies.jsonl: No such file or directory"),
        ("", (), "replies.jsonl is empty"),
        ('{"reply": "x"}\n{"reply": \n', (), "replies.jsonl:2: not valid JSON"),
        ('{"reply": "x"}\n{"answer": "x"}\n', (), "replies.jsonl:2: the field `reply` is missing"),
        ('{"reply": "x"}\n{"reply": 3}\n', (), "replies.jsonl:2: `reply` must be a string, found a number"),
        ('{"reply": "x", "label": "yes"}\n', ("--validate",), "replies.jsonl:1: found 'yes', but to validate each line needs a `label`"),
        ('{"reply": "x"}\n', ("--judge", "rulez"), "There is no judge `rulez`. Did you mean `rules`?"),
    ],
)
def test_a_file_that_cannot_be_judged_gets_no_verdicts(docward, tmp_path, text, options, problem):
    if text is not None:
        (tmp_path / "replies.jsonl").write_text(text)
    before = files(tmp_path)
    called = docward("judge", "replies.jsonl", *options)
    assert called.code == 2
    assert problem in called.message
    assert files(tmp_path) == before


@pytest.mark.parametrize(
    ("command", "problem"),
    [
        (("report", "run"), "metrics.json"),
        (("report", "nowhere"), "metrics.json"),
        (("export", "run", "--to", "to"), "run has no adapter/ to export. Make it first: docward run RECIPE --output-dir run"),
        (("export", "nowhere", "--to", "to"), "nowhere has no adapter/ to export"),
    ],
)
def test_a_run_that_lacks_a_stage_says_how_to_make_it_and_nothing_is_written(docward, tmp_path, command, problem):
    (tmp_path / "run").mkdir()
    called = docward(*command)
    assert called.code == 1
    assert problem in called.message
    assert "docward run" in called.message
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
    assert files(tmp_path) == {}


def test_a_list_that_is_none_names_those_there_are(docward):
    called = docward("list", "taks")
    assert called.code == 2
    assert "There is no list of 'taks'. There are: tasks, sources, judges, suites, models." in called.message


# ------------------------------------------------------------------------------------------------------------ utility


def test_general_answers_that_cannot_be_measured_are_refused_before_a_model_is_loaded(docward, tiny_folder):
    Path("mine.jsonl").write_text('{"instruction": "Say hello."}\n', encoding="utf-8")
    asked = ("evaluate", "--model", tiny_folder, "--output-dir", "out", "--general")
    called = docward(*asked, "mine.jsonl")
    assert (called.code, called.message[:38]) == (2, "mine.jsonl:1: `response` is missing (f")
    called = docward(*asked, "nothing.jsonl")
    assert (called.code, called.message[:40]) == (2, "There is no document file or folder noth")
    called = docward(*asked, "mine.jsonl", "--base-url", "http://127.0.0.1:9/v1")
    assert called.code == 2
    assert "which a server does not give: leave out --general, or --base-url" in called.message
    assert not Path("out").exists()


def test_gold_for_no_task_is_refused_by_build_and_evaluate_alike(docward, recipe, tiny_folder, tmp_path):
    Path("mine.jsonl").write_text(GOOD + GOOD.replace("note", "tale").replace('"label"', '"gold": {"sumarize": "x"}, "label"'), encoding="utf-8")
    wanted = "mine.jsonl:2: gold for 'sumarize', which is no task (did you mean 'summarize'?)"
    called = docward("build", recipe(ANSWERLESS, documents=tmp_path / "mine.jsonl"), "--output-dir", "out")
    assert (called.code, wanted in called.message) == (2, True)
    called = docward("evaluate", "--model", tiny_folder, "--documents", "malicious=mine.jsonl", "--output-dir", "out")
    assert (called.code, wanted in called.message) == (2, True)
