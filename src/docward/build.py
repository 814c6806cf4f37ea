"""The build stage: sources -> documents -> examples -> a dataset folder, in one pass over the texts.

In: a recipe's `documents:` and `dataset:`. Out: `documents.jsonl` and `dataset/`. Texts go by in shards of 1,000, several processes at once; only light entries
are held for all of them. Every shard is a file, whole or not there, so a build that was stopped goes on and ends with the same bytes.

    work/  shards/documents-00000.parquet ...   cleaned and fingerprinted
           examples/00000.parquet ...           planned; benign answers still empty where a model gives them
"""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

from docward.asking import Answerer, susceptibility
from docward.dataset.auditing import ExampleCounts, audit, sampled, warnings
from docward.dataset.building import GENERAL, Plan, assign, check_both, examples_of, general_examples
from docward.dataset.saving import save_dataset
from docward.dataset.splitting import split_documents
from docward.dataset.surface import surface_auc
from docward.documents.importing import Entry, import_shards, resolve, shard_documents, shard_paths, write_forbidden
from docward.documents.pooling import in_order
from docward.documents.reading import general_instructions
from docward.errors import DatasetError
from docward.models import load_tokenizer
from docward.recipe import DatasetSection, Recipe
from docward.records import parquet_batches, row_text, whole_file, write_parquet
from docward.rendering import render
from docward.tasks import get_tasks
from docward.types import Document, Example, Position, Split, Task, Want

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from docward.models import Loaded

Progress = Callable[[str, int, int], None]
MEASURED = 2000  # training examples whose tokens are counted: all of a small dataset, a spread sample of a large one


@dataclass(frozen=True, slots=True)
class ShardPlan:
    """One shard's documents and the tasks they get."""

    source: Path
    target: Path
    entries: list[Entry]
    tasks: list[tuple[Task, ...]]
    plan: Plan


def build_dataset(recipe: Recipe, folder: Path, untuned: Callable[[], Loaded], *, progress: Progress = lambda *_: None) -> dict[str, Any]:
    """Build `folder/dataset`; returns its audit.

    Args:
        recipe: `documents`, `dataset`, `seed` and the tuning section's `max_length`, `task_weights` and `benign_weight` are read.
        folder: the run folder; `work` in it holds what is half done.
        untuned: gives the untuned model, if it is needed.
        progress: told what is going on, how much is done, of how much.

    Raises:
        DocumentError: a source cannot be used, or there is nothing to train on.
        DatasetError: surface alone tells malicious from sensitive better than `dataset.max_surface_auc`.
    """
    section, work = recipe.dataset, folder / "work"
    tokenizer, context = load_tokenizer(recipe.model_name_or_path)  # first: a wrong name should not cost a build
    limit = min(recipe.tuning.max_length, context)
    forbidden = work / "forbidden.npy" if section.decontaminate else None
    if forbidden and not forbidden.is_file():
        write_forbidden(section.decontaminate, forbidden)
    table = recipe.task_table()
    how: dict[str, Any] = {"tidy": section.clean, "num_proc": section.num_proc, "contaminated": forbidden, "tasks": table}
    import_shards(recipe.documents, work, **how, progress=progress)
    kept = resolve(work, threshold=section.near_duplicates, drop_near=section.drop_near_duplicates, conflicts=section.conflicts)
    entries = split_documents(kept.entries, validation_share=section.validation_share, test_share=section.test_share, seed=recipe.seed)
    chosen = sampled([entry for entry in entries if not entry.is_prompt], seed=recipe.seed)
    sample = [document for _, documents in _documents(work, chosen) for document in documents]
    surface = _surface(sample, section.max_surface_auc, seed=recipe.seed)
    tasks = tuple(get_tasks(section.tasks, table))
    plan = Plan(tasks, section.pairing, section.budget, Position(section.position), recipe.seed, tuple(section.system_prompts))
    examples = _plan_shards(entries, plan, work, section, progress)
    both = {"benign": bool(recipe.tuning.benign_weight)}
    waiting = _check_planned(examples, entries, tokenizer, limit, **both)
    _write_documents(work, entries, folder / "documents.jsonl")
    counts = ExampleCounts()
    answerer = Answerer(recipe, untuned, counts, progress, waiting)
    finished = (answerer.filled(batch) for path in examples for batch in parquet_batches(path, Example))
    words = [entry.words for entry in entries]

    def finish(measured: Sequence[Example]) -> dict[str, Any]:
        wants = {want: sum(cell[want.value] for task, cell in counts.examples.get("train", {}).items() if task != GENERAL) for want in Want}
        check_both(wants, entries, **both)
        found = {"removed": kept.removed, "cleaned": kept.cleaned, "clusters": kept.clusters, "surface": surface, "teacher": answerer.teacher_counts()}
        found |= _measured(tokenizer, limit, measured, counts)
        if recipe.tuning.task_weights == "susceptible":
            found["task_weights"] = susceptibility(recipe, untuned(), measured, tasks)
        audited = audit(entries, words, counts, sample, **found)
        return audited | {"warnings": warnings(audited)}

    found = save_dataset(folder / "dataset", finished, finish, measured=MEASURED)
    shutil.rmtree(work, ignore_errors=True)
    return found


def _surface(sample: Sequence[Document], limit: float, *, seed: int) -> dict[str, Any]:
    found = surface_auc(sample, seed=seed) | {"limit": limit, "default_limit": DatasetSection.model_fields["max_surface_auc"].default}
    if found["auc"] is not None and found["auc"] > limit:
        tells = ", ".join(f"{name} ({'more' if weight > 0 else 'less'} in malicious)" for name, weight in found["tells"].items())
        raise DatasetError(
            f"Surface alone (length, opener, punctuation, layout, function words) tells malicious from sensitive documents at AUC {found['auc']:.2f} "
            f"({found['low']:.2f} to {found['high']:.2f}); dataset.max_surface_auc is {limit}. A model tuned on them may learn surface instead of intent. "
            f"What tells most: {tells}. Add sensitive documents that look like the malicious ones, or build all the same, which the audit records: "
            "--set dataset.max_surface_auc=1"
        )
    return found


def _documents(work: Path, entries: Sequence[Entry]) -> Iterator[tuple[Path, list[Document]]]:
    """Shard by shard, the documents of entries (which stand in the order of their shards)."""
    paths = shard_paths(work)
    for shard, group in groupby(entries, key=lambda entry: entry.shard):
        yield paths[shard], shard_documents(paths[shard], list(group))


def _write_documents(work: Path, entries: Sequence[Entry], target: Path) -> None:
    with whole_file(target) as draft, draft.open("w", encoding="utf-8") as out:
        for _, documents in _documents(work, entries):
            out.writelines(row_text(document) for document in documents)


def _plan_shards(entries: Sequence[Entry], plan: Plan, work: Path, section: DatasetSection, progress: Progress) -> list[Path]:
    assigned = assign(entries, plan)
    paths = shard_paths(work)

    def jobs() -> Iterator[ShardPlan]:
        for shard, group in groupby(entries, key=lambda entry: entry.shard):
            members = list(group)
            yield ShardPlan(paths[shard], work / "examples" / f"{shard:05}.parquet", members, [assigned[one.id] for one in members], plan)

    done, made = 0, []
    for path, count in in_order(_write_examples, jobs(), num_proc=section.num_proc):
        done += count
        made += [path] if path.is_file() else []
        progress("documents planned", done, len(entries))
    general = general_examples(general_instructions()[: section.general])
    if general:
        made.append(work / "examples" / "general.parquet")
        write_parquet(made[-1], general)
    return made


def _write_examples(job: ShardPlan) -> tuple[Path, int]:
    if not job.target.is_file():
        documents = shard_documents(job.source, job.entries)
        write_parquet(job.target, [one for document, tasks in zip(documents, job.tasks, strict=True) for one in examples_of(document, tasks, job.plan)])
    return job.target, len(job.entries)


def _check_planned(paths: Sequence[Path], documents: Sequence[Entry], tokenizer: PreTrainedTokenizerBase, limit: int, *, benign: bool) -> int:
    """Find what would fail later, before any model is asked: nothing to train on, no room for a document. Returns how many examples wait for an answer."""
    import pyarrow.parquet

    waiting, wants, longest = 0, Counter[Want](), ("", "", "")
    for path in paths:
        table = pyarrow.parquet.read_table(path, columns=["response", "split", "want", "task", "instruction", "system"])
        for response, split, want, task, instruction, system in zip(*(column.to_pylist() for column in table.columns), strict=True):
            waiting += not response and split != Split.TEST
            if split == Split.TRAIN and task != GENERAL:
                wants[Want(want)] += 1
                longest = max(longest, (instruction, response if want == Want.REFUSE else "", system), key=lambda one: sum(map(len, one)))
    check_both(wants, documents, benign=benign)
    instruction, response, system = longest
    render(tokenizer, document="Some words.", instruction=instruction, answer=response or "Yes.", system=system, limit=limit)
    return waiting


def _measured(tokenizer: PreTrainedTokenizerBase, limit: int, examples: Sequence[Example], counts: ExampleCounts) -> dict[str, Any]:
    """What of these training examples will be cut at `limit` tokens, and how long their answers are."""
    from docward.tuning.tuning import render_examples

    total = sum(sum(cell.values()) for cell in counts.examples.get("train", {}).values())
    rendered = render_examples(tokenizer, examples, limit)
    cut = {"max_length": limit, "measured": len(rendered), "of": total}
    cut |= {"examples": sum(one.dropped > 0 for one in rendered), "tokens": sum(one.dropped for one in rendered)}
    return {"cut": cut, "answer_tokens": {Split.TRAIN.value: sum(len(one.ids) - one.answer_start for one in rendered)}}
