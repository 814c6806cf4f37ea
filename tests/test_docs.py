"""What the documentation tells people to type works as it stands."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from docward.cli.main import app
from docward.dataset.saving import read_split
from docward.evaluation.suites import SUITES
from docward.evaluation.suites.running import for_server
from docward.presets import PRESETS
from docward.records import read_rows
from docward.types import Document, Label, Split

ROOT = Path(__file__).parent.parent
BLOCK = re.compile(r"^```(sh|yaml)\n(.*?)^```", re.MULTILINE | re.DOTALL)


def test_following_your_own_documents_word_for_word_builds_a_dataset(tmp_path):
    page = (ROOT / "docs" / "your-own-documents.md").read_text(encoding="utf-8")
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    for kind, text in BLOCK.findall(page):
        if kind == "yaml":
            assert "\ndataset:\n" in text
            text = text.replace("\ndataset:\n", "\ndataset:\n  max_new_tokens: 8\n")  # word for word, but for answers of an eighth of the length
            (tmp_path / "mine.yaml").write_text(text, encoding="utf-8")
            continue
        done = subprocess.run(["bash", "-euc", text], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr[-2000:]
    documents = {one.id: one for one in read_rows(tmp_path / "mine-run" / "documents.jsonl", Document)}
    assert sum(one.source == "docward-starter" for one in documents.values()) == 30
    assert {name: documents[name].label for name in ("stairs.txt", "march/choir.md", "old.txt", "17", "19")} == {
        "stairs.txt": Label.ORDINARY,
        "march/choir.md": Label.ORDINARY,
        "old.txt": Label.ORDINARY,
        "17": Label.SENSITIVE,
        "19": Label.MALICIOUS,
    }
    assert documents["old.txt"].text.startswith("Café Lind schließt")
    assert (documents["old.txt"].language, documents["17"].license) == ("de", "our own")
    page_text = documents["bus.html"].text
    assert "stop at the mill" in page_text
    assert "Login" not in page_text
    trained = read_split(tmp_path / "mine-run" / "dataset", Split.TRAIN)
    assert {one.want for one in trained} == {"refuse", "comply"}
    audit = json.loads((tmp_path / "mine-run" / "dataset" / "audit.json").read_text())
    assert audit["crossing"] == 0
    assert "<html" in (tmp_path / "mine-run" / "report.html").read_text(encoding="utf-8")[:200]
    assert len((tmp_path / "mine-trl" / "train.jsonl").read_text(encoding="utf-8").splitlines()) == len(trained)


@pytest.mark.parametrize("path", [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")], ids=lambda path: path.name)
def test_every_command_and_file_that_the_docs_name_is_there(path):
    text = path.read_text(encoding="utf-8")
    commands = {command.name or command.callback.__name__ for command in app.registered_commands}
    assert set(re.findall(r"(?:^|`|bin/)docward ([a-z]+)", text, re.MULTILINE)) <= commands
    named = [ROOT / name for name in re.findall(r"`((?:docs|recipes|bench|src|tests)/[\w/.-]+\.\w+)`", text)]
    linked = [path.parent / name for name in re.findall(r"\]\((?!http)([\w/.-]+)\)", text)]
    assert [place for place in (*named, *linked) if not place.exists()] == []


def test_the_recipes_in_the_docs_are_recipes():
    from docward.recipe import Recipe

    for path in (ROOT / "README.md", *ROOT.glob("docs/*.md")):
        for kind, text in BLOCK.findall(path.read_text(encoding="utf-8")):
            if kind == "yaml":
                Recipe.model_validate(yaml.safe_load(text))


def test_the_table_of_outside_sets_is_that_of_the_presets():
    page = (ROOT / "docs" / "outside-sets.md").read_text(encoding="utf-8")
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in page.splitlines() if line.startswith("| `")]
    assert len(rows) == 10
    for name, _, form, what, licence, where in rows:
        preset = PRESETS[name.strip("`")]
        assert (form, licence) == ("short prompts" if preset.prompts else "documents", preset.license)
        assert f"]({preset.page})" in where
        assert (", gated" in where) is preset.gated
        assert "safe" not in what or preset.prompts, "a document is sensitive or ordinary"


def test_the_sets_that_the_docs_evaluate_are_presets():
    for path in (ROOT / "README.md", *ROOT.glob("docs/*.md")):
        named = re.findall(r"--documents ([a-z][\w-]*)", path.read_text(encoding="utf-8"))
        assert set(named) <= {*PRESETS, *Label}, path


def test_the_suites_that_the_readme_says_a_server_can_be_asked_are_those():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    said = re.search(r"Suites that a server can be asked: (.*?); and (.*?) with `--tokenizer NAME`.*?Not (.*?): ", text, re.DOTALL)
    assert said
    plain, counting, never = (set(re.findall(r"`(\w+)`", part)) for part in said.groups())
    asked = {one.name for one in for_server(list(SUITES.values()))}
    assert plain == asked
    assert counting == {one.name for one in for_server(list(SUITES.values()), tokens=True)} - asked
    assert never == SUITES.keys() - plain - counting


def test_every_make_target_that_the_docs_name_is_there():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = {match[1]: match[2] for match in re.finditer(r"^([a-z-]+):.*\n((?:\t.*\n)*)", makefile, re.MULTILINE)}
    named = {
        name for path in (*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")) for name in re.findall(r"^make ([a-z-]+) +#|`make ([a-z-]+)`", path.read_text(), re.M)
    }
    assert {one or other for one, other in named} <= targets.keys()
    assert "--constraint constraints.txt --editable '.[dev,lm-eval]'" in targets["test-lm-eval"]
    assert targets["test-lm-eval"].rstrip().endswith("pytest tests/serving/test_lm_eval.py")
    assert (ROOT / "tests" / "serving" / "test_lm_eval.py").is_file()
