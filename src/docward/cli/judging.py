"""`docward judge`: replies of a file or a folder in, verdicts out, and tables of how far judges can be trusted and agree; suites of a folder too."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from docward.cli.showing import bars, console, rates_table, suites_table
from docward.errors import UsageError
from docward.evaluation.judges import Judge, get_judge
from docward.evaluation.judging import Validation
from docward.evaluation.rejudging import Agreement, FileJudged, FolderJudged, judge_evaluation, judge_file_by, judge_run, validation_place
from docward.evaluation.statistics import Interval
from docward.report.page import write_report

MEASURES = ("accuracy", "kappa", "precision", "recall")


def judge_place(place: Path, names: list[str], *, validate: bool, again: bool) -> None:
    """Judge a file of replies, the folder of an evaluation or a run folder, and print what came of it.

    Raises:
        UsageError: a judge is named twice; or several judges, or labels, with a folder.
    """
    judges = [get_judge(name) for name in names]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise UsageError(f"--judge {', '.join(twice)} was given twice: name each judge once.")
    if not place.is_dir():
        with bars() as progress:
            found = judge_file_by(judges, place, validate=validate, again=again, progress=progress)
        _show_file(found)
        return
    if validate or len(judges) > 1:
        what = "--validate wants rows with a `label`" if validate else "several judges write a file of verdicts each"
        raise UsageError(f"{place} is a folder, and {what}. Give the file: docward judge {place / 'replies.jsonl'}.")
    _judge_folder(place, judges[0], again=again)


def _judge_folder(folder: Path, judge: Judge, *, again: bool) -> None:
    alone = (folder / "replies.jsonl").is_file()
    with bars() as progress:
        found = {"the model": judge_evaluation(folder, judge, again=again, progress=progress)} if alone else {}
        found |= {} if alone else judge_run(folder, judge, again=again, progress=progress)
    out = console()
    out.print(rates_table({name: one.metrics for name, one in found.items()}, _surface(folder)))
    for name, one in found.items():
        out.print(Text(_words(name, one)))
        _show_suites(out, name, one)
    if (folder / "metrics.json").is_file():
        out.print(f"Report: {write_report(folder)}", soft_wrap=True)
    if alone and folder.parent.name == "evaluation" and (folder.parent.parent / "metrics.json").is_file():
        run = folder.parent.parent
        out.print(Text(f"The run's own figures are as before. To bring both models and {run / 'report.html'} up to date: docward judge {run}"), soft_wrap=True)


def _surface(folder: Path) -> dict[str, Any] | None:
    """The surface baseline of an evaluation or a run, which no judge changes; None where there is none."""
    place = folder / "metrics.json"
    found: dict[str, Any] | None = json.loads(place.read_text(encoding="utf-8")).get("surface") if place.is_file() else None
    return found


def _words(name: str, one: FolderJudged) -> str:
    mixed = (
        f" Verdicts of several judges stand side by side: {', '.join(f'{judge} {many}' for judge, many in one.judges.items())}." if len(one.judges) > 1 else ""
    )
    return f"{name}: asked about {one.asked} of {one.n} replies; {one.unjudged} unjudged.{mixed}"


def _show_suites(out: Console, name: str, one: FolderJudged) -> None:
    """What came of judging suites, the table of those that were, and why others were not."""
    if judged := one.suites.judged:
        n, asked, unjudged = (sum(getattr(suite, count) for suite in judged) for count in ("n", "asked", "unjudged"))
        where = ", ".join(f"{suite.found['name']} {suite.unjudged}" for suite in judged if suite.unjudged)
        out.print(Text(f"{name}, in suites: asked about {asked} of {n} replies; {unjudged} unjudged{f' ({where})' if where else ''}."))
        out.print(suites_table([suite.found for suite in judged]))
    for suite, why in one.suites.left.items():
        remedy = f"Run the same docward evaluate --suite {suite} again, which asks for no reply that is there; then judge."
        out.print(Text(f"{name}, suite {suite}: its verdicts and rates are left as they were. {why} {remedy}"), soft_wrap=True)


def _show_file(found: FileJudged) -> None:
    out = console()
    if found.validations:
        out.print(_validation_table(found.validations))
        if any(one.models for one in found.validations.values()):
            out.print(_models_table(found.validations))
    if found.agreements:
        out.print(_agreement_table(found.agreements))
    for name, place in found.places.items():
        _show_place(out, f"{name}: asked about {found.asked[name]} of {found.n} replies; {found.unjudged[name]} unjudged", place)
        if name in found.validations:
            out.print(Text(f"Validation: {validation_place(place)}"), soft_wrap=True)


def _show_place(out: Console, said: str, place: Path) -> None:
    out.print(Text(said))
    out.print(Text(f"Verdicts: {place}"), soft_wrap=True)


def _judge_columns(table: Table, judges: dict[str, Validation]) -> Table:
    for name in judges:
        table.add_column(Text(name), justify="right", overflow="fold")
    return table


def _validation_table(judges: dict[str, Validation]) -> Table:
    n = next(iter(judges.values())).n
    table = Table(title=f"Against {n} labels; positive: refused or partial; value (95% interval)", title_justify="left")
    table.add_column("measure")
    _judge_columns(table, judges)
    for measure in MEASURES:
        table.add_row(measure, *(_estimate(getattr(one, measure)) for one in judges.values()))
    table.add_row("unjudged", *(str(one.unjudged) for one in judges.values()))
    return table


def _models_table(judges: dict[str, Validation]) -> Table:
    table = Table(title="Kappa by model that replied (95% interval)", title_justify="left")
    table.add_column("model")
    _judge_columns(table, judges)
    for model in dict.fromkeys(model for one in judges.values() for model in one.models):
        table.add_row(Text(model), *(_estimate(one.models[model]) if model in one.models else "" for one in judges.values()))
    return table


def _agreement_table(pairs: list[Agreement]) -> Table:
    table = Table(title="Judges with each other: declined or complied, on replies that both judged (95% interval)", title_justify="left")
    for column in ("first", "second", "both judged", "the same", "kappa"):
        table.add_column(column, justify="left" if column in ("first", "second") else "right", overflow="fold")
    for pair in pairs:
        table.add_row(Text(pair.first), Text(pair.second), str(pair.both_judged), _estimate(pair.compared.accuracy), _estimate(pair.compared.kappa))
    return table


def _estimate(one: Interval | None) -> str:
    return "not measured" if one is None else f"{one.value:.3f} ({one.low:.3f} to {one.high:.3f})"
