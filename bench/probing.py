"""What the untuned model knows of intent: a logistic probe at each layer, read on documents that it was not fitted on.

    python bench/probing.py [--model NAME] [--limit 1893] [--documents malicious=FILE ...] [--layers 4 8 12 16 20 24 28 30]

Fitted on the training documents among the first `--limit` of the plain corpus, each under one task, on the model's states: their mean over the document, and
the one where the answer begins. Once with every document alike, once weighed so that surface tells nothing (`tuning.balance_surface`). Read on held-out
documents of the plain and the starter corpus and on `--documents`, under unseen wordings: AUC of malicious against sensitive / against ordinary.
Nothing is tuned.
"""

from __future__ import annotations

import argparse
import random
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

LENGTH = 400  # tokens of a prompt: a longer document is cut in its middle
TASKS = ("summarize", "translate", "sentiment", "case", "next_sentence")
C = 0.001  # of the logistic regression, on states of unit variance


def states(loaded: Any, documents: Sequence[Any], wordings: str, layers: Sequence[int]) -> dict[str, np.ndarray]:
    """By `mean` and `last`: (documents, layers, size)."""
    import torch

    from docward.rendering import render
    from docward.tasks import get_tasks

    draw, tasks = random.Random(0), get_tasks(list(TASKS))
    found: dict[str, list[Any]] = {"mean": [], "last": []}
    for place, one in enumerate(documents):
        task = draw.choice(tasks)
        row = render(loaded.tokenizer, document=one.text, instruction=draw.choice(getattr(task, wordings)), limit=LENGTH)
        with torch.no_grad():
            hidden = loaded.model(input_ids=torch.tensor([row.ids], device=loaded.model.device), output_hidden_states=True, logits_to_keep=1).hidden_states
        some = torch.stack([hidden[layer][0].float() for layer in layers])
        found["mean"].append(some[:, row.document.start : row.document.stop].mean(1).cpu().numpy())
        found["last"].append(some[:, -1].cpu().numpy())
        if place % 20 == 0:
            print(f"\r\033[K{place}/{len(documents)}", end="", file=sys.stderr, flush=True)
    return {name: np.stack(values) for name, values in found.items()}


def aucs(scores: np.ndarray, labels: np.ndarray) -> str:
    """Malicious against sensitive / against ordinary."""
    from sklearn.metrics import roc_auc_score

    cells = []
    for other in ("sensitive", "ordinary"):
        pair = np.isin(labels, ("malicious", other))
        cells.append(f"{roc_auc_score(labels[pair] == 'malicious', scores[pair]):.2f}" if len(set(labels[pair])) == 2 else "")
    return " / ".join(cells)


def main() -> None:
    """Fit and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--limit", type=int, default=1893)
    parser.add_argument("--documents", nargs="*", default=[], metavar="LABEL=FILE", help="others to read on, called `development`")
    parser.add_argument("--layers", type=int, nargs="+", default=[4, 8, 12, 16, 20, 24, 28, 30])
    given = parser.parse_args()
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    from docward.dataset.surface import surface_weights
    from docward.documents.reading import own_documents, read_documents
    from docward.models import load
    from docward.types import Label, Split

    plain = own_documents("plain")
    train = [one for one in plain[: given.limit] if one.split == Split.TRAIN]
    sets = {"plain": [one for one in plain if one.split == Split.TEST][:450]}
    sets["starter"] = [one for one in own_documents() if one.split == Split.TEST and one.language == "en"]
    if given.documents:
        pairs = [pair.partition("=") for pair in given.documents]
        sets["development"] = [one for label, _, path in pairs for one in read_documents(Path(path), label=Label(label))]
    loaded = load(given.model)
    fitted = states(loaded, train, "wordings", given.layers)
    read = {name: states(loaded, documents, "unseen", given.layers) for name, documents in sets.items()}
    truth, weights = np.array([one.label == Label.MALICIOUS for one in train]), surface_weights(train)
    ways = {"alike": np.where(truth, 0.5 / truth.mean(), 0.5 / (1 - truth.mean())), "weighed": np.array([weights[one.id] for one in train])}
    ways["weighed"] *= ways["alike"]
    print(f"\r\033[K{len(train)} documents, {given.model}\n\n| layer | state | documents | " + " | ".join(sets) + " |\n|---|---|---|" + "---|" * len(sets))
    for column, layer in enumerate(given.layers):
        for state in ("mean", "last"):
            for way, weight in ways.items():
                probe = make_pipeline(StandardScaler(), LogisticRegression(C=C, max_iter=500))
                probe.fit(fitted[state][:, column], truth, logisticregression__sample_weight=weight)
                cells = [aucs(probe.decision_function(read[name][state][:, column]), np.array([one.label.value for one in sets[name]])) for name in sets]
                print(f"| {layer} | {state} | {way} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
