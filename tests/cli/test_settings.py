"""What `docward evaluate` is told of a batch's size and of the system prompt: what of it makes another evaluation, and what does not."""

from __future__ import annotations

import sys
from collections.abc import Callable

import pytest
import torch

from docward.cli.main import main
from docward.evaluation import evaluating
from docward.records import write_rows
from docward.tasks import SYSTEM_PROMPTS
from tiny import some_documents

FILES = ("evaluation.json", "replies.jsonl", "verdicts.jsonl", "metrics.json")


@pytest.fixture
def evaluate(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path) -> Callable[..., tuple[int, str]]:
    """Evaluate by the command line in an empty folder; gives the exit code and the error."""
    monkeypatch.chdir(tmp_path)
    for label in ("malicious", "ordinary"):
        write_rows(tmp_path / f"{label}.jsonl", [one for one in some_documents(3) if one.label == label])

    def call(*options: object) -> tuple[int, str]:
        sources = [part for label in ("malicious", "ordinary") for part in ("--documents", f"{label}={label}.jsonl")]
        monkeypatch.setattr(sys, "argv", ["docward", "evaluate", *sources, "--tasks", "summarize,case", *map(str, options)])
        with pytest.raises(SystemExit) as end:
            main()
        return int(end.value.code or 0), " ".join(capsys.readouterr().err.partition("Error: ")[2].split())

    return call


def test_a_stopped_evaluation_goes_on_with_batches_of_another_size_and_ends_the_same(evaluate, tiny_folder, tmp_path, monkeypatch):
    monkeypatch.setattr("docward.models.default_dtype", lambda _: torch.float32)
    asked, sizes, generate = ("--model", tiny_folder, "--max-new-tokens", 3), [], evaluating.generate

    def noted(*given, max_batch_tokens, **more):
        sizes.append(max_batch_tokens)
        for number, batch in enumerate(generate(*given, max_batch_tokens=max_batch_tokens, **more)):
            if number and max_batch_tokens == 600:
                raise KeyboardInterrupt
            yield batch

    monkeypatch.setattr(evaluating, "generate", noted)
    assert evaluate(*asked, "--output-dir", "whole")[0] == 0
    evaluate(*asked, "--output-dir", "stopped", "--max-batch-tokens", 600)
    assert 0 < len((tmp_path / "stopped" / "replies.jsonl").read_text().splitlines()) < 12
    assert evaluate(*asked, "--output-dir", "stopped", "--max-batch-tokens", 1200) == (0, "")
    assert sizes == [evaluating.Settings(()).max_batch_tokens, 600, 1200]
    assert [(tmp_path / "stopped" / name).read_bytes() for name in FILES] == [(tmp_path / "whole" / name).read_bytes() for name in FILES]


def test_the_system_prompt_is_the_models_and_another_one_is_another_evaluation(evaluate, server, tmp_path):
    def heard(prompt: str) -> list[str]:
        server.requests.clear()
        assert evaluate("--model", "big", "--base-url", server.url, "--output-dir", prompt[:4], "--system-prompt", prompt) == (0, "")
        return [message["content"] for asked in server.requests for message in asked["messages"] if message["role"] == "system"]

    assert heard("careful") == [SYSTEM_PROMPTS["careful"]] * 12
    assert heard("Answer in rhymes.") == ["Answer in rhymes."] * 12
    assert heard("none") == []
    before = (tmp_path / "care" / "replies.jsonl").read_bytes()
    for option in ((), ("--system-prompt", "terse")):
        code, said = evaluate("--model", "big", "--base-url", server.url, "--output-dir", "care", *option)
        assert code == 1
        assert f"another evaluation (system: {SYSTEM_PROMPTS['careful']!r} there, {SYSTEM_PROMPTS['terse'] if option else ''!r} now)" in said
    assert (tmp_path / "care" / "replies.jsonl").read_bytes() == before
    assert evaluate("--model", "big", "--base-url", server.url, "--output-dir", "care", "--system-prompt", SYSTEM_PROMPTS["careful"]) == (0, "")
