"""Prompts that are too long for a server: the document is cut in its middle, as it is for a model that is loaded here, or it is said what to do."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest

from docward.fitting import TooLong, kept, stated
from docward.questions import Answer, Failure, Question
from docward.rendering import compose
from docward.servers import Server
from docward.types import Position
from serving_stub import ChatServer

CONTEXT, REPLY = 400, 20
WORDS = [f"{'abcdefghijklm'[: 1 + (7 * place) % 13]}{place}" for place in range(3000)]  # of very unlike lengths
DOCUMENT, INSTRUCTION = " ".join(WORDS), "Please summarize the above in one sentence."


def vllm(context: int, prompt: int, reply: int) -> dict[str, Any]:
    said = f"However, you requested {prompt + reply} tokens ({prompt} in the messages, {reply} in the completion)."
    return {"message": f"This model's maximum context length is {context} tokens. {said} Please reduce the length of the messages or completion.", "code": 400}


def vllm_at_least(context: int, prompt: int, reply: int) -> dict[str, Any]:
    """It stops counting where the prompt is too long."""
    seen = min(prompt, context - reply + 1)
    said = f"you requested {reply} output tokens and your prompt contains at least {seen} input tokens, for a total of at least {seen + reply} tokens."
    return {"message": f"This model's maximum context length is {context} tokens. However, {said} Please reduce the length of the input prompt."}


def openai(context: int, prompt: int, reply: int) -> dict[str, Any]:
    said = f"However, your messages resulted in {prompt:,} tokens. Please reduce the length of the messages."
    return {"message": f"This model's maximum context length is {context:,} tokens. {said}", "code": "context_length_exceeded"}


def llama_cpp(context: int, prompt: int, reply: int) -> dict[str, Any]:
    message = "the request exceeds the available context size. try increasing the context size or enable context shift"
    return {"code": 400, "message": message, "type": "exceed_context_size_error", "n_prompt_tokens": prompt, "n_ctx": context}


def vague(context: int, prompt: int, reply: int) -> dict[str, Any]:
    return {"message": "Sorry, the context window is full.", "type": "invalid_request_error"}


def tgi(context: int, prompt: int, reply: int) -> tuple[int, dict[str, Any]]:
    """text-generation-inference says it in a text, not an object."""
    said = f"`inputs` tokens + `max_new_tokens` must be <= {context}. Given: {prompt} `inputs` tokens and {reply} `max_new_tokens`"
    return 422, {"error": f"Input validation error: {said}", "error_type": "validation"}


def in_detail(context: int, prompt: int, reply: int) -> tuple[int, dict[str, Any]]:
    return 400, {"detail": vllm(context, prompt, reply)["message"]}


def bare(context: int, prompt: int, reply: int) -> tuple[int, None]:
    return 413, None


Refuses = Callable[[int, int, int], dict[str, Any]]


@pytest.fixture(autouse=True)
def key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-a-key-of-this-test-alone")


def asked(server: ChatServer, *texts: tuple[str, str], position: Position = Position.AFTER, max_length: int | None = None) -> list[Answer | Failure]:
    questions = [Question(str(place), compose(text, words, position), "", text) for place, (text, words) in enumerate(texts)]
    batches = Server(server.url, "big", concurrency=2).ask(questions, max_new_tokens=REPLY, max_length=max_length)
    return sorted((one for batch in batches for one in batch), key=lambda one: one.key)


def last(server: ChatServer) -> str:
    return str(server.requests[-1]["messages"][-1]["content"])


@pytest.mark.parametrize("counts", [False, True])
@pytest.mark.parametrize("position", list(Position))
@pytest.mark.parametrize(
    ("refuses", "states", "max_length"),
    [
        (vllm, 0, None),
        (vllm_at_least, 0, None),
        (openai, 0, None),
        (llama_cpp, 0, None),
        (vague, CONTEXT, None),
        (vague, 0, CONTEXT),
        (tgi, 0, None),
        (in_detail, 0, None),
        (bare, CONTEXT, None),
    ],
)
def test_a_document_that_a_server_refuses_is_cut_in_its_middle_and_nothing_else_is(server, refuses: Refuses, states, max_length, position, counts):
    server.context, server.refuses, server.states, server.counts = CONTEXT, refuses, states, counts
    (answer,) = asked(server, (DOCUMENT, INSTRUCTION), position=position, max_length=max_length)
    assert isinstance(answer, Answer)
    instruction, document = (last(server).split("\n\n")[place] for place in ((1, 0) if position == Position.AFTER else (0, 1)))
    assert instruction == INSTRUCTION
    left = document.split()
    assert 0.7 * (CONTEXT - REPLY) < len(last(server).split()) <= CONTEXT - REPLY, "it fits, and little more is cut than has to be"
    half = len(document) // 2
    assert DOCUMENT.startswith(document[: half - 1])
    assert DOCUMENT.endswith(document[-half + 1 :])
    counted = counts or refuses in (vllm, openai, llama_cpp, tgi, in_detail)
    assert answer.dropped == pytest.approx(len(WORDS) - len(left), rel=0.25 if counted else 2)


def test_a_document_that_fits_is_asked_once_and_whole(server):
    server.context, server.refuses, server.counts = CONTEXT, vllm, True
    (answer,) = asked(server, (" ".join(WORDS[:300]), INSTRUCTION), max_length=CONTEXT)
    assert (len(server.requests), answer.dropped) == (1, 0)
    assert last(server) == " ".join(WORDS[:300]) + "\n\n" + INSTRUCTION


def test_with_a_length_given_a_server_that_takes_everything_is_asked_no_more_than_that(server):
    """transformers serve refuses nothing; that it counts is enough."""
    server.counts = True
    (answer,) = asked(server, (DOCUMENT, INSTRUCTION), max_length=200)
    assert len(last(server).split()) <= 200 - REPLY
    assert answer.dropped > 2500
    assert len(server.requests) <= 4


def test_where_no_limit_is_known_it_is_said_what_to_do_and_other_questions_are_answered(server):
    server.context, server.refuses = CONTEXT, vague
    long, short = asked(server, (DOCUMENT, INSTRUCTION), ("A few words.", INSTRUCTION))
    assert isinstance(short, Answer)
    assert isinstance(long, Failure)
    assert long.own
    assert long.why.startswith(
        "too long for the server (HTTP 400: Sorry, the context window is full.). Its limit is not known: give its context in tokens by --max-length"
    )
    assert len(server.requests) == 2


def test_a_server_that_neither_counts_nor_refuses_gets_so_many_characters(server):
    (answer,) = asked(server, (DOCUMENT, INSTRUCTION), max_length=200)
    assert isinstance(answer, Answer)
    assert 0.8 * 4 * (200 - REPLY) < len(last(server)) <= 4 * (200 - REPLY) + 3
    assert INSTRUCTION in last(server)
    assert answer.dropped


def test_an_instruction_that_is_too_long_alone_is_a_failure_and_not_asked_for_ever(server):
    server.context, server.refuses, server.counts = CONTEXT, vllm, True
    (failure,) = asked(server, ("A short note.", " ".join(WORDS[:500])))
    assert isinstance(failure, Failure)
    assert failure.why.endswith("That leaves no room for a document.")
    assert len(server.requests) <= 3


def test_a_prompt_without_a_document_stays_as_it_is(server):
    server.context, server.refuses = CONTEXT, vllm
    (failure,) = asked(server, ("", " ".join(WORDS)))
    assert isinstance(failure, Failure)
    assert failure.why.startswith("HTTP 400: This model's maximum context length is 400 tokens.")
    assert len(server.requests) == 1


@pytest.mark.parametrize(
    ("body", "found"),
    [
        (vllm(16384, 112946, 10000), TooLong(16384, 122946)),
        (vllm_at_least(2048, 9000, 24), TooLong(2048, None)),
        (openai(4097, 6988, 16), TooLong(4097, 6988)),
        (llama_cpp(256, 1407, 16), TooLong(256, 1407)),
        ({"message": "request (1407 tokens) exceeds the available context size (256 tokens), try increasing it"}, TooLong(256, 1407)),
        ({"message": "Requested tokens (2285) exceed context window of 2048"}, TooLong(2048, 2285)),
        ({"message": "max_tokens must be at least 1, got -186."}, TooLong(None, None)),
        (vague(1, 2, 3), TooLong(None, None)),
        ({"message": tgi(4096, 5000, 100)[1]["error"]}, TooLong(4096, 5100)),
        ({"message": "Input validation error: `inputs` must have less than 1024 tokens. Given: 1200"}, TooLong(1024, 1200)),
        ({"detail": "the maximum context length is 2048 tokens, 2300 were requested"}, TooLong(2048, 2300)),
        ({"message": "The model `big` does not exist."}, None),
        ({"message": "temperature must be in [0, 2], got 2048"}, None),
        ({}, None),
        ({"message": "<html>the context length of request 7</html>"}, None),
        ({"message": ["context length"], "n_ctx": "many"}, TooLong(None, None)),
    ],
)
def test_errors_of_known_servers_are_read(body, found):
    assert stated(body) == found


@pytest.mark.parametrize(("refuses", "why"), [(tgi, "`inputs` tokens"), (in_detail, "maximum context length"), (bare, "HTTP 413")])
def test_what_is_too_long_without_a_known_limit_or_document_is_never_withheld(server, refuses: Refuses, why):
    server.context, server.refuses = CONTEXT, refuses
    (failure,) = asked(server, ("", " ".join(WORDS)))
    assert isinstance(failure, Failure)
    assert (failure.withheld, bool(failure.too_long), why in failure.why) == (False, True, True)


def test_each_cut_leaves_less_than_before_and_ends():
    chance = random.Random(0)
    for _ in range(200):
        characters, limit = chance.randint(1, 10**6), chance.randint(1, 10**5)
        found = TooLong(limit, chance.choice([None, limit + chance.randint(1, 10**6)]))
        assert 0 <= kept(characters, characters + 100, found, limit) < characters
