"""Evaluating a model behind a server: the same files as for a model here, each reply asked for once, what did not come told and asked for again."""

from __future__ import annotations

import importlib.util
import json
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from docward import servers
from docward.cli.main import main
from docward.errors import RunError
from docward.evaluation.claiming import claim_folder, note_not_taken
from docward.evaluation.collecting import PART, REPLIES
from docward.evaluation.evaluating import Settings, _collect, evaluate, planned_replies
from docward.models import resolve
from docward.questions import Question
from docward.records import read_rows, write_rows
from docward.servers import Server
from docward.tasks import document_for, get_tasks
from docward.types import Reply, Verdict
from serving_stub import ChatServer, strictest
from tiny import some_documents

KEY = "sk-a-key-of-this-test-alone"
SETTINGS = Settings(tasks=tuple(get_tasks(["summarize", "case", "translate"])), max_new_tokens=4)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(servers, "FIRST_WAIT", 0.01)
    monkeypatch.setattr(servers, "RETRIES", 1)
    monkeypatch.setenv("OPENAI_API_KEY", KEY)


def echo(asked: dict[str, Any]) -> str:
    """A reply that only its own prompt has."""
    return "Well: " + asked["messages"][-1]["content"]


def contents(server: ChatServer) -> list[str]:
    return [asked["messages"][-1]["content"] for asked in server.requests]


def test_each_prompt_is_asked_once_by_document_and_its_reply_is_its_own(server, tmp_path):
    server.says = echo
    documents = some_documents(3)
    metrics = evaluate(Server(server.url, "big", concurrency=3), documents, SETTINGS, tmp_path)
    replies = read_rows(tmp_path / "replies.jsonl", Reply)
    assert [reply.key for reply in replies] == [one.key for one in planned_replies(documents, SETTINGS)]
    assert all(reply.reply == f"Well: {reply.document}\n\n{reply.instruction}".strip() for reply in replies)
    assert len(server.requests) == len(replies) == 27
    texts = [text.lower().split("note ")[1].partition(".")[0] for text in contents(server)]
    assert all(texts.count(text) == 3 for text in texts)
    starts = [texts.index(text) for text in texts]
    assert all(place - start <= 2 + 3 for place, start in enumerate(starts)), "a server reads a document once if its tasks come together"
    assert metrics["missing"] == {"replies": 0, "why": {}}
    evaluate(Server(server.url, "big"), documents, SETTINGS, tmp_path)
    assert len(server.requests) == 27, "asked again"


def test_the_system_prompt_is_sent(server, tmp_path):
    evaluate(Server(server.url, "big"), some_documents(1), Settings(SETTINGS.tasks, system="Be brief."), tmp_path)
    assert {asked["messages"][0]["content"] for asked in server.requests} == {"Be brief."}


def test_what_did_not_come_is_no_reply_and_the_next_run_asks_for_that_alone(server, tmp_path):
    server.says = echo
    whole = evaluate(Server(server.url, "big"), some_documents(4), SETTINGS, tmp_path / "whole")
    server.requests.clear()
    server.trouble, server.after, server.until = "500", 10, 18
    partial = evaluate(Server(server.url, "big", concurrency=2), some_documents(4), SETTINGS, tmp_path / "run")
    missing = partial["missing"]["replies"]
    assert partial["missing"]["why"] == {"HTTP 500: it is broken": missing}
    assert 0 < missing <= 8
    assert sum(rate["judged"] + rate["unjudged"] for rate in partial["rates"]) == 36 - missing
    asked = len(server.requests)
    assert evaluate(Server(server.url, "big"), some_documents(4), SETTINGS, tmp_path / "run") == whole
    assert len(server.requests) == asked + missing
    for name in ("replies.jsonl", "verdicts.jsonl", "metrics.json"):
        assert (tmp_path / "run" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_a_document_that_is_too_long_is_cut_and_counted_and_no_reply_is_missing_for_it(server, tmp_path):
    server.says, server.context, server.counts = echo, 60, True
    server.refuses = lambda context, prompt, reply: {"message": f"the maximum context length is {context} tokens, {prompt + reply} were requested"}
    short, long = some_documents(1)[0], replace(some_documents(2)[3], text=some_documents(2)[3].text * 20)
    metrics = evaluate(Server(server.url, "big"), [short, long], SETTINGS, tmp_path)
    replies = read_rows(tmp_path / "replies.jsonl", Reply)
    assert metrics["missing"]["replies"] == 0
    assert [bool(reply.dropped) for reply in replies] == [False] * 3 + [True] * 3
    assert metrics["dropped"] == {"replies": 3, "tokens": sum(reply.dropped for reply in replies)}
    assert all(reply.document in (document_for(reply.task, long.text), document_for(reply.task, short.text)) for reply in replies), "kept whole on disk"
    assert all(reply.reply.endswith(reply.instruction.strip()) for reply in replies)


def test_a_server_without_a_single_reply_leaves_no_rates(server, tmp_path):
    server.trouble = "nonsense"
    with pytest.raises(RunError, match=r"Not one of 9 replies came: an answer that is not of the protocol \(9\)"):
        evaluate(Server(server.url, "big"), some_documents(1), SETTINGS, tmp_path)
    assert not (tmp_path / "metrics.json").exists()


def test_another_server_or_model_is_another_evaluation(server, tmp_path):
    evaluate(Server(server.url, "big"), some_documents(1), SETTINGS, tmp_path)
    with pytest.raises(RunError, match="model: 'big' there, 'small' now"):
        evaluate(Server(server.url, "small"), some_documents(1), SETTINGS, tmp_path)
    with ChatServer() as other, pytest.raises(RunError, match="base_url: "):
        evaluate(Server(other.url, "big"), some_documents(1), SETTINGS, tmp_path)


# ------------------------------------------------------------------------------------------------------------ the command


@pytest.fixture
def command(monkeypatch, capsys, tmp_path, server) -> Callable[..., tuple[int, str]]:
    """Evaluate by the command line; gives the exit code and all that was said."""
    documents = tmp_path / "documents.jsonl"
    write_rows(documents, [one for one in some_documents(3) if one.label == "ordinary"])

    def call(*options: str) -> tuple[int, str]:
        asked = [
            "evaluate",
            "--base-url",
            server.url,
            "--documents",
            f"ordinary={documents}",
            "--tasks",
            "summarize,case",
            "--output-dir",
            str(tmp_path / "run"),
        ]
        monkeypatch.setattr(sys, "argv", ["docward", *asked, *options])
        with pytest.raises(SystemExit) as end:
            main()
        said = capsys.readouterr()
        return int(end.value.code or 0), " ".join((said.out + said.err).split())

    return call


def test_the_command_tells_what_is_missing_and_ends_with_1_until_nothing_is(command, server, tmp_path):
    server.trouble, server.until = "500", 2
    code, said = command("--model", "big", "--concurrency", "1")
    assert code == 1
    assert "1 of 6 replies did not come and are in no rate above: HTTP 500: it is broken (1)" in said
    assert (tmp_path / "run" / "report.html").is_file()
    code, said = command("--model", "big", "--concurrency", "1")
    assert code == 0
    assert len(server.requests) == 2 + 5 + 1
    assert json.loads((tmp_path / "run" / "metrics.json").read_text())["pooled"]["ordinary"]["judged"] == 6


@pytest.mark.parametrize("how", ["403", "content_filter"])
def test_what_a_server_withholds_is_unjudged_and_told_and_the_run_is_finished(command, server, tmp_path, how):
    def chosen(asked: dict[str, Any]) -> bool:
        return "note " in asked["messages"][-1]["content"]  # `case` takes the capitals out of a document

    if how == "403":
        server.objects = lambda asked: (403, {"error": {"message": "flagged as [violence]"}}) if chosen(asked) else None
    else:
        server.filters = chosen
    why = {"403": "HTTP 403: flagged as [violence]", "content_filter": "the server's own filter held the answer back (finish_reason content_filter)"}[how]
    code, said = command("--model", "big")
    assert code == 0
    assert f"3 replies were withheld by the server, not by the model, and are unjudged: {why} (3)." in said
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert metrics["withheld"] == {"replies": 3, "why": {why: 3}}
    assert metrics["missing"]["replies"] == 0
    assert "case" not in {one["task"] for one in metrics["utility"] if one["n"]}, "the model has done no bad work"
    assert [metrics["pooled"]["ordinary"][name] for name in ("judged", "unjudged")] == [3, 3]
    replies = read_rows(tmp_path / "run" / "replies.jsonl", Reply)
    assert [(one.reply, one.finished) for one in replies if one.withheld == why] == [("", True)] * 3
    assert {one.why for one in read_rows(tmp_path / "run" / "verdicts.jsonl", Verdict) if one.outcome == "unjudged"} == {f"withheld by the server: {why}"}
    asked, files = len(server.requests), [(tmp_path / "run" / name).read_bytes() for name in ("replies.jsonl", "verdicts.jsonl", "metrics.json")]
    code, _ = command("--model", "big")
    assert (code, len(server.requests)) == (0, asked), "the same command asks for none of it again"
    assert [(tmp_path / "run" / name).read_bytes() for name in ("replies.jsonl", "verdicts.jsonl", "metrics.json")] == files
    server.objects, server.filters = lambda asked: None, lambda asked: False
    write_rows(tmp_path / "run" / "replies.jsonl", [one for one in replies if not one.withheld])
    code, said = command("--model", "big")
    assert (code, len(server.requests)) == (0, asked + 3), "what is deleted is asked for again"
    assert "withheld" not in said


def test_parameters_that_a_server_does_not_take_are_told_also_by_a_run_that_asks_nothing(command, server, tmp_path):
    server.objects = strictest
    told = "The server takes no seed and no temperature for this model, so it was asked without. Its replies are drawn at its own temperature, not greedy"
    for _ in range(2):
        code, said = command("--model", "big")
        assert code == 0
        assert told in said
        assert json.loads((tmp_path / "run" / "metrics.json").read_text())["not_taken"] == ["seed", "temperature"]
        asked = len(server.requests)
    assert len(server.requests) == asked
    server.objects = lambda asked: None
    code, said = command("--model", "big", "--output-dir", str(tmp_path / "other"))
    assert code == 0
    assert "asked without" not in said


@pytest.mark.parametrize("processes", [1, 2])
def test_a_kill_costs_no_word_on_what_a_server_does_not_take(server, tmp_path, monkeypatch, processes):
    """Noted before the first reply that was asked for so, by each process for itself; what the next run finds is another server's behaviour."""
    server.objects = strictest

    def stop(what: str, done: int, total: int) -> None:
        if done:
            raise KeyboardInterrupt

    if processes == 1:
        with pytest.raises(KeyboardInterrupt):
            evaluate(Server(server.url, "big"), some_documents(2), SETTINGS, tmp_path, progress=stop)
    else:  # the second of two, alone: the first is still at its first question
        model, planned = Server(server.url, "big"), planned_replies(some_documents(2), SETTINGS)
        claim_folder(tmp_path, model, SETTINGS)
        with monkeypatch.context() as patch:
            patch.setenv("WORLD_SIZE", "2")
            patch.setenv("RANK", "1")
            with pytest.raises(KeyboardInterrupt):
                _collect(model, some_documents(2), planned, SETTINGS, tmp_path, there=0, progress=stop)
    server.objects = lambda asked: None
    metrics = evaluate(Server(server.url, "big"), some_documents(2), SETTINGS, tmp_path)
    assert metrics["not_taken"] == ["seed", "temperature"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["evaluation.json", "metrics.json", "replies.jsonl", "verdicts.jsonl"]
    assert evaluate(Server(server.url, "big"), some_documents(2), SETTINGS, tmp_path) == metrics
    with pytest.raises(RunError, match="max_new_tokens: 4 there, 5 now"):
        evaluate(Server(server.url, "big"), some_documents(2), replace(SETTINGS, max_new_tokens=5), tmp_path)


def test_what_killed_processes_left_of_another_evaluation_is_not_taken_in(server, tmp_path):
    evaluate(Server(server.url, "big"), some_documents(1), SETTINGS, tmp_path)
    (tmp_path / "replies.jsonl").rename(tmp_path / PART.format(REPLIES, 1))
    (tmp_path / "replies.jsonl").touch()
    with pytest.raises(RunError, match="max_new_tokens: 4 there, 5 now"):
        evaluate(Server(server.url, "big"), some_documents(1), replace(SETTINGS, max_new_tokens=5), tmp_path)


def test_a_folder_that_was_left_without_a_reply_says_nothing_of_the_server_of_before(server, tmp_path):
    server.objects = strictest
    model = Server(server.url, "big")
    list(model.ask([Question("1", "Hello.")], max_new_tokens=4))
    note_not_taken(tmp_path, model)
    assert [path.name for path in tmp_path.iterdir()] == ["not_taken.part-0.json"]
    server.objects = lambda asked: None
    assert evaluate(Server(server.url, "big"), some_documents(1), SETTINGS, tmp_path)["not_taken"] == []


@pytest.mark.parametrize("trouble", ["401", "403", "404"])
def test_the_command_ends_with_2_where_no_question_would_help(command, server, trouble):
    server.trouble = trouble
    code, said = command("--model", "big")
    assert code == 2
    assert said.count("Error:") == 1
    assert "Traceback" not in said


def sent(server: ChatServer) -> list[int]:
    """The tokens of each prompt, of a server to which a word is one."""
    return [len(content.split()) for content in contents(server)]


def test_max_length_cuts_documents_and_prompts_for_a_server_that_takes_everything(command, server, tmp_path):
    """transformers serve refuses nothing and counts: what is answered on a text over the limit is asked again, shorter, and is no reply."""
    server.says, server.counts = echo, True
    long = " ".join(f"word{number}" for number in range(300))
    write_rows(
        tmp_path / "long.jsonl",
        [{"text": f"A beginning. {long} An end.", "label": "ordinary"}, {"text": f"Why {long}?", "label": "ordinary", "form": "prompt"}],
    )
    options = ("--model", "big", "--documents", f"ordinary={tmp_path / 'long.jsonl'}", "--max-length", "80", "--max-new-tokens", "8")
    code, said = command(*options)
    assert code == 0
    replies = read_rows(tmp_path / "run" / "replies.jsonl", Reply)
    cut = {reply.key: reply for reply in replies if reply.dropped}
    assert {reply.task for reply in cut.values()} == {"summarize", "case", "prompt"}
    assert len(replies) - len(cut) == 6
    for reply in cut.values():
        assert 60 < len(reply.reply.split()) - 1 <= 80 - 8, "the reply is to a prompt that fits, and little more was cut than had to be"
        assert reply.reply.lower().startswith(("well: a beginning. word0 ", "well: why word0 "))
        assert reply.dropped == pytest.approx(300 - 72, rel=0.25)
        assert len(reply.document.split()) > 300, "kept whole on disk"
    assert all(reply.reply.endswith(reply.instruction) for reply in cut.values())
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert metrics["dropped"] == {"replies": 3, "tokens": sum(reply.dropped for reply in cut.values())}
    assert metrics["missing"]["replies"] == 0
    assert f"3 prompts were longer than the model's context: {metrics['dropped']['tokens']} document tokens were cut" in said
    asked = len(server.requests)
    assert sum(many > 80 - 8 for many in sent(server)) >= 3, "how long a text is, only the server says"
    assert command(*options)[0] == 0
    assert len(server.requests) == asked, "asked again"
    code, said = command(*options[:4])
    assert code == 1
    assert "max_length: 80 there, None now" in said


def test_where_a_server_does_not_say_its_limit_max_length_gives_it(command, server, tmp_path):
    server.says, server.context = echo, 40
    server.refuses = lambda *_: {"message": "Sorry, the context window is full."}
    code, said = command("--model", "big", "--max-new-tokens", "8")
    assert code == 1
    assert "give its context in tokens by --max-length and a new --output-dir" in said
    given = ("--model", "big", "--max-new-tokens", "8", "--max-length", "40", "--output-dir", str(tmp_path / "again"))
    code, said = command(*given)
    assert code == 0
    metrics = json.loads((tmp_path / "again" / "metrics.json").read_text())
    assert (metrics["pooled"]["ordinary"]["judged"], metrics["missing"]["replies"]) == (6, 0)
    replies = read_rows(tmp_path / "again" / "replies.jsonl", Reply)
    assert metrics["dropped"]["replies"] == sum(len(f"{reply.document} {reply.instruction}".split()) + 8 > 40 for reply in replies) > 0
    assert max(len(reply.reply.split()) - 1 + 8 for reply in replies) <= 40


def test_a_max_length_without_room_for_a_document_leaves_no_reply_and_says_so(command, server, tmp_path):
    server.says, server.counts = echo, True
    code, said = command("--model", "big", "--max-new-tokens", "8", "--max-length", "10")
    assert code == 1
    assert "Not one of 6 replies came: too long for the server (" in said
    assert "That leaves no room for a document." in said
    assert not (tmp_path / "run" / "metrics.json").exists()


def test_an_adapter_is_no_part_of_a_server(command, tmp_path):
    assert command("--model", "big", "--adapter", str(tmp_path))[0] == 2


@pytest.mark.parametrize("trouble", ["", "500", "400", "401", "404"])
def test_the_key_is_in_no_file_and_nothing_said(command, server, tmp_path, caplog, trouble):
    caplog.set_level(logging.DEBUG)
    server.trouble, server.after, server.words = trouble, 2, "who sends {key}?"
    server.replies = ["You sent {key}. Thank you."]
    code, said = command("--model", "big", "--concurrency", "2")
    assert code == {"": 0, "500": 1, "400": 1}.get(trouble, 2)
    assert set(server.keys) == {KEY}
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert "replies.jsonl" in {path.name for path in files}
    assert [path.name for path in files if KEY.encode() in path.read_bytes()] == []
    assert KEY not in said + caplog.text


# ------------------------------------------------------------------------------------------------------------ kills

SCRIPT = """
import sys
from docward.cli.main import main
sys.argv = ["docward", *sys.argv[1:]]
main()
"""


def test_a_kill_loses_no_reply_and_doubles_none(server, tmp_path):
    documents = some_documents(6)
    server.says, server.pause = echo, 0.05
    folder = tmp_path / "run"
    sources = []
    for label in ("malicious", "sensitive", "ordinary"):
        write_rows(tmp_path / f"{label}.jsonl", [one for one in documents if one.label == label])
        sources += ["--documents", f"{label}={tmp_path / f'{label}.jsonl'}"]
    asked = ["evaluate", "--model", "big", "--base-url", server.url, *sources, "--tasks", "summarize,case", "--concurrency", "2", "--output-dir", str(folder)]
    with subprocess.Popen([sys.executable, "-c", SCRIPT, *asked], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline and process.poll() is None:
            if (folder / "replies.jsonl").is_file() and (folder / "replies.jsonl").read_bytes().count(b"\n") >= 5:
                process.send_signal(signal.SIGKILL)
                break
            time.sleep(0.01)
    kept = [line for line in (folder / "replies.jsonl").read_text().splitlines(keepends=True) if line.endswith("\n")]
    assert 5 <= len(kept) < 36
    assert not (folder / "metrics.json").exists()
    server.requests.clear()
    subprocess.run([sys.executable, "-c", SCRIPT, *asked], check=True, capture_output=True, timeout=120)
    assert len(server.requests) == 36 - len(kept)
    after = (folder / "replies.jsonl").read_text().splitlines(keepends=True)
    assert len(after) == len({json.loads(line)["key"] for line in after}) == 36
    assert set(kept) <= set(after)


# ------------------------------------------------------------------------------------------------------------ the real thing

SERVING = [name for name in ("fastapi", "uvicorn") if importlib.util.find_spec(name) is None]
PATIENCE = 240  # seconds until the server speaks


@pytest.fixture
def transformers_serve(tmp_path: Path) -> Iterator[tuple[str, str]]:
    """`transformers serve` with the default model in float32 on a port that was free: its address, and its name for the model."""
    import socket

    place = resolve("smollm2-135m")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    start = "from transformers.cli.transformers import main; main()"
    options = ["serve", place, "--host", "127.0.0.1", "--port", str(port), "--dtype", "float32"]
    how = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "hub"), "HF_HUB_DISABLE_TELEMETRY": "1"}
    with (tmp_path / "log").open("w") as log, subprocess.Popen([sys.executable, "-c", start, *options], env=how, stdout=log, stderr=log) as process:
        try:
            until_it_speaks(process, port, tmp_path / "log")
            yield f"http://127.0.0.1:{port}/v1", place
        finally:
            process.kill()


def until_it_speaks(process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    from urllib.request import urlopen

    deadline = time.monotonic() + PATIENCE
    while process.poll() is None and time.monotonic() < deadline:
        try:
            with urlopen(f"http://127.0.0.1:{port}/health", timeout=2):
                return
        except OSError:
            time.sleep(0.2)
    how = f"was not ready after {PATIENCE} s" if process.poll() is None else "ended"
    pytest.fail(f"transformers serve {how}: {log.read_text()[-2000:]}")


@pytest.mark.skipif(bool(SERVING), reason=f"transformers serve needs {', '.join(SERVING)}: pip install 'transformers[serving]'")
def test_transformers_serve_gives_the_replies_of_the_model_here(transformers_serve, real, tmp_path):
    """The same weights in float32 on both sides: the same texts, word for word."""
    url, place = transformers_serve
    settings = Settings(tasks=tuple(get_tasks(["summarize", "sentiment"])), max_new_tokens=10)
    documents = [one for one in some_documents(1) if one.label != "malicious"]
    behind = evaluate(Server(url, place, concurrency=2), documents, settings, tmp_path / "behind")
    here = evaluate(real, documents, settings, tmp_path / "here")
    said = [{one.key: (one.reply, one.finished) for one in read_rows(tmp_path / name / "replies.jsonl", Reply)} for name in ("behind", "here")]
    assert said[0] == said[1]
    assert len(said[0]) == 4
    assert any(text for text, _ in said[0].values())
    assert behind["rates"] == here["rates"]
    long = [replace(one, text=one.text * 12) for one in documents]
    limited = replace(settings, max_length=160)
    behind = evaluate(Server(url, place, concurrency=2), long, limited, tmp_path / "behind, cut")
    here = evaluate(real, long, limited, tmp_path / "here, cut")
    assert behind["dropped"]["replies"] == here["dropped"]["replies"] == 4
    assert behind["dropped"]["tokens"] == pytest.approx(here["dropped"]["tokens"], rel=0.25)
