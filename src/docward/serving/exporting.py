"""The defended model, shipped: merged weights, tokenizer and a model card with the measured rates.

In: a run folder. Out: a folder that plain transformers, vLLM and others open.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from docward.errors import RunError
from docward.models import ALIASES, is_adapter, load, stored_dtype, token_biases
from docward.records import whole_folder
from docward.tuning.tuning import tuned_folder

RATE_NAMES = {"malicious": "block rate (wanted: high)", "sensitive": "over-refusal (wanted: low)", "ordinary": "false refusal (wanted: low)"}

CARD = """---
license: {license}
base_model: {hub}
pipeline_tag: text-generation
tags: [safety, refusal, docward]
---

# {name}, tuned with Docward

{base}, tuned to decline malicious documents handed over "to summarize", "to translate" and so on, and to go on working on every other document.
How far it does is in the table.

## Measured

Share of replies that decline, in percent, with 95% intervals (bootstrap over documents), held-out documents, {documents}.

| | untuned | this model |
|---|---|---|
{rows}

Judged by rules (opening of the reply, quotes subtracted). What was not measured here is not known: other languages, longer documents, attacks.
Do not use this model as the only guard.

## Use

Put the document first and the instruction after it, separated by an empty line, in one user message of the chat template.
{dial}"""
DIAL = """
A refusal is one token, and how readily it comes is set by a bias on its logit. It stands in `generation_config.json`, which transformers heeds;
other engines (vLLM, llama.cpp, servers) have to be given it with each request, or the rates above are not this model's: `"logit_bias": {{"{id}": {bias}}}`.
"""


def export(run: Path, to: Path) -> Path:
    """Write what the run learned as a model folder, its adapter merged into its base, in the precision that the base is stored in.

    Raises:
        RunError: the run has no adapter yet, or `to` exists and is not an empty folder.
    """
    tuned = tuned_folder(run)
    if not is_adapter(tuned) and not (tuned / "config.json").is_file():
        raise RunError(f"{run} has no adapter/ to export. Make it first: docward run RECIPE --output-dir {run}")
    if to.exists() and (not to.is_dir() or any(to.iterdir())):
        raise RunError(f"{to} exists and is not an empty folder. Choose another --to, or delete it.")
    loaded = load(str(tuned), dtype=stored_dtype(str(tuned)))
    model: Any = loaded.model
    card = _card(run, loaded.name if is_adapter(tuned) else base_of(run), token_biases(model))

    def save(draft: Path) -> None:
        model.save_pretrained(draft)
        loaded.tokenizer.save_pretrained(draft)
        (draft / "README.md").write_text(card, encoding="utf-8")

    whole_folder(to, save)
    return to


def base_of(run: Path) -> str:
    """The model that a run began with, as its recipe names it."""
    place = run / "recipe.yaml"
    return str(yaml.safe_load(place.read_text(encoding="utf-8"))["model_name_or_path"]) if place.is_file() else "a model"


def _card(run: Path, base: str, biases: Mapping[int, float]) -> str:
    place = run / "metrics.json"
    models = json.loads(place.read_text(encoding="utf-8"))["models"] if place.is_file() else {}
    alias = ALIASES.get(base)
    cells = {name: {label: _cell(metrics["pooled"].get(label)) for label in RATE_NAMES} for name, metrics in models.items()}
    rows = [f"| {title} | {cells['untuned'][label]} | {cells['defended'][label]} |" for label, title in RATE_NAMES.items()] if len(cells) == 2 else []
    counts = models.get("defended", {}).get("documents", {})
    return CARD.format(
        license=alias.license if alias else "other",
        hub=alias.hub_id if alias else base,
        name=base,
        base=f"{alias.hub_id} (dequantised from Q4_1)" if alias else base,
        documents=", ".join(f"{count} {label}" for label, count in counts.items()) or "none",
        rows="\n".join(rows) or "| not measured yet | | |",
        dial="".join(DIAL.format(id=token, bias=bias) for token, bias in biases.items()),
    )


def _cell(rate: dict[str, Any] | None) -> str:
    if not rate or rate["value"] is None:
        return "not measured"
    return f"{100 * rate['value']:.1f} ({100 * rate['low']:.1f} to {100 * rate['high']:.1f})"
