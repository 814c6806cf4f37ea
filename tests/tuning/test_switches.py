"""What can be switched on: all weights, DoRA, rsLoRA, fewer bits, recomputed activations, and Trainer's own options."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file

from docward.errors import RecipeError
from docward.evaluation.evaluating import Settings, evaluate
from docward.models import load
from docward.recipe import TuningSection
from docward.serving.exporting import export
from docward.tasks import get_tasks
from docward.tuning.arguments import check_settings
from docward.tuning.tuning import tune, tuned_folder
from tiny import byte_tokenizer, some_documents, training_examples

SECTION = {"max_length": 512, "num_train_epochs": 1, "per_device_train_batch_size": 3, "gradient_accumulation_steps": 1, "save_steps": 3, "logging_steps": 1}
EXAMPLES = training_examples(2, ("summarize", "sentiment"))
SETTINGS = Settings(tuple(get_tasks(["summarize"])), max_new_tokens=4)


def tuned(folder: Path, run: Path, *, bits: int | None = None, **changes) -> list[dict]:
    """The log of a run, without what a clock says."""
    tune(load(str(folder), dtype="float32", bits=bits), EXAMPLES, TuningSection(**SECTION | {"learning_rate": 5e-3} | changes), run=run, seed=0)
    rows = [json.loads(line) for line in (run / "training.jsonl").read_text().splitlines()]
    return [{key: value for key, value in row.items() if key not in ("seconds", "examples_per_second")} for row in rows]


def replies(name: Path | str, folder: Path) -> list[str]:
    """What a model of that name answers, through the evaluation."""
    evaluate(load(str(name), dtype="float32"), some_documents(1), SETTINGS, folder)
    return (folder / "replies.jsonl").read_text().splitlines()


# All weights


def test_full_tuning_writes_a_model_that_loads_evaluates_and_exports(tiny_folder, tmp_path):
    run = tmp_path / "run"
    log = tuned(tiny_folder, run, use_peft=False)
    assert tuned_folder(run) == run / "model"
    assert not (run / "adapter").exists()
    before, after = load_file(tiny_folder / "model.safetensors"), load_file(run / "model" / "model.safetensors")
    assert before.keys() == after.keys()
    assert all(weight.dtype == torch.float32 for weight in after.values())
    assert [name for name in before if torch.equal(before[name], after[name])] == [], "all weights were trained"
    assert len(replies(run / "model", tmp_path / "evaluation")) == 3
    exported = load_file(export(run, tmp_path / "exported") / "model.safetensors")
    assert all(torch.equal(exported[name], after[name]) for name in after)
    assert log[-1]["examples"] == len(EXAMPLES)


def test_a_killed_full_tuning_ends_with_the_same_model_even_where_weights_are_tied(tiny_copy, tmp_path):
    class Killed(BaseException):
        pass

    config = load(str(tiny_copy)).model.config
    config.tie_word_embeddings = True
    type(load(str(tiny_copy)).model)(config).save_pretrained(tiny_copy)
    assert "lm_head.weight" not in load_file(tiny_copy / "model.safetensors")

    def progress(what: str, done: int, total: int) -> None:
        if (tmp_path / "killed" / "checkpoints" / "checkpoint-3").exists():
            raise Killed

    wanted = tuned(tiny_copy, tmp_path / "whole", use_peft=False)
    section = TuningSection(**SECTION, learning_rate=5e-3, use_peft=False)
    with pytest.raises(Killed):
        tune(load(str(tiny_copy), dtype="float32"), EXAMPLES, section, run=tmp_path / "killed", seed=0, progress=progress)
    assert tuned(tiny_copy, tmp_path / "killed", use_peft=False) == wanted
    first, second = (load_file(tmp_path / run / "model" / "model.safetensors") for run in ("whole", "killed"))
    assert all(torch.equal(first[name], second[name]) for name in first)


# Adapters of other kinds


@pytest.mark.parametrize(
    ("switch", "saved", "scale"),
    [({"use_dora": True}, "lora_magnitude_vector", 2.0), ({"use_rslora": True, "lora_r": 4, "lora_alpha": 8}, "lora_B", 4.0)],
    ids=str,
)
def test_a_switch_of_peft_reaches_the_adapter_and_the_exported_model(tiny_folder, tmp_path, switch, saved, scale):
    run = tmp_path / "run"
    tuned(tiny_folder, run, **switch)
    config = json.loads((run / "adapter" / "adapter_config.json").read_text())
    assert all(config[name] is True for name in switch if name.startswith("use_"))
    weights = load_file(run / "adapter" / "adapter_model.safetensors")
    assert any(saved in name for name in weights)
    adapted: Any = PeftModel.from_pretrained(load(str(tiny_folder), dtype="float32").model, str(run / "adapter"))
    assert adapted.base_model.model.model.layers[0].self_attn.q_proj.scaling["default"] == scale
    exported = load(str(export(run, tmp_path / "exported")), dtype="float32")
    ids = torch.tensor([[7, 8, 9, 200, 4]])
    with torch.no_grad():
        torch.testing.assert_close(exported.model(ids).logits, adapted(ids).logits, rtol=1e-4, atol=1e-5)
        assert not torch.allclose(load(str(tiny_folder), dtype="float32").model(ids).logits, adapted(ids).logits, atol=1e-3)


def test_targets_rank_and_alpha_are_those_of_the_recipe(tiny_folder, tmp_path):
    tuned(tiny_folder, tmp_path, lora_target_modules=["q_proj", "v_proj"], lora_r=2, lora_alpha=3)
    weights = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    assert {name.split(".")[-3] for name in weights} == {"q_proj", "v_proj"}
    assert {min(weight.shape) for weight in weights.values()} == {2}
    assert json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())["lora_alpha"] == 3


# Trainer's options


@pytest.mark.parametrize("changes", [{}, {"compute": "rows", "lora_first_layer": 1}, {"use_peft": False}], ids=str)
def test_recomputing_activations_changes_no_loss(tiny_folder, tmp_path, monkeypatch, changes):
    from transformers.modeling_layers import GradientCheckpointingLayer

    seen = []
    call = GradientCheckpointingLayer.__call__
    monkeypatch.setattr(GradientCheckpointingLayer, "__call__", lambda self, *a, **k: seen.append(self.gradient_checkpointing) or call(self, *a, **k))
    wanted = tuned(tiny_folder, tmp_path / "plain", **changes)
    assert not any(seen)
    found = tuned(tiny_folder, tmp_path / "again", gradient_checkpointing=True, **changes)
    assert any(seen)
    assert [row["loss"] for row in found] == pytest.approx([row["loss"] for row in wanted], rel=1e-5)


def test_the_schedule_is_trainers_by_its_name(tiny_folder, tmp_path):
    found = {}
    for name, more in {"cosine": {}, "linear": {}, "polynomial": {"lr_scheduler_kwargs": {"power": 2.0, "lr_end": 0.0}}}.items():
        log = tuned(tiny_folder, tmp_path / name, lr_scheduler_type=name, warmup_steps=0, training_arguments=more)
        found[name] = [row["learning_rate"] / 5e-3 for row in log]
    steps = len(found["cosine"])
    assert found["linear"] == pytest.approx([1 - place / steps for place in range(steps)])
    assert found["cosine"] == pytest.approx([0.5 * (1 + math.cos(math.pi * place / steps)) for place in range(steps)])
    assert found["polynomial"] == pytest.approx([(1 - place / steps) ** 2 for place in range(steps)])


def test_warm_up_counts_optimizer_steps(tiny_folder, tmp_path):
    log = tuned(tiny_folder, tmp_path, lr_scheduler_type="constant_with_warmup", warmup_steps=2)
    assert [row["learning_rate"] / 5e-3 for row in log][:4] == pytest.approx([0.0, 0.5, 1.0, 1.0])


def test_any_other_option_reaches_trainer_under_its_own_name(tiny_folder, tmp_path, monkeypatch):
    from docward.tuning.trainer import Log

    seen = []
    monkeypatch.setattr(Log, "on_pre_optimizer_step", lambda self, args, *_, **given: seen.append((args, given["optimizer"])))
    tuned(tiny_folder, tmp_path, optim="sgd", training_arguments={"adam_beta2": 0.95, "run_name": "mine", "optim_args": "momentum=0.5"})
    args, optimizer = seen[-1]
    assert (args.adam_beta2, args.run_name) == (0.95, "mine")
    assert isinstance(optimizer.optimizer, torch.optim.SGD)
    assert optimizer.param_groups[0]["momentum"] == 0.5


@pytest.mark.parametrize(
    ("name", "instead"),
    [
        ("use_liger_kernel", r"\."),
        ("push_to_hub", r" \(to upload it: docward export\)"),
        ("hub_model_id", r" \(to upload it: "),
        ("dataloader_num_workers", r"\."),
        ("include_num_input_tokens_seen", r"\."),
        ("torch_empty_cache_steps", r"\."),
        ("eval_on_start", r" \(to probe while tuning: tuning\.eval_steps\)"),
    ],
)
def test_an_option_that_would_do_nothing_or_fail_is_refused(name, instead):
    with pytest.raises(RecipeError, match=rf"tuning\.training_arguments\.{name}: it would not do here what it says\. Leave it out{instead}"):
        check_settings(TuningSection(training_arguments={name: 1}))


def test_gradients_are_cut_to_the_norm_of_the_recipe(tiny_folder, tmp_path):
    tuned(tiny_folder, tmp_path, max_grad_norm=1e-6, optim="sgd", learning_rate=1.0, warmup_steps=0)
    weights = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    moved = torch.cat([weight.flatten() for name, weight in weights.items() if "lora_B" in name]).norm()
    assert 1e-8 < float(moved) < 1e-5, "a sum of a few steps of at most 1e-6 each"


# Fewer bits


@pytest.fixture(scope="module")
def wide_folder(tmp_path_factory) -> Path:
    """A model whose layers divide into blocks of 64 weights."""
    from transformers import LlamaConfig, LlamaForCausalLM

    folder, tokenizer = tmp_path_factory.mktemp("models") / "wide", byte_tokenizer()
    torch.manual_seed(0)
    shape = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
    ends = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), max_position_embeddings=1024, **shape, **ends)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_documents_are_shared_where_four_bits_compute_in_bfloat16(wide_folder, tmp_path):
    """A model of few bits says it is in float32, whose rounding it is far from."""
    pytest.importorskip("bitsandbytes")
    loaded = load(str(wide_folder), dtype="bfloat16", bits=4)
    assert tune(loaded, EXAMPLES, TuningSection(**SECTION, load_in_4bit=True), run=tmp_path, seed=0).not_shared == ""


@pytest.mark.parametrize(("bits", "compute"), [(4, "shared"), (8, "shared"), (4, "rows")])
def test_an_adapter_tuned_on_fewer_bits_loads_on_the_whole_model(wide_folder, tmp_path, bits, compute):
    pytest.importorskip("bitsandbytes")
    plain = tuned(wide_folder, tmp_path / "plain", compute=compute)
    log = tuned(wide_folder, tmp_path / "run", bits=bits, compute=compute, **{f"load_in_{bits}bit": True})
    assert [row["loss"] for row in log] == pytest.approx([row["loss"] for row in plain], rel=0.02)
    weights = load_file(tmp_path / "run" / "adapter" / "adapter_model.safetensors")
    assert all(weight.dtype == torch.float32 and weight.isfinite().all() for weight in weights.values())
    assert any(weight.any() for name, weight in weights.items() if "lora_B" in name)
    adapted = load(str(tmp_path / "run" / "adapter"), dtype="float32")
    assert adapted.name == str(wide_folder)
    assert not getattr(adapted.model, "is_quantized", False)
    assert len(replies(tmp_path / "run" / "adapter", tmp_path / "evaluation")) == 3
    assert export(tmp_path / "run", tmp_path / "exported").is_dir()
