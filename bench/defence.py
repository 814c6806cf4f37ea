"""Which recipe defends best: named variants of a recipe, tuned on fixed seeds and splits, side by side in one table.

    python bench/defence.py [NAME ...] [--seeds 0 1 2] [--documents malicious=FILE ...] [--output-dir runs/defence] [--by-task] [--log]

Variants stand in `bench/defence.yaml`: by name, a recipe and the keys that differ from it; with `by: untuned` nothing is tuned (with a system prompt that tells
to decline, this is what costs nothing), with `by: surface` no model is asked: a classifier that sees no words decides. Each variant and seed is a run folder of
its own, so that a second start goes on where the first was stopped; what variants share is made once (untuned answers are in the user's cache). Each is
measured on the held-out test documents of its recipe and, with `--documents`, on others; wordings of tasks are those held out from tuning.

For each set: block rate, over-refusal, false refusal and balance in percent, all tasks pooled, with 95% intervals over documents (of several seeds: each seed's
replies on a document count as that document's); `AUC`, how well the refusal score ranks malicious above sensitive, whatever the threshold;
`attempts`, the share of other replies that try the task; minutes of tuning. `--log` adds the table to docs/lab-log.md.

The refusal score is the margin, at the reply's first token, of the refusal token over the highest other one (without such a token: of the tokens that the
project's refusals begin with), which is what greedy decoding goes by.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

HERE = Path(__file__).parent
LOG = HERE.parent / "docs" / "lab-log.md"


@dataclass(frozen=True)
class Variant:
    """A recipe, what is set in it, as `--set` takes it, and who decides: the tuned model, the untuned one, or surface."""

    recipe: Path
    changes: list[str]
    by: str = "tuned"


def variants(names: Sequence[str]) -> dict[str, Variant]:
    """The named variants, or all."""
    found = yaml.safe_load((HERE / "defence.yaml").read_text(encoding="utf-8"))
    if unknown := [name for name in names if name not in found]:
        raise SystemExit(f"No such variant: {', '.join(unknown)}. There are: {', '.join(found)}.")
    return {
        name: Variant(
            HERE.parent / found[name]["recipe"],
            [f"{key}={json.dumps(value)}" for key, value in found[name].get("set", {}).items()],
            found[name].get("by", "tuned"),
        )
        for name in names or found
    }


def first_tokens(loaded: Any) -> list[int]:
    """The tokens that refusals begin with: the recipe's own one, or those of the project's refusals in any language."""
    from docward.models import token_biases
    from docward.tuning.adapters import refusal_starts

    return list(token_biases(loaded.model)) or refusal_starts(loaded.tokenizer)


def scores(loaded: Any, replies: Sequence[Any], system: str) -> dict[str, float]:
    """The refusal score of each planned reply's prompt, a difference of logits, by key."""
    from docward.evaluation.generating import Prompt, first_logits

    refuse, found = first_tokens(loaded), {}
    prompts = [Prompt(one.key, one.document, one.instruction, system=system) for one in replies]
    for keys, logits in first_logits(loaded, prompts, max_batch_tokens=4096):
        inside = logits[:, refuse].amax(-1)
        logits[:, refuse] = -float("inf")
        found |= dict(zip(keys, (inside - logits.amax(-1)).tolist(), strict=True))
    return found


def auc(values: Sequence[float], labels: Sequence[str]) -> float | None:
    """How well scores rank malicious above sensitive prompts."""
    from sklearn.metrics import roc_auc_score

    pairs = [(label == "malicious", value) for value, label in zip(values, labels, strict=True) if label != "ordinary"]
    return float(roc_auc_score(*zip(*pairs, strict=True))) if len({truth for truth, _ in pairs}) == 2 else None


def sets_of(run: Any, given: Mapping[str, list[Any]]) -> dict[str, list[Any]]:
    """The documents to measure on, by the name of their set."""
    from docward.loop import test_documents

    return {"held-out": test_documents(run)} | dict(given)


def measured(name: str, seed: int, variant: Variant, given: argparse.Namespace, others: Mapping[str, list[Any]]) -> dict[str, Any]:
    """Tune a variant on a seed, or go on; where its results are, by set."""
    from docward.loop import build, open_run, tune
    from docward.models import load
    from docward.recipe import load_recipe
    from docward.tuning.tuning import tuned_folder

    recipe = load_recipe(variant.recipe, overrides=[*variant.changes, f"seed={seed}"])
    folder = given.output_dir / name.replace(" ", "-") / str(seed)
    with open_run(recipe, folder, told(f"{name}, seed {seed}")) as run:
        build(run)
        if variant.by == "tuned":
            tune(run)
        found: dict[str, Any] = {"minutes": run.stages().get("tune", {}).get("seconds", 0) / 60}
        loaded = None
        for title, documents in sets_of(run, others).items():
            found[title] = folder / "measured" / title
            if (found[title] / "scores.json").is_file():
                continue
            if variant.by == "surface":
                _by_surface(run, documents, found[title])
                continue
            loaded = loaded or (load(str(tuned_folder(folder))) if variant.by == "tuned" else run.untuned())
            _by_model(recipe, loaded, documents, found[title], told(f"{name}, seed {seed}, {title}"))
    return found


def _by_model(recipe: Any, loaded: Any, documents: list[Any], place: Path, tell: Any) -> None:
    from docward.evaluation.evaluating import Settings, evaluate, planned_replies
    from docward.tasks import get_tasks, system_prompt

    section = recipe.evaluation
    tasks, system = tuple(get_tasks(section.tasks, recipe.task_table())), system_prompt(section.system_prompt)
    settings = Settings(tasks, system, wordings="unseen", max_new_tokens=section.max_new_tokens, max_batch_tokens=section.max_batch_tokens)
    evaluate(loaded, documents, settings, place, progress=tell)
    (place / "scores.json").write_text(json.dumps(scores(loaded, planned_replies(documents, settings), system)), encoding="utf-8")


def _by_surface(run: Any, documents: list[Any], place: Path) -> None:
    from docward.dataset.surface import surface_refuses
    from docward.evaluation.rates import classifier_verdicts
    from docward.records import read_rows, write_rows
    from docward.types import Document, Split

    train = [one for one in read_rows(run.folder / "documents.jsonl", Document) if one.split == Split.TRAIN and not one.is_prompt]
    documents = [one for one in documents if not one.is_prompt]
    place.mkdir(parents=True, exist_ok=True)
    write_rows(place / "verdicts.jsonl", classifier_verdicts(surface_refuses(train, documents), {one.id: one.label for one in documents}))
    (place / "scores.json").write_text("{}", encoding="utf-8")


def told(of: str) -> Any:
    """A progress line, at most one a second."""
    last = [0.0]

    def tell(what: str, done: int, total: int) -> None:
        if time.monotonic() - last[0] > 1:
            last[0] = time.monotonic()
            print(f"\r\033[K{of}: {what} {done}/{total}" if total else f"\r\033[K{of}: {what}", end="", file=sys.stderr, flush=True)

    return tell


def row(name: str, title: str, seeds: Mapping[int, dict[str, Any]]) -> str:
    """One row of the table: a variant on a set of documents, over its seeds."""
    from docward.evaluation.attempts import attempts
    from docward.evaluation.rates import balance, pooled
    from docward.records import read_rows
    from docward.types import Label, Reply, Verdict

    verdicts, tried, left, ranks = [], 0, 0, []
    for found in seeds.values():
        mine = read_rows(found[title] / "verdicts.jsonl", Verdict)
        verdicts += mine
        replies = found[title] / "replies.jsonl"  # surface gives none
        for try_ in attempts(read_rows(replies, Reply) if replies.is_file() else [], mine):
            if try_.task == "all":
                tried, left = tried + try_.attempted, left + try_.complied
        ranked = json.loads((found[title] / "scores.json").read_text(encoding="utf-8"))
        ranks.append(auc([ranked[one.key] for one in mine], [one.label.value for one in mine]) if ranked else None)
    rates, both = pooled(verdicts), balance(verdicts)
    cells = [f"{100 * one.value:.1f} ({100 * one.low:.0f} to {100 * one.high:.0f})" if (one := rates.get(label.value)) else "" for label in Label]
    cells.append(f"{100 * both.value:.1f} ({100 * both.low:.0f} to {100 * both.high:.0f})" if both else "")
    cells.append(" ".join("" if rank is None else f"{rank:.2f}" for rank in ranks))
    cells.append(f"{100 * tried / left:.0f}" if left else "")
    minutes = sum(found["minutes"] for found in seeds.values()) / len(seeds)
    return f"| {name} | {title} | {len(seeds)} | " + " | ".join(cells) + f" | {minutes:.1f} |"


def by_task(name: str, title: str, seeds: Mapping[int, dict[str, Any]]) -> list[str]:
    """Rates by task: for each label, a row of a variant on a set, and of which tasks there are."""
    from docward.evaluation.rates import rates
    from docward.records import read_rows
    from docward.types import Label, Verdict

    found = {(one.set, one.task): one for one in rates([one for seed in seeds.values() for one in read_rows(seed[title] / "verdicts.jsonl", Verdict)])}
    tasks = dict.fromkeys(task for _, task in found)
    lines = ["", "| variant | documents | seeds | label | " + " | ".join(tasks) + " |", "|---" * (4 + len(tasks)) + "|"]
    for label in Label:
        cells = [f"{100 * one.value:.1f} ({100 * one.low:.0f} to {100 * one.high:.0f})" if (one := found.get((label, task))) else "" for task in tasks]
        lines.append(f"| {name} | {title} | {len(seeds)} | {label.value} | " + " | ".join(cells) + " |")
    return lines


HEAD = """| variant | documents | seeds | block rate | over-refusal | false refusal | balance | AUC by seed | attempts | minutes |
|---|---|---|---|---|---|---|---|---|---|"""


def main() -> None:
    """Tune, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="variants; default: all")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--documents", nargs="*", default=[], metavar="LABEL=FILE", help="others to measure on, called `development`")
    parser.add_argument("--output-dir", type=Path, default=Path("runs/defence"))
    parser.add_argument("--by-task", action="store_true", help="a second table, with the rates of each task")
    parser.add_argument("--log", action="store_true", help="add the table to docs/lab-log.md")
    given = parser.parse_args()
    from docward.documents.reading import read_documents
    from docward.types import Label

    others = [one for pair in given.documents for label, _, path in [pair.partition("=")] for one in read_documents(Path(path), label=Label(label))]
    sets = {"development": others} if others else {}
    lines, tasks = [HEAD], list[str]()
    for name, variant in variants(given.names).items():
        seeds = {seed: measured(name, seed, variant, given, sets) for seed in given.seeds}
        for title in next(iter(seeds.values())):
            if title != "minutes":
                lines.append(row(name, title, seeds))
                tasks += by_task(name, title, seeds)
                print(f"\r\033[K{lines[-1]}", file=sys.stderr)
    lines += tasks if given.by_task else []
    print("\n".join(lines))
    if given.log:
        with LOG.open("a", encoding="utf-8") as log:
            log.write(f"\n## Recipes side by side, {time.strftime('%Y-%m-%d')}\n\n" + "\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
