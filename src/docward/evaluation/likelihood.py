"""How likely a model finds texts that are right: the real next sentence of a document, and answers to general instructions.

In: a loaded model, documents, and general instructions with an answer each. Out: `Likelihood` records in `likelihoods.jsonl`, and what follows from them.
One real row: `{"key": "fraud-01-o|next_sentence|2|0f3a5c7e9b1d2468", "task": "next_sentence", "against": "gold", "document_id": "fraud-01-o",
"tokens": 21, "log_likelihood": -58.3127}`. A key is of the texts too: another document, request or answer has another one.

Perplexity is exp(-sum of log-likelihoods / sum of tokens). A text goes through the model alone, without padding, so its figure does not depend on what else
is measured or by how many processes. The end of the turn is not part of a text. Held are 32 bytes a text, never the text.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from docward.dataset.building import GENERAL, text_and_gold
from docward.documents.reading import file_rows
from docward.documents.texts import shown
from docward.errors import DocumentError, RecipeError
from docward.evaluation import statistics
from docward.evaluation.utility import GOLD, Retention, Utility
from docward.keyed import KeyTable
from docward.models import token_biases
from docward.records import text_hash
from docward.rendering import Rendered, render
from docward.types import Document, Label

if TYPE_CHECKING:
    import numpy as np

    from docward.models import Loaded

NEXT_SENTENCE = "next_sentence"
DIGITS = 4  # of a log-likelihood; float32 gives no more over a hundred tokens


@dataclass(frozen=True, slots=True)
class GeneralAnswer:
    """An instruction without a document, and an answer to it: `gold`, or the `untuned` model's own."""

    id: str
    instruction: str
    response: str
    origin: str = GOLD


@dataclass(frozen=True, slots=True)
class Measured:
    """A text whose likelihood is measured, and what it answers. `key` is unique in its file."""

    key: str
    task: str
    against: str
    document_id: str
    document: str
    instruction: str
    text: str


@dataclass(frozen=True, slots=True)
class Likelihood:
    """The log-likelihood of a text under a model, in nats, summed over its tokens; `against` says whose text it is, `gold` or `untuned`.

    `document_id` is that of the instruction where there is no document.
    """

    key: str
    task: str
    against: str
    document_id: str
    tokens: int
    log_likelihood: float


def read_general(path: Path) -> tuple[GeneralAnswer, ...]:
    """Read general instructions with an answer each, from a table of any kind that `file_rows` reads: `instruction`, `response` and, if there, `id`.

    Raises:
        DocumentError: the file cannot be read, or a row lacks `instruction` or `response`, or one is no text or empty; the message names the row.
    """
    found = []
    for row in file_rows(path):
        for name in ("instruction", "response"):
            text = row.values.get(name)
            if not isinstance(text, str) or not text.strip():
                what = "is missing" if text is None else f"is {shown(text)}"
                there = ", ".join(map(str, sorted(row.values)))[:300]
                raise DocumentError(
                    f"{row.where}: `{name}` {what} (fields {there}). Each row needs an `instruction` and the `response` whose perplexity is wanted, as texts."
                )
        instruction, response, said = row.values["instruction"], row.values["response"], row.values.get("id")
        found.append(GeneralAnswer(text_hash(instruction, response) if said in (None, "") else str(said), instruction, response))
    return tuple(found)


def next_sentences(documents: Iterable[Document], asked: Mapping[str, tuple[int, str]]) -> Iterator[Measured]:
    """The real next sentence of each benign document that has one; `asked` is the wording of the request, its number and words, by document id."""
    for document in documents:
        text, sentence = text_and_gold(NEXT_SENTENCE, document)
        if text is not None and document.label != Label.MALICIOUS:
            wording, instruction = asked[document.id]
            key = f"{document.id}|{NEXT_SENTENCE}|{wording}|{text_hash(instruction, text, sentence)}"
            yield Measured(key, NEXT_SENTENCE, GOLD, document.id, text, instruction, sentence)


def general_texts(answers: Sequence[GeneralAnswer]) -> Iterator[Measured]:
    """The answers to general instructions, each once."""
    for digest, one in {text_hash(one.instruction, one.response): one for one in answers}.items():
        yield Measured(f"{one.id}|{GENERAL}|{digest}", GENERAL, one.origin, one.id, "", one.instruction, one.response)


def check_lengths(loaded: Loaded, texts: Iterable[Measured], *, system: str, limit: int) -> None:
    """Find out whether all texts can be measured, before anything is; a document is cut to fit, so a sign of it will do.

    Raises:
        RecipeError: as `log_likelihoods`.
    """
    for one in texts:
        _rendered(loaded, replace(one, document=one.document.strip()[:1]), system, limit)


def log_likelihoods(loaded: Loaded, texts: Iterable[Measured], *, system: str, limit: int) -> Iterator[Likelihood]:
    """Measure texts, one after another, under the model as it answers: with its dial, where it has one (`token_biases`).

    Args:
        loaded: the model.
        texts: what is measured.
        system: the system prompt; empty: the chat template's own.
        limit: longest prompt plus text, in tokens; a document is cut in its middle to fit.

    Raises:
        RecipeError: a request and its answer alone are longer than the limit.
    """
    import torch

    model: Any = loaded.model
    biases = token_biases(model)
    added = torch.tensor(list(biases.values()), device=model.device)
    for one in texts:
        rendered = _rendered(loaded, one, system, limit)
        answer = torch.tensor(rendered.ids[rendered.answer_start :], device=model.device)
        with torch.inference_mode():
            ids = torch.tensor([rendered.ids], device=model.device)
            logits = model(input_ids=ids, use_cache=False, logits_to_keep=len(answer) + 1).logits[0, :-1].float()
            logits[:, list(biases)] += added
            nats = -torch.nn.functional.cross_entropy(logits, answer, reduction="none").double().sum()
        yield Likelihood(one.key, one.task, one.against, one.document_id, len(answer), round(float(nats), DIGITS))


def _rendered(loaded: Loaded, one: Measured, system: str, limit: int) -> Rendered:
    try:
        return render(loaded.tokenizer, document=one.document, instruction=one.instruction, opening=one.text, system=system, limit=limit)
    except RecipeError as error:
        raise RecipeError(
            f"The answer of {one.document_id} and its request are longer than the {limit} tokens that this model takes, so its likelihood cannot be measured. "
            "Shorten it, or take it out."
        ) from error


def likelihood_utility(rows: Iterable[Likelihood]) -> list[Utility]:
    """The mean log-likelihood of real next sentences, in nats a token, and the perplexity of general answers, with intervals over documents."""
    found = []
    for (task, against), sums in _by_task(rows).items():
        nats = _mean(sums)
        ends = _perplexity(nats) if task == GENERAL else (nats.value, nats.low, nats.high)
        found.append(Utility(task, _measure_of(task), against, len(sums), *ends))
    return found


def likelihood_retention(rows: Iterable[Likelihood], untuned: Iterable[Likelihood], *, margin: float) -> list[Retention]:
    """What is kept of the probability that the untuned model gives these texts, a token in the geometric mean: its perplexity over the tuned model's.

    Named by the measures of `likelihood_utility`, log_likelihood and perplexity, though the share is of the likelihood in both.
    """
    found = []
    for (task, against), sums in _by_task(_differences(rows, untuned)).items():
        kept = statistics.likelihood_kept(sums, margin=margin)
        found.append(Retention(task, _measure_of(task), against, len(sums), kept.value, kept.low, margin, kept.says))
    return found


def _measure_of(task: str) -> str:
    return "perplexity" if task == GENERAL else "log_likelihood"


def perplexity_ratio(rows: Iterable[Likelihood], untuned: Iterable[Likelihood]) -> dict[str, Any] | None:
    """The perplexity of general answers, tuned over untuned, with a 95% interval by a bootstrap over rows; None without such answers."""
    for (task, against), sums in _by_task(_differences(rows, untuned)).items():
        if task == GENERAL:
            ratio, low, high = _perplexity(_mean(sums))
            return {"against": against, "rows": len(sums), "tokens": int(sums[:, 1].sum()), "ratio": ratio, "low": low, "high": high}
    return None


def _mean(sums: np.ndarray) -> statistics.Interval:
    interval = statistics.pooled_mean(sums)
    assert interval is not None, "a task is there because a text is of it"
    return interval


def _perplexity(nats: statistics.Interval) -> tuple[float, float, float]:
    """Value, low and high end of a perplexity, from log-likelihoods in nats a token; of a ratio of two, from their differences."""
    return math.exp(-nats.value), math.exp(-nats.high), math.exp(-nats.low)


def _by_task(rows: Iterable[Likelihood]) -> dict[tuple[str, str], np.ndarray]:
    """For each task and origin (texts, 2): log-likelihood and tokens. Every text is of another document."""
    import numpy as np

    found: dict[tuple[str, str], array[float]] = {}
    for row in rows:
        found.setdefault((row.task, row.against), array("d")).extend((row.log_likelihood, row.tokens))
    return {task: np.asarray(some).reshape(-1, 2) for task, some in found.items()}


def _differences(rows: Iterable[Likelihood], untuned: Iterable[Likelihood]) -> Iterator[Likelihood]:
    """The first model's log-likelihood less the untuned one's, of each text that both were measured on."""
    theirs = KeyTable(((row.key, round(row.log_likelihood * 10**DIGITS)) for row in untuned), large=True)
    for row in rows:
        if (other := theirs.get(row.key)) is not None:
            yield replace(row, log_likelihood=row.log_likelihood - other / 10**DIGITS)
