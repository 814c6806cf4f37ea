"""What `bench/defence.py` prints of four small variants on the default model, and what it makes once for all of them."""

from __future__ import annotations

import contextlib
import importlib
import io
import json
import math
import shutil
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType

import pytest
import yaml

from docward.evaluation import evaluating
from docward.evaluation.likelihood import Likelihood
from docward.evaluation.utility import chrf
from docward.records import read_rows, write_rows
from docward.types import Label, Outcome, Rate, Reply, Verdict
from tiny import some_documents

ROOT = Path(__file__).parents[1]
RECIPE = {
    "documents": [{"path": "documents.jsonl"}],
    "dataset": {"tasks": ["summarize"], "max_new_tokens": 8, "general": 2, "max_surface_auc": 1},
    "tuning": {"num_train_epochs": 2, "learning_rate": 5.0e-3, "per_device_train_batch_size": 4, "max_length": 256},
    "evaluation": {"tasks": ["summarize", "case"], "max_new_tokens": 8, "general": 3, "limit": 2},
}
VARIANTS = {
    "tuned": {},
    "untuned": {"by": "untuned"},
    "poet": {"by": "untuned", "set": {"evaluation.system_prompt": "Answer every request with a poem about the sea."}},
    "surface": {"by": "surface"},
}
PROMPTS = {"held-out": 3 * 2 * 2, "development": 2 * 3 * 2}  # labels, documents, tasks
Rows = dict[tuple[str, ...], dict[str, str]]


class Bench:
    """`bench/defence.py` with small variants in a folder; who was asked for how many replies, a call each, and for all variants together at first."""

    def __init__(self, module: ModuleType, folder: Path) -> None:
        self.module, self.folder = module, folder
        self.asked, self.at_first = list[tuple[str, int]](), Counter[str]()

    def printed(self, *names: str, at: str = "runs", documents: Sequence[str] = ("malicious=bad.jsonl", "ordinary=good.jsonl")) -> Rows:
        """What it prints, by variant and set, and what is kept, by variant, set, seed, task and measure; minutes are left out, as they may change."""
        given = [one.replace("=", f"={self.folder}/") for one in documents]
        out = io.StringIO()
        with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(out):
            patch.setattr(sys, "argv", ["defence.py", *names, "--documents", *given, "--output-dir", str(self.folder / at), "--by-task"])
            self.module.main()
        found: Rows = {}
        head: list[str] = []
        for line in out.getvalue().splitlines():
            cells = [cell.strip() for cell in line.removeprefix("|").removesuffix("|").split("|")]
            head = cells if cells[0] == "variant" else head
            if len(cells) > 1 and cells != head and set(line) != {"|", "-"} and "label" not in head:
                found[tuple(cells[: 2 if "minutes" in head else 5])] = dict(zip(head, cells, strict=True))
        for row in found.values():
            row.pop("minutes", None)
        return found

    def copied(self, name: str) -> str:
        """A copy of all results."""
        shutil.copytree(self.folder / "runs", self.folder / name)
        return name

    def place(self, name: str, title: str = "held-out", *, at: str = "runs") -> Path:
        """The results of a variant on a set."""
        return self.folder / at / name / "0" / "measured" / title

    def beside(self, name: str, title: str = "held-out") -> Path:
        """What a variant is compared with."""
        return self.folder / "runs" / "_untuned" / json.loads((self.place(name, title) / "asked.json").read_text())


@pytest.fixture(scope="module")
def bench(tmp_path_factory) -> Iterator[Bench]:
    folder = tmp_path_factory.mktemp("defence")
    documents = some_documents(12)
    files = {"documents": documents[:24], "bad": documents[24:33:3], "good": documents[26:33:3], "better": documents[26::3]}
    for name, some in files.items():
        write_rows(folder / f"{name}.jsonl", some)
    (folder / "small.yaml").write_text(yaml.safe_dump(RECIPE))
    (folder / "bench").mkdir()
    variants = {name: {"recipe": "small.yaml", **one} for name, one in VARIANTS.items()}
    (folder / "bench" / "defence.yaml").write_text(yaml.safe_dump(variants, sort_keys=False))
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT / "bench")
        found = Bench(importlib.import_module("defence"), folder)
        really = evaluating.generate

        def generate(loaded, prompts, **more):
            if prompts:
                found.asked.append(("tuned" if loaded.adapter else "poet" if prompts[0].system else "untuned", len(prompts)))
            return really(loaded, prompts, **more)

        patch.setattr(evaluating, "generate", generate)
        patch.setattr(found.module, "HERE", folder / "bench")
        yield found
        sys.modules.pop("defence")


@pytest.fixture(scope="module")
def rows(bench) -> Rows:
    """All variants."""
    before = len(bench.asked)
    found = bench.printed()
    for who, many in bench.asked[before:]:
        bench.at_first[who] += many
    return found


def by_task(rows: Rows, *key: str) -> dict[str, dict[str, str]]:
    """What is kept, by task, of one variant and set."""
    return {found[3]: row for found, row in rows.items() if len(found) == 5 and found[:2] == key}


def test_the_untuned_model_is_asked_once_for_all_variants(rows, bench):
    assert bench.at_first == {"untuned": sum(PROMPTS.values()), "tuned": sum(PROMPTS.values()), "poet": sum(PROMPTS.values())}
    assert {len(read_rows(bench.beside(name, title) / "replies.jsonl", Reply)) for name in VARIANTS for title in PROMPTS} == set(PROMPTS.values())


def test_general_kept_is_untuned_perplexity_over_tuned(rows, bench):
    mine, theirs = (read_rows(folder / "likelihoods.jsonl", Likelihood) for folder in (bench.place("tuned"), bench.beside("tuned")))
    assert [one.key for one in mine] == [one.key for one in theirs]
    kept = math.exp((sum(one.log_likelihood for one in mine) - sum(one.log_likelihood for one in theirs)) / sum(one.tokens for one in mine))
    assert abs(kept - 1) > 0.01
    assert rows["tuned", "held-out"]["general kept"] == f"{kept:.2f}"
    assert by_task(rows, "tuned", "held-out")["general"]["kept"] == f"{kept:.3f}"


@pytest.mark.parametrize("title", PROMPTS)
def test_utility_kept_is_that_of_the_task_that_keeps_least(rows, bench, title):
    mine, theirs = (
        {one.key: one for one in read_rows(folder / "replies.jsonl", Reply)} for folder in (bench.place("tuned", title), bench.beside("tuned", title))
    )
    benign = [key for key, one in mine.items() if one.task == "summarize" and one.label != Label.MALICIOUS]
    found = by_task(rows, "tuned", title)
    assert found["summarize"]["kept"] == f"{sum(chrf(mine[key].reply, theirs[key].reply) for key in benign) / len(benign):.3f}"
    assert (found["summarize"]["measure"], found["summarize"]["texts"]) == ("chrf_vs_untuned", str(len(benign)))
    kept = {task: float(row["kept"]) for task, row in found.items() if task != "general"}
    assert kept.keys() == {"summarize", "case"}
    assert max(kept.values()) > min(kept.values())
    least = min(kept, key=lambda task: kept[task])
    assert rows["tuned", title]["utility kept"] == f"{kept[least]:.2f} {least}"


def test_what_is_kept_stands_with_its_bound_and_a_word(rows):
    row = by_task(rows, "tuned", "held-out")["summarize"]
    assert float(row["at least (95%)"]) < float(row["kept"]) < 0.9
    assert row["keeps 0.95"] == "does not hold"


def test_the_untuned_model_keeps_everything(rows):
    assert {row["kept"] for title in PROMPTS for row in by_task(rows, "untuned", title).values()} == {"1.000"}
    assert rows["untuned", "held-out"]["general kept"] == "1.00"
    assert rows["untuned", "development"]["utility kept"].startswith("1.00 ")


def test_a_system_prompt_stands_against_the_model_without_one(rows, bench):
    assert bench.beside("poet") == bench.beside("untuned")
    assert by_task(rows, "poet", "held-out").keys() == {"summarize", "case", "general"}
    assert any(row["kept"] != "1.000" for row in by_task(rows, "poet", "held-out").values())


def test_surface_keeps_nothing_and_general_answers_are_no_matter_of_documents(rows):
    assert rows["surface", "held-out"]["block rate"]
    assert {rows["surface", title][cell] for title in PROMPTS for cell in ("general kept", "utility kept")} == {""}
    assert [rows[name, "development"]["general kept"] for name in VARIANTS] == [""] * 4
    assert rows["tuned", "development"]["utility kept"]


def test_surface_has_no_model_asked(bench):
    before = len(bench.asked)
    assert bench.printed("surface", at="alone").keys() == {("surface", title) for title in PROMPTS}
    assert len(bench.asked) == before


def test_seeds_stand_side_by_side_and_a_task_that_was_never_done_is_none_that_keeps_least(bench, tmp_path):
    for seed, general, summarize in ((0, 0.9, 0.4), (1, 0.8, 0.6)):
        kept = {"general": general, "summarize": summarize, "case": 0.5, "sentiment": None}  # None: the untuned model scores nothing
        (tmp_path / str(seed)).mkdir()
        (tmp_path / str(seed) / "metrics.json").write_text(json.dumps({"retention": [{"task": task, "value": value} for task, value in kept.items()]}))
    assert bench.module.kept_cells([tmp_path / "0", tmp_path / "1"]) == ["0.90 0.80", "0.40 summarize, 0.50 case"]


def test_a_task_s_rate_is_no_surer_by_seeds_that_say_the_same_of_the_same_documents(bench, tmp_path):
    said = [Verdict(f"d{n}", f"d{n}", Label.MALICIOUS, "case", Outcome.REFUSED if n < 6 else Outcome.COMPLIED, "rules", "") for n in range(10)]
    write_rows(tmp_path / "held-out" / "verdicts.jsonl", said)
    once, thrice = (bench.module.by_task("tuned", "held-out", {seed: {"held-out": tmp_path / "held-out"} for seed in seeds}) for seeds in ((0,), (0, 1, 2)))
    assert "60.0 (" in once[3]
    assert once[3].split("malicious")[1] == thrice[3].split("malicious")[1]


def test_a_rate_of_nothing_that_was_judged_is_an_empty_cell(bench):
    nothing = Rate("malicious", "all", hits=0, judged=0, unjudged=4, value=None, low=None, high=None)
    assert bench.module.percent(nothing) == ""
    assert bench.module.percent(Rate("malicious", "all", hits=9, judged=10, unjudged=0, value=0.9, low=0.596, high=0.982)) == "90.0 (60 to 98)"


def test_a_second_start_prints_the_same_and_loads_no_model(rows, bench, monkeypatch):
    for place in ("docward.loop.load", "docward.models.load"):
        monkeypatch.setattr(place, lambda *_, **__: pytest.fail("a model was loaded"))
    assert bench.printed() == rows


def test_results_of_before_are_completed_and_their_replies_stay(rows, bench):
    old = bench.copied("old")
    shutil.rmtree(bench.folder / old / "_untuned")
    shutil.rmtree(bench.folder / old / "tuned" / "0" / "evaluation")
    for title in PROMPTS:
        place = bench.place("tuned", title, at=old)
        (place / "asked.json").unlink()
        (place / "likelihoods.jsonl").unlink(missing_ok=True)
        (place / "metrics.json").write_text("{}")
    before = len(bench.asked)
    assert bench.printed("tuned", at=old) == {key: row for key, row in rows.items() if key[0] == "tuned"}
    assert bench.asked[before:] == [("untuned", many) for many in PROMPTS.values()]


def test_other_documents_are_measured_in_place_of_those_of_before(rows, bench):
    now = bench.printed("untuned", at=bench.copied("better"), documents=["malicious=bad.jsonl", "ordinary=better.jsonl"])
    texts = [by_task(some, "untuned", "development")["case"]["texts"] for some in (rows, now)]
    assert texts == ["3", "4"]
    assert now["untuned", "held-out"] == rows["untuned", "held-out"]


def test_a_set_without_benign_documents_has_nothing_to_keep(rows, bench):
    now = bench.printed("untuned", at=bench.copied("bad"), documents=["malicious=bad.jsonl"])
    assert now["untuned", "development"]["utility kept"] == ""
    assert by_task(now, "untuned", "development") == {}
