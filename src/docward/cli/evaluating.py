"""`docward evaluate` and `docward judge`: files in, tables out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

from rich.table import Table

from docward import processes
from docward.cli.showing import bars, console, rates_table
from docward.documents.reading import by_label, read_documents, starter_documents, unique_documents
from docward.errors import DocumentError, RunError
from docward.evaluation.evaluating import Progress, Settings, evaluate
from docward.evaluation.judges import get_judge
from docward.evaluation.judging import Estimate, Validation, judge_file
from docward.models import Loaded
from docward.report.page import write_report
from docward.servers import Server
from docward.types import Document, Label, Split


def evaluate_files(name: str, opened: Callable[[], Loaded | Server], sources: list[str], settings: Settings, limit: int | None, output_dir: Path) -> None:
    """Evaluate a model on labelled files (or the starter's held-out documents) and print its rates; one process speaks for all.

    Raises:
        RunError: a server did not give all replies; what it gave is kept and shown.
    """
    get_judge(settings.judge)
    documents = gather(sources, limit)
    said: AbstractContextManager[Progress] = nullcontext(lambda *_: None) if processes.rank() else bars()
    with said as progress:
        progress(f"loading {name}", 0, 0)
        metrics = evaluate(opened(), documents, settings, output_dir, progress=progress)
    if processes.rank():
        return
    out = console()
    out.print(rates_table({"model": metrics}))
    if (cut := metrics["dropped"])["replies"]:
        out.print(f"{cut['replies']} prompts were longer than the model's context: {cut['tokens']} document tokens were cut from the middle.")
    out.print(f"Replies, verdicts, metrics: {output_dir}\nReport: {write_report(output_dir)}", soft_wrap=True)
    if (missing := metrics["missing"])["replies"]:
        reasons = "; ".join(f"{why} ({times})" for why, times in Counter(missing["why"]).most_common(3))
        raise RunError(
            f"{missing['replies']} of {len(documents) * len(settings.tasks)} replies did not come and are in no rate above: {reasons}. "
            "Run the same command again: only those are asked for."
        )


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
