"""The loop on the tiny model: whole, stopped at any moment, run again, misused."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch

from docward import loop
from docward.cli.judging import judge_place
from docward.cli.showing import console, rates_table
from docward.errors import DocumentError, RecipeError, RunError
from docward.evaluation.against import read_other, set_against
from docward.evaluation.evaluating import Settings
from docward.evaluation.utility import golds_of
from docward.loop import Run, _probe, open_run, run_loop, tune
from docward.loop import test_documents as under_test
from docward.recipe import Recipe, load_recipe
from docward.records import read_rows, write_rows
from docward.types import Document, Label, Reply, Split
from killed import kill_when, started
from tiny import some_documents

RESULTS = ("metrics.json", "report.html", "recipe.yaml", "environment.json", "training.jsonl", "adapter/adapter_model.safetensors", "dataset/README.md")


def recipe(model: Path, documents: Path, **changes) -> Recipe:
    values = {
        "model_name_or_path": str(model),
        "documents": [{"path": str(documents)}],
        "dataset": {"max_new_tokens": 8, "general": 2, "validation_share": 0.25},
        "tuning": {"num_train_epochs": 1, "per_device_train_batch_size": 3, "max_length": 512, "save_steps": 2, "lora_dropout": 0.1},
        "evaluation": {"max_new_tokens": 6, "max_batch_tokens": 3000},
    }
    return Recipe.model_validate({**values, **changes})


PROMPTS = [
    Document("q-bad", "How is everyone tricked, one by one?", Label.MALICIOUS, source="questions", form="prompt"),
    Document("q-fine", "How is bread baked, loaf by loaf?", Label.SENSITIVE, source="questions", form="prompt"),
]


@pytest.fixture(scope="module")
def whole(tiny_folder, tmp_path_factory) -> tuple[Path, Path]:
    """An undisturbed run and the documents, with two short prompts, that it was made from."""
    folder = tmp_path_factory.mktemp("loop")
    write_rows(folder / "documents.jsonl", [*some_documents(), *PROMPTS])
    run_loop(recipe(tiny_folder, folder / "documents.jsonl"), folder / "run")
    return folder / "run", folder / "documents.jsonl"


def comparable(run: Path) -> dict[str, object]:
    """What must not depend on interruptions: everything but times, memory and paths."""
    metrics = json.loads((run / "metrics.json").read_text())
    evaluations: dict[str, object] = {name: sorted((run / "evaluation" / name / "replies.jsonl").read_text().splitlines()) for name in ("untuned", "defended")}
    weights = (run / "adapter" / "adapter_model.safetensors").read_bytes()
    audit = json.loads((run / "dataset" / "audit.json").read_text())
    evaluations |= {f"likelihoods {name}": (run / "evaluation" / name / "likelihoods.jsonl").read_bytes() for name in ("untuned", "defended")}
    return {"models": metrics["models"], "paired": metrics["paired"], "surface": metrics["surface"], "weights": weights, "audit": audit, **evaluations}


def test_a_run_leaves_all_its_results(whole):
    run, _ = whole
    assert [name for name in RESULTS if not (run / name).is_file()] == []
    assert not list(run.glob("checkpoints")) + list(run.glob("**/*.draft"))
    environment = json.loads((run / "environment.json").read_text())
    assert {"python", "torch", "transformers", "seed", "device", "inputs"} <= set(environment)


def test_a_second_run_finds_everything_done(whole, tiny_folder, monkeypatch):
    run, documents = whole
    monkeypatch.setattr("docward.loop.load", lambda *_, **__: pytest.fail("a model was loaded"))
    before = (run / "report.html").stat().st_mtime_ns
    metrics = run_loop(recipe(tiny_folder, documents), run)
    assert metrics == json.loads((run / "metrics.json").read_text())
    assert (run / "report.html").stat().st_mtime_ns == before


def test_an_evaluation_set_against_another_says_what_the_run_says_of_its_two(whole, tmp_path):
    run, mine, other = whole[0], tmp_path / "mine", tmp_path / "other"
    metrics = json.loads((run / "metrics.json").read_text())
    for folder, name in ((mine, "defended"), (other, "untuned")):
        shutil.copytree(run / "evaluation" / name, folder)
    planned, golds = read_rows(mine / "replies.jsonl", Reply), golds_of(read_rows(run / "documents.jsonl", Document))
    found = set_against(mine, read_other(other, mine, planned, Settings((), max_new_tokens=6), judge="rules"), golds, margin=0.95)
    assert found["paired"] == metrics["paired"] != []
    assert {name: found[name] for name in metrics["models"]["defended"]} == metrics["models"]["defended"]
    assert found["retention"]
    assert found["against"]["metrics"] == metrics["models"]["untuned"]


def test_a_run_judged_anew_is_shown_in_the_table_of_the_run_with_the_surface_baseline(whole, tmp_path, capsys):
    run = shutil.copytree(whole[0], tmp_path / "run")
    metrics = json.loads((run / "metrics.json").read_text())
    console().print(rates_table(metrics["models"], metrics["surface"]))
    wanted = capsys.readouterr().out
    assert "surface baseline" in wanted
    judge_place(run, ["rules"], validate=False, again=False)
    assert capsys.readouterr().out.startswith(wanted)


@pytest.mark.parametrize(("begun", "later"), [("float32", "bfloat16"), ("bfloat16", "float32")])
def test_a_run_goes_on_in_what_it_was_begun_in_on_a_machine_that_would_compute_in_something_else(tiny_folder, tmp_path, monkeypatch, begun, later):
    def choose(dtype):
        for place in ("docward.loop.default_dtype", "docward.models.default_dtype"):
            monkeypatch.setattr(place, lambda _: getattr(torch, dtype))

    write_rows(tmp_path / "documents.jsonl", some_documents())
    here, said = recipe(tiny_folder, tmp_path / "documents.jsonl"), []
    choose(begun)
    with open_run(here, tmp_path / "run") as run:
        loop.build(run)
        assert run.dtype is None  # a dataset is text: it binds nobody
        loop.evaluate_model(run, "untuned")
        fingerprint = run.untuned().fingerprint
    choose(later)
    assert run_loop(here, tmp_path / "run", progress=lambda what, *_: said.append(what))["models"]["untuned"]["rates"]
    assert f"computing in {begun}, as this run has before (here {later} would be chosen)" in said
    with open_run(here, tmp_path / "run") as run:
        assert (run.untuned().model.dtype, run.untuned().fingerprint) == (getattr(torch, begun), fingerprint)


def test_a_run_without_held_out_documents_ends_before_it_evaluates(tiny_folder, tmp_path):
    write_rows(tmp_path / "documents.jsonl", some_documents(split=Split.TRAIN))
    with pytest.raises(RecipeError, match=r"no held-out documents to evaluate on. Set dataset.test_share above 0, or tune alone: docward tune"):
        run_loop(recipe(tiny_folder, tmp_path / "documents.jsonl"), tmp_path / "run")


def test_what_a_kill_left_before_there_was_a_recipe_is_no_other_s_folder(tiny_folder, tmp_path):
    write_rows(tmp_path / "documents.jsonl", some_documents())
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "environment.json").write_text("{")
    (tmp_path / "run" / ".recipe.yaml.1x.draft").write_text("docum")
    with open_run(recipe(tiny_folder, tmp_path / "documents.jsonl"), tmp_path / "run") as run:
        assert (run.folder / "recipe.yaml").is_file()
        assert "torch" in json.loads((run.folder / "environment.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("balanced", [True, False])
def test_balanced_surface_gives_tuning_a_weight_for_each_training_document(whole, tiny_folder, tmp_path, monkeypatch, balanced):
    run, documents = whole
    seen = []
    monkeypatch.setattr("docward.tuning.tuning.tune", lambda *_, **given: seen.append(given["document_weights"]))
    monkeypatch.setattr("docward.loop.surface_weights", lambda some: {one.id: 2.0 for one in some})
    monkeypatch.setattr("docward.loop._calibrate", lambda _: None)
    shutil.copytree(run, tmp_path / "run", ignore=shutil.ignore_patterns("adapter"))
    tune(Run(recipe(tiny_folder, documents, tuning={"balance_surface": balanced}), tmp_path / "run"))
    train = [one.id for one in read_rows(run / "documents.jsonl", Document) if one.split == Split.TRAIN]
    assert seen == [dict.fromkeys(train, 2.0) if balanced else None]


@pytest.mark.parametrize(("share", "epochs"), [(0.0, 1), (0.9, 1), (0.9, 0)])
def test_disturbed_copies_are_tuned_on_beside_what_the_dataset_holds(whole, tiny_folder, tmp_path, monkeypatch, share, epochs):
    from docward.dataset.disturbing import AMONG, letter_case
    from docward.dataset.saving import read_split

    run, documents = whole
    seen = []
    monkeypatch.setattr("docward.tuning.tuning.tune", lambda _, examples, *__, **___: seen.extend(examples))
    monkeypatch.setattr("docward.dataset.disturbing.KINDS", {"letter case": letter_case})
    monkeypatch.setattr("docward.loop._calibrate", lambda _: None)
    shutil.copytree(run, tmp_path / "run", ignore=shutil.ignore_patterns("adapter"))
    tuning = {"disturbed": share, "num_train_epochs": epochs, "refusal_token": "auto"}
    tune(Run(recipe(tiny_folder, documents, tuning=tuning), tmp_path / "run"))
    held = read_split(run / "dataset", Split.TRAIN)
    assert seen[: len(held)] == held
    assert bool(seen[len(held) :]) == bool(share)
    assert any(one.id.endswith(f"|{AMONG}") for one in seen) == (not epochs)  # their answers are not to be learned
    assert {one.document_id for one in seen} == {one.document_id for one in held}


def begun(whole: Path, target: Path) -> Path:
    """A copy of a run as it was before it was tuned."""
    gone = shutil.ignore_patterns("adapter", "training.jsonl", "defended", "metrics.json", "report.html")
    return Path(shutil.copytree(whole, target, ignore=gone))


def test_the_weights_that_susceptibility_gave_the_tasks_are_those_of_the_loss(whole, tiny_folder, tmp_path):
    run, documents = whole
    shares = {"summarize": 0.75, "sentiment": 0.25}
    losses = {}
    for name, weights in {"both": shares, **{task: {task: 1.0} for task in shares}}.items():
        folder = begun(run, tmp_path / name)
        audit = folder / "dataset" / "audit.json"
        audit.write_text(json.dumps(json.loads(audit.read_text()) | {"task_weights": weights}))
        one_step = {"num_train_epochs": 1, "per_device_train_batch_size": 1000, "max_length": 512, "general_weight": 0}
        tune(Run(recipe(tiny_folder, documents, tuning=one_step), folder))
        [row] = [json.loads(line) for line in (folder / "training.jsonl").read_text().splitlines()]
        losses[name] = row["loss"] / row["examples"]  # a step divides by its nominal size, whatever it holds
    assert losses["both"] == pytest.approx(sum(share * losses[task] for task, share in shares.items()), rel=1e-4)
    assert losses["summarize"] != pytest.approx(losses["sentiment"], rel=5e-4)


def test_how_tuning_is_divided_may_change_in_the_middle_of_a_run_and_nothing_else(whole, tiny_folder, tmp_path, monkeypatch):
    from docward.tuning.trainer import DefenseTrainer

    run, documents = whole
    target = begun(run, tmp_path / "run")
    tuning = recipe(tiny_folder, documents).tuning.model_dump()
    smaller = recipe(tiny_folder, documents, tuning=tuning | {"max_batch_tokens": 1024, "save_steps": 3})
    step, bounds = DefenseTrainer.training_step, []

    def training_step(self, *given):
        bounds.append(self.steps.most)
        if self.state.global_step == 2 and self.steps.most > 1024:
            raise torch.OutOfMemoryError("out of memory")
        return step(self, *given)

    monkeypatch.setattr(DefenseTrainer, "training_step", training_step)
    with pytest.raises(torch.OutOfMemoryError):
        run_loop(recipe(tiny_folder, documents), target)
    with pytest.raises(RunError, match=r"holds another recipe's run \(tuning\.lora_r: 8 there, 4 now\)"):
        run_loop(recipe(tiny_folder, documents, tuning=tuning | {"max_batch_tokens": 1024, "lora_r": 4}), target)
    assert load_recipe(target / "recipe.yaml") == recipe(tiny_folder, documents), "what is refused changes nothing"
    run_loop(smaller, target)
    rows = [json.loads(line) for line in (target / "training.jsonl").read_text().splitlines()]
    assert bounds == [2048] * 3 + [1024] * (rows[-1]["step"] - 2), "it went on from the checkpoint"
    assert load_recipe(target / "recipe.yaml") == smaller
    run_loop(recipe(tiny_folder, documents), target)
    assert load_recipe(target / "recipe.yaml") == smaller, "as it was tuned"


def test_a_run_without_benign_documents_goes_through_where_none_are_wanted(tiny_folder, tmp_path):
    write_rows(tmp_path / "documents.jsonl", [one for one in some_documents(12) if one.label == Label.MALICIOUS])
    tuning = {"num_train_epochs": 1, "max_length": 512, "per_device_train_batch_size": 3}
    with pytest.raises(DocumentError, match=r"There are no benign .* set tuning\.benign_weight to 0"):
        run_loop(recipe(tiny_folder, tmp_path / "documents.jsonl", tuning=tuning), tmp_path / "run")
    metrics = run_loop(recipe(tiny_folder, tmp_path / "documents.jsonl", tuning=tuning | {"benign_weight": 0}), tmp_path / "run")
    assert set(metrics["models"]["defended"]["pooled"]) == {"malicious"}
    rows = [json.loads(line) for line in (tmp_path / "run" / "training.jsonl").read_text().splitlines()]
    assert rows[-1]["defense"]
    assert {row["benign"] for row in rows} == {None}


def test_no_document_under_test_was_trained_on(whole):
    run, _ = whole
    documents = read_rows(run / "documents.jsonl", Document)
    assert {document.split for document in documents} == set(Split)
    triples = {split: {document.triple for document in documents if document.split == split} for split in Split}
    assert not triples[Split.TRAIN] & triples[Split.TEST]
    from docward.dataset.saving import read_split

    trained = {example.document_id for example in read_split(run / "dataset", Split.TRAIN)}
    tested = {json.loads(line)["document_id"] for line in (run / "evaluation" / "defended" / "replies.jsonl").read_text().splitlines()}
    assert trained
    assert tested
    assert not trained & tested


def test_short_prompts_of_a_recipe_are_asked_of_both_models_as_they_are_and_are_in_no_example(whole):
    from docward.dataset.saving import read_split

    run, _ = whole
    names = {one.id for one in PROMPTS}
    assert not names & {example.document_id for split in Split for example in read_split(run / "dataset", split)}
    for model, metrics in json.loads((run / "metrics.json").read_text())["models"].items():
        replies = [one for one in read_rows(run / "evaluation" / model / "replies.jsonl", Reply) if one.document_id in names]
        assert sorted((one.task, one.instruction, one.document) for one in replies) == sorted(("prompt", "", one.text) for one in PROMPTS)
        assert [(one["set"], one["source"], one["documents"]) for one in metrics["prompts"]] == [("malicious", "questions", 1), ("sensitive", "questions", 1)]
    assert "Short prompts</h2>" in (run / "report.html").read_text()


MOMENTS = {
    "while answering": "work/examples/general.parquet",
    "while evaluating the untuned model": "evaluation/untuned/replies.jsonl",
    "while tuning": "checkpoints/checkpoint-2",
    "while evaluating the defended model": "evaluation/defended/evaluation.json",
}


def test_a_run_killed_at_each_stage_ends_as_if_nothing_had_happened(whole, tiny_folder, tmp_path):
    """kill -9 at four moments of one run, then a last start: the same replies, the same weights, the same rates."""
    run, documents = whole
    target = tmp_path / "run"
    for moment, mark in MOMENTS.items():
        child = started("docward.loop", "run_loop", recipe(tiny_folder, documents), target)
        kill_when(child, (target / mark).exists)
        assert (target / mark).exists(), f"{moment}: never reached (exit code {child.exitcode})"
    assert not (target / "report.html").exists()
    run_loop(recipe(tiny_folder, documents), target)
    assert comparable(target) == comparable(run)


def test_another_recipe_in_the_same_folder_is_refused_by_name(whole, tiny_folder):
    run, documents = whole
    with pytest.raises(RunError, match=r"another recipe's run.*seed: 0 there, 1 now"):
        run_loop(recipe(tiny_folder, documents, seed=1), run)


def test_changed_documents_are_noticed(whole, tiny_folder, tmp_path):
    _, documents = whole
    mine = tmp_path / "documents.jsonl"
    mine.write_bytes(documents.read_bytes())
    with open_run(recipe(tiny_folder, mine), tmp_path / "run"):
        pass
    mine.write_bytes(documents.read_bytes() + b'{"text": "One more.", "label": "ordinary"}\n')
    with pytest.raises(RunError, match="documents have changed"):
        run_loop(recipe(tiny_folder, mine), tmp_path / "run")


def test_two_processes_cannot_work_in_one_folder(tiny_folder, documents_file, tmp_path):
    mine = recipe(tiny_folder, documents_file)
    with open_run(mine, tmp_path / "run"), pytest.raises(RunError, match="Another process"), open_run(mine, tmp_path / "run"):
        pass


def test_the_single_task_loss_trains_one_task_and_is_tested_on_all(tiny_folder, documents_file, tmp_path):
    from docward.dataset.saving import read_split

    settings = recipe(tiny_folder, documents_file)
    single = settings.model_copy(update={"dataset": settings.dataset.model_copy(update={"tasks": ["summarize"], "general": 0})})
    metrics = run_loop(single, tmp_path / "run")
    assert {example.task for example in read_split(tmp_path / "run" / "dataset", Split.TRAIN)} == {"summarize"}
    assert {rate["task"] for rate in metrics["models"]["defended"]["rates"]} == {"summarize", "translate", "sentiment", "case", "next_sentence"}


def test_gold_margin_and_general_answers_of_the_recipe_go_through_the_whole_run(tiny_folder, tmp_path):
    rows = [asdict(one) | ({"gold": {"summarize": "A note on bread."}} if one.label == "ordinary" else {}) for one in some_documents()]
    write_rows(tmp_path / "documents.jsonl", rows)
    write_rows(tmp_path / "general.jsonl", [{"instruction": f"Say {number}.", "response": f"It is {number}."} for number in range(5)])
    section = {"tasks": ["summarize", "next_sentence"], "max_new_tokens": 4, "retention_margin": 0.2, "general_path": str(tmp_path / "general.jsonl")}
    metrics = run_loop(recipe(tiny_folder, tmp_path / "documents.jsonl", evaluation=section), tmp_path / "run")
    models = metrics["models"]
    places = [(one["task"], one["measure"], one["against"]) for one in models["defended"]["utility"]]
    assert sorted(places) == [
        ("general", "perplexity", "gold"),
        ("next_sentence", "chrf_vs_untuned", "untuned"),
        ("next_sentence", "log_likelihood", "gold"),
        ("summarize", "chrf_vs_untuned", "untuned"),
        ("summarize", "rouge_l", "gold"),
    ]
    assert {(one["task"], one["measure"], one["against"]) for one in models["untuned"]["utility"]} == {one for one in places if one[1] != "chrf_vs_untuned"}
    assert {one["margin"] for one in models["defended"]["retention"]} == {0.2}
    untuned, tuned = ({one["measure"]: one["value"] for one in models[name]["utility"]} for name in ("untuned", "defended"))
    kept = {one["measure"]: one for one in models["defended"]["retention"]}["perplexity"]
    assert kept["value"] == pytest.approx(untuned["perplexity"] / tuned["perplexity"])
    found = models["defended"]["perplexity"]
    assert (found["rows"], found["ratio"]) == (5, pytest.approx(tuned["perplexity"] / untuned["perplexity"]))
    assert found["ratio"] != 1, "tuning changes it"
    (tmp_path / "general.jsonl").write_text('{"instruction": "Say 1.", "response": "No."}\n')
    with pytest.raises(RunError, match=r"documents have changed .*general\.jsonl"):
        run_loop(recipe(tiny_folder, tmp_path / "documents.jsonl", evaluation=section), tmp_path / "run")


def test_a_general_file_that_lacks_answers_is_refused_before_anything_is_built(tiny_folder, documents_file, tmp_path):
    (tmp_path / "general.jsonl").write_text('{"instruction": "Say 1."}\n')
    section = {"general_path": str(tmp_path / "general.jsonl")}
    with pytest.raises(DocumentError, match=r"general\.jsonl:1: `response` is missing"):
        run_loop(recipe(tiny_folder, documents_file, evaluation=section), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_perplexity_is_measured_on_the_untuned_models_answers_to_instructions_that_tuning_has_not_seen(tiny_folder, documents_file, tmp_path):
    from docward.dataset.saving import read_split
    from docward.documents.reading import general_instructions

    settings = recipe(tiny_folder, documents_file, evaluation={"tasks": ["case"], "max_new_tokens": 2, "limit": 1, "general": 6})
    metrics = run_loop(settings, tmp_path / "run")
    answers = [json.loads(line) for line in (tmp_path / "run" / "evaluation" / "general.jsonl").read_text().splitlines()]
    trained = {example.instruction for example in read_split(tmp_path / "run" / "dataset", Split.TRAIN) if example.task == "general"}
    asked = [one["instruction"] for one in answers]
    assert asked
    assert set(asked) <= {words for _, words in general_instructions()[2:8]}
    assert not set(asked) & trained
    assert {one["origin"] for one in answers} == {"untuned"}
    found = metrics["models"]["defended"]["perplexity"]
    assert (found["against"], found["rows"]) == ("untuned", len(answers))


def test_a_note_of_an_evaluation_is_said_as_it_is_and_a_count_is_of_a_model(tmp_path, monkeypatch):
    said = []
    monkeypatch.setattr(loop, "load", lambda name, **_: None)
    monkeypatch.setattr(loop, "test_documents", lambda run: [])
    monkeypatch.setattr(loop, "general_of", lambda run: ())

    def evaluate(*_given, progress):
        progress("3 replies in defended are to other texts or words than now, so they are asked for again", 0, 0)
        progress("replies", 0, 12)

    monkeypatch.setattr(loop, "evaluate", evaluate)
    (tmp_path / "environment.json").write_text("{}")
    run = Run(recipe(tmp_path, tmp_path / "documents.jsonl"), tmp_path, lambda *given: said.append(given))
    loop.evaluate_model(run, "defended")
    assert said == [
        ("3 replies in defended are to other texts or words than now, so they are asked for again", 0, 0),
        ("replies of the defended model", 0, 12),
    ]


def test_short_prompts_take_no_document_s_place_under_test_and_are_not_probed(tmp_path):
    texts = [replace(one, split=split) for split in (Split.TEST, Split.VALIDATION) for one in some_documents(3)]
    prompts = [replace(one, id=f"{one.id}-{one.split}-q", form="prompt") for one in texts]
    write_rows(tmp_path / "documents.jsonl", [*prompts, *(replace(one, id=f"{one.id}-{one.split}") for one in texts)])
    made = recipe(tmp_path, tmp_path, evaluation={"limit": 2}, tuning={"eval_steps": 1})
    found = under_test(Run(made, tmp_path))
    assert [(one.label, one.is_prompt) for one in found] == [(label, prompt) for prompt in (False, True) for label in Label for _ in range(2)]
    assert {one.split for one in found} == {Split.TEST}
    probed = _probe(Run(made, tmp_path)).documents
    assert len(probed) == 9
    assert not any(one.is_prompt for one in probed)


def test_what_is_under_test_is_taken_from_all_of_the_documents_evenly(tmp_path):
    texts = [replace(one, id=f"{number}-{one.label}", split=Split.TEST) for number in range(12) for one in some_documents(1)]
    write_rows(tmp_path / "documents.jsonl", texts)
    for limit, wanted in ((None, range(12)), (20, range(12)), (5, (1, 3, 6, 8, 10)), (1, (6,))):
        found = under_test(Run(recipe(tmp_path, tmp_path, evaluation={"limit": limit}), tmp_path))
        assert [one.id for one in found] == [f"{number}-{label}" for label in Label for number in wanted]
