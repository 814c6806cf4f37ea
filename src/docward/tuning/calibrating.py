"""The dial: how much to add to the refusal token's logit, chosen on validation documents after tuning.

In: a tuned model whose refusals begin with a token of their own, and validation documents. Out: a logit bias, which stands in the adapter's
`generation_config.json` as `sequence_bias`, so that `generate` and all of Docward heed it; servers of the OpenAI protocol take it as `logit_bias`. A row:
`{"token": "<empty_output>", "id": 16, "bias": -1.75, "max_over_refusal": 0.05, "malicious": {"prompts": 120, "refused": 0.93}, ...}`.
A token of its own as refusal score and dial: Refusal Tokens, arXiv 2412.06748.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import floor
from pathlib import Path
from typing import Any

from docward.evaluation.evaluating import Settings, planned_replies
from docward.evaluation.generating import Prompt, first_logits
from docward.models import Loaded
from docward.records import write_json
from docward.types import Document, Label

PLACE = "calibration.json"


def margins(loaded: Loaded, documents: Sequence[Document], settings: Settings, token: int) -> list[tuple[Label, float]]:
    """By how much the token's logit is above the highest other one, where an answer begins: one a document and task, with the document's label."""
    found: dict[str, float] = {}
    planned = planned_replies(documents, settings)
    prompts = [Prompt(reply.key, reply.document, reply.instruction, system=settings.system) for reply in planned]
    for keys, logits in first_logits(loaded, prompts, max_batch_tokens=settings.max_batch_tokens, max_length=settings.max_length):
        mine = logits[:, token].clone()
        logits[:, token] = -float("inf")
        found |= dict(zip(keys, (mine - logits.amax(-1)).tolist(), strict=True))
    return [(reply.label, found[reply.key]) for reply in planned]


def bias_for(values: Sequence[float], share: float) -> float:
    """The highest logit bias at which at most `share` of prompts with these margins is refused (refused: margin + bias > 0; at 0 two tokens tie)."""
    ordered = sorted(values, reverse=True)
    allowed = int(share * len(ordered))
    return -ordered[allowed] if allowed < len(ordered) else 0.0


def calibrate(
    loaded: Loaded,
    documents: Sequence[Document],
    settings: Settings,
    *,
    token: int,
    max_over_refusal: float,
    folder: Path,
    progress: Callable[[str, int, int], None] = lambda *_: None,
) -> dict[str, Any]:
    """Choose the bias on validation documents and write it into the adapter's folder.

    Args:
        loaded: the tuned model.
        documents: validation documents; sensitive and ordinary ones are wanted.
        settings: tasks and wordings.
        token: id of what refusals begin with.
        max_over_refusal: the share of prompts on sensitive documents that may be refused, and of those on ordinary ones.
        folder: the adapter's.
        progress: told that it goes on.
    """
    progress("calibrating the refusal token", 0, 0)
    found = margins(loaded, documents, settings, token)
    benign = [[value for label, value in found if label == one] for one in (Label.SENSITIVE, Label.ORDINARY)]
    bias = min((bias_for(values, max_over_refusal) for values in benign if values), default=0.0)
    report: dict[str, Any] = {
        "token": str(loaded.tokenizer.convert_ids_to_tokens(token)),
        "id": token,
        "bias": floor(1000 * bias - 1) / 1000,  # a little less: a tie goes to the token with the lower id, and logits of 16 bits often tie
        "max_over_refusal": max_over_refusal,
    }
    for label in Label:
        if values := [value for one, value in found if one == label]:
            shares = [sum(value + added >= 0 for value in values) / len(values) for added in (0.0, report["bias"])]
            report[label.value] = {"prompts": len(values), "refused_before": round(shares[0], 4), "refused": round(shares[1], 4)}
    config: Any = loaded.model.generation_config
    config.sequence_bias = [[[token], float(report["bias"])]]
    config.save_pretrained(str(folder))
    write_json(folder / PLACE, report)
    return report
