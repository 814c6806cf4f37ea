"""What the untuned model knows of intent: a logistic probe at each layer, read on documents that it was not fitted on.

    python bench/probing.py [--model NAME] [--limit 1893] [--documents malicious=FILE ...] [--layers 4 8 12 16 20 24 28 30]
                            [--together 16 28] [--pieces 32] [--sizes 125 250 500 1000 2000] [--at 28] [--output FILE.json]

Fitted on the training documents among the first `--limit` of the plain corpus, each under one task, on the model's states: their mean over the document, and
the one where the answer begins. Once with every document alike, once weighed so that surface tells nothing (`tuning.balance_surface`). Read on held-out
documents of the plain and the starter corpus and on `--documents`, under unseen wordings: AUC of malicious against sensitive / against ordinary.
Nothing is tuned. With `--together` one more line: a probe on the means at those layers side by side, weighed. With `--pieces` one more line for each layer and
for those together: fitted on the means over pieces of about that many tokens, each as malicious as its document and all of a document weighing as much as it
does, and read on the means over whole documents.

With `--sizes` a second table: the probe on the mean at layer `--at`, weighed, fitted on that many training documents, a seeded sample by chance each, and last
on all. A sample's documents keep the weights that they have among all. `--output` keeps the numbers of both tables, for `bench/pictures.py`: `layers` and
`sizes` are lists of one row a probe and set, such as

    {"layer": 28, "state": "mean", "documents": "weighed", "fitted_on": 1514, "set": "starter", "sensitive": 0.9375, "ordinary": 0.98}

with the AUC against either label unrounded, null where the set has none of it; `read` has the number of documents of each label, by set.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

LENGTH = 400  # tokens of a prompt: a longer document is cut in its middle
TASKS = ("summarize", "translate", "sentiment", "case", "next_sentence")
C = 0.001  # of the logistic regression, on states of unit variance


def states(loaded: Any, documents: Sequence[Any], wordings: str, layers: Sequence[int], length: int = 0) -> dict[str, np.ndarray]:
    """By `mean` and `last`: (documents, layers, size); `pieces` of about `length` tokens: (pieces, layers, size), and how many each document has, `counts`."""
    import torch

    from docward.rendering import render
    from docward.tasks import get_tasks

    draw, tasks = random.Random(0), get_tasks(list(TASKS))
    found: dict[str, list[Any]] = {"mean": [], "last": []}
    cut: list[np.ndarray] = []
    for place, one in enumerate(documents):
        task = draw.choice(tasks)
        row = render(loaded.tokenizer, document=one.text, instruction=draw.choice(getattr(task, wordings)), limit=LENGTH)
        with torch.no_grad():
            hidden = loaded.model(input_ids=torch.tensor([row.ids], device=loaded.model.device), output_hidden_states=True, logits_to_keep=1).hidden_states
        some = torch.stack([hidden[layer][0].float() for layer in layers])
        found["mean"].append(some[:, row.document.start : row.document.stop].mean(1).cpu().numpy())
        found["last"].append(some[:, -1].cpu().numpy())
        inside = torch.tensor(row.document, device=some.device)
        spans = inside.chunk(max(1, round(len(inside) / length))) if length else (inside,)
        cut.append(torch.stack([some[:, span].mean(1) for span in spans]).cpu().numpy())
        if place % 20 == 0:
            print(f"\r\033[K{place}/{len(documents)}", end="", file=sys.stderr, flush=True)
    return {name: np.stack(values) for name, values in found.items()} | {"pieces": np.concatenate(cut), "counts": np.array([len(some) for some in cut])}


def aucs(scores: np.ndarray, labels: np.ndarray) -> dict[str, float | None]:
    """Malicious against `sensitive` and against `ordinary`, from (documents,) scores and labels; None where one of the two is missing."""
    from sklearn.metrics import roc_auc_score

    found: dict[str, float | None] = {}
    for other in ("sensitive", "ordinary"):
        pair = np.isin(labels, ("malicious", other))
        found[other] = float(roc_auc_score(labels[pair] == "malicious", scores[pair])) if len(set(labels[pair])) == 2 else None
    return found


def readings(
    fitted: np.ndarray, truth: np.ndarray, weights: np.ndarray, read: Mapping[str, np.ndarray], labels: Mapping[str, np.ndarray]
) -> list[dict[str, Any]]:
    """Fit a probe on (documents, size) states, (documents,) truth and weights; its AUCs on the states of each set, whose labels are (documents,) too."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    probe = make_pipeline(StandardScaler(), LogisticRegression(C=C, max_iter=500))
    probe.fit(fitted, truth, logisticregression__sample_weight=weights)
    return [{"fitted_on": len(fitted), "set": name, **aucs(probe.decision_function(some), labels[name])} for name, some in read.items()]


def samples(count: int, sizes: Iterable[int]) -> list[np.ndarray]:
    """Places of (size,) documents among `count`, drawn by chance for each size below it; last (count,), all."""
    return [*(np.array(sorted(random.Random(size).sample(range(count), size))) for size in sorted(set(sizes)) if size < count), np.arange(count)]


def head(sets: Iterable[str]) -> str:
    """The first two lines of a table."""
    names = list(sets)
    return "\n| layer | state | documents | " + " | ".join(names) + " |\n|---|---|---|" + "---|" * len(names)


def line(rows: Sequence[Mapping[str, Any]], documents: str) -> str:
    """One line of a table: a probe, and its AUCs on each set."""
    cells = [" / ".join("" if row[other] is None else f"{row[other]:.2f}" for other in ("sensitive", "ordinary")) for row in rows]
    return f"| {rows[0]['layer']} | {rows[0]['state']} | {documents} | " + " | ".join(cells) + " |"


def main() -> None:
    """Fit and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--limit", type=int, default=1893)
    parser.add_argument("--documents", nargs="*", default=[], metavar="LABEL=FILE", help="others to read on, called `development`")
    parser.add_argument("--layers", type=int, nargs="+", default=[4, 8, 12, 16, 20, 24, 28, 30])
    parser.add_argument("--together", type=int, nargs="*", default=[], metavar="LAYER", help="layers whose means are read side by side, too")
    parser.add_argument("--pieces", type=int, default=0, metavar="TOKENS", help="fit on pieces of documents, too")
    parser.add_argument("--sizes", type=int, nargs="*", default=[], help="numbers of training documents of the second table")
    parser.add_argument("--at", type=int, default=28, help="the layer of the second table")
    parser.add_argument("--output", type=Path, metavar="FILE.json", help="keep all numbers")
    given = parser.parse_args()
    from docward.dataset.surface import surface_weights
    from docward.documents.reading import own_documents, read_documents
    from docward.models import load
    from docward.types import Label, Split

    layers = sorted({*given.layers, *given.together, *([given.at] if given.sizes else [])})
    if given.output:
        given.output.parent.mkdir(parents=True, exist_ok=True)
    plain = own_documents("plain")
    train = [one for one in plain[: given.limit] if one.split == Split.TRAIN]
    sets = {"plain": [one for one in plain if one.split == Split.TEST][:450]}
    sets["starter"] = [one for one in own_documents() if one.split == Split.TEST and one.language == "en"]
    if given.documents:
        pairs = [pair.partition("=") for pair in given.documents]
        sets["development"] = [one for label, _, path in pairs for one in read_documents(Path(path), label=Label(label))]
    loaded = load(given.model)
    fitted = states(loaded, train, "wordings", layers, given.pieces)
    read = {name: states(loaded, documents, "unseen", layers) for name, documents in sets.items()}
    labels = {name: np.array([one.label.value for one in documents]) for name, documents in sets.items()}
    truth, weights = np.array([one.label == Label.MALICIOUS for one in train]), surface_weights(train)
    ways = {"alike": np.where(truth, 0.5 / truth.mean(), 0.5 / (1 - truth.mean())), "weighed": np.array([weights[one.id] for one in train])}
    ways["weighed"] *= ways["alike"]

    def tried(layer: int, state: str, way: str, places: np.ndarray) -> list[dict[str, Any]]:
        column = layers.index(layer)
        found = readings(fitted[state][places, column], truth[places], ways[way][places], {name: read[name][state][:, column] for name in read}, labels)
        return [{"layer": layer, "state": state, "documents": way, **row} for row in found]

    everything, by_layer, by_size = np.arange(len(train)), list[dict[str, Any]](), list[dict[str, Any]]()
    print(f"\r\033[K{len(train)} documents, {given.model}\n{head(sets)}")
    for layer in given.layers:
        for state in ("mean", "last"):
            for way in ways:
                by_layer += (rows := tried(layer, state, way, everything))
                print(line(rows, way), flush=True)
    groups = [[layer] for layer in given.layers if given.pieces] + ([given.together] if given.together else [])
    for some in groups:
        columns, title = [layers.index(layer) for layer in some], " and ".join(map(str, some))
        whole = {name: np.concatenate([read[name]["mean"][:, column] for column in columns], 1) for name in read}
        kinds = [("mean", truth, ways["weighed"])] if some == given.together else []
        if given.pieces:
            many = fitted["counts"]
            kinds.append(("pieces", truth.repeat(many), (ways["weighed"] / many).repeat(many)))
        for state, wanted, shares in kinds:
            found = readings(np.concatenate([fitted[state][:, column] for column in columns], 1), wanted, shares, whole, labels)
            print(line([{"layer": title, "state": state, **row} for row in found], "weighed"), flush=True)
    if given.sizes:
        print(head(sets))
        for places in samples(len(train), given.sizes):
            by_size += (rows := tried(given.at, "mean", "weighed", places))
            print(line(rows, f"{len(places)} weighed"), flush=True)
    if given.output:
        counts = {name: dict(Counter(labels[name].tolist())) for name in sets}
        kept = {"model": given.model, "fitted_on": len(train), "at": given.at, "read": counts, "layers": by_layer, "sizes": by_size}
        given.output.write_text(json.dumps(kept, indent=1, allow_nan=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
