"""Bad input to tuning: each says what is wrong and what to do, or just works; none ends in a traceback or in other weights."""

from __future__ import annotations

import errno
import itertools
import json
import os
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from pkgutil import resolve_name

import pytest
import torch
import yaml
from safetensors import SafetensorError
from safetensors.torch import load_file

from docward import loop
from docward.errors import ModelError, RecipeError, StorageError, TuningError
from docward.models import Loaded, load
from docward.recipe import Recipe, TuningSection, load_recipe
from docward.tuning import sharing
from docward.tuning.checkpoints import mark_finished
from docward.tuning.trainer import rows_until
from docward.tuning.tuning import tune
from docward.types import Example, Want
from heads import llama
from tiny import NO, byte_tokenizer, save_tiny_model, training_examples

SECTION = {"max_length": 512, "num_train_epochs": 1, "per_device_train_batch_size": 3, "gradient_accumulation_steps": 1, "save_steps": 2, "logging_steps": 1}
EXAMPLES = training_examples(3, ("summarize", "sentiment"))  # 20 rows: 7 or more steps


class Killed(BaseException):
    """What nothing between here and the run may catch."""


def section(**changes) -> TuningSection:
    return TuningSection(**{**SECTION, "lora_dropout": 0.1, "learning_rate": 1e-3, **changes})


def tuned(folder: Path, run: Path, examples: list[Example] = EXAMPLES, *, killed_at: int = 0, seed: int = 0, **changes) -> dict[str, torch.Tensor]:
    """The weights of a run; `killed_at`: die at the end of that step, before anything of it is on disk."""
    steps = []

    def progress(what: str, done: int, total: int) -> None:
        if what == "tuning: examples":
            steps.append(done)
            if killed_at and len(steps) > killed_at:
                raise Killed

    tune(load(str(folder), dtype="float32"), examples, section(**changes), run=run, seed=seed, progress=progress)
    return load_file(run / "adapter" / "adapter_model.safetensors")


def killed(folder: Path, run: Path, step: int, **changes) -> None:
    with pytest.raises(Killed):
        tuned(folder, run, killed_at=step, **changes)


def same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def log(run: Path) -> list[dict]:
    rows = [json.loads(line) for line in (run / "training.jsonl").read_text().splitlines()]
    return [{key: value for key, value in row.items() if key not in ("seconds", "examples_per_second")} for row in rows]


@pytest.fixture(scope="module")
def whole(tiny_folder, tmp_path_factory) -> tuple[Path, dict[str, torch.Tensor]]:
    """An undisturbed run."""
    run = tmp_path_factory.mktemp("whole")
    return run, tuned(tiny_folder, run)


def kept(examples: list[Example], *wants: Want) -> list[Example]:
    return [one for one in examples if one.task == "general" or one.want in wants]


# Too few examples


def test_nothing_to_decline_is_refused(tiny, tmp_path):
    with pytest.raises(RecipeError, match=r"no malicious training examples.*Add malicious documents"):
        tune(tiny, kept(EXAMPLES, Want.COMPLY), section(), run=tmp_path, seed=0)
    assert not list(tmp_path.iterdir())


def test_nothing_to_answer_is_refused_unless_it_is_wanted(tiny_folder, tmp_path):
    malicious = kept(EXAMPLES, Want.REFUSE)
    with pytest.raises(RecipeError, match=r"no benign training examples.*Add sensitive or ordinary documents, or set tuning\.benign_weight to 0"):
        tuned(tiny_folder, tmp_path, malicious)
    assert tuned(tiny_folder, tmp_path, malicious, benign_weight=0)


def test_one_malicious_and_one_sensitive_document_under_one_task_can_be_tuned_on(tiny_folder, tmp_path):
    two = [next(one for one in EXAMPLES if one.task == "summarize" and one.label == label) for label in ("malicious", "sensitive")]
    tuned(tiny_folder, tmp_path, two)
    assert [row["examples"] for row in log(tmp_path)] == [2]


def test_one_document_alone_can_be_tuned_on_where_no_benign_one_is_wanted(tiny_folder, tmp_path):
    assert tuned(tiny_folder, tmp_path, [one for one in EXAMPLES if one.want == Want.REFUSE][:1], benign_weight=0, anchor_weight=0.5)


# A batch bound below one document


@pytest.mark.parametrize("compute", ["rows", "shared"])
def test_a_batch_bound_below_one_document_names_it_and_the_least_value(tiny_folder, tmp_path, compute):
    with pytest.raises(RecipeError, match=r"max_batch_tokens = 50, and one row of the document t\d-\w takes \d+ tokens .*Set it to at least") as said:
        tuned(tiny_folder, tmp_path, compute=compute, max_batch_tokens=50)
    least = int(re.search(r"at least (\d+)", str(said.value))[1])
    with pytest.raises(RecipeError, match=f"at least {least}"):
        tuned(tiny_folder, tmp_path, compute=compute, max_batch_tokens=least - 1)
    assert tuned(tiny_folder, tmp_path, compute=compute, max_batch_tokens=least)


def test_a_length_without_room_for_any_document_says_what_it_takes(tiny_folder, tmp_path):
    with pytest.raises(RecipeError, match=r"max_length = 60 leaves no room for a document .*Set it to at least \d+"):
        tuned(tiny_folder, tmp_path, max_length=60)


# Checkpoints


def test_checkpoints_of_another_recipe_model_seed_or_data_are_refused_by_name(tiny_folder, tiny_copy, tmp_path):
    run = tmp_path / "run"
    killed(tiny_folder, run, 3)
    for name, other in {"learning_rate": 2e-3, "lora_r": 4, "seed": 1, "num_train_epochs": 2.0, "lora_dropout": 0.0}.items():
        with pytest.raises(TuningError, match=rf"of another run \({name}: \S+ there, {other} now\)\. Delete that folder, or choose another --output-dir"):
            tuned(tiny_folder, run, **{name: other})
    with pytest.raises(TuningError, match=r"of another run \(data: "):
        tuned(tiny_folder, run, EXAMPLES[:-1])
    with pytest.raises(TuningError, match=r"of another run \(model: "):
        tuned(tiny_copy, run)
    assert list(run.glob("checkpoints/checkpoint-2/*")), "a refusal costs nothing"


def test_a_run_with_a_fit_goes_on_without_fitting_again_and_is_refused_before_it(with_token, tmp_path, monkeypatch):
    still = {"lora_dropout": 0.0, "refusal_token": "auto"}
    wanted = tuned(with_token, tmp_path / "whole", **still)
    killed(with_token, tmp_path / "run", 3, **still)
    monkeypatch.setattr("docward.tuning.refusal_row.begin_from_a_fit", lambda *_: pytest.fail("fitted again"))
    with pytest.raises(TuningError, match=r"of another run \(learning_rate: "):
        tuned(with_token, tmp_path / "run", **still, learning_rate=2e-3)
    found = tuned(with_token, tmp_path / "run", **still)
    assert {name.rsplit(".", 1)[-1] for name in found} > {"trainable_tokens_delta"}
    assert same(found, wanted)


def test_a_model_changed_under_its_name_is_another_model(tiny_copy, tmp_path):
    killed(tiny_copy, tmp_path / "run", 3)
    model = load(str(tiny_copy), dtype="float32").model
    model.lm_head.weight.data *= 1.01
    model.save_pretrained(tiny_copy)
    with pytest.raises(TuningError, match=r"of another run \(weights: "):
        tuned(tiny_copy, tmp_path / "run")


def test_how_the_work_is_divided_may_change_in_the_middle(tiny_folder, tmp_path):
    still = {"lora_dropout": 0.0}
    wanted = tuned(tiny_folder, tmp_path / "whole", **still)
    killed(tiny_folder, tmp_path / "run", 5, **still)
    division = {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 2, "max_batch_tokens": 400, "compute": "rows", "save_steps": 3}
    found = tuned(tiny_folder, tmp_path / "run", **still, **division)
    for name, weight in wanted.items():
        torch.testing.assert_close(found[name], weight, rtol=1e-3, atol=1e-5)
    assert [row["examples"] for row in log(tmp_path / "run")] == [row["examples"] for row in log(tmp_path / "whole")]


def flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


@pytest.mark.parametrize("file", ["adapter_model.safetensors", "rng_state.pth"])
def test_a_damaged_last_checkpoint_costs_only_the_steps_since_the_one_before(tiny_folder, tmp_path, whole, file):
    killed(tiny_folder, tmp_path, 5)
    flip(tmp_path / "checkpoints" / "checkpoint-4" / file)
    assert same(tuned(tiny_folder, tmp_path), whole[1])
    assert log(tmp_path) == log(whole[0])


def test_where_every_checkpoint_is_damaged_the_files_are_named(tiny_folder, tmp_path):
    killed(tiny_folder, tmp_path, 5)
    for step in (2, 4):
        flip(tmp_path / "checkpoints" / f"checkpoint-{step}" / "optimizer.pt")
    with pytest.raises(
        TuningError, match=r"checkpoint-2/optimizer\.pt, checkpoint-4/optimizer\.pt is not as it was written\. Delete .* to start tuning afresh"
    ):
        tuned(tiny_folder, tmp_path)


# What a kill leaves


@pytest.mark.parametrize(("saving", "logging"), [(3, 2), (4, 50)])
def test_a_run_killed_twice_leaves_the_log_and_the_weights_of_an_undisturbed_one(tiny_folder, tmp_path, saving, logging):
    steps = {"save_steps": saving, "logging_steps": logging}
    wanted = tuned(tiny_folder, tmp_path / "whole", **steps)
    killed(tiny_folder, tmp_path / "run", saving + 1, **steps)
    killed(tiny_folder, tmp_path / "run", 3, **steps)  # the third step after the checkpoint
    assert same(tuned(tiny_folder, tmp_path / "run", **steps), wanted)
    assert log(tmp_path / "run") == log(tmp_path / "whole")
    assert log(tmp_path / "run")[-1]["examples"] == len(EXAMPLES), "the log ends where the run does"


def test_a_run_killed_before_its_first_checkpoint_starts_afresh(tiny_folder, tmp_path, whole):
    killed(tiny_folder, tmp_path, 1)
    assert same(tuned(tiny_folder, tmp_path), whole[1])
    assert log(tmp_path) == log(whole[0])


def test_a_run_killed_after_its_last_step_only_writes_its_adapter(tiny_folder, tmp_path, whole, monkeypatch):
    def die(*_, **__):
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr("docward.tuning.adapters.save_tuned", die)
        killed(tiny_folder, tmp_path, 0)
    monkeypatch.setattr("docward.tuning.trainer.DefenseTrainer.training_step", lambda *_: pytest.fail("tuned on"))
    assert same(tuned(tiny_folder, tmp_path), whole[1])
    assert log(tmp_path) == log(whole[0])


def test_a_run_killed_while_it_writes_a_checkpoint_goes_on_from_the_one_before(tiny_folder, tmp_path, whole, monkeypatch):
    def die(folder: str, step: int, window: dict) -> None:
        if step == 4:
            (Path(folder) / "checkpoint-4" / "optimizer.pt").write_bytes(b"half")
            raise Killed
        mark_finished(folder, step, window)

    with monkeypatch.context() as patch:
        patch.setattr("docward.tuning.trainer.mark_finished", die)
        killed(tiny_folder, tmp_path, 0)
    assert same(tuned(tiny_folder, tmp_path), whole[1])
    assert log(tmp_path) == log(whole[0])


def test_what_a_tracker_wrote_among_the_checkpoints_outlives_them(tiny_folder, tmp_path):
    def progress(what: str, done: int, total: int) -> None:
        events = tmp_path / "checkpoints" / "runs" / "today"  # where TensorBoard's go
        events.mkdir(parents=True, exist_ok=True)
        (events / "events").write_text(f"{done}")

    tune(load(str(tiny_folder), dtype="float32"), EXAMPLES, section(), run=tmp_path, seed=0, progress=progress)
    assert (tmp_path / "trackers" / "runs" / "today" / "events").read_text() == str(len(EXAMPLES))
    assert sorted(place.name for place in tmp_path.iterdir()) == ["adapter", "trackers", "training.jsonl"]


def test_checkpoints_that_a_kill_left_beside_a_whole_adapter_go(tiny_folder, tmp_path):
    tuned(tiny_folder, tmp_path)
    (tmp_path / "checkpoints" / "checkpoint-4").mkdir(parents=True)
    loop.tune(loop.Run(Recipe(), tmp_path))
    assert not (tmp_path / "checkpoints").exists()


BAD_LINE = r"training\.jsonl:2: not a row that Docward wrote\. Move that file away and run the same command again"


def test_a_torn_last_line_of_the_log_is_left_out(tiny_folder, tmp_path, whole):
    killed(tiny_folder, tmp_path, 5)
    with (tmp_path / "training.jsonl").open("a") as rows:
        rows.write('{"step": 5, "epo')
    assert same(tuned(tiny_folder, tmp_path), whole[1])
    assert log(tmp_path) == log(whole[0])


@pytest.mark.parametrize("line", [b'{"step": 2, "ep\n', b"7\n", b'{"step": 2}\n', b'{"step": "2", "seconds": 1}\n', b"\xff\n"], ids=str)
def test_any_other_bad_line_of_the_log_is_named_and_not_blamed_on_the_checkpoint(tmp_path, line):
    place = tmp_path / "training.jsonl"
    good = b'{"step": 1, "seconds": 0.5}\n'
    place.write_bytes(good + line + b'{"step": 3, "seconds": 0.7}')
    with pytest.raises(TuningError, match=BAD_LINE):
        rows_until(place, 5, "seconds")
    place.write_bytes(good + b'{"step": 3, "seconds": 0.7}')
    assert [row["step"] for row in rows_until(place, 5, "seconds")] == [1, 3], "a last line without its end that is whole counts"
    assert [row["step"] for row in rows_until(place, 2, "seconds")] == [1]


def test_a_bad_line_of_the_log_ends_the_run_that_would_go_on_and_costs_no_checkpoint(tiny_folder, tmp_path, whole):
    killed(tiny_folder, tmp_path, 5)
    rows = (tmp_path / "training.jsonl").read_bytes().splitlines(keepends=True)
    (tmp_path / "training.jsonl").write_bytes(rows[0] + rows[1][:9] + b"\n" + rows[2])
    with pytest.raises(TuningError, match=BAD_LINE):
        tuned(tiny_folder, tmp_path)
    (tmp_path / "training.jsonl").unlink()
    assert same(tuned(tiny_folder, tmp_path), whole[1])


# A full disk

FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
WRITERS = {  # what fails, how it says so, and how often it works before that
    "torch, as the system says it": ("torch.save", FULL, 5),
    "torch, in its own words": ("torch.save", RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 64 vs 0"), 5),
    "safetensors, in its own words": ("peft.peft_model.safe_save_file", SafetensorError("I/O error: No space left on device (os error 28)"), 1),
    "the trainer's state": ("transformers.trainer_callback.TrainerState.save_to_json", FULL, 1),
    "anything put on disk for good": ("os.fsync", FULL, 20),
}


def full_disk(monkeypatch, place: str, error: Exception, works: int) -> None:
    """Let a writer fail as on a full disk once it has worked so many times."""
    write, calls = resolve_name(place), []

    def writes(*given, **options):
        calls.append(given)
        if len(calls) > works:
            raise error
        return write(*given, **options)

    monkeypatch.setattr(place, writes)


@pytest.mark.parametrize("writer", WRITERS.values(), ids=WRITERS)
def test_a_disk_that_is_full_at_a_checkpoint_says_what_to_do_and_loses_nothing(tiny_folder, tmp_path, whole, monkeypatch, writer):
    with monkeypatch.context() as patch:
        full_disk(patch, *writer)
        with pytest.raises(StorageError, match=r"Cannot write .*Free some space .*run the same command again"):
            tuned(tiny_folder, tmp_path)
    assert list(tmp_path.glob("checkpoints/checkpoint-2/finished.json")), "it failed before there was anything to lose"
    assert not (tmp_path / "adapter").exists()
    assert same(tuned(tiny_folder, tmp_path), whole[1])
    assert log(tmp_path) == log(whole[0])


@pytest.mark.parametrize(
    "error", [RuntimeError("CUDA out of memory. Tried to allocate 2 GiB"), ConnectionRefusedError(errno.ECONNREFUSED, "no"), OSError("no")]
)
@pytest.mark.parametrize("place", ["torch.save", "docward.tuning.trainer.Log.on_log"], ids=["at a checkpoint", "as a tracker"])
def test_what_is_no_full_disk_is_not_called_one(tiny_folder, tmp_path, monkeypatch, place, error):
    full_disk(monkeypatch, place, error, 0)
    with pytest.raises(type(error)) as raised:
        tuned(tiny_folder, tmp_path)
    assert raised.value is error


@pytest.mark.parametrize("error", [FULL, SafetensorError("I/O error: No space left on device (os error 28)")], ids=["the system's words", "its own"])
def test_a_disk_that_is_full_at_the_adapter_says_what_to_do_and_loses_nothing(tiny_folder, tmp_path, whole, monkeypatch, error):
    checkpoints = len(log(whole[0])) // 2 + 1  # every second step and the last one
    with monkeypatch.context() as patch:
        full_disk(patch, "peft.peft_model.safe_save_file", error, checkpoints)
        with pytest.raises(StorageError, match=r"Cannot write \S+/adapter: .*o space left.*Free some space .*run the same command"):
            tuned(tiny_folder, tmp_path)
    assert not [place for place in tmp_path.iterdir() if "adapter" in place.name]
    assert same(tuned(tiny_folder, tmp_path), whole[1])


# A loss that is no number


def test_a_loss_that_breaks_in_the_middle_keeps_the_checkpoints_before(tiny, tmp_path):
    def progress(what: str, done: int, total: int) -> None:
        if (tmp_path / "checkpoints" / "checkpoint-4").exists():
            tiny.model.lm_head.weight.data[7] = float("nan")

    with pytest.raises(TuningError, match=r"The loss is nan at step 6, so tuning stopped; checkpoints before it are kept\. Lower tuning\.learning_rate"):
        tune(tiny, EXAMPLES, section(), run=tmp_path, seed=0, progress=progress)
    assert sorted(place.name for place in tmp_path.glob("checkpoints/checkpoint-*")) == ["checkpoint-2", "checkpoint-4"]
    assert [row["step"] for row in log(tmp_path)] == [1, 2, 3, 4, 5]


def last_step(run: Path) -> int:
    return log(run)[-1]["step"]


def left(run: Path) -> list[int]:
    """The steps of the checkpoints there."""
    assert not (run / "adapter").exists()
    return sorted(int(place.name.split("-")[1]) for place in run.glob("checkpoints/checkpoint-*"))


def trained(loaded: Loaded) -> torch.Tensor:
    return next(weight for weight in loaded.model.parameters() if weight.requires_grad)


def tuned_with(loaded: Loaded, run: Path, at: int, do: Callable[[], object], **changes) -> None:
    """Tune, and do something once so many steps are done."""
    steps = itertools.count()

    def progress(what: str, done: int, total: int) -> None:
        if what == "tuning: examples" and next(steps) == at:
            do()

    tune(loaded, EXAMPLES, section(**changes), run=run, seed=0, progress=progress)


@pytest.mark.parametrize("last", [False, True])
def test_a_gradient_that_is_no_number_moves_no_weight_and_is_in_no_checkpoint(tiny, tiny_folder, tmp_path, whole, last):
    step = last_step(whole[0]) if last else 4
    with pytest.raises(
        TuningError, match=rf"The gradient is nan at step {step}, so tuning stopped; checkpoints before it are kept\. Lower tuning\.learning_rate"
    ):
        tuned_with(tiny, tmp_path, step - 1, lambda: trained(tiny).register_hook(lambda gradient: gradient * float("nan")))
    assert all(bool(weight.isfinite().all()) for weight in tiny.model.parameters())
    assert left(tmp_path)
    assert left(tmp_path)[-1] < step
    assert same(tuned(tiny_folder, tmp_path), whole[1]), "nothing of it was kept"


@pytest.mark.parametrize("last", [False, True])
def test_a_weight_that_is_no_number_is_in_no_checkpoint(tiny, tmp_path, whole, last):
    step = last_step(whole[0]) if last else 4
    with pytest.raises(TuningError, match=rf"The weight \S+lora_\S+ holds values that are no numbers after step {step}, so tuning stopped; checkpoints before"):
        tuned_with(tiny, tmp_path, step, lambda: trained(tiny).data.fill_(float("inf")))
    assert left(tmp_path)
    assert left(tmp_path)[-1] < step


def test_a_layer_below_the_heads_that_is_broken_is_named_as_well(with_token, tmp_path):
    """Documents went through it before the fit, and what it gave is no number."""
    loaded = load(str(with_token), dtype="float32")
    loaded = replace(loaded, model=llama(vocab_size=len(loaded.tokenizer) + 8, num_hidden_layers=8).eval())
    loaded.model.get_parameter("model.layers.1.mlp.down_proj.weight").data[7] = float("nan")
    how = section(refusal_token="auto", lora_first_layer="auto", lora_target_modules="all-linear", num_train_epochs=0, lora_dropout=0.0)
    with pytest.raises(TuningError, match=r"so nothing was saved: its weight model\.layers\.1\.mlp\.down_proj\.weight holds some, too\. Get its files anew"):
        tune(loaded, EXAMPLES, how, run=tmp_path, seed=0)
    assert not (tmp_path / "adapter").exists()


@pytest.mark.parametrize("epochs", [0, 1])
@pytest.mark.parametrize("weight", ["lm_head.weight", "model.layers.0.mlp.down_proj.weight", "model.layers.1.mlp.down_proj.weight"])
def test_a_fit_on_a_model_that_is_broken_names_its_weight_and_saves_nothing(with_token, tmp_path, weight, epochs):
    loaded = load(str(with_token), dtype="float32")
    loaded.model.get_parameter(weight).data[7] = float("nan")
    with pytest.raises(
        TuningError, match=rf"holds values that are no numbers .* so nothing was saved: its weight {weight} holds some, too\. Get its files anew"
    ):
        tune(loaded, EXAMPLES, section(refusal_token="auto", num_train_epochs=epochs, lora_dropout=0.0), run=tmp_path, seed=0)
    assert left(tmp_path) == []


@pytest.mark.parametrize("layers", [2, 4], ids=["a row alone", "neurons and a head"])
@pytest.mark.parametrize("at", [0, -1], ids=["below", "above"])
def test_a_fit_on_a_model_that_computes_what_is_no_number_saves_nothing(layers, at, tmp_path):
    loaded = load(str(save_tiny_model(tmp_path / "model", spare=[NO], layers=layers)), dtype="float32")
    loaded.model.get_parameter(f"model.layers.{range(layers)[at]}.mlp.down_proj.weight").data.fill_(3e38)
    with pytest.raises(TuningError, match=r"so nothing was saved: it computes some on the training documents, in torch\.float32\. So choose another model"):
        tune(loaded, EXAMPLES, section(refusal_token="auto", num_train_epochs=0, lora_dropout=0.0), run=tmp_path / "run", seed=0)
    assert left(tmp_path / "run") == []


# What tuning leaves in memory


def test_no_mask_stays_in_memory(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(sharing.flash, "available", lambda _: False)
    masks = []
    tuned_with(tiny, tmp_path, 2, lambda: masks.append(sharing._mask.cache_info().currsize))
    assert masks[0]
    assert not sharing._mask.cache_info().currsize


# Models and tokenizers


def with_tokenizer(folder: Path, tokenizer) -> Path:
    for name in ("chat_template.jinja", "tokenizer_config.json", "tokenizer.json", "special_tokens_map.json"):
        (folder / name).unlink(missing_ok=True)
    tokenizer.save_pretrained(folder)
    return folder


def test_a_model_without_a_chat_template_is_tuned_in_the_papers_and_keeps_it(tiny_copy, tmp_path):
    tuned(with_tokenizer(tiny_copy, byte_tokenizer(template=None)), tmp_path / "run")
    assert "### Instruction:" in load(str(tmp_path / "run" / "adapter")).tokenizer.chat_template
    from transformers import AutoTokenizer

    assert "### Instruction:" in AutoTokenizer.from_pretrained(tmp_path / "run" / "adapter").chat_template


def test_a_tokenizer_without_a_pad_token_gives_the_same_loss(tiny_copy, tmp_path, whole):
    tokenizer = byte_tokenizer()
    tokenizer.pad_token = None
    with_tokenizer(tiny_copy, tokenizer)
    assert load(str(tiny_copy)).tokenizer.pad_token == tokenizer.eos_token
    tuned(tiny_copy, tmp_path / "run", compute="rows")  # which pads
    assert log(tmp_path / "run")[0]["loss"] == pytest.approx(log(whole[0])[0]["loss"], rel=1e-5)


def test_a_tokenizer_without_an_end_token_is_refused(tiny_copy, tiny, tmp_path):
    tokenizer = byte_tokenizer(template="{% for message in messages %}{{ message['content'] + ' ' }}{% endfor %}")
    tokenizer.pad_token = tokenizer.eos_token = None
    with pytest.raises(ModelError, match="has no end token"):
        tune(replace(tiny, tokenizer=tokenizer), EXAMPLES, section(), run=tmp_path / "run", seed=0)
    with_tokenizer(tiny_copy, tokenizer)
    with pytest.raises(ModelError, match="has neither a pad nor an end token"):
        load(str(tiny_copy))


# Settings


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"training_arguments": {"adam_beta": 0.9}}, r"training_arguments: there is no 'adam_beta'; did you mean 'adam_beta[12]'\? Allowed: the fields of"),
        ({"training_arguments": {"nonsense": 1}}, r"training_arguments: there is no 'nonsense'\. Allowed: the fields of transformers\.TrainingArguments"),
        ({"training_arguments": {"max_steps": 3}}, r"training_arguments\.max_steps: Docward sets it itself"),
        ({"training_arguments": {"output_dir": "x"}}, r"training_arguments\.output_dir: Docward sets it itself"),
        ({"training_arguments": {"num_train_epochs": 3}}, r"training_arguments\.num_train_epochs: it has a key of its own\. Set tuning\.num_train_epochs"),
        ({"training_arguments": {"gradient_accumulation_steps": 3}}, r"it has a key of its own\. Set tuning\.gradient_accumulation_steps"),
        ({"training_arguments": {"ignore_data_skip": True}}, r"ignore_data_skip: it would not do here what it says"),
        ({"training_arguments": {"eval_strategy": "steps"}}, r"to probe while tuning: tuning\.eval_steps"),
        ({"training_arguments": {"adam_beta1": "x"}}, r"settings under `tuning` do not work"),
        ({"training_arguments": {"lr_scheduler_kwargs": {"nonsense": 1}}}, r"do not work .*unexpected keyword argument 'nonsense'"),
        ({"optim": "adamw"}, r"tuning\.optim: there is no 'adamw'; did you mean 'adamw\S*'\? Allowed: adamw_torch, "),
        ({"optim": "galore_adamw"}, r"do not work .*galore_torch"),
        ({"report_to": ["tensorbord"]}, r"tuning\.report_to: there is no 'tensorbord'; did you mean 'tensorboard'\? Allowed: .*wandb"),
        ({"report_to": ["wandb"]}, r"tuning\.report_to: wandb is not installed here"),
    ],
    ids=lambda one: str(one)[:60],
)
def test_wrong_settings_are_said_in_one_line(tiny_folder, tmp_path, monkeypatch, changes, said):
    monkeypatch.setattr("transformers.integrations.integration_utils.is_wandb_available", lambda: False)
    with pytest.raises(RecipeError, match=said) as error:
        tuned(tiny_folder, tmp_path, **changes)
    assert len(str(error.value).splitlines()) == 1


def test_the_loop_finds_wrong_settings_before_it_does_any_work(tiny_folder, documents_file, tmp_path, monkeypatch):
    values = {"model_name_or_path": str(tiny_folder), "documents": [{"path": str(documents_file)}], "tuning": {"optim": "adamm"}}
    monkeypatch.setattr("docward.loop.build_dataset", lambda *_, **__: pytest.fail("a dataset was built"))
    with pytest.raises(RecipeError, match=r"tuning\.optim"):
        loop.run_loop(Recipe.model_validate(values), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"load_in_4bit": True, "load_in_8bit": True}, "load_in_4bit and load_in_8bit are both set. Keep one."),
        ({"use_peft": False, "lora_first_layer": 1, "use_dora": True}, "lora_first_layer, use_dora need an adapter, and use_peft is false."),
        ({"use_peft": False, "lora_r": 4, "lora_dropout": 0.1}, "lora_r, lora_dropout need an adapter, and use_peft is false."),
        ({"use_peft": False, "anchor_weight": 0.1}, "anchor_weight needs an adapter, and use_peft is false."),
        ({"use_peft": False, "load_in_4bit": True}, "load_in_4bit needs an adapter, and use_peft is false."),
    ],
    ids=str,
)
def test_settings_that_do_not_go_together_are_refused_with_their_place(tmp_path, values, said):
    place = tmp_path / "recipe.yaml"
    place.write_text(yaml.safe_dump({"tuning": values}))
    with pytest.raises(RecipeError, match=re.escape(f"line 1, tuning: {said}")):
        load_recipe(place)
