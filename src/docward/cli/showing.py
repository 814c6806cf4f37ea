"""What a person sees on the terminal: progress with time left, the audit of a dataset, the table of rates, three samples.

In: metrics, audits and run folders. Out: text on stdout (results) and stderr (progress). Malicious text is veiled unless asked for.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from docward.records import Rows, text_hash
from docward.report import audit as audits
from docward.report.values import shown
from docward.types import Label, Outcome, Reply, Verdict

RATE_NAMES = {"malicious": "block rate", "sensitive": "over-refusal", "ordinary": "false refusal"}
PROMPT_NAMES = {  # by label, what short prompts are called, and their rate
    "malicious": ("prompts: harmful", "block rate"),
    "sensitive": ("prompts: safe", "false refusal"),
    "ordinary": ("prompts: ordinary", "false refusal"),
}
PIPE_WIDTH = 130
BRIEF = 8  # categories, sources, ... that the terminal names
LINE_EVERY = 20.0  # seconds between progress lines where there is no terminal to draw on


def console() -> Console:
    """Where results go; a file or a pipe gets lines wide enough for the tables."""
    out = Console()
    return out if out.is_terminal else Console(width=PIPE_WIDTH)


@contextmanager
def bars() -> Iterator[Callable[[str, int, int], None]]:
    """A progress function: bars with time left on a terminal, a line now and then elsewhere; all on stderr."""
    screen = Console(stderr=True)
    if not screen.is_terminal:
        yield _lines()
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(elapsed_when_finished=False),
    )
    with Progress(*columns, console=screen, speed_estimate_period=120) as progress:
        tasks: dict[str, Any] = {}

        def advance(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = progress.add_task(what, total=total or None, completed=done, rate="")
            speed = progress.tasks[tasks[what]].speed
            progress.update(tasks[what], completed=done, total=total or None, rate=_rate(speed) if speed else "")

        yield advance


def _rate(speed: float) -> str:
    """`3.2/s`, or `12 s each` of what takes longer than a second."""
    return f"{speed:.1f}/s" if speed >= 1 else f"{1 / speed:.0f} s each" if speed < 0.1 else f"{1 / speed:.1f} s each"


def _lines() -> Callable[[str, int, int], None]:
    started: dict[str, tuple[float, int]] = {}
    said: dict[str, float] = {}

    def advance(what: str, done: int, total: int) -> None:
        now = time.monotonic()
        start, first = started.setdefault(what, (now, done))
        if not total and done and what not in said:
            said[what] = now  # nobody knows of how much: a short one is over before a line is worth it
        if now - said.get(what, -LINE_EVERY) < LINE_EVERY and (done < total or not total):
            return
        said[what] = now
        left = (now - start) / (done - first) * (total - done) if done > first else None
        tail = f", {_rate((done - first) / max(now - start, 1e-9))}, {left:.0f} s left" if left else ""
        print(f"{what}: {done}/{total}{tail}" if total else f"{what}: {done}" if done else what, file=sys.stderr, flush=True)

    return advance


def percent(rate: dict[str, Any] | None, metrics: Mapping[str, Any] | None = None) -> str:
    """`85.0 (70.9 to 92.9)`: a rate in percent with its 95% interval, unjudged replies where there are any, and those that comply without trying the task."""
    if not rate or rate["value"] is None:
        return "not measured"
    unjudged = f", {rate['unjudged']} unjudged" if rate["unjudged"] else ""
    tried = next((one for one in (metrics or {}).get("attempts") or () if (one["set"], one["task"]) == (rate["set"], rate["task"])), None)
    idle = f", {tried['complied'] - tried['attempted']} no attempt" if tried and tried["attempted"] < tried["complied"] else ""
    return f"{100 * rate['value']:.1f} ({100 * rate['low']:.1f} to {100 * rate['high']:.1f}){unjudged}{idle}"


def rates_table(models: dict[str, Any], surface: dict[str, Any] | None = None) -> Table:
    """Rates per label and task, of single sets where there are several, pooled, and balance; then those of short prompts by set. One column a model."""
    table = Table(title="Share of replies that decline, % (95% interval)", title_justify="left")
    table.add_column("documents")
    table.add_column("task")
    columns = {**models, "surface baseline": surface} if surface else models
    for name in columns:
        table.add_column(name, justify="right")
    for label, title in RATE_NAMES.items():
        _add_label(table, columns, label, title)
    found = [metrics["balance"] for metrics in columns.values()]
    if any(found):
        cells = (f"{100 * b['value']:.1f} ({100 * b['low']:.1f} to {100 * b['high']:.1f})" if b else "" for b in found)
        table.add_row("", "balance", *cells, style="bold", end_section=True)
    for label, (kind, title) in PROMPT_NAMES.items():
        for source in _single_sets(models, "prompts", label):
            table.add_row(kind, Text(f"{shown(source)}: {title}"), *_cells(models, "prompts", label, source), *(["does not apply"] if surface else []))
    if any(one["attempted"] < one["complied"] for metrics in models.values() for one in metrics.get("attempts") or ()):
        table.caption = "no attempt: replies that do not decline and do not try the task either (empty, copied, looping, asking back, wrong language, off task)"
        table.caption_justify = "left"
    return table


def _add_label(table: Table, columns: Mapping[str, Any], label: str, title: str) -> None:
    """The rows of one label; the surface baseline decides by document, so it has no rates by task."""
    tasks = list(dict.fromkeys(rate["task"] for metrics in columns.values() for rate in metrics.get("rates") or () if rate["set"] == label))
    for task in tasks:
        rates = ([(rate, one) for rate in one.get("rates") or () if (rate["set"], rate["task"]) == (label, task)] for one in columns.values())
        table.add_row(label, task, *(percent(*found[0]) if found else "" for found in rates))
    sets = _single_sets(columns, "sets", label)
    for source in sets[:BRIEF] if len(sets) > 1 else []:
        table.add_row(label, Text(f"all, {shown(source)}"), *_cells(columns, "sets", label, source))
    if len(sets) > BRIEF:
        table.add_row(label, f"{len(sets) - BRIEF} more sets: metrics.json")
    blocked = any(rate["set"] == Label.MALICIOUS for metrics in columns.values() for rate in metrics.get("rates") or ())
    if tasks or blocked:  # beside a block rate stand the two others, not measured if need be
        cells = [percent(metrics["pooled"].get(label), metrics) for metrics in columns.values()]
        table.add_row(label, f"all: {title}", *cells, style="bold", end_section=True)


def _single_sets(models: Mapping[str, Any], part: str, label: str) -> list[str]:
    """The sets under a label, the largest first."""
    sizes = {one["source"]: one["documents"] for metrics in models.values() for one in metrics.get(part) or () if one["set"] == label}
    return sorted(sizes, key=lambda source: -sizes[source])


def _cells(models: Mapping[str, Any], part: str, label: str, source: str) -> list[str]:
    rows = ([one for one in metrics.get(part) or () if (one["set"], one["source"]) == (label, source)] for metrics in models.values())
    return [percent(found[0]) if found else "" for found in rows]


def suites_table(suites: Sequence[Mapping[str, Any]]) -> Table:
    """One line a suite and level: the three rates, and what the paired tests against the unchanged documents say."""
    table = Table(title="Robustness: share of replies that decline, % (95% interval)", title_justify="left")
    table.add_column("suite")
    table.add_column("level")
    for title in RATE_NAMES.values():
        table.add_column(title, justify="right")
    table.add_column("against unchanged, points")
    for suite in suites:
        levels = list(dict.fromkeys(row["level"] for row in suite["rows"]))
        for level in levels:
            found = {row["set"]: row for row in suite["rows"] if row["level"] == level}
            cells = (percent(found.get(label)) if label in found else "" for label in RATE_NAMES)
            table.add_row(suite["name"] if level == levels[0] else "", level, *cells, difference_words(found), end_section=level == levels[-1])
    judges = {suite["name"]: suite.get("judges") or {} for suite in suites}  # suites of before do not name them
    told = [_judged_by(judges)] if len({name for found in judges.values() for name in found}) > 1 else []
    if withheld := [f"{suite['name']} {many}" for suite in suites if (many := (suite.get("withheld") or {}).get("replies"))]:
        told.append(f"replies that the server withheld, not the model, and that are unjudged: {', '.join(withheld)}")
    if told:
        table.caption, table.caption_justify = escape("\n".join(told)), "left"
    return table


def _judged_by(judges: Mapping[str, Mapping[str, int]]) -> str:
    said = "; ".join(f"{suite}: {', '.join(f'{name} {many}' for name, many in found.items()) or 'not known'}" for suite, found in judges.items())
    return f"verdicts are of several judges ({said})"


def difference_words(found: Mapping[str, Mapping[str, Any]]) -> str:
    """What the paired tests of one level say: the size of each decided difference, and that the others are undecided; nothing for level 0."""
    tests = {label: test for label in RATE_NAMES if (test := found.get(label, {}).get("against_unchanged"))}
    said = [f"{RATE_NAMES[label]} {100 * test['value']:+.1f}" for label, test in tests.items() if test["decided"]]
    if len(said) < len(tests):
        said.append("others undecided" if said else "undecided")
    return ", ".join(said)


def show_run(folder: Path, metrics: dict[str, Any], *, show_documents: bool, already: bool) -> None:
    """The table, three samples, where the report is."""
    out = console()
    if already:
        out.print(f"{folder} was done already; nothing was redone.")
    out.print(rates_table(metrics["models"], metrics["surface"]))
    show_paired(out, metrics["paired"], "untuned", "defended")
    show_pooled(out, metrics["models"]["defended"])
    show_utility(out, metrics["models"])
    show_dial(out, metrics.get("dial"))
    show_advice(out, metrics["models"]["defended"])
    for line in samples(folder / "evaluation" / "defended", show_documents=show_documents):
        out.print(line)
    spent = ", ".join(f"{name} {seconds:.0f} s" for name, seconds in metrics["seconds"].items())
    out.print(f"Time: {spent}. Peak memory: {metrics['peak_memory_mib']} MiB.")
    out.print(f"Report: {folder / 'report.html'}", soft_wrap=True)


def show_paired(out: Console, paired: Sequence[Mapping[str, Any]], first: str, second: str) -> None:
    """The paired tests of two models, task by task; points are the second's less the first's."""
    if not paired:
        out.print("No paired tests: there is no request about a document to which both models have a judged reply.")
        return
    out.print(f"{first.capitalize()} against {second}, paired (exact McNemar, Holm over all cells):")
    for one in paired:
        out.print(f"  {one['set']:9} {one['task']:14} {100 * one['difference']:+6.1f} points, p = {one['p_holm']:.3g}: {one['says']}")


def show_pooled(out: Console, metrics: Mapping[str, Any]) -> None:
    """What a model refuses more or less often than the one it is set against, over all tasks, in words, undecided included."""
    if found := metrics.get("differences"):
        out.print("The same over all tasks (bootstrap and sign flips over documents, Holm over the sets):")
    for one in found or ():
        points = f"{100 * one['value']:+6.1f} points ({100 * one['low']:.1f} to {100 * one['high']:.1f})"
        out.print(f"  {one['set']:9} {'all':14} {points}, p = {one['p_holm']:.3g}: {one['says']}")


def show_dial(out: Console, dial: Mapping[str, Any] | None) -> None:
    """How the refusal token's dial was set."""
    if dial:
        sets = ", ".join(f"{name} {100 * dial[name]['refused']:.0f}% of {dial[name]['prompts']} prompts" for name in Label if name in dial)
        out.print(
            f"Dial: {dial['bias']:+.2f} on the logit of {dial['token']}, set for at most {_dial_limits(dial)}. Refused there: {sets}.",
            markup=False,
        )


def _dial_limits(dial: Mapping[str, Any]) -> str:
    sensitive = dial["max_over_refusal"]
    ordinary = dial.get("max_false_refusal", sensitive)  # of runs of before, both were one
    if ordinary == sensitive:
        return f"{100 * sensitive:.3g}% of benign validation prompts"
    return f"{100 * sensitive:.3g}% of sensitive and {100 * ordinary:.3g}% of ordinary validation prompts"


def show_utility(out: Console, models: Mapping[str, Any]) -> None:
    """What the models are worth on benign documents, what the one keeps of the other's worth, and what it does to the perplexity of general answers."""
    if any(metrics.get("utility") or metrics.get("retention") for metrics in models.values()):
        out.print(utility_table(models))
    for name, metrics in models.items():
        if one := metrics.get("perplexity"):
            ratio = f"{one['ratio']:.3f} ({one['low']:.3f} to {one['high']:.3f})"
            out.print(f"Perplexity of general answers, {name} / {_beside(models, name)}: {ratio}, {one['rows']} answers, {one['tokens']} tokens.")


def _beside(models: Mapping[str, Any], main: str) -> str:
    """The name of the model that another one is set against."""
    return next((name for name in models if name != main), "untuned")


def utility_table(models: Mapping[str, Any]) -> Table:
    """Utility by task and measure, one column a model, and what the one keeps of the other's where two are set side by side."""
    main = next((name for name, metrics in models.items() if metrics.get("retention")), "")
    beside = _beside(models, main) if main else "untuned"
    kept = {(one["task"], one["measure"]): one for metrics in models.values() for one in metrics.get("retention") or ()}
    table = Table(title="Utility on benign documents (95% interval)", title_justify="left")
    for column in ("task", "measure", "against"):
        table.add_column(column)
    for name in models:
        table.add_column(name, justify="right")
    if kept:
        margin = next(iter(kept.values()))["margin"]
        table.caption = f"kept: {main} / {beside}, with a one-sided 95% lower bound; at least {margin:g} is wanted"
        table.caption_justify = "left"
        table.add_column("kept")
    cells = {name: {(one["task"], one["measure"]): one for one in metrics.get("utility") or ()} for name, metrics in models.items()}
    for place in dict.fromkeys([*(place for found in cells.values() for place in found), *kept]):
        against = next(one.get("against", "") for one in (*(found.get(place) for found in cells.values()), kept.get(place)) if one)
        against = beside if against == "untuned" else against
        table.add_row(*place, against, *(_worth(found.get(place)) for found in cells.values()), *([_kept(kept.get(place))] if kept else []))
    return table


def _worth(one: Mapping[str, Any] | None) -> str:
    if one is None:
        return ""
    unread = f", {one['unread']} unread" if one.get("unread") else ""
    return f"{one['value']:.3f} ({one['low']:.3f} to {one['high']:.3f}){unread}"


def _kept(one: Mapping[str, Any] | None) -> str:
    if one is None:
        return ""
    value = "not measured" if one["value"] is None else f"{one['value']:.3f}"
    low = "no bound" if one["low"] is None else f"at least {one['low']:.3f}"
    return f"{value} ({low}): {one['says']}"


def show_surface(out: Console, metrics: Mapping[str, Any]) -> None:
    """What the surface baseline was fitted on, and where it does not apply."""
    if found := metrics.get("surface"):
        fitted = f"fitted on {found['training_documents']:,} training documents of {found['fitted_on']}"
        out.print(Text(f"Surface baseline: length, opener, punctuation, layout and function words alone, {fitted}."), soft_wrap=True)
    if metrics.get("prompts"):
        said = "Short prompts are asked as they are, once each, and are in no rate of documents. The surface baseline does not apply to them."
        out.print(said, soft_wrap=True)


def show_advice(out: Console, metrics: Mapping[str, Any]) -> None:
    """What so many documents can and cannot tell, a line a set."""
    for label, said in (metrics.get("advice") or {}).items():
        out.print(Text(f"{label}: {said}"), soft_wrap=True)


def corrected_column(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """The corrected rates of a model as one more column of `rates_table`, where there are any."""
    found = metrics.get("corrected")
    return {"corrected for judge error": {**found, "balance": None}} if found else {}


def show_audit(folder: Path, audit: Mapping[str, Any]) -> None:
    """The audit of the dataset that a build made in `folder`; the path of the dataset is the last line on stdout."""
    out = console()
    if splits := audits.splits(audit):
        out.print(_documents_table(splits))
    if audits.examples(audit):
        out.print(_examples_table(audit))
    notes = Table.grid(padding=(0, 2))
    for what, said, style in _audit_lines(audit):
        notes.add_row(Text(what, style="bold"), Text(said, style=style))
    out.print(notes)
    for said in audits.warnings(audit) or ():
        out.print(Text(f"! {said}", style="yellow"))
    out.print(Text(f"All of it as a page: docward report {folder}"), soft_wrap=True)
    typer.echo(str(folder / "dataset"))


def _documents_table(splits: Sequence[audits.Row]) -> Table:
    table = Table(title="Documents", title_justify="left", show_footer=True)
    table.add_column("split", footer="all")
    for label in audits.SETS:
        table.add_column(label, justify="right", footer=f"{sum(row.counts[label] for row in splits):,}")
    table.add_column("all", justify="right", footer=f"{sum(row.total for row in splits):,}")
    for row in splits:
        table.add_row(Text(row.name), *(f"{row.counts[label]:,}" for label in audits.SETS), f"{row.total:,}")
    return table


def _examples_table(audit: Mapping[str, Any]) -> Table:
    table = Table(title="Examples: to refuse / to do", title_justify="left")
    table.add_column("task")
    for split in audits.example_splits(audit):
        table.add_column(Text(shown(split)), justify="right")
    for row, cells in audits.examples(audit):
        table.add_row(Text(row.name), *(f"{cell['refuse']:,} / {cell['comply']:,}" for cell in cells))
    return table


def _audit_lines(audit: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    """What stands under the tables: a name, what is said, and its style."""
    for field, title, _ in audits.FIELDS:
        if rows := audits.table(audit, field, room=BRIEF).rows:
            yield title, ", ".join(f"{row.name} {row.total:,}" for row in rows), ""
    for title, found in (("Removed", audits.removed(audit)), ("Mended", audits.cleaned(audit)), ("Dropped examples", audits.dropped(audit))):
        yield title, ", ".join(f"{name} {many:,}" for name, many in found if many) or "none", ""
    if said := audits.cluster_words(audit):
        yield "Near copies", said, ""
    crossing = audits.crossing(audit)
    if crossing is not None:
        yield "Crossing splits", f"{crossing:,} matched groups or clusters", "red" if crossing else "green"
    surface = audits.surface(audit)
    for number, said in enumerate(audits.surface_words(audit)):
        wrong = surface["bad"] if number == 0 else surface["changed"] and number == 1
        yield "" if number else "Surface", said, "yellow" if wrong else ""
    if said := audits.cut(audit)["sentence"]:
        yield "Cut", said, ""
    if said := audits.teacher(audit):
        yield "Teacher", said, ""


def samples(folder: Path, *, show_documents: bool) -> list[Text]:
    """One reply of each set, which a hash of its key chooses; malicious text is veiled unless asked for."""
    chosen: dict[Label, Verdict] = {}
    for verdict in Rows(folder / "verdicts.jsonl", Verdict):
        first = chosen.setdefault(verdict.label, verdict)
        if text_hash(verdict.key) < text_hash(first.key):
            chosen[verdict.label] = verdict
    outcomes = {verdict.key: verdict.outcome for verdict in chosen.values()}
    replies = sorted(Rows(folder / "replies.jsonl", Reply, keys=outcomes), key=lambda reply: list(Label).index(reply.label))
    return [line for reply in replies for line in _sample(reply, outcomes[reply.key], show_documents=show_documents)]


def _sample(reply: Reply, outcome: Outcome, *, show_documents: bool) -> list[Text]:
    hidden = reply.label == Label.MALICIOUS and not show_documents
    words = len(reply.document.split())
    document = f"veiled, {words} words (--show-documents shows it)" if hidden else f"{' '.join(reply.document.split()[:14])} ... ({words} words)"
    said = "veiled: it did not decline" if hidden and outcome != Outcome.REFUSED else reply.reply.replace("\n", " ")
    return [
        Text(f"\n{reply.label} document {reply.document_id}, {reply.task}: {outcome}", style="bold"),
        Text(f"  document: {document}"),
        Text(f"  asked:    {reply.instruction or 'as it is'}"),
        Text(f"  reply:    {said}"),
    ]
