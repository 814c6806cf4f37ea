"""The one client for models behind servers, against a server on this machine that misbehaves in every way."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

import pytest

from docward import servers
from docward.errors import ModelError
from docward.servers import Answer, Failure, Question, Server
from serving_stub import ChatServer

KEY = "sk-a-key-of-this-test-alone"
Asked = Callable[..., list[Answer | Failure]]


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(servers, "FIRST_WAIT", 0.01)
    monkeypatch.setenv("OPENAI_API_KEY", KEY)


@pytest.fixture
def ask(server: ChatServer) -> Iterator[Asked]:
    def asked(count: int = 4, *, concurrency: int = 2, timeout: float = 30, url: str = "") -> list[Answer | Failure]:
        questions = [Question(str(number), f"Question {number}?") for number in range(count)]
        batches = Server(url or server.url, "big", concurrency=concurrency, timeout=timeout).ask(questions, max_new_tokens=7, seed=3)
        return sorted((one for batch in batches for one in batch), key=lambda one: int(one.key))

    return asked


def test_every_question_gets_its_own_answer(server, ask):
    server.says = lambda asked: asked["messages"][-1]["content"].replace("Question", "Answer")
    assert ask(30, concurrency=4) == [Answer(str(number), f"Answer {number}?", True) for number in range(30)]
    first = server.requests[0]
    assert {name: first[name] for name in ("model", "max_tokens", "temperature", "seed")} == {"model": "big", "max_tokens": 7, "temperature": 0.0, "seed": 3}
    assert set(server.keys) == {KEY}


@pytest.mark.parametrize("concurrency", [1, 5])
def test_so_many_questions_are_on_their_way_at_once_begun_in_order(server, ask, concurrency):
    server.pause = 0.1
    ask(15, concurrency=concurrency)
    assert server.most == concurrency
    began = [int(asked["messages"][-1]["content"].split()[1].strip("?")) for asked in server.requests]
    assert all(abs(number - place) < concurrency for place, number in enumerate(began))


def test_a_slow_answer_holds_up_no_other(server, ask):
    """A window, not batches: while one hangs, the other worker does all the rest."""
    server.trouble, server.until = "hang", 1
    assert [type(one) for one in ask(12, timeout=2)] == [Answer] * 12
    asked = [one["messages"][-1]["content"] for one in server.requests]
    assert asked.count(asked[0]) == 2
    assert asked.index(asked[0], 1) > 10, "asked again only when the others had their answers"


@pytest.mark.parametrize("trouble", ["500", "429", "nonsense", "no choices", "no text", "cut", "hang", "drip"])
def test_what_passes_is_asked_again_until_it_is_answered(server, ask, trouble):
    server.trouble, server.until = trouble, 3
    assert ask(timeout=1 if trouble in ("hang", "drip") else 30) == [Answer(str(number), "Yes.", True) for number in range(4)]
    assert len(server.requests) >= 4 + 3


WHY = {
    "500": "HTTP 500: it is broken",
    "nonsense": "an answer that is not of the protocol",
    "cut": "the connection broke",
    "drip": "no answer within 0.3 seconds",
}


@pytest.mark.parametrize("trouble", [*WHY])
def test_what_stays_is_a_failure_and_never_an_answer(server, ask, monkeypatch, trouble):
    monkeypatch.setattr(servers, "RETRIES", 2)
    server.trouble = trouble
    found = ask(2, timeout=0.3 if trouble == "drip" else 30)
    assert [(one.key, type(one), one.own) for one in found] == [("0", Failure, False), ("1", Failure, False)]
    assert all(one.why.startswith(WHY[trouble]) for one in found)
    assert len(server.requests) == 2 * 3


def test_a_question_that_the_server_will_not_have_is_asked_once_and_the_others_go_on(server, ask):
    server.trouble, server.until, server.words = "400", 1, "such words are not allowed"
    found = ask(5, concurrency=1)
    assert found[0] == Failure("0", "HTTP 400: such words are not allowed", own=True)
    assert [one.text for one in found[1:]] == ["Yes."] * 4
    assert len(server.requests) == 5


def test_waits_grow_twofold_within_limits_and_are_drawn_from_zero_up(server, ask, monkeypatch):
    drawn: list[tuple[float, float]] = []
    monkeypatch.setattr(servers.random, "uniform", lambda low, high: drawn.append((low, high)) or 0.0)
    for name, value in (("FIRST_WAIT", 1.0), ("LONGEST_WAIT", 6.0), ("RETRIES", 5)):
        monkeypatch.setattr(servers, name, value)
    server.trouble = "500"
    ask(1)
    assert drawn == [(0, 1.0), (0, 2.0), (0, 4.0), (0, 6.0), (0, 6.0)]


@pytest.mark.parametrize("how", ["seconds", "date"])
def test_a_server_that_asks_for_time_gets_it_from_all(server, ask, monkeypatch, how):
    monkeypatch.setattr(servers.random, "uniform", lambda *_: 1 / 0)  # no wait of our own choice
    server.trouble, server.until = "429", 1
    server.retry_after = "1" if how == "seconds" else format_datetime(datetime.now(UTC) + timedelta(seconds=2), usegmt=True)
    start = time.monotonic()
    assert all(isinstance(one, Answer) for one in ask(3, concurrency=1))
    assert time.monotonic() - start >= 0.9


def test_a_server_that_asks_for_hours_is_not_waited_for(server, ask):
    server.trouble, server.retry_after = "429", "7200"
    assert [one.why for one in ask(1)] == ["HTTP 429: it is broken, asking for 7200 seconds"]
    assert len(server.requests) == 1


@pytest.mark.parametrize("header", ["", "soon", "nan", "inf", "-3", "1e400"])
def test_a_strange_wish_for_time_is_no_wish(header):
    assert servers._seconds(header) in (None, 0.0)


def test_a_model_that_is_not_there_ends_it_at_once_with_those_that_are(server, ask):
    server.trouble = "404"
    with pytest.raises(ModelError, match=r"has no model 'big' \(HTTP 404: it is broken\)\. It has: big, \[OPENAI_API_KEY\]"):
        ask(50)
    assert len(server.requests) <= 4


def test_a_wrong_key_ends_it_at_once_and_answers_before_it_are_given(server):
    server.trouble, server.after, server.words = "401", 3, "the key {key} is wrong"
    batches = Server(server.url, "big", concurrency=1).ask([Question(str(n), "?") for n in range(50)], max_new_tokens=1)
    came: list[Any] = []
    with pytest.raises(ModelError, match=r"lets nobody in with this key \(HTTP 401: the key \[OPENAI_API_KEY\] is wrong\)"):
        came.extend(one for batch in batches for one in batch)
    assert [one.key for one in came] == ["0", "1", "2"]
    assert len(server.requests) == 4


def test_a_server_that_is_not_there_is_given_up_without_asking_everything(server, ask, monkeypatch):
    monkeypatch.setattr(servers, "RETRIES", 2)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}/v1"  # nobody listens there
    found = ask(500, url=url)
    assert 1 <= len(found) <= 10
    assert {one.why for one in found} == {"the server cannot be reached"}


def test_a_server_that_answers_nothing_any_more_is_given_up(server, ask, monkeypatch):
    monkeypatch.setattr(servers, "RETRIES", 0)
    server.trouble, server.after = "500", 10
    found = ask(500)
    assert sum(isinstance(one, Answer) for one in found) == 10
    assert servers.IN_A_ROW <= len(found) - 10 < servers.IN_A_ROW + servers.AT_ONCE  # whatever the threads' order


def test_questions_that_fail_on_a_server_that_lives_do_not_end_the_others(server, ask, monkeypatch):
    """Many prompts in a row may be too long for it, and some servers say that as a 500."""
    monkeypatch.setattr(servers, "RETRIES", 0)
    answer = server.answer

    def some_fail(number: int, asked: dict[str, Any], trouble: str) -> tuple[int, bytes]:
        words = asked["messages"][-1]["content"].split()
        return answer(number, asked, "500" if words[0] == "Question" and int(words[1].strip("?")) < 80 else "")

    monkeypatch.setattr(server, "answer", some_fail)
    assert [type(one) for one in ask(100)] == [Failure] * 80 + [Answer] * 20


def test_whoever_stops_taking_answers_stops_the_asking(server):
    server.pause = 0.02
    batches = Server(server.url, "big", concurrency=2).ask((Question(str(n), "?") for n in range(1000)), max_new_tokens=1)
    next(batches)
    batches.close()
    time.sleep(0.3)
    asked = len(server.requests)
    time.sleep(0.3)
    assert len(server.requests) == asked < 20


def test_an_error_in_the_questions_is_not_a_wait_for_ever(server):
    def questions() -> Iterator[Question]:
        yield Question("0", "?")
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        list(Server(server.url, "big").ask(questions(), max_new_tokens=1))


def test_no_answer_holds_the_key_also_where_the_server_says_it(server, ask):
    server.replies = ["Your key is {key}."]
    assert {one.text for one in ask()} == {"Your key is [OPENAI_API_KEY]."}


def test_a_stand_in_for_a_key_changes_no_answer(server, ask, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "EMPTY")
    server.replies = ["The room is EMPTY."]
    assert {one.text for one in ask()} == {"The room is EMPTY."}


def test_without_a_key_a_server_is_asked_all_the_same(server, ask, monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY")
    assert len(ask()) == 4


@pytest.mark.parametrize("url", ["localhost:8000/v1", "", "ftp://localhost/v1", "http://", "http://[::1/v1", "big"])
def test_what_is_no_address_is_refused_before_anything_is_sent(url):
    with pytest.raises(ModelError, match="is no address of a server"):
        Server(url, "big")


@pytest.mark.parametrize("url", ["http://me:secret@localhost/v1", "http://localhost/v1?key=secret", "http://localhost/v1#secret"])
def test_an_address_with_a_password_is_refused_and_not_said_again(url):
    with pytest.raises(ModelError, match="holds a password or a query") as error:
        Server(url, "big")
    assert "secret" not in str(error.value)


@pytest.mark.parametrize("key", ["sk-one\nsk-two", "sk-schlüssel-eins"])
def test_a_key_that_is_none_is_refused_and_not_said_again(monkeypatch, key):
    monkeypatch.setenv("OPENAI_API_KEY", key)
    with pytest.raises(ModelError, match="OPENAI_API_KEY holds characters that no key has") as error:
        Server("http://localhost/v1", "big")
    assert "sk-" not in str(error.value)


def test_an_address_is_the_same_with_and_without_a_slash_at_its_end():
    one, other = Server("http://localhost:1/v1", "big"), Server("http://localhost:1/v1/", "big")
    assert one.fingerprint == other.fingerprint
    assert len({one.fingerprint, Server("http://localhost:1/v1", "small").fingerprint, Server("http://localhost:2/v1", "big").fingerprint}) == 3
