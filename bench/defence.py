"""Which recipe defends best: named variants of a recipe, tuned on fixed seeds and splits, side by side in one table.

    python bench/defence.py [NAME ...] [--seeds 0 1 2] [--documents malicious=FILE ...] [--output-dir runs/defence] [--by-task] [--log]

Variants stand in `bench/defence.yaml`: by name, a recipe and the keys that differ from it; with `by: untuned` nothing is tuned (with a system prompt that tells
to decline, this is what costs nothing), with `by: surface` no model is asked: a classifier that sees no words decides. Each variant and seed is a run folder of
its own, so that a second start goes on where the first was stopped; what variants share is made once (untuned answers to training prompts are in the user's
cache, untuned replies to test prompts in OUTPUT_DIR/_untuned, a folder for each set of prompts). Results of before that lack some of this are completed, and
their replies stay. Each is measured on the held-out test documents of its recipe and, with `--documents`, on others, in wordings held out from tuning.

For each set: block rate, over-refusal, false refusal and balance in percent, all tasks pooled, with 95% intervals over documents (of several seeds: each seed's
replies on a document count as that document's); `AUC`, how well the refusal score ranks malicious above sensitive, whatever the threshold;
`attempts`, the share of other replies that try the task; what is kept of the untuned model's utility, by seed; minutes of tuning. `--by-task` adds tables by
task, in which what is kept has its one-sided 95% bound. `--log` adds all of it to docs/lab-log.md.

What is kept is measured as by `docward run`; where nothing is tuned, against the untuned model without the variant's system prompt. `general`: the likelihood
of a token of its answers to general instructions, untuned perplexity / tuned; no matter of documents, so only rows of held-out ones have it. `utility`: the
lowest retention of a task on benign documents, and which task that is; without gold it is chrF with the untuned reply, which rounding alone takes below 1
(docs/utility.md). Surface does no work, so these cells are empty.

The refusal score is the margin, at the reply's first token, of the refusal token over the highest other one (without such a token: of the tokens that the
project's refusals begin with), which is what greedy decoding goes by.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import yaml

HERE = Path(__file__).parent
LOG = HERE.parent / "docs" / "lab-log.md"
HELD_OUT = "held-out"


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


@dataclass(frozen=True)
class Asked:
    """What a variant is asked on a set of documents, with results in `place`, and the untuned model on the same, with results in `beside`."""

    documents: list[Any]
    settings: Any
    place: Path
    untuned: Any
    beside: Path  # named by a hash of what is asked; `asked.json` in `place` repeats it once the results are whole

    def done(self) -> bool:
        """Whether the results are whole, and of these documents."""
        return (said := self.place / "asked.json").is_file() and json.loads(said.read_text(encoding="utf-8")) == self.beside.name


def asked(run: Any, variant: Variant, title: str, documents: list[Any], output_dir: Path) -> Asked:
    """What is asked on one set; general answers, which are no matter of documents, are measured with the held-out ones."""
    from docward.evaluation.evaluating import Settings, planned_replies
    from docward.loop import general_of
    from docward.records import text_hash
    from docward.tasks import get_tasks, system_prompt

    section = run.recipe.evaluation
    tasks, system = tuple(get_tasks(section.tasks, run.recipe.task_table())), system_prompt(section.system_prompt)
    lengths = {"max_new_tokens": section.max_new_tokens, "max_batch_tokens": section.max_batch_tokens}
    general = general_of(run) if title == HELD_OUT and variant.by != "surface" else ()
    settings = Settings(tasks, system, wordings="unseen", general=general, **lengths)
    untuned = replace(settings, system="") if variant.by == "untuned" else settings
    prompts = [part for one in planned_replies(documents, untuned) for part in (one.key, one.label, one.instruction, one.document)]
    key = text_hash(run.recipe.model_name_or_path, untuned.system, str(lengths), *prompts, *(str(one.gold) for one in documents))
    return Asked(documents, settings, run.folder / "measured" / title, untuned, output_dir / "_untuned" / key)


def measured(name: str, seed: int, variant: Variant, given: argparse.Namespace, others: Mapping[str, list[Any]]) -> dict[str, Any]:
    """Tune a variant on a seed, or go on; where its results are, by set."""
    from docward.evaluation.evaluating import evaluate
    from docward.loop import build, open_run, test_documents, tune
    from docward.models import load
    from docward.recipe import load_recipe
    from docward.records import whole_folder, write_json
    from docward.tuning.tuning import tuned_folder

    recipe = load_recipe(variant.recipe, overrides=[*variant.changes, f"seed={seed}"])
    folder = given.output_dir / name.replace(" ", "-") / str(seed)
    with open_run(recipe, folder, told(f"{name}, seed {seed}")) as run:
        build(run)
        every = {title: asked(run, variant, title, some, given.output_dir) for title, some in {HELD_OUT: test_documents(run), **others}.items()}
        waiting = {title: one for title, one in every.items() if not one.done()}
        for title, one in waiting.items() if variant.by != "surface" else ():  # before tuning, which changes this model in place
            evaluate(run.untuned(), one.documents, one.untuned, one.beside, progress=told(f"untuned beside {name}, seed {seed}, {title}"))
            if variant.by == "untuned" and one.settings == one.untuned and not one.place.exists():
                whole_folder(one.place, partial(shutil.copytree, one.beside, dirs_exist_ok=True))
        if variant.by == "tuned":
            tune(run)
        loaded = None
        for title, one in waiting.items():
            if variant.by == "surface":
                _by_surface(run, one)
            else:
                loaded = loaded or (load(str(tuned_folder(folder)), dtype=run.dtype) if variant.by == "tuned" else run.untuned())
                _by_model(loaded, one, recipe.evaluation.retention_margin, told(f"{name}, seed {seed}, {title}"))
            write_json(one.place / "asked.json", one.beside.name)
        return {"minutes": run.stages().get("tune", {}).get("seconds", 0) / 60} | {title: one.place for title, one in every.items()}


def _by_model(loaded: Any, one: Asked, margin: float, tell: Any) -> None:
    from docward.evaluation.evaluating import compare, evaluate, planned_replies
    from docward.evaluation.utility import golds_of
    from docward.records import write_json

    evaluate(loaded, one.documents, one.settings, one.place, progress=tell)
    compare(one.place, one.beside, golds_of(one.documents), margin=margin)
    write_json(one.place / "scores.json", scores(loaded, planned_replies(one.documents, one.settings), one.settings.system))


def _by_surface(run: Any, one: Asked) -> None:
    from docward.dataset.surface import surface_refuses
    from docward.evaluation.rates import classifier_verdicts
    from docward.records import read_rows, write_json, write_rows
    from docward.types import Document, Split

    train = [row for row in read_rows(run.folder / "documents.jsonl", Document) if row.split == Split.TRAIN and not row.is_prompt]
    test = [row for row in one.documents if not row.is_prompt]
    write_rows(one.place / "verdicts.jsonl", classifier_verdicts(surface_refuses(train, test), {row.id: row.label for row in test}))
    write_json(one.place / "scores.json", {})


def told(of: str) -> Any:
    """A progress line, at most one a second."""
    last = [0.0]

    def tell(what: str, done: int, total: int) -> None:
        if time.monotonic() - last[0] > 1:
            last[0] = time.monotonic()
            print(f"\r\033[K{of}: {what} {done}/{total}" if total else f"\r\033[K{of}: {what}", end="", file=sys.stderr, flush=True)

    return tell


def kept(place: Path) -> list[dict[str, Any]]:
    """What is kept of the untuned model's utility, by task and measure (see `Retention`); nothing where no model was asked."""
    metrics = place / "metrics.json"
    found: list[dict[str, Any]] = json.loads(metrics.read_text(encoding="utf-8"))["retention"] if metrics.is_file() else []
    return [one for one in found if one["value"] is not None]


def kept_cells(places: Sequence[Path]) -> list[str]:
    """What is kept of general answers, and of the task that keeps least, seed by seed."""
    from docward.dataset.building import GENERAL

    rows = [kept(place) for place in places]
    general = [f"{one['value']:.2f}" for found in rows for one in found if one["task"] == GENERAL]
    least = [min(of_tasks, key=lambda one: float(one["value"])) for found in rows if (of_tasks := [one for one in found if one["task"] != GENERAL])]
    return [" ".join(general), ", ".join(f"{one['value']:.2f} {one['task']}" for one in least)]


def percent(rate: Any) -> str:
    """A rate or a balance with its interval; empty where there is none, or nothing that was judged."""
    return "" if rate is None or rate.value is None else f"{100 * rate.value:.1f} ({100 * rate.low:.0f} to {100 * rate.high:.0f})"


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
    cells = [percent(one) for one in (*(rates.get(label.value) for label in Label), both)]
    cells.append(" ".join("" if rank is None else f"{rank:.2f}" for rank in ranks))
    cells.append(f"{100 * tried / left:.0f}" if left else "")
    cells += kept_cells([found[title] for found in seeds.values()])
    minutes = sum(found["minutes"] for found in seeds.values()) / len(seeds)
    return f"| {name} | {title} | {len(seeds)} | " + " | ".join(cells) + f" | {minutes:.1f} |"


def by_task(name: str, title: str, seeds: Mapping[int, dict[str, Any]]) -> list[str]:
    """By task: for each label the rates of a variant on a set, with intervals over documents; for each seed and measure what is kept."""
    from docward.evaluation.rates import pooled
    from docward.records import read_rows
    from docward.types import Label, Verdict

    verdicts = [one for seed in seeds.values() for one in read_rows(seed[title] / "verdicts.jsonl", Verdict)]
    found = {task: pooled([one for one in verdicts if one.task == task]) for task in dict.fromkeys(one.task for one in verdicts)}
    lines = ["", "| variant | documents | seeds | label | " + " | ".join(found) + " |", "|---" * (4 + len(found)) + "|"]
    for label in Label:
        lines.append(f"| {name} | {title} | {len(seeds)} | {label.value} | " + " | ".join(percent(rate.get(label.value)) for rate in found.values()) + " |")
    rows = [(seed, one) for seed, places in seeds.items() for one in kept(places[title])]
    if rows:
        lines += ["", f"| variant | documents | seed | task | measure | texts | kept | at least (95%) | keeps {rows[0][1]['margin']:g} |", "|---" * 9 + "|"]
    for seed, one in rows:
        low = "" if one["low"] is None else f"{one['low']:.3f}"
        lines.append(f"| {name} | {title} | {seed} | {one['task']} | {one['measure']} | {one['documents']} | {one['value']:.3f} | {low} | {one['says']} |")
    return lines


HEAD = """| variant | documents | seeds | block rate | over-refusal | false refusal | balance | AUC by seed | attempts | general kept | utility kept | minutes |
|---|---|---|---|---|---|---|---|---|---|---|---|"""


def main() -> None:
    """Tune, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="variants; default: all")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--documents", nargs="*", default=[], metavar="LABEL=FILE", help="others to measure on, called `development`")
    parser.add_argument("--output-dir", type=Path, default=Path("runs/defence"))
    parser.add_argument("--by-task", action="store_true", help="more tables, with the rates of each task and what is kept of it")
    parser.add_argument("--log", action="store_true", help="add the table to docs/lab-log.md")
    given = parser.parse_args()
    from docward.documents.reading import read_documents
    from docward.types import Label

    others = [one for pair in given.documents for label, _, path in [pair.partition("=")] for one in read_documents(Path(path), label=Label(label))]
    sets = {"development": others} if others else {}
    lines, tasks = [HEAD], list[str]()
    for name, variant in variants(given.names).items():
        seeds = {seed: measured(name, seed, variant, given, sets) for seed in given.seeds}
        for title in (HELD_OUT, *sets):
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
