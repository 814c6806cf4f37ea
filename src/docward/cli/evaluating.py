"""`docward evaluate` and `docward judge`: files in, tables out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.table import Table

from docward.cli.showing import bars, console, rates_table, suites_table
from docward.documents.reading import by_label, read_documents, starter_documents, unique_documents
from docward.errors import DocumentError
from docward.evaluation.evaluating import Settings, evaluate
from docward.evaluation.judges import get_judge
from docward.evaluation.judging import Estimate, Validation, judge_file
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
    suites: Sequence[str] = (),
    seed: int = 0,
) -> None:
    """Evaluate a model on labelled files (or the starter's held-out documents), then in robustness suites, and print its rates."""
    get_judge(settings.judge)
    chosen = get_suites(suites)
    documents = gather(sources, limit)
    with bars() as progress:
        progress(f"loading {model}", 0, 0)
        loaded = load(model, adapter=adapter)
        metrics = evaluate(loaded, documents, settings, output_dir, progress=progress)
        ordinary = [one for one in starter_documents() if one.split == Split.TEST and one.label == Label.ORDINARY]
        found = run_suites(loaded, documents, chosen, settings, output_dir, ordinary=ordinary, seed=seed, progress=progress)
    out = console()
    out.print(rates_table({"model": metrics}))
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


def judge_one_file(file: Path, judge: str, *, validate: bool) -> None:
    """Judge a file of replies; with labels, print how far the judge can be trusted."""
    found = judge_file(file, judge=get_judge(judge), validate=validate)
    out = console()
    if found:
        out.print(_validation_table(found))
        for model, kappa in found.models.items():
            out.print(f"  kappa on {model}: {_estimate(kappa)}")
    out.print(f"Verdicts: {file}.verdicts.jsonl", soft_wrap=True)


def _validation_table(found: Validation) -> Table:
    table = Table(title=f"The judge against {found.n} labels ({found.unjudged} unjudged); positive: refused or partial", title_justify="left")
    table.add_column("measure")
    table.add_column("value (95% interval)", justify="right")
    for name in ("accuracy", "kappa", "precision", "recall"):
        table.add_row(name, _estimate(getattr(found, name)))
    return table


def _estimate(one: Estimate) -> str:
    return "not measured" if one.value is None else f"{one.value:.3f} ({one.low:.3f} to {one.high:.3f})"
