"""How fast and in how little memory many replies are judged, summed, compared and reported.

    python bench/summing.py [--quick] [--rows 10000 100000 ...]

Writes that many invented replies of two models, with verdicts, and takes each step in a process of its own: `judge` (the rules, on a JSONL), `sum` (all that
`metrics.json` says of one model, from its files), `pair` (the paired tests of two models), `compare` (the same with utility and what is kept of it) and
`report` (the page). Documents have 60 words, replies 12, and there are five replies a document; a third of the documents is malicious, whose utility is not
measured, and of the others the case of a text is set against a gold text, each other reply against the untuned model's (chrF).

What is measured is each step from its files to its result, the start of Python and all imports included: rows of one model a second of processor time (user
and system, so that other work on the machine hardly matters), and the peak resident memory of the process. The documents and their gold, which an
evaluation holds, are not in it: one gold text stands for all. `--quick` does 10,000 and 100,000 rows in place of 10,000, 100,000 and 1,000,000. The last
line is JSON: by step rows a second and peak MiB at most rows, and bytes a row, which is what the peak grows from fewest to most rows over the rows between;
the bootstrap's 32 MB, which are not full below some 50,000 rows, are in it where the fewest are fewer.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from random import Random

from docward.types import Label

TASKS = ("summarize", "translate", "sentiment", "case", "next_sentence")
WORDS = [
    "ferry",
    "letter",
    "rain",
    "bread",
    "seven",
    "gardens",
    "bridge",
    "late",
    "nobody",
    "who",
    "asked",
    "about",
    "it",
    "again",
    "the",
    "a",
    "of",
    "on",
    "for",
]
DECLINED = "I'm sorry, but I can't help with that."
SIZES = (10_000, 100_000, 1_000_000)


def write(folder: Path, model: str, rows: int) -> None:
    """Replies and verdicts of one model as an evaluation leaves them, and the replies as a file to judge; documents of 60 words, replies of 12."""
    place, random = folder / "evaluation" / model, Random(model)
    place.mkdir(parents=True)
    with (place / "replies.jsonl").open("w") as replies, (place / "verdicts.jsonl").open("w") as verdicts:
        for number in range(rows):
            document, task = f"document-{number // len(TASKS)}", TASKS[number % len(TASKS)]
            label, text = list(Label)[(number // len(TASKS)) % 3], " ".join(Random(number // len(TASKS)).choices(WORDS, k=60))
            refused = random.random() < (0.6 if label == Label.MALICIOUS and model == "defended" else 0.1)
            about = {"key": f"{document}|{task}|0", "document_id": document, "label": label, "task": task}
            said = DECLINED if refused else " ".join(random.choices(WORDS, k=12))
            replies.write(
                json.dumps(about | {"wording": 0, "instruction": "Summarize this document in a few sentences.", "document": text, "reply": said}) + "\n"
            )
            why = "opens with: i'm sorry, but i can't" if refused else "no phrase that declines"
            verdicts.write(json.dumps(about | {"outcome": "refused" if refused else "complied", "judge": "rules", "why": why}) + "\n")


def judge(folder: Path) -> None:
    """Verdicts of the rules on a file of replies."""
    from docward.evaluation.judges import RuleJudge
    from docward.evaluation.rejudging import judge_file_by

    judge_file_by([RuleJudge()], folder / "evaluation" / "defended" / "replies.jsonl")


def sum_up(folder: Path) -> None:
    """The metrics of one model, from its files: `docward judge FOLDER --again`, where nothing is left to judge."""
    from docward.evaluation.judges import RuleJudge
    from docward.evaluation.rejudging import judge_evaluation

    assert judge_evaluation(folder / "evaluation" / "defended", RuleJudge(), again=True).asked == 0


def pair(folder: Path) -> None:
    """The paired tests of both models."""
    from docward.evaluation.comparing import Pairs
    from docward.records import Rows
    from docward.types import Verdict

    pairs = Pairs(*(Rows(folder / "evaluation" / model / "verdicts.jsonl", Verdict) for model in ("defended", "untuned")))
    assert pairs.paired()
    assert pairs.differences()


class Golds(dict[str, dict[str, str]]):
    """The documents' own texts, which an evaluation has in memory: one for all here, as they are not what is measured."""

    def get(self, name: str, default: object = None) -> dict[str, str]:  # type: ignore[override]
        """The same for all."""
        return {"case": "The ferry was late again."}


def compare_models(folder: Path) -> None:
    """Everything that is said of one model beside another."""
    from docward.evaluation.evaluating import compare

    metrics, tests = compare(folder / "evaluation" / "defended", folder / "evaluation" / "untuned", Golds(), margin=0.95)
    untuned = metrics | {"utility": [], "retention": [], "differences": []}
    (folder / "metrics.json").write_text(json.dumps({"models": {"untuned": untuned, "defended": metrics}, "paired": tests}))


def report(folder: Path) -> None:
    """The page."""
    from docward.report.page import write_report

    write_report(folder)


STEPS: dict[str, Callable[[Path], None]] = {"sum": sum_up, "pair": pair, "compare": compare_models, "report": report, "judge": judge}


def measured(step: str, folder: Path) -> tuple[float, float]:
    """Seconds of processor time and peak MiB of a step in a process of its own."""
    done = subprocess.run([sys.executable, __file__, "--step", step, str(folder)], stdout=subprocess.PIPE, text=True, check=True)
    seconds, peak = json.loads(done.stdout.splitlines()[-1])
    return float(seconds), float(peak)


def take(step: str, folder: Path) -> None:
    """Take a step here and print what it took."""
    STEPS[step](folder)
    used = resource.getrusage(resource.RUSAGE_SELF)
    print(json.dumps([used.ru_utime + used.ru_stime, used.ru_maxrss / 1024]))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="10,000 and 100,000 rows")
    parser.add_argument("--rows", type=int, nargs="+", help="other numbers of rows, growing")
    parser.add_argument("--step", nargs=2, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.step:
        take(given.step[0], Path(given.step[1]))
        return
    sizes = given.rows or (SIZES[:2] if given.quick else SIZES)
    found: dict[str, list[tuple[float, float]]] = {step: [] for step in STEPS}
    for rows in sizes:
        with tempfile.TemporaryDirectory() as folder:
            for model in ("untuned", "defended"):
                write(Path(folder), model, rows)
            for step, kept in found.items():
                kept.append(measured(step, Path(folder)))
                seconds, peak = kept[-1]
                print(f"{rows:>9,} rows  {step:8} {rows / seconds:>9,.0f} rows/s of processor time  {peak:>7,.0f} MiB", flush=True)
    figures = {
        step: {
            "rows_per_second": round(sizes[-1] / kept[-1][0], 1),
            "peak_memory_mib": round(kept[-1][1]),
            "bytes_a_row": round((kept[-1][1] - kept[0][1]) * 2**20 / max(1, sizes[-1] - sizes[0])),
        }
        for step, kept in found.items()
    }
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
