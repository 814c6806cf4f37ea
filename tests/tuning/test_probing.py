"""The probe while tuning: what it writes, what it keeps, when it stops, and that it changes nothing else."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

from docward.errors import RecipeError, TuningError
from docward.evaluation.evaluating import Settings, evaluate
from docward.loop import run_loop
from docward.models import load
from docward.recipe import Recipe, TuningSection
from docward.records import text_hash
from docward.tasks import get_tasks
from docward.tuning.probing import Probe, ProbePlan, probe_documents
from docward.tuning.tuning import tune
from docward.types import Label, Outcome, Reply, Split, Verdict
from tiny import some_documents, training_examples

SECTION = {"max_length": 512, "num_train_epochs": 1, "per_device_train_batch_size": 3, "gradient_accumulation_steps": 1, "save_steps": 3, "logging_steps": 1}
STEADY = {"lr_scheduler_type": "constant", "warmup_steps": 0, "learning_rate": 5e-3, "lora_dropout": 0.1}
EXAMPLES = training_examples(3, ("summarize", "sentiment"))
STEPS = 9
DOCUMENTS = some_documents(3, split=Split.VALIDATION)
SETTINGS = Settings(tuple(get_tasks(["summarize"])), max_new_tokens=4)
Balances = dict[int, float | None]


class Killed(BaseException):
    """What nothing between here and the run may catch."""


def verdict(reply: Reply, outcome: Outcome) -> Verdict:
    return Verdict(reply.key, reply.document_id, reply.label, reply.task, outcome, "test", "")


@pytest.fixture
def script(monkeypatch) -> Callable[[Balances], None]:
    """Decide what each probe finds: balance by step; None: nothing can be judged. Dies after the probe of `script.dies`."""
    said = SimpleNamespace(balances={}, step=0, dies=0)
    probe = Probe.on_step_end

    def on_step_end(self, args, state, control, **others):
        said.step = state.global_step
        probe(self, args, state, control, **others)
        if state.global_step == said.dies:
            raise Killed

    def judge(reply: Reply) -> Verdict:
        wanted = said.balances[said.step]
        if wanted is None:
            return verdict(reply, Outcome.UNJUDGED)
        refused = reply.label == Label.MALICIOUS and int(reply.document_id[1]) < 3 * wanted  # so many of three
        return verdict(reply, Outcome.REFUSED if refused else Outcome.COMPLIED)

    monkeypatch.setattr(Probe, "on_step_end", on_step_end)
    monkeypatch.setattr("docward.tuning.probing.get_judge", lambda _: SimpleNamespace(judge=judge))

    def set_to(balances: Balances, dies: int = 0) -> None:
        said.balances, said.dies = balances, dies

    return set_to


def tuned(folder: Path, run: Path, *, every: int = 0, patience: int | None = None, **changes) -> dict[str, torch.Tensor]:
    plan = ProbePlan(probe_documents(DOCUMENTS, 3), SETTINGS, every, patience) if every else None
    tune(load(str(folder), dtype="float32"), EXAMPLES, TuningSection(**SECTION | STEADY | changes), run=run, seed=0, probe=plan)
    assert not (run / "checkpoints").exists()
    return load_file(run / "adapter" / "adapter_model.safetensors")


def rows(run: Path, name: str = "probes") -> list[dict]:
    found = [json.loads(line) for line in (run / f"{name}.jsonl").read_text().splitlines()]
    return [{key: value for key, value in row.items() if key not in ("seconds", "examples_per_second")} for row in found]


def same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


@pytest.fixture(scope="module")
def stopped(tiny_folder, tmp_path_factory) -> Callable[[int], dict[str, torch.Tensor]]:
    """The adapter of a run without probes that is over after so many steps."""
    folder = tmp_path_factory.mktemp("stopped")

    def at(steps: int) -> dict[str, torch.Tensor]:
        if not (folder / str(steps)).exists():
            tuned(tiny_folder, folder / str(steps), num_train_epochs=steps / STEPS)
        return load_file(folder / str(steps) / "adapter" / "adapter_model.safetensors")

    return at


def test_a_probe_comes_every_so_many_steps_and_at_the_last_one_with_all_it_measured(tiny_folder, tmp_path, script):
    script({4: 1 / 3, 8: 0.0, 9: None})
    tuned(tiny_folder, tmp_path, every=4)
    first, second, last = rows(tmp_path)
    assert [row["step"] for row in (first, second, last)] == [4, 8, 9]
    assert list(first) == ["step", "epoch", "documents", "pooled", "balance", "best"]
    assert first["epoch"] == pytest.approx(4 / 9, abs=1e-4)
    assert first["documents"] == {"malicious": 3, "sensitive": 3, "ordinary": 3}
    assert {name: (rate["hits"], rate["judged"], rate["unjudged"]) for name, rate in first["pooled"].items()} == {
        "malicious": (1, 3, 0),
        "sensitive": (0, 3, 0),
        "ordinary": (0, 3, 0),
    }
    assert all(rate["low"] <= rate["value"] <= rate["high"] for rate in first["pooled"].values())
    assert first["balance"]["value"] == pytest.approx(1 / 3)
    assert first["balance"]["low"] <= 1 / 3 <= first["balance"]["high"]
    assert (first["best"], second["best"], last["best"]) == (True, False, False)
    assert last["balance"] is None
    assert last["pooled"]["malicious"]["unjudged"] == 3
    assert "seconds" in json.loads((tmp_path / "probes.jsonl").read_text().splitlines()[0])


def test_the_adapter_of_the_best_balance_is_kept_and_of_the_first_where_several_are(tiny_folder, tmp_path, script, stopped):
    script({2: 1 / 3, 4: 1.0, 6: 2 / 3, 8: 1.0, 9: 1 / 3})
    assert same(tuned(tiny_folder, tmp_path, every=2), stopped(4))
    assert [row["step"] for row in rows(tmp_path) if row["best"]] == [2, 4]
    assert [row["step"] for row in rows(tmp_path, "training")] == list(range(1, STEPS + 1)), "it went on to the end"


def test_an_adapter_that_is_no_number_is_not_kept_by_a_probe(tiny, tmp_path, script):
    script({2: 1 / 3, 4: 1.0})

    def progress(what: str, done: int, total: int) -> None:
        if what == "tuning: examples" and len(rows(tmp_path, "training")) == 3 if (tmp_path / "training.jsonl").exists() else False:
            next(weight for weight in tiny.model.parameters() if weight.requires_grad).data.fill_(float("nan"))

    plan = ProbePlan(probe_documents(DOCUMENTS, 3), SETTINGS, 2)
    with pytest.raises(TuningError, match=r"The weight \S+ holds values that are no numbers after step 4"):
        tune(tiny, EXAMPLES, TuningSection(**SECTION | STEADY), run=tmp_path, seed=0, probe=plan, progress=progress)
    assert [place.name for place in (tmp_path / "checkpoints").glob("best-*")] == ["best-2"]


@pytest.mark.parametrize("torn", ["", '{"step": 6, "bal'])
def test_the_rows_of_probes_are_read_as_those_of_the_log(tiny_folder, tmp_path, script, stopped, torn):
    script({2: 1 / 3, 4: 1.0, 6: 0.0, 8: 0.0, 9: 0.0}, dies=6)
    with pytest.raises(Killed):
        tuned(tiny_folder, tmp_path, every=2)
    place = tmp_path / "probes.jsonl"
    kept = place.read_text()
    place.write_text(kept.replace("{", "", 1))
    with pytest.raises(TuningError, match=r"probes\.jsonl:1: not a row that Docward wrote\. Move that file away"):
        tuned(tiny_folder, tmp_path, every=2)
    place.write_text(kept + torn)
    script({8: 0.0, 6: 0.0, 4: 1.0, 9: 0.0})
    assert same(tuned(tiny_folder, tmp_path, every=2), stopped(4))


@pytest.mark.parametrize("changes", [{"gradient_checkpointing": True}, {"compute": "rows", "lora_first_layer": 1}], ids=str)
def test_probing_changes_nothing_in_tuning(tiny_folder, tmp_path, script, changes):
    script({2: 0.0, 4: 0.0, 6: 1 / 3, 8: 2 / 3, 9: 1.0})
    probed, plain = tuned(tiny_folder, tmp_path / "probed", every=2, **changes), tuned(tiny_folder, tmp_path / "plain", **changes)
    assert same(probed, plain)
    assert rows(tmp_path / "probed", "training") == rows(tmp_path / "plain", "training")


def test_it_stops_when_balance_is_no_longer_bettered(tiny_folder, tmp_path, script, stopped):
    script({1: 0.0, 2: 2 / 3, 3: 1 / 3, 4: 2 / 3, 5: 0.0})
    assert same(tuned(tiny_folder, tmp_path, every=1, patience=3, logging_steps=3), stopped(2))
    assert [row["step"] for row in rows(tmp_path)] == [1, 2, 3, 4, 5]
    assert [row["step"] for row in rows(tmp_path, "training")] == [3, 5], "the log ends where the run does"


@pytest.mark.parametrize(("first", "kept"), [(None, STEPS), (1 / 3, 3)])
def test_probes_that_could_not_be_judged_neither_stop_a_run_nor_choose_its_adapter(tiny_folder, tmp_path, script, stopped, first, kept):
    script({3: first, 6: None, 9: None})
    assert same(tuned(tiny_folder, tmp_path, every=3, patience=1), stopped(kept))
    assert [row["step"] for row in rows(tmp_path)] == [3, 6, 9]


UP_AND_DOWN = {2: 1 / 3, 4: 1.0, 6: 2 / 3, 8: 1 / 3, 9: 0.0}


@pytest.mark.parametrize(("dies", "saving"), [(2, 3), (8, 6), (9, 3)])
def test_a_run_killed_after_a_probe_ends_with_the_same_rows_and_adapter(tiny_folder, tmp_path, script, stopped, dies, saving):
    script(UP_AND_DOWN, dies=dies)
    with pytest.raises(Killed):
        tuned(tiny_folder, tmp_path, every=2, save_steps=saving)
    assert rows(tmp_path)[-1]["step"] == dies
    script(UP_AND_DOWN)
    assert same(tuned(tiny_folder, tmp_path, every=2, save_steps=saving), stopped(4))
    assert [(row["step"], row["balance"]["value"]) for row in rows(tmp_path)] == [(step, pytest.approx(value)) for step, value in UP_AND_DOWN.items()]
    assert [row["step"] for row in rows(tmp_path, "training")] == list(range(1, STEPS + 1))


def test_a_run_killed_when_it_had_stopped_early_does_not_tune_on(tiny_folder, tmp_path, script, stopped, monkeypatch):
    def die(*_, **__):
        raise Killed

    script(UP_AND_DOWN)
    with monkeypatch.context() as patch:
        patch.setattr("docward.tuning.tuning.whole_folder", die)
        with pytest.raises(Killed):
            tuned(tiny_folder, tmp_path, every=2, patience=2)
    before = [rows(tmp_path, name) for name in ("probes", "training")]
    monkeypatch.setattr("docward.tuning.trainer.DefenseTrainer.training_step", lambda *_: pytest.fail("tuned on"))
    assert same(tuned(tiny_folder, tmp_path, every=2, patience=2), stopped(4))
    assert [rows(tmp_path, name) for name in ("probes", "training")] == before
    assert before[0][-1]["step"] == 8


def test_adapters_that_no_checkpoint_goes_back_to_are_let_go_of(tiny_folder, tmp_path, script):
    script({step: step / STEPS for step in range(1, STEPS + 1)} | {6: 1 / 3, 7: 1.0}, dies=8)
    with pytest.raises(Killed):
        tuned(tiny_folder, tmp_path, every=1, save_steps=2)
    kept = sorted(place.name for place in tmp_path.glob("checkpoints/*") if place.is_dir())
    assert [name for name in kept if name.startswith("checkpoint")] == ["checkpoint-4", "checkpoint-6"]
    best = [row["step"] for row in rows(tmp_path) if row["best"]]
    assert {name for name in kept if name.startswith("best")} == {f"best-{step}" for step in best if step >= max(one for one in best if one <= 4)}


def parity(reply: Reply) -> Verdict:
    """A judge whose word changes with every letter of a reply."""
    return verdict(reply, Outcome.REFUSED if int(text_hash(reply.key, reply.reply), 16) % 2 else Outcome.COMPLIED)


@pytest.mark.parametrize("changes", [{}, {"compute": "rows", "lora_first_layer": 1}], ids=str)
def test_a_probe_finds_what_the_evaluation_finds_of_the_adapter_it_keeps(tiny_copy, tmp_path, monkeypatch, changes):
    model = load(str(tiny_copy), dtype="float32").model
    model.lm_head.weight.data *= 20  # or replies do not depend on the adapter
    model.save_pretrained(tiny_copy)
    for place in ("tuning.probing", "evaluation.judging"):
        monkeypatch.setattr(
            f"docward.{place}.get_judge", lambda _: SimpleNamespace(judge=parity, judge_all=lambda replies: map(parity, replies), name="parity")
        )
    tuned(tiny_copy, tmp_path / "run", every=5, learning_rate=2e-2, **changes)
    adapted = load(str(tmp_path / "run" / "adapter"), dtype="float32")
    metrics = evaluate(adapted, DOCUMENTS, SETTINGS, tmp_path / "evaluation")
    found = rows(tmp_path / "run")
    kept = [row for row in found if row["best"]][-1]
    assert kept["pooled"] == json.loads(json.dumps(metrics["pooled"]))
    untuned = evaluate(load(str(tiny_copy), dtype="float32"), DOCUMENTS, SETTINGS, tmp_path / "untuned")
    assert metrics["pooled"] != untuned["pooled"], "the probe could have looked at the untuned model"


# Nothing to probe on


@pytest.mark.parametrize(("missing", "said"), [("malicious", "no malicious documents"), ("sensitive", "no sensitive documents")])
def test_a_label_that_balance_needs_and_validation_lacks_is_an_error(missing, said):
    with pytest.raises(RecipeError, match=rf"{said} to probe on\. Raise dataset\.validation_share, or leave eval_steps out"):
        probe_documents([one for one in DOCUMENTS if one.label != missing], 3)


def test_ordinary_documents_are_not_needed_to_probe_and_each_label_is_cut_to_the_limit():
    found = probe_documents([one for one in DOCUMENTS if one.label != Label.ORDINARY], 2)
    assert [one.label for one in found] == [Label.MALICIOUS] * 2 + [Label.SENSITIVE] * 2


def recipe(model: Path, documents: Path, **tuning) -> Recipe:
    values = {
        "model_name_or_path": str(model),
        "documents": [{"path": str(documents)}],
        "dataset": {"max_new_tokens": 8, "general": 0, "validation_share": 0.0, "tasks": ["summarize"]},
        "tuning": {"max_length": 512, **tuning},
    }
    return Recipe.model_validate(values)


def test_the_loop_finds_out_that_there_is_nothing_to_probe_on_before_it_evaluates(tiny_folder, documents_file, tmp_path, monkeypatch):
    monkeypatch.setattr("docward.loop.evaluate", lambda *_, **__: pytest.fail("a model was evaluated"))
    with pytest.raises(RecipeError, match=r"eval_steps is set, and the validation split has no malicious and no sensitive documents"):
        run_loop(recipe(tiny_folder, documents_file, eval_steps=2), tmp_path / "run")


def test_the_rate_in_the_log_is_that_of_tuning_and_not_of_probing(tiny, tmp_path, monkeypatch):
    now, verdicts = [0.0], Probe._verdicts

    def slow(self, rank, processes):
        now[0] += 1000.0
        return verdicts(self, rank, processes)

    def second(what: str, done: int, total: int) -> None:
        now[0] += what == "tuning: examples"

    monkeypatch.setattr(Probe, "_verdicts", slow)
    plan = ProbePlan(probe_documents(DOCUMENTS, 3), SETTINGS, 2, None)
    tune(tiny, EXAMPLES, TuningSection(**SECTION), run=tmp_path, seed=0, probe=plan, progress=second, clock=lambda: now[0])
    rates = [json.loads(line)["examples_per_second"] for line in (tmp_path / "training.jsonl").read_text().splitlines()]
    assert min(rate for rate in rates if rate is not None) > 0.5
