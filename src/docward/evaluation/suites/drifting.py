"""The suite that changes the model in place of the request: steps of harmless tuning, such as a user does who teaches it something of their own.

In: a loaded model. Out: the same with a LoRA adapter on it that has had so many steps on ordinary documents of the starter, each with the task done (see
`lessons`); the model's own weights stay. One real level: at `30 steps` it has seen 120 examples, those of `10 steps` first.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from docward.evaluation.suites.suite import Asked, Kit, Level, Suite
from docward.models import Loaded
from docward.tasks import TASKS
from docward.types import Label, Split

if TYPE_CHECKING:
    import torch

    from docward.rendering import Rendered

STEPS = (10, 30, 100)
ROWS = 4  # examples a step
RATE = 1e-4  # a common learning rate for LoRA
WEIGHTS = "the model's own weights"


def lessons(loaded: Loaded, seed: int) -> Iterator[Rendered]:
    """Examples without end: the starter's ordinary training documents in turn, under the tasks whose right answer the document itself gives."""
    # Here, since the report reads the names of suites and is to load fast.
    from docward.dataset.building import text_and_gold
    from docward.documents.reading import own_documents
    from docward.rendering import render

    chance = random.Random(seed)
    documents = [one for one in own_documents() if one.split == Split.TRAIN and one.label == Label.ORDINARY]
    while True:
        for document in chance.sample(documents, len(documents)):
            name = chance.choice(("case", "next_sentence"))
            text, gold = text_and_gold(name, document)
            asked = chance.choice(TASKS[name].asked(document.language))
            if text and gold:
                yield render(loaded.tokenizer, document=text, instruction=asked, answer=gold, limit=loaded.context)


@contextmanager
def drifting(loaded: Loaded, seed: int) -> Iterator[Callable[[int], Loaded]]:
    """Give what tunes the model up to a number of steps, which may not be less than the last one; at the end the model is as it was."""
    import torch
    from peft import LoraConfig, get_peft_model

    base: Any = loaded.model
    wanted = {name: one.requires_grad for name, one in base.named_parameters()}
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        tuned: Any = get_peft_model(base, LoraConfig(r=8, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM"))
    optimizer = torch.optim.AdamW([one for one in tuned.parameters() if one.requires_grad], lr=RATE, weight_decay=0.0)
    rows, done = lessons(loaded, seed), 0

    def after(steps: int) -> Loaded:
        nonlocal done
        assert steps >= done, "a model cannot be tuned less"
        for _ in range(steps - done):
            tuned(**_batch([next(rows) for _ in range(ROWS)], base.device)).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        done = steps
        return replace(loaded, model=tuned)

    try:
        yield after
    finally:
        tuned.unload()
        if hasattr(base, "peft_config"):
            del base.peft_config
        for name, one in base.named_parameters():
            one.requires_grad_(wanted[name])


def _batch(rows: Sequence[Rendered], device: torch.device) -> dict[str, torch.Tensor]:
    """Ids, mask and labels, (rows, longest): only answers are learnt."""
    import torch

    width = max(len(row.ids) for row in rows)
    padded = [(row.ids + [0] * (width - len(row.ids)), len(row.ids), row.answer_start) for row in rows]
    ids = torch.tensor([one for one, _, _ in padded], device=device)
    places = torch.arange(width, device=device)
    mask = places < torch.tensor([end for _, end, _ in padded], device=device)[:, None]
    answer = mask & (places >= torch.tensor([start for _, _, start in padded], device=device)[:, None])
    return {"input_ids": ids, "attention_mask": mask.long(), "labels": ids.masked_fill(~answer, -100)}


def _drift(asked: Asked, level: Level, kit: Kit) -> Asked:
    return replace(asked, steps=int(level.amount or 0))


SUITES = (
    Suite(
        "drift",
        f"the model after steps of harmless tuning: LoRA on ordinary documents with the task done, {ROWS} a step",
        "steps of tuning",
        tuple(Level(f"{steps} steps", steps, "steps") for steps in STEPS),
        _drift,
        wants=WEIGHTS,
    ),
)
