"""The dial: how much to add to the refusal token's logit, chosen on validation documents after tuning.

In: a tuned model whose refusals begin with a token of their own, and validation documents. Out: a logit bias, which stands in the adapter's
`generation_config.json` as `sequence_bias`, so that `generate` and all of Docward heed it; servers of the OpenAI protocol take it as `logit_bias`. How it was
set stands in calibration.json:
`{"token": "<empty_output>", "id": 16, "bias": -1.75, "max_over_refusal": 0.05, "max_false_refusal": 0.05, "malicious": {"prompts": 120, "refused": 0.93}, ...,
"curve": [{"bias": -9.313, "malicious": 0.0, "sensitive": 0.0, "ordinary": 0.0}, ...]}`.
A token of its own as refusal score and dial: Refusal Tokens, arXiv 2412.06748.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from math import floor, inf
from pathlib import Path
from typing import Any

from docward.evaluation.evaluating import Settings, planned_replies
from docward.evaluation.generating import Prompt, first_logits
from docward.models import Loaded
from docward.records import text_hash, write_json, write_text
from docward.types import Document, Label, Reply

Progress = Callable[[str, int, int], None]

PLACE = "calibration.json"
GENERATION = "generation_config.json"
CURVE = (0, 0.01, 0.02, 0.05, *(tenth / 10 for tenth in range(1, 10)), 0.95, 0.98, 0.99)
"""The shares refused of each label at whose biases the curve has a row: closer at both ends, where dials are set."""


def asked(documents: Sequence[Document], settings: Settings, pairing: str) -> list[Reply]:
    """What the dial is set on: `crossed`, each document under all tasks; `disjoint`, each under one, tasks taking turns and matched documents under the same.

    Prompts on one document are refused or answered nearly all alike, so the second is nearly as sure and much sooner done (docs/lab-log.md).
    """
    if pairing == "crossed":
        return planned_replies(documents, settings)
    names = sorted({document.matched for document in documents}, key=text_hash)  # by chance: in a file, labels may take turns as tasks do
    places = {name: place for place, name in enumerate(names)}
    turns = [replace(settings, tasks=(task,)) for task in settings.tasks]
    return [reply for document in documents for reply in planned_replies([document], turns[places[document.matched] % len(turns)])]


def margins(loaded: Loaded, planned: Sequence[Reply], settings: Settings, token: int, progress: Progress = lambda *_: None) -> list[tuple[Label, float]]:
    """By how much the token's logit is above the highest other one, where an answer begins: one for each planned reply, with its document's label."""
    found: dict[str, float] = {}
    prompts = [Prompt(reply.key, reply.document, reply.instruction, system=settings.system) for reply in planned]
    for keys, logits in first_logits(loaded, prompts, max_batch_tokens=settings.max_batch_tokens, max_length=settings.max_length):
        mine = logits[:, token].clone()
        logits[:, token] = -float("inf")
        found |= dict(zip(keys, (mine - logits.amax(-1)).tolist(), strict=True))
        progress("calibrating the refusal token: prompts", len(found), len(prompts))
    return [(reply.label, found[reply.key]) for reply in planned]


def allowed(share: float, count: int) -> int:
    """How many of `count` prompts may be refused so that of new ones like them at most `share` is to be expected: (allowed + 1) / (count + 1), where not 0.

    Conformal risk control, arXiv 2208.02814. Of fewer than 1 / share prompts none may be, and a new one is refused more often than that.
    """
    return max(0, floor(share * (count + 1) + 1e-9) - 1)


def bias_for(values: Sequence[float], most: int) -> float:
    """The highest logit bias at which at most so many prompts with these margins are refused (refused: margin + bias > 0; at 0 two tokens tie).

    Infinite where all of them may be.
    """
    return -sorted(values, reverse=True)[most] if most < len(values) else inf


def below(bias: float) -> float:
    """A little less, in thousandths: a tie goes to the token with the lower id, and logits of 16 bits often tie."""
    return floor(1000 * bias - 1) / 1000


def refused(values: Sequence[float], bias: float) -> float:
    """The share of prompts with these margins that is refused at a bias; ties are counted in."""
    return round(sum(value + bias >= 0 for value in values) / len(values), 4)


def curve(of: Mapping[Label, Sequence[float]], chosen: float) -> list[dict[str, float]]:
    """The share refused of each label over the bias, in order from none to all: where a label comes to a share of `CURVE`, and where the dial stands.

    Takes margins by label and gives at most 52 rows, however many prompts there are.
    """
    highest = [-below(min(values)) for values in of.values()]  # a little more than what refuses the last one
    biases = {chosen, *highest, *(below(bias_for(values, floor(share * len(values) + 1e-9))) for values in of.values() for share in CURVE)}
    return [{"bias": bias, **{label.value: refused(values, bias) for label, values in of.items()}} for bias in sorted(biases)]


def calibrate(
    loaded: Loaded,
    documents: Sequence[Document],
    settings: Settings,
    *,
    token: int,
    max_over_refusal: float,
    max_false_refusal: float | None = None,
    folder: Path,
    pairing: str = "crossed",
    progress: Progress = lambda *_: None,
) -> dict[str, Any]:
    """Choose the bias on validation documents and write it into the adapter's folder.

    Args:
        loaded: the tuned model.
        documents: validation documents; sensitive and ordinary ones are wanted.
        settings: tasks and wordings.
        token: id of what refusals begin with.
        max_over_refusal: the share of prompts on sensitive documents that may be refused, of those asked here and to be expected of others like them.
        max_false_refusal: the share of those on ordinary ones; None: the same.
        folder: the adapter's.
        pairing: as the recipe's, see `asked`.
        progress: told how many prompts are done.
    """
    found = margins(loaded, asked(documents, settings, pairing), settings, token, progress)
    of = {label: values for label in Label if (values := [value for one, value in found if one == label])}
    shares = {Label.SENSITIVE: max_over_refusal, Label.ORDINARY: max_over_refusal if max_false_refusal is None else max_false_refusal}
    highest = min((bias_for(of[label], allowed(share, len(of[label]))) for label, share in shares.items() if label in of), default=inf)
    report: dict[str, Any] = {
        "token": str(loaded.tokenizer.convert_ids_to_tokens(token)),
        "id": token,
        "bias": below(0.0 if highest == inf else highest),
        "max_over_refusal": shares[Label.SENSITIVE],
        "max_false_refusal": shares[Label.ORDINARY],
    }
    for label, values in of.items():
        report[label.value] = {"prompts": len(values), "refused_before": refused(values, 0.0), "refused": refused(values, report["bias"])}
    report["curve"] = curve(of, report["bias"])
    config: Any = loaded.model.generation_config
    config.sequence_bias = [[[token], float(report["bias"])]]
    write_text(folder / GENERATION, config.to_json_string())  # what save_pretrained writes, but whole or not at all
    write_json(folder / PLACE, report)
    return report
