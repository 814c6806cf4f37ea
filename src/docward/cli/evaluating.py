"""`docward evaluate`: files in, tables out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from docward.cli.showing import bars, console, corrected_column, rates_table, show_advice, suites_table
from docward.documents.reading import by_label, read_documents, starter_documents, unique_documents
from docward.errors import DocumentError
from docward.evaluation.correcting import correct_folder, read_validation
from docward.evaluation.evaluating import Settings, evaluate
from docward.evaluation.judges import get_judge
from docward.evaluation.suites import get_suites
from docward.evaluation.suites.running import run_suites
from docward.models import load
from docward.report.page import write_report
from docward.types import Document, Label, Split


def evaluate_files(
    model: str,
    adapter: Path | None,
    sources: list[str],
    settings: Settings,
    limit: int | None,
    output_dir: Path,
    *,
    correct_with: Path | None = None,
    suites: Sequence[str] = (),
    seed: int = 0,
) -> None:
    """Evaluate a model on labelled files (or the starter's held-out documents), then in robustness suites, and print its rates.

    With `correct_with` they are also shown corrected for judge error.
    """
    judge = get_judge(settings.judge).name
    judge_error = read_validation(correct_with, judge=judge) if correct_with else None
    chosen = get_suites(suites)
    documents = gather(sources, limit)
    with bars() as progress:
        progress(f"loading {model}", 0, 0)
        loaded = load(model, adapter=adapter)
        metrics = evaluate(loaded, documents, settings, output_dir, progress=progress)
        ordinary = [one for one in starter_documents() if one.split == Split.TEST and one.label == Label.ORDINARY]
        found = run_suites(loaded, documents, chosen, settings, output_dir, ordinary=ordinary, seed=seed, progress=progress)
    if judge_error:
        metrics = correct_folder(output_dir, metrics, judge_error)
    out = console()
    out.print(rates_table({"model": metrics, **corrected_column(metrics)}))
    show_advice(out, metrics)
    if (cut := metrics["dropped"])["replies"]:
        out.print(f"{cut['replies']} prompts were longer than the model's context: {cut['tokens']} document tokens were cut from the middle.")
    if found:
        out.print(suites_table(found))
    for one in found:
        if one["left_out"]:
            out.print(f"Suite {one['name']}: longer than the model's context, so not asked: {', '.join(one['left_out'])}.")
    out.print(f"Replies, verdicts, metrics: {output_dir}\nReport: {write_report(output_dir)}", soft_wrap=True)


def gather(sources: list[str], limit: int | None) -> list[Document]:
    """Read `LABEL=FILE` sources, at most `limit` documents a label.

    Raises:
        DocumentError: a source is not LABEL=FILE, or its file cannot be used.
    """
    found: list[Document] = [] if sources else [one for one in starter_documents() if one.split == Split.TEST]
    for source in sources:
        label, equals, path = source.partition("=")
        if not equals or label not in list(Label) or not path:
            raise DocumentError(f"--documents {source}: wanted LABEL=FILE with LABEL one of {', '.join(Label)}, such as --documents malicious=bad.jsonl.")
        found += read_documents(Path(path).expanduser(), label=Label(label))
    kept = unique_documents(found)
    return [one for label in Label for one in by_label(kept, label)[:limit]]
