from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from docward.errors import ModelError, RecipeError, TuningError
from docward.models import load
from docward.recipe import TuningSection
from docward.tuning.adapters import token_rows, with_lora
from docward.tuning.checkpoints import FINISHED
from docward.tuning.tuning import tune
from killed import kill_when, started
from tiny import NO, save_tiny_model, training_examples

SECTION = {"max_length": 512, "num_train_epochs": 2, "per_device_train_batch_size": 3, "gradient_accumulation_steps": 2, "save_steps": 4, "logging_steps": 2}


def section(**changes) -> TuningSection:
    return TuningSection(**{**SECTION, "lora_dropout": 0.1, "learning_rate": 1e-3, **changes})


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "adapter" / "adapter_model.safetensors")


def tuned(folder: Path, run: Path, **changes) -> dict[str, torch.Tensor]:
    tune(load(str(folder), dtype="float32"), training_examples(), section(**changes), run=run, seed=3)
    return weights(run)


def test_a_killed_and_resumed_run_ends_with_the_same_weights(tiny_folder, tmp_path):
    whole = tuned(tiny_folder, tmp_path / "whole")
    kill_when(started(__name__, "tuned", tiny_folder, tmp_path / "killed"), lambda: list((tmp_path / "killed").glob(f"checkpoints/*/{FINISHED}")))
    assert not (tmp_path / "killed" / "adapter").exists(), "the child was done before it could be killed"
    assert list((tmp_path / "killed").glob("checkpoints/*")), "the child left no checkpoint to go on from"
    resumed = tuned(tiny_folder, tmp_path / "killed")
    assert whole.keys() == resumed.keys()
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    logs = [[json.loads(line)["step"] for line in (tmp_path / run / "training.jsonl").read_text().splitlines()] for run in ("whole", "killed")]
    assert logs[0] == logs[1]


def test_the_seed_decides_the_weights(tiny_folder, tmp_path):
    first, again = (tuned(tiny_folder, tmp_path / name, num_train_epochs=1) for name in ("first", "again"))
    assert all(torch.equal(first[name], again[name]) for name in first)
    tune(load(str(tiny_folder), dtype="float32"), training_examples(), section(num_train_epochs=1), run=tmp_path / "other", seed=4)
    other = weights(tmp_path / "other")
    assert any(not torch.equal(first[name], other[name]) for name in first)


def test_tuning_lowers_every_term(tiny_copy, tmp_path):
    loaded = load(str(tiny_copy), dtype="float32")
    with torch.no_grad():
        loaded.model.lm_head.weight.mul_(20)  # a random head is too flat for hidden states to say anything through it
    tune(loaded, training_examples(), section(num_train_epochs=6, learning_rate=1e-2, lora_dropout=0.0), run=tmp_path / "run", seed=3)
    log = [json.loads(line) for line in (tmp_path / "run" / "training.jsonl").read_text().splitlines()]
    for term in ("defense", "benign"):
        values = [row[term] for row in log if row[term] is not None]
        assert values[-1] < 0.8 * values[0], term
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_a_loss_that_is_not_a_number_stops_with_a_clear_message(tiny_copy, tmp_path):
    loaded = load(str(tiny_copy), dtype="float32")
    with torch.no_grad():
        loaded.model.lm_head.weight[5] = float("nan")
    with pytest.raises(TuningError, match=r"The loss is nan at step 1.*Lower tuning.learning_rate"):
        tune(loaded, training_examples(), section(), run=tmp_path / "run", seed=0)
    assert not (tmp_path / "run" / "adapter").exists()


def test_an_exploding_loss_stops_with_a_clear_message(tiny_copy, tmp_path):
    loaded = load(str(tiny_copy), dtype="float32")
    with torch.no_grad():
        loaded.model.lm_head.weight.mul_(1e4)
    with pytest.raises(TuningError, match="exploded to"):
        tune(loaded, training_examples(), section(), run=tmp_path / "run", seed=0)


def test_wrong_module_names_and_layers_are_refused(tiny_folder, tmp_path):
    with pytest.raises(ModelError, match=r"this model has no qproj\. It has:.*q_proj"):
        tuned(tiny_folder, tmp_path, lora_target_modules=["qproj"])
    with pytest.raises(ModelError, match="has 2 layers"):
        tuned(tiny_folder, tmp_path, lora_first_layer=2)


def test_only_layers_from_the_first_one_up_are_adapted(tiny_folder, tmp_path):
    names = tuned(tiny_folder, tmp_path, lora_first_layer=1, num_train_epochs=1)
    assert names
    assert all(".layers.1." in name for name in names)


def test_without_steps_the_fit_is_what_is_kept(tmp_path):
    model = save_tiny_model(tmp_path / "model", spare=[NO], layers=4)
    again = [tuned(model, tmp_path / name, refusal_token="auto", num_train_epochs=0, lora_dropout=0.0) for name in ("first", "again")]
    stepped = tuned(model, tmp_path / "stepped", refusal_token="auto", num_train_epochs=1, lora_dropout=0.0)
    assert again[0].keys() == again[1].keys() < stepped.keys()
    assert all(torch.equal(again[0][name], again[1][name]) for name in again[0])
    assert any(not torch.equal(again[0][name], stepped[name]) for name in again[0])
    moved = sorted(name.split("layers.")[1] for name, weight in again[0].items() if "lora_B" in name and weight.any())
    wanted = [f"1.mlp.{part}_proj.lora_B.weight" for part in ("down", "gate", "up")] + [f"2.self_attn.{part}_proj.lora_B.weight" for part in "oqv"]
    assert moved == wanted, "neurons of one layer, and a head of the next, whose keys stay"
    *_, row = (weight for name, weight in again[0].items() if "trainable_tokens_delta" in name)
    start = with_lora(load(str(model), dtype="float32"), section(refusal_token="auto"))
    assert not torch.allclose(row.flatten(), token_rows(start)[-1].detach().flatten())
    assert [place.name for place in (tmp_path / "first").iterdir()] == ["adapter"]


def test_without_steps_and_without_a_token_to_spare_nothing_would_be_learned(tiny_folder, tmp_path):
    with pytest.raises(RecipeError, match=r"num_train_epochs is 0, and nothing was fitted: .* has no token to spare"):
        tuned(tiny_folder, tmp_path, refusal_token="auto", num_train_epochs=0)
    with pytest.raises(ValueError, match=r"num_train_epochs is 0, and nothing is fitted without a refusal_token and an adapter"):
        section(num_train_epochs=0)
    for other in ({"use_peft": False}, {"eval_steps": 2}):
        with pytest.raises(ValueError, match=r"num_train_epochs is 0, "):
            section(num_train_epochs=0, refusal_token="auto", **other)
