"""The loop: documents -> dataset -> tuning -> evaluation -> report, each stage from files to files.

In: a recipe and a run folder. Out: the run folder, filled. Every stage knows from its files whether it is done; stop anywhere, start again, and it goes on.

    run/  recipe.yaml  environment.json  documents.jsonl  dataset/  adapter/  training.jsonl
          evaluation/{untuned,defended}/{replies,verdicts}.jsonl  metrics.json  report.html
"""

from __future__ import annotations

import fcntl
import json
import os
import platform
import resource
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml

from docward.dataset.auditing import audit
from docward.dataset.building import Plan, general_examples, plan_examples, with_answers
from docward.dataset.saving import read_split, save_dataset
from docward.dataset.splitting import split_documents
from docward.dataset.surface import surface_refuses
from docward.documents.reading import general_instructions, read_documents, starter_documents, starter_path, unique_documents
from docward.errors import DocumentError, RunError, StorageError, UsageError
from docward.evaluation.evaluating import Settings, compare, evaluate
from docward.evaluation.generating import Prompt, generate
from docward.evaluation.judges import judge_text
from docward.evaluation.rates import balance, classifier_verdicts, pooled
from docward.models import Loaded, best_device, load
from docward.recipe import Recipe, Source, dump
from docward.records import KeyedLog, file_hash, read_rows, write_json, write_rows, write_text
from docward.tasks import get_tasks
from docward.types import Document, Example, Label, Outcome, Position, Split

Progress = Callable[[str, int, int], None]
UNTUNED, DEFENDED = "untuned", "defended"
BEGUN = ("environment.json", "recipe.yaml", "stages.json", "documents.jsonl", "answers.jsonl", ".lock")  # what a run holds before it has a dataset
PACKAGES = ("docward", "torch", "transformers", "peft", "accelerate", "datasets")


@dataclass(frozen=True, slots=True)
class Answer:
    """The untuned model's reply to one example's prompt; `key` is the example's id."""

    key: str
    text: str


class Run:
    """A run folder that this process holds."""

    def __init__(self, recipe: Recipe, folder: Path, progress: Progress = lambda *_: None) -> None:
        """Hold `folder` for `recipe`; use `open_run`, which locks it."""
        self.recipe, self.folder, self.progress = recipe, folder, progress
        self._untuned: Loaded | None = None

    def untuned(self) -> Loaded:
        """The untuned model, loaded once."""
        if self._untuned is None:
            self.progress(f"loading {self.recipe.model_name_or_path}", 0, 0)
            self._untuned = load(self.recipe.model_name_or_path)
        return self._untuned

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Add the seconds and the peak memory of a stage to `stages.json`."""
        start = time.monotonic()
        try:
            yield
        finally:
            stages = self.stages()
            before = stages.get(name, {"seconds": 0.0, "peak_memory_mib": 0})
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
            stages[name] = {"seconds": round(before["seconds"] + time.monotonic() - start, 1), "peak_memory_mib": max(before["peak_memory_mib"], peak)}
            write_json(self.folder / "stages.json", stages)

    def stages(self) -> dict[str, Any]:
        """Seconds and peak memory (MiB) by stage, added up over restarts."""
        place = self.folder / "stages.json"
        found: dict[str, Any] = json.loads(place.read_text(encoding="utf-8")) if place.is_file() else {}
        return found


@contextmanager
def open_run(recipe: Recipe, folder: Path, progress: Progress = lambda *_: None) -> Iterator[Run]:
    """Claim a run folder for a recipe, or go on with one that holds the same.

    Where a fresh run ends in a wrong use (a bad document, a model name) before there is a dataset, nothing of it stays: the next try starts anew.

    Raises:
        RunError: the folder holds another recipe's run, or its inputs have changed, or another process works in it.
        StorageError: it cannot be written.
    """
    fresh = not (folder / "recipe.yaml").is_file()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if fresh and (stray := sorted(path.name for path in folder.iterdir() if path.name != ".lock")):
            raise RunError(f"{folder} is not empty and is no run folder (it holds {', '.join(stray[:3])}). Choose another --output-dir.")
        lock = (folder / ".lock").open("w")
    except OSError as error:
        raise StorageError(f"Cannot make the run folder {folder}: {error.strerror}. Choose another --output-dir.") from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise RunError(f"Another process is working in {folder}. Wait for it, or choose another --output-dir.") from error
        try:
            _claim(recipe, folder)
            yield Run(recipe, folder, progress)
        except UsageError:
            if fresh and not (folder / "dataset").exists():
                for name in BEGUN:
                    (folder / name).unlink(missing_ok=True)
                with suppress(OSError):
                    folder.rmdir()
            raise


def _claim(recipe: Recipe, folder: Path) -> None:
    inputs = {source if isinstance(source, str) else source.path: _hash(source) for source in recipe.documents}
    place = folder / "recipe.yaml"
    if not place.is_file():
        write_json(folder / "environment.json", _environment(recipe, inputs))
        write_text(place, dump(recipe))
        return
    there, now = _flat(yaml.safe_load(place.read_text(encoding="utf-8"))), _flat(yaml.safe_load(dump(recipe)))
    if differs := [f"{key}: {there.get(key)!r} there, {now.get(key)!r} now" for key in sorted({*there, *now}) if there.get(key) != now.get(key)]:
        raise RunError(f"{folder} holds another recipe's run ({'; '.join(differs[:5])}). Choose another --output-dir, or delete that folder.")
    known = json.loads((folder / "environment.json").read_text(encoding="utf-8"))["inputs"]
    if changed := [name for name in inputs if inputs[name] != known.get(name)]:
        raise RunError(f"The documents have changed since {folder} was begun ({', '.join(changed)}). Choose another --output-dir, or delete that folder.")


def _flat(values: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(values, dict):
        return {prefix: values}
    return {name: value for key, inner in values.items() for name, value in _flat(inner, f"{prefix}.{key}" if prefix else key).items()}


def _hash(source: str | Source) -> str:
    path = starter_path() if isinstance(source, str) else Path(source.path)
    if not path.is_file():
        raise DocumentError(f"There is no document file {path}. Paths in a recipe are seen from the recipe's folder.")
    return file_hash(path)


def _environment(recipe: Recipe, inputs: dict[str, str]) -> dict[str, Any]:
    versions = {name: version(name) for name in PACKAGES}
    device = best_device()
    machine = {"python": platform.python_version(), "platform": platform.platform(), "cores": len(os.sched_getaffinity(0)), "device": device}
    return {**versions, **machine, "seed": recipe.seed, "inputs": inputs}


def build(run: Run) -> None:
    """Documents to a defense dataset, with an audit."""
    target = run.folder / "dataset"
    if (target / "audit.json").is_file():
        return
    recipe = run.recipe
    with run.stage("build"):
        found = [one for source in recipe.documents for one in _read(source)]
        kept = unique_documents(found)
        documents = split_documents(kept, validation_share=recipe.dataset.validation_share, test_share=recipe.dataset.test_share, seed=recipe.seed)
        write_rows(run.folder / "documents.jsonl", documents)
        plan = Plan(tuple(get_tasks(recipe.dataset.tasks)), recipe.dataset.pairing, recipe.dataset.budget, Position(recipe.dataset.position), recipe.seed)
        planned = plan_examples(documents, plan) + general_examples(general_instructions()[: recipe.dataset.general])
        examples = _answered(run, planned)
        cut, tokens = _measured(run, examples)
        found_out = audit(documents, examples, removed=len(found) - len(kept), cut=cut, answer_tokens=tokens, seed=recipe.seed)
        save_dataset(target, documents, examples, found_out)


def _read(source: str | Source) -> list[Document]:
    return starter_documents() if isinstance(source, str) else read_documents(Path(source.path), label=source.label and Label(source.label))


def _answered(run: Run, planned: list[Example]) -> list[Example]:
    """Let the untuned model answer what only a model can; a refusal or an empty answer is no benign answer and drops the example."""
    wanting = {example.id: example for example in planned if not example.response and example.split != Split.TEST}
    with KeyedLog(run.folder / "answers.jsonl") as log:
        missing = [example for example in wanting.values() if example.id not in log.keys]
        done = len(wanting) - len(missing)
        run.progress("answers of the untuned model", done, len(wanting))
        prompts = [Prompt(example.id, example.document, example.instruction, example.position) for example in missing]
        for batch in generate(run.untuned(), prompts, max_new_tokens=run.recipe.dataset.max_new_tokens) if prompts else ():
            log.append([Answer(one.key, _whole_sentences(one.text, finished=one.finished)) for one in batch])
            done += len(batch)
            run.progress("answers of the untuned model", done, len(wanting))
    answers = {answer.key: answer.text for answer in read_rows(run.folder / "answers.jsonl", Answer)} if wanting else {}
    usable = {key: text for key, text in answers.items() if judge_text(text, document=wanting[key].document).outcome == Outcome.COMPLIED}
    return with_answers([e for e in planned if e.split != Split.TEST], usable) + [e for e in planned if e.split == Split.TEST]


def _whole_sentences(text: str, *, finished: bool) -> str:
    """An answer that met the token limit, back to its last whole sentence: a model should not learn to stop in the middle of one."""
    if finished:
        return text
    end = max(text.rfind(mark) for mark in ".!?\u3002\uff01\uff1f\n")
    return text[: end + 1].strip() if end > len(text) // 3 else text


def _measured(run: Run, examples: list[Example]) -> tuple[dict[str, int], dict[str, int]]:
    from docward.tuning.tuning import render_examples

    train = [example for example in examples if example.split == Split.TRAIN]
    rendered = render_examples(run.untuned(), train, run.recipe.tuning.max_length)
    cut = {"max_length": run.recipe.tuning.max_length, "examples": sum(one.dropped > 0 for one in rendered), "tokens": sum(one.dropped for one in rendered)}
    return cut, {Split.TRAIN.value: sum(len(one.ids) - one.answer_start for one in rendered)}


def tune(run: Run) -> None:
    """Dataset to adapter."""
    if (run.folder / "adapter" / "adapter_config.json").is_file():
        return
    if not (run.folder / "dataset" / "audit.json").is_file():
        raise RunError(f"{run.folder} has no dataset yet. Build it first: docward build RECIPE --output-dir {run.folder}")
    from docward.tuning.tuning import tune as tune_adapter

    groups = {document.id: document.triple or document.id for document in read_rows(run.folder / "documents.jsonl", Document)}
    with run.stage("tune"):
        examples = read_split(run.folder / "dataset", Split.TRAIN)
        tune_adapter(run.untuned(), examples, run.recipe.tuning, run=run.folder, seed=run.recipe.seed, groups=groups, progress=run.progress)
        run._untuned = None  # tuning changed it in place


def evaluate_model(run: Run, name: str) -> None:
    """Replies, verdicts and rates of the untuned or the defended model on the test documents."""
    folder = run.folder / "evaluation" / name
    if (folder / "metrics.json").is_file():
        return
    section = run.recipe.evaluation
    same = ("wordings", "judge", "max_new_tokens", "max_batch_tokens", "max_length")
    settings = Settings(tasks=tuple(section.tasks), **{field: getattr(section, field) for field in same})
    with run.stage(f"evaluate {name}"):
        loaded = run.untuned() if name == UNTUNED else load(str(run.folder / "adapter"))
        evaluate(loaded, test_documents(run), settings, folder, progress=lambda what, done, total: run.progress(f"{what} of the {name} model", done, total))


def test_documents(run: Run) -> list[Document]:
    """The held-out documents, at most `evaluation.limit` a label."""
    documents = [document for document in read_rows(run.folder / "documents.jsonl", Document) if document.split == Split.TEST]
    return [one for label in Label for one in [d for d in documents if d.label == label][: run.recipe.evaluation.limit]]


def summarize(run: Run) -> dict[str, Any]:
    """Set the two models and the surface baseline side by side in `metrics.json`, and draw the report."""
    from docward.report.page import write_report

    with run.stage("report"):
        documents = read_rows(run.folder / "documents.jsonl", Document)
        originals = {document.id: document.text for document in documents}
        folder = run.folder / "evaluation"
        defended, tests = compare(folder / DEFENDED, folder / UNTUNED, originals)
        test = test_documents(run)
        refuses = surface_refuses([d for d in documents if d.split == Split.TRAIN], test)
        verdicts = classifier_verdicts(refuses, {document.id: document.label for document in test})
        surface = {"pooled": {name: asdict(rate) for name, rate in pooled(verdicts).items()}, "balance": (b := balance(verdicts)) and asdict(b)}
        auc = json.loads((run.folder / "dataset" / "audit.json").read_text(encoding="utf-8"))["surface"]["auc"]
        untuned = json.loads((folder / UNTUNED / "metrics.json").read_text(encoding="utf-8"))
        stages = run.stages()
        metrics = {
            "models": {UNTUNED: untuned, DEFENDED: defended},
            "surface": surface | {"auc": auc} if refuses else None,
            "paired": tests,
            "seconds": {name: stage["seconds"] for name, stage in stages.items()},
            "peak_memory_mib": max(stage["peak_memory_mib"] for stage in stages.values()),
        }
        write_json(run.folder / "metrics.json", metrics)
        write_report(run.folder)
    return metrics


def run_loop(recipe: Recipe, folder: Path, *, progress: Progress = lambda *_: None) -> dict[str, Any]:
    """The whole loop; returns what `metrics.json` holds."""
    with open_run(recipe, folder, progress) as run:
        if (folder / "report.html").is_file() and (folder / "metrics.json").is_file():
            found: dict[str, Any] = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
            return found
        build(run)
        evaluate_model(run, UNTUNED)
        tune(run)
        evaluate_model(run, DEFENDED)
        return summarize(run)
