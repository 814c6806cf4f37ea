"""The loop: documents -> dataset -> tuning -> evaluation -> report, each stage from files to files.

In: a recipe and a run folder. Out: the run folder, filled. Every stage knows from its files whether it is done; stop anywhere, start again, and it goes on.

    run/  recipe.yaml  environment.json  documents.jsonl  dataset/  adapter/  training.jsonl
          evaluation/{untuned,defended}/{replies,verdicts,likelihoods}.jsonl  evaluation/general.jsonl  metrics.json  report.html
"""

from __future__ import annotations

import json
import os
import platform
import resource
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml

from docward import processes
from docward.asking import general_answers
from docward.build import build_dataset
from docward.dataset.disturbing import disturbed_copies
from docward.dataset.saving import read_split
from docward.dataset.surface import surface_weights
from docward.devices import best_device, default_dtype
from docward.documents.reading import general_instructions
from docward.documents.sources import source_hash
from docward.errors import DatasetError, RecipeError, RunError, UsageError
from docward.evaluation.baseline import surface_baseline
from docward.evaluation.evaluating import Settings, compare, evaluate
from docward.evaluation.likelihood import GeneralAnswer, read_general
from docward.evaluation.utility import golds_of
from docward.models import Loaded, is_adapter, load
from docward.recipe import Recipe, Source, dump
from docward.records import LOCK, held, read_rows, write_json, write_rows, write_text
from docward.tasks import get_tasks, system_prompt
from docward.types import Document, Label, Split

Progress = Callable[[str, int, int], None]
UNTUNED, DEFENDED = "untuned", "defended"
BEGUN = ("environment.json", "recipe.yaml", "stages.json", "documents.jsonl", LOCK)  # what a run holds before it has a dataset
PACKAGES = ("docward", "torch", "transformers", "peft", "accelerate", "datasets")


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
            self._untuned = load(self.recipe.model_name_or_path, dtype=self.dtype)
        return self._untuned

    @property
    def dtype(self) -> str | None:
        """What the run tunes and evaluates in; None where it has done neither."""
        place = self.folder / "environment.json"
        found: str | None = json.loads(place.read_text(encoding="utf-8")).get("dtype") if place.is_file() else None
        return found

    def settle(self) -> None:
        """Choose what to compute in, where that is not chosen: on another machine the run goes on in the same, else its weights would be others."""
        own = str(default_dtype(best_device())).removeprefix("torch.")
        if self.dtype is None:
            place = self.folder / "environment.json"
            write_json(place, json.loads(place.read_text(encoding="utf-8")) | {"dtype": own})
        elif self.dtype != own:
            self.progress(f"computing in {self.dtype}, as this run has before (here {own} would be chosen)", 0, 0)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Add the seconds and the peak memory of a stage to `stages.json`."""
        start = time.monotonic()
        try:
            yield
        finally:
            if not processes.rank():
                self._note(name, time.monotonic() - start)

    def _note(self, name: str, seconds: float) -> None:
        stages = self.stages()
        before = stages.get(name, {"seconds": 0.0, "peak_memory_mib": 0})
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
        stages[name] = {"seconds": round(before["seconds"] + seconds, 1), "peak_memory_mib": max(before["peak_memory_mib"], peak)}
        write_json(self.folder / "stages.json", stages)

    def stages(self) -> dict[str, Any]:
        """Seconds and peak memory (MiB) by stage, added up over restarts."""
        place = self.folder / "stages.json"
        found: dict[str, Any] = json.loads(place.read_text(encoding="utf-8")) if place.is_file() else {}
        return found


@contextmanager
def open_run(recipe: Recipe, folder: Path, progress: Progress = lambda *_: None) -> Iterator[Run]:
    """Claim a run folder for a recipe, or go on with one that holds the same.

    Where a fresh run ends in a wrong use (a bad document, a model name) or in a dataset that surface gives away, nothing of it stays: the next try starts anew.

    Raises:
        RunError: the folder holds another recipe's run, or its inputs have changed, or another process works in it.
        StorageError: it cannot be written.
    """
    if processes.rank():  # process 0 holds the folder for all, and makes what is missing
        yield Run(recipe, folder)
        return
    with held(folder):
        fresh = not (folder / "recipe.yaml").is_file()
        if fresh and (stray := sorted(path.name for path in folder.iterdir() if path.name not in (LOCK, BEGUN[0]) and not path.name.endswith(".draft"))):
            raise RunError(f"{folder} is not empty and is no run folder (it holds {', '.join(stray[:3])}). Choose another --output-dir.")
        try:
            _claim(recipe, folder)
            yield Run(recipe, folder, progress)
        except (UsageError, DatasetError):
            if fresh and not (folder / "dataset" / "audit.json").exists():
                for name in ("work", "dataset"):
                    shutil.rmtree(folder / name, ignore_errors=True)
                for name in BEGUN:
                    (folder / name).unlink(missing_ok=True)
                with suppress(OSError):
                    folder.rmdir()
            raise


def _claim(recipe: Recipe, folder: Path) -> None:
    inputs = {source.title: source_hash(source) for source in [*recipe.documents, *recipe.dataset.decontaminate, *_general_source(recipe)]}
    place = folder / "recipe.yaml"
    if not place.is_file():
        write_json(folder / "environment.json", _environment(recipe, inputs))
        write_text(place, dump(recipe))
        return
    from docward.tuning.tuning import FREE, tuned_folder

    there, now = _flat(yaml.safe_load(place.read_text(encoding="utf-8"))), _flat(yaml.safe_load(dump(recipe)))
    differing = [key for key in sorted({*there, *now}) if there.get(key) != now.get(key)]
    free = {f"tuning.{name}" for name in FREE}
    if differs := [f"{key}: {there.get(key)!r} there, {now.get(key)!r} now" for key in differing if key not in free]:
        raise RunError(f"{folder} holds another recipe's run ({'; '.join(differs[:5])}). Choose another --output-dir, or delete that folder.")
    known = json.loads((folder / "environment.json").read_text(encoding="utf-8"))["inputs"]
    if changed := [name for name in inputs if inputs[name] != known.get(name)]:
        raise RunError(f"The documents have changed since {folder} was begun ({', '.join(changed)}). Choose another --output-dir, or delete that folder.")
    if differing and not tuned_folder(folder).is_dir():  # else it says how the run was tuned
        write_text(place, dump(recipe))


def _general_source(recipe: Recipe) -> list[Source]:
    return [Source(path=recipe.evaluation.general_path)] if recipe.evaluation.general_path else []


def _flat(values: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(values, dict):
        return {prefix: values}
    return {name: value for key, inner in values.items() for name, value in _flat(inner, f"{prefix}.{key}" if prefix else key).items()}


def _environment(recipe: Recipe, inputs: dict[str, str]) -> dict[str, Any]:
    versions = {name: version(name) for name in PACKAGES}
    device = best_device()
    machine = {"python": platform.python_version(), "platform": platform.platform(), "cores": len(os.sched_getaffinity(0)), "device": device}
    return {**versions, **machine, "seed": recipe.seed, "inputs": inputs}


def build(run: Run) -> dict[str, Any]:
    """Documents to a defense dataset, with an audit, which is returned."""
    place = run.folder / "dataset" / "audit.json"
    if place.is_file():
        found: dict[str, Any] = json.loads(place.read_text(encoding="utf-8"))
        return found
    with run.stage("build"):
        return build_dataset(run.recipe, run.folder, run.untuned, progress=run.progress)


def tune(run: Run) -> None:
    """Dataset to adapter (or, without PEFT, to a whole model).

    Raises:
        RunError: the run has no dataset yet.
    """
    from docward.tuning.checkpoints import clear
    from docward.tuning.tuning import tune as tune_adapter
    from docward.tuning.tuning import tuned_folder

    if is_adapter(done := tuned_folder(run.folder)) or (done / "config.json").is_file():
        if not processes.rank():
            clear(run.folder / "checkpoints")  # a kill may have come just before this
            with run.stage("tune"):
                _calibrate(run)
        return
    if not (run.folder / "dataset" / "audit.json").is_file():
        raise RunError(f"{run.folder} has no dataset yet. Build it first: docward build RECIPE --output-dir {run.folder}")
    processes.on_main(run.settle)
    documents = read_rows(run.folder / "documents.jsonl", Document)
    groups = {document.id: document.matched for document in documents}
    balance = surface_weights([one for one in documents if one.split == Split.TRAIN]) if run.recipe.tuning.balance_surface else None
    weights = json.loads((run.folder / "dataset" / "audit.json").read_text(encoding="utf-8")).get("task_weights")
    with run.stage("tune"):
        examples = read_split(run.folder / "dataset", Split.TRAIN)
        section = run.recipe.tuning
        # With steps, the answers of passages among others would be learned: to answer for a part of the text.
        examples += disturbed_copies(examples, section.disturbed, seed=run.recipe.seed, groups=groups, among=not section.num_train_epochs)
        given: dict[str, Any] = {"groups": groups, "task_weights": weights, "document_weights": balance, "probe": _probe(run), "progress": run.progress}
        tune_adapter(_to_tune(run), examples, section, run=run.folder, seed=run.recipe.seed, **given)
        run._untuned = None  # tuning changed it in place
        processes.on_main(lambda: _calibrate(run))


def _to_tune(run: Run) -> Loaded:
    """The model as tuning wants it: in fewer bits, in float32 where all its weights are trained, else the untuned one as it is."""
    section = run.recipe.tuning
    bits = 4 if section.load_in_4bit else 8 if section.load_in_8bit else None
    if section.use_peft and bits is None:
        return run.untuned()
    if bits and processes.spread():
        raise RecipeError(
            f"tuning.load_in_{bits}bit is set, and FSDP and DeepSpeed divide weights in 16 or 32 bits only. Launch with recipes/accelerate/ddp_8gpu.yaml, "
            "or leave it out."
        )
    run.progress(f"loading {run.recipe.model_name_or_path}", 0, 0)
    return load(run.recipe.model_name_or_path, dtype=run.dtype if section.use_peft else "float32", bits=bits)


def _calibrate(run: Run) -> None:
    """Set the refusal token's dial on the validation documents, where the recipe has such a token and it is not set yet."""
    from docward.tuning.calibrating import PLACE, calibrate
    from docward.tuning.refusal_token import refusal_token_id
    from docward.tuning.tuning import tuned_folder

    section, folder = run.recipe.tuning, tuned_folder(run.folder)
    if section.refusal_token is None or (folder / PLACE).is_file() or not (documents := _validation(run)):
        return
    loaded = load(str(folder), dtype=run.dtype)
    token = refusal_token_id(loaded, section.refusal_token)
    if token is None:
        return
    asked = run.recipe.evaluation
    tasks = tuple(get_tasks(run.recipe.dataset.tasks, run.recipe.task_table()))
    settings = Settings(tasks, system_prompt(asked.system_prompt), max_batch_tokens=asked.max_batch_tokens, max_length=section.max_length)
    given: dict[str, Any] = {"max_over_refusal": section.max_over_refusal, "max_false_refusal": section.max_false_refusal, "progress": run.progress}
    calibrate(loaded, documents, settings, token=token, folder=folder, pairing=run.recipe.dataset.pairing, **given)


def _validation(run: Run) -> list[Document]:
    return [one for one in read_rows(run.folder / "documents.jsonl", Document) if one.split == Split.VALIDATION and not one.is_prompt]


def _probe(run: Run) -> Any:
    """What the model is probed on while tuning: the first validation documents of each label, under the tasks that are trained."""
    section = run.recipe.tuning
    if section.eval_steps is None:
        return None
    from docward.tuning.probing import ProbePlan, probe_documents

    documents = _validation(run)
    tasks = tuple(get_tasks(run.recipe.dataset.tasks, run.recipe.task_table()))
    evaluation = run.recipe.evaluation
    settings = Settings(
        tasks,
        system_prompt(evaluation.system_prompt),
        judge=evaluation.judge,
        max_new_tokens=section.eval_max_new_tokens,
        max_batch_tokens=evaluation.max_batch_tokens,
    )
    return ProbePlan(probe_documents(documents, section.eval_documents), settings, section.eval_steps, section.early_stopping_patience)


def evaluate_model(run: Run, name: str) -> None:
    """Replies, verdicts and rates of the untuned or the defended model on the test documents."""
    folder = run.folder / "evaluation" / name
    if (folder / "metrics.json").is_file():
        return
    from docward.tuning.tuning import tuned_folder

    processes.on_main(run.settle)
    section = run.recipe.evaluation
    same = ("wordings", "judge", "max_new_tokens", "max_batch_tokens", "max_length", "verdict_only")
    tasks = tuple(get_tasks(section.tasks, run.recipe.task_table()))
    asked = {field: getattr(section, field) for field in same}
    with run.stage(f"evaluate {name}"):
        settings = Settings(tasks, system_prompt(section.system_prompt), general=general_of(run), **asked)
        loaded = run.untuned() if name == UNTUNED else load(str(tuned_folder(run.folder)), dtype=run.dtype)
        evaluate(loaded, test_documents(run), settings, folder, progress=partial(_progress_of, run, name))


def _progress_of(run: Run, name: str, what: str, done: int, total: int) -> None:
    """What is counted is said to be of a model; a note counts nothing, and names its folder itself."""
    run.progress(f"{what} of the {name} model" if total else what, done, total)


def general_of(run: Run) -> tuple[GeneralAnswer, ...]:
    """The general answers whose perplexity is measured: the recipe's own, or the untuned model's to instructions that tuning does not see."""
    recipe = run.recipe
    if recipe.evaluation.general_path:
        return read_general(Path(recipe.evaluation.general_path))
    instructions = general_instructions()[recipe.dataset.general :][: recipe.evaluation.general]
    place = run.folder / "evaluation" / "general.jsonl"
    if not place.is_file():
        write_rows(place, general_answers(recipe, run.untuned(), instructions, run.progress) if instructions else [])
    return tuple(read_rows(place, GeneralAnswer)) if place.stat().st_size else ()


def test_documents(run: Run) -> list[Document]:
    """The held-out documents, at most `evaluation.limit` a label, then as many short prompts; evenly spaced, so each source and part of one has its share."""
    documents = [document for document in read_rows(run.folder / "documents.jsonl", Document) if document.split == Split.TEST]
    groups = [[one for one in documents if (one.is_prompt, one.label) == (prompt, label)] for prompt in (False, True) for label in Label]
    return [one for group in groups for one in evenly(group, run.recipe.evaluation.limit)]


def evenly(documents: Sequence[Document], limit: int | None) -> list[Document]:
    """At most `limit` of the documents, in their order, with the same distance between them."""
    count = len(documents) if limit is None else min(limit, len(documents))
    return [documents[(2 * number + 1) * len(documents) // (2 * count)] for number in range(count)]


def summarize(run: Run) -> dict[str, Any]:
    """Set the two models and the surface baseline side by side in `metrics.json`, and draw the report."""
    from docward.report.page import write_report

    with run.stage("report"):
        documents = read_rows(run.folder / "documents.jsonl", Document)
        folder = run.folder / "evaluation"
        defended, tests = compare(folder / DEFENDED, folder / UNTUNED, golds_of(documents), margin=run.recipe.evaluation.retention_margin)
        surface = surface_baseline([document for document in documents if document.split == Split.TRAIN], test_documents(run))
        auc = json.loads((run.folder / "dataset" / "audit.json").read_text(encoding="utf-8"))["surface"]["auc"]
        untuned = json.loads((folder / UNTUNED / "metrics.json").read_text(encoding="utf-8"))
        stages = run.stages()
        metrics = {
            "models": {UNTUNED: untuned, DEFENDED: defended},
            "surface": surface and surface | {"auc": auc},
            "paired": tests,
            "dial": _dial(run),
            "seconds": {name: stage["seconds"] for name, stage in stages.items()},
            "peak_memory_mib": max(stage["peak_memory_mib"] for stage in stages.values()),
        }
        (run.folder / "report.html").unlink(missing_ok=True)  # one of the dataset alone would look like the last step
        write_json(run.folder / "metrics.json", metrics)
        write_report(run.folder)
    return metrics


def _dial(run: Run) -> dict[str, Any] | None:
    """How the refusal token's dial was set, where there is one."""
    from docward.tuning.calibrating import PLACE
    from docward.tuning.tuning import tuned_folder

    place = tuned_folder(run.folder) / PLACE
    found: dict[str, Any] | None = json.loads(place.read_text(encoding="utf-8")) if place.is_file() else None
    return found


def run_loop(recipe: Recipe, folder: Path, *, progress: Progress = lambda *_: None) -> dict[str, Any]:
    """The whole loop; returns what `metrics.json` holds."""
    with open_run(recipe, folder, progress) as run:
        if (folder / "report.html").is_file() and (folder / "metrics.json").is_file():
            found: dict[str, Any] = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
            return found
        from docward.tuning.arguments import check_settings

        check_settings(recipe.tuning)
        if recipe.evaluation.general_path:
            read_general(Path(recipe.evaluation.general_path))
        build(run)
        if not test_documents(run):
            raise RecipeError(f"{folder} has no held-out documents to evaluate on. Set dataset.test_share above 0, or tune alone: docward tune.")
        _probe(run)  # better that it has nothing to probe on is found out now than after an evaluation
        evaluate_model(run, UNTUNED)
        tune(run)
        evaluate_model(run, DEFENDED)
        return summarize(run)
