"""Every recipe that comes with the project runs as it is: the whole loop, on a tiny model and a few documents."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from docward.loop import run_loop
from docward.recipe import load_recipe
from docward.records import write_rows
from tiny import some_documents

FOLDER = Path(__file__).parents[1] / "recipes"


@pytest.mark.parametrize("recipe", sorted(FOLDER.glob("*.yaml")), ids=lambda path: path.stem)
def test_each_recipe_runs(recipe, with_token, tmp_path):
    write_rows(tmp_path / "documents.jsonl", some_documents(12))
    small = ["dataset.general=3", "dataset.max_new_tokens=8", "dataset.validation_share=0.3", "evaluation.max_new_tokens=6", "evaluation.limit=1"]
    small.append("dataset.max_surface_auc=1")  # stand-in texts differ in a few words
    overrides = [f"model_name_or_path={with_token}", f"documents=[{{path: {tmp_path / 'documents.jsonl'}}}]", *small]
    tuning = load_recipe(recipe).tuning
    if tuning.num_train_epochs:
        overrides.append("tuning.num_train_epochs=1")
    run_loop(load_recipe(recipe, overrides=overrides), tmp_path / "run")
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert set(metrics["models"]) == {"untuned", "defended"}
    assert (tmp_path / "run" / "report.html").is_file()
    assert (tmp_path / "run" / "training.jsonl").is_file() == bool(tuning.num_train_epochs), "where there are no steps, all is fitted"
    assert bool(metrics["dial"]) == bool(tuning.refusal_token)


def test_the_paper_s_setting_is_the_paper_s():
    tuning = load_recipe(FOLDER / "paper.yaml").tuning
    assert (tuning.lora_r, tuning.lora_alpha, tuning.lora_dropout, tuning.lora_target_modules) == (8, 16, 0.05, ["q_proj", "v_proj"])
    assert (tuning.learning_rate, tuning.warmup_steps, tuning.num_train_epochs, tuning.max_length) == (3e-4, 10, 3, 1024)
    assert tuning.per_device_train_batch_size * tuning.gradient_accumulation_steps == 128
    assert tuning.loss_on == "everything"
