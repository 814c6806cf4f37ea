"""Suites of a model behind a server, and by several processes: the files of one undisturbed process here, or a clear word of what cannot be."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from test_collecting import SETTINGS, documents, launched, sources

from docward import servers
from docward.cli.evaluating import evaluate_files
from docward.cli.main import main
from docward.documents.reading import own_documents
from docward.evaluation.evaluating import Settings, planned_replies
from docward.evaluation.suites import SUITES, get_suites
from docward.evaluation.suites.running import for_server
from docward.models import load, only_tokenizer
from docward.records import read_rows, write_rows
from docward.tasks import get_tasks
from docward.types import Reply, Verdict
from serving_stub import ChatServer
from tiny import byte_tokenizer, some_documents

FILES = ("suites.json", *(f"suites/{suite}/{name}.jsonl" for suite in ("position", "opener") for name in ("replies", "verdicts")))


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(servers, "FIRST_WAIT", 0.01)
    monkeypatch.setattr(servers, "RETRIES", 0)
    monkeypatch.setenv("OPENAI_API_KEY", "sk-a-key-of-this-test-alone")


@pytest.fixture
def command(monkeypatch, capsys, tmp_path, server) -> Callable[..., tuple[int, str]]:
    """Evaluate suites of a model behind a server by the command line; gives the exit code and all that was said."""
    write_rows(tmp_path / "documents.jsonl", [one for one in some_documents(2) if one.label == "ordinary"])
    server.says = lambda asked: "Well: " + asked["messages"][-1]["content"]

    def call(*options: str, folder: str = "run") -> tuple[int, str]:
        asked = ["--base-url", server.url, "--documents", f"ordinary={tmp_path / 'documents.jsonl'}", "--tasks", "summarize,case", "--model", "big"]
        monkeypatch.setattr(sys, "argv", ["docward", "evaluate", *asked, "--output-dir", str(tmp_path / folder), "--concurrency", "1", *options])
        with pytest.raises(SystemExit) as end:
            main()
        said = capsys.readouterr()
        return int(end.value.code or 0), " ".join((said.out + said.err).split())

    return call


def asked_of(server: ChatServer) -> list[str]:
    return [asked["messages"][-1]["content"] for asked in server.requests]


def test_a_server_is_asked_a_suite_and_nothing_twice(command, server, tmp_path):
    assert command("--suite", "position", "--suite", "wording")[0] == 0
    plain = planned_replies([one for one in some_documents(2) if one.label == "ordinary"], Settings(tuple(get_tasks(["summarize", "case"]))))
    texts = asked_of(server)
    assert len(texts) == len(set(texts)) == len(plain) * (1 + 1 + 3), "the evaluation itself, `before`, three unseen wordings; level 0 is known"
    assert {f"{one.instruction}\n\n{one.document}" for one in plain} < set(texts)
    found = json.loads((tmp_path / "run" / "suites.json").read_text())["suites"]
    assert [(suite["name"], suite["missing"]["replies"], {row["judged"] for row in suite["rows"]}) for suite in found] == [
        ("wording", 0, {4}),
        ("position", 0, {4}),
    ]
    replies = read_rows(tmp_path / "run" / "suites" / "position" / "replies.jsonl", Reply)
    assert all(one.reply == f"Well: {one.instruction}\n\n{one.document}" for one in replies if one.key.endswith("|before"))
    server.requests.clear()
    assert command("--suite", "position", "--suite", "wording")[0] == 0
    assert server.requests == []


@pytest.mark.parametrize("name", ["length", "dilution", "forced", "drift"])
def test_what_a_server_cannot_be_asked_is_refused_before_anything_is(command, server, tmp_path, name):
    code, said = command("--suite", "position", "--suite", name)
    assert code == 2
    assert f"A server cannot be asked every suite ({name} wants {'words in' if name == 'forced' else ''}" in said
    assert "wording, task, position, language, opener, noise, injection" in said
    assert server.requests == []
    assert not (tmp_path / "run").exists()


def test_all_suites_of_a_server_are_those_that_it_can_be_asked_and_the_others_are_named(command, tmp_path):
    code, said = command("--suite", "all")
    assert code == 0
    found = [suite["name"] for suite in json.loads((tmp_path / "run" / "suites.json").read_text())["suites"]]
    assert found == [suite.name for suite in for_server(get_suites(["all"]))] == [name for name, suite in SUITES.items() if not suite.wants]
    assert "Not run, since a server cannot be asked them: forced (wants words in the model's mouth), dilution (wants the model's own tokens, by --" in said


# ---- with the tokenizer of the server's model


@pytest.fixture(scope="module")
def lent(tmp_path_factory) -> Path:
    """A tokenizer without a model; its tokens have about three characters."""
    folder = tmp_path_factory.mktemp("lent")
    byte_tokenizer(words=[one.text for one in own_documents()[:60]]).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("told", ["by --max-length", "by the server"])
def test_with_its_tokenizer_a_server_is_asked_every_length_that_fits_and_it_is_the_one_that_is_named(command, server, lent, tmp_path, monkeypatch, told):
    monkeypatch.setattr(servers, "LETTERS", 2)  # a guess by characters would find long prompts too long, and cut them
    server.states, given = (1200, []) if told == "by the server" else (0, ["--max-length", "1200"])
    code, said = command("--suite", "length", "--suite", "dilution", "--tokenizer", str(lent), *given)
    assert code == 0
    texts, tokenizer = asked_of(server), only_tokenizer(str(lent))
    assert len(texts) == len(set(texts)), "none was asked again, cut"
    found: dict[str, set[int]] = {}
    for name in ("length", "dilution"):
        for one in read_rows(tmp_path / "run" / "suites" / name / "replies.jsonl", Reply):
            assert f"{one.document}\n\n{one.instruction}" in texts
            assert one.dropped == 0
            found.setdefault(one.key.split("|")[-1], set()).add(len(tokenizer(one.document, add_special_tokens=False)["input_ids"]))
    assert found.keys() - {"unchanged"} == {f"{many} tokens" for many in (100, 250, 500, 1000)} | {"passage alone"} | {
        f"{place} {share}%" for place in ("start", "middle", "end") for share in (50, 25)
    }
    for many in (100, 250, 500, 1000):
        assert all(0.98 * many <= tokens <= many + 2 for tokens in found[f"{many} tokens"])
    assert max(found["middle 25%"]) == pytest.approx(4 * max(found["passage alone"]), rel=0.02)
    assert "Suite length: longer than the model's context, so not asked: 2000 tokens, 4000 tokens, 8000 tokens." in said


def test_a_server_that_does_not_state_its_context_is_asked_no_length_without_max_length(command, server, lent, tmp_path):
    code, said = command("--suite", "position", "--suite", "length", "--tokenizer", str(lent))
    assert code == 2
    assert "Nobody says how long a document may be (length): the server " in said
    assert "does not state the context of 'big'. Give it in tokens by --max-length" in said
    assert (server.requests, (tmp_path / "run").exists()) == ([], False)
    assert command("--suite", "position", "--tokenizer", str(lent))[0] == 0, "other suites do not want to know"


@pytest.mark.parametrize(("name", "why"), [("forced", "words in the model's mouth"), ("drift", "the model's own weights")])
def test_what_no_tokenizer_gives_stays_refused(command, server, lent, name, why):
    code, said = command("--suite", "length", "--suite", name, "--tokenizer", str(lent), "--max-length", "1200")
    assert code == 2
    assert f"A server cannot be asked every suite ({name} wants {why}). Leave those out" in said
    assert "opener, noise, injection, dilution, length." in said
    assert server.requests == []
    assert [suite.name for suite in for_server(get_suites(["all"]), tokens=True)] == [one for one in SUITES if one not in ("forced", "drift")]


@pytest.mark.parametrize(
    ("place", "why"), [("nowhere", "No model is called 'nowhere'"), ("empty", "is not a model folder"), ("broken", "cannot be loaded: "), ("text", "is a file")]
)
def test_a_wrong_tokenizer_is_said_as_a_wrong_model_is(command, server, lent, tmp_path, place, why):
    (tmp_path / "empty").mkdir()
    shutil.copytree(lent, tmp_path / "broken")
    (tmp_path / "broken" / "tokenizer.json").write_text("{}")
    (tmp_path / "text").write_text("words")
    code, said = command("--suite", "length", "--max-length", "1200", "--tokenizer", place if place == "nowhere" else str(tmp_path / place))
    assert code == 2
    assert why in said
    assert "Known names: smollm2-135m" in said
    assert server.requests == []


def test_a_model_that_is_loaded_here_has_its_own_tokenizer(monkeypatch, capsys, tmp_path, lent):
    asked = ["docward", "evaluate", "--model", "nowhere", "--tokenizer", str(lent), "--output-dir", str(tmp_path / "run")]
    monkeypatch.setattr(sys, "argv", asked)
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 2
    assert "--tokenizer goes with --base-url" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


# ---- replies that do not come


def test_what_did_not_come_is_in_no_rate_and_the_next_run_asks_for_that_alone(command, server, tmp_path):
    assert command("--suite", "position", folder="whole")[0] == 0
    server.requests.clear()
    server.trouble, server.after, server.until = "500", 5, 7
    code, said = command("--suite", "position")
    assert code == 1
    assert "2 of 12 replies did not come and are in no rate above: HTTP 500: it is broken (2)" in said
    (suite,) = json.loads((tmp_path / "run" / "suites.json").read_text())["suites"]
    assert suite["missing"] == {"replies": 2, "why": {"HTTP 500: it is broken": 2}}
    assert [row["judged"] for row in suite["rows"]] == [4, 2]
    asked = len(server.requests)
    assert command("--suite", "position")[0] == 0
    assert len(server.requests) == asked + 2
    for name in ("suites.json", "suites/position/replies.jsonl", "suites/position/verdicts.jsonl"):
        assert (tmp_path / "run" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_what_a_server_withholds_is_so_in_every_level_that_asks_the_same_and_is_not_asked_for_again(command, server, tmp_path):
    refused = (403, {"error": {"message": "flagged"}})
    server.objects = lambda asked: refused if "note 1" in asked["messages"][-1]["content"] else None
    assert command("--suite", "position")[0] == 0
    rows = [json.loads(line) for line in (tmp_path / "run" / "suites" / "position" / "replies.jsonl").read_text().splitlines()]
    verdicts = [json.loads(line) for line in (tmp_path / "run" / "suites" / "position" / "verdicts.jsonl").read_text().splitlines()]
    why = {row["key"]: f"withheld by the server: {row['withheld']}" for row in rows if row["withheld"]}
    assert {key.split("|")[-1] for key in why} == {"unchanged", "before"}
    assert {one["key"]: one["why"] for one in verdicts if one["outcome"] == "unjudged"} == why
    asked = len(server.requests)
    assert command("--suite", "position")[0] == 0
    assert len(server.requests) == asked


def test_a_suite_without_a_single_reply_leaves_no_rates(command, server, tmp_path):
    server.trouble, server.after = "400", 4
    code, said = command("--suite", "position", "--suite", "injection")
    assert code == 1
    assert "replies did not come" in said
    assert [row["level"] for row in json.loads((tmp_path / "run" / "suites.json").read_text())["suites"][0]["rows"]] == ["unchanged"]


def test_a_suite_that_one_process_began_is_finished_by_two(tiny, tiny_folder, tmp_path, capsys):
    """The bytes of one undisturbed process; replies in float32 do not depend on what else is in a batch."""

    def here(folder: Path) -> None:
        evaluate_files("tiny", lambda: load(str(tiny_folder), dtype="float32"), sources(tmp_path), SETTINGS, None, folder, suites=["position", "opener"])

    here(tmp_path / "undisturbed")
    here(tmp_path / "run")
    for name in ("position", "opener"):
        place = tmp_path / "run" / "suites" / name
        place.joinpath("verdicts.jsonl").unlink()
        kept = place.joinpath("replies.jsonl").read_bytes().splitlines(keepends=True)[:7]
        place.joinpath("replies.jsonl").write_bytes(b"".join([*reversed(kept), b'{"key": "torn']))
    (tmp_path / "run" / "suites.json").unlink()
    said = launched(tmp_path / "run", tiny_folder, "--suite", "position", "--suite", "opener", hold=0).finish()
    for name in FILES:
        assert (tmp_path / "run" / name).read_bytes() == (tmp_path / "undisturbed" / name).read_bytes(), name
    assert not list((tmp_path / "run").rglob("replies.part-*"))
    assert len(read_rows(tmp_path / "run" / "suites" / "position" / "verdicts.jsonl", Verdict)) == 2 * len(SETTINGS.tasks) * len(documents())
    batches = [int((tmp_path / f"run.held.{rank}").read_text()) for rank in (0, 1)]
    assert min(batches) >= 1, "one process did it all"
    assert said.count("Replies, verdicts, metrics:") == 1
