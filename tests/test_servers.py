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
from docward.questions import Answer, Failure, Question
from docward.servers import Server
from serving_stub import ChatServer, newer_openai, strict, strict_within, strictest

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


def test_half_of_a_character_in_an_answer_can_be_kept(server, ask):
    server.replies = ["So far \ud83d"]  # cut in its middle by something that counts in UTF-16
    assert ask(1) == [Answer("0", "So far ?", True)]


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


def contents(server: ChatServer) -> list[str]:
    return [asked["messages"][-1]["content"] for asked in server.requests]


def moderated(status: int, *numbers: int) -> Callable[[dict[str, Any]], tuple[int, dict[str, Any]] | None]:
    """What a gateway says to some questions; the name of a parameter in its words means nothing there."""
    refused, these = (status, {"error": {"message": "The seed of such words is not allowed"}}), {f"Question {number}?" for number in numbers}
    return lambda asked: refused if asked["messages"][-1]["content"] in these else None


@pytest.mark.parametrize("status", [400, 403, 404, 422])
@pytest.mark.parametrize("number", [0, 2])
def test_a_question_that_the_server_will_not_have_is_withheld_and_the_others_go_on(server, ask, status, number):
    """That it answers a plain question tells that neither the key nor the model is wrong, be it the first question or a later one."""
    server.objects = moderated(status, number)
    found = ask(5, concurrency=1)
    assert found.pop(number) == Failure(str(number), f"HTTP {status}: The seed of such words is not allowed", own=True, withheld=True, status=status)
    assert [one.text for one in found] == ["Yes."] * 4
    assert [contents(server).count(text) for text in (f"Question {number}?", servers.PLAIN)] == [1 + servers.AGAIN, 1]
    assert len(server.requests) == 4 + 1 + servers.AGAIN + 1
    assert all("seed" in asked for asked in server.requests)


def test_one_bad_replica_of_two_withholds_nothing(server, ask):
    """They take turns behind a balancer, so that a plain question between two tries meets the good one."""
    server.objects = lambda asked: (
        (400, {"error": {"message": "No."}}) if len(server.requests) % 2 and asked["messages"][-1]["content"] != servers.PLAIN else None
    )
    assert [type(one) for one in ask(20, concurrency=1)] == [Answer] * 20


def test_a_number_of_tokens_that_is_too_large_is_said_and_the_parameter_keeps_its_name(server):
    said = "max_tokens is too large: 9000. This model supports at most 4096 completion tokens, whereas you provided 9000."
    server.objects = lambda asked: (400, {"error": {"message": said, "param": "max_tokens"}}) if asked.get("max_tokens", 9000) > 4096 else None
    asked = Server(server.url, "big", concurrency=2)
    with pytest.raises(ModelError, match=r"max_tokens is too large: 9000.*number of new tokens"):
        list(asked.ask([Question(str(number), "?") for number in range(60)], max_new_tokens=9000))
    assert {one["max_tokens"] for one in server.requests} == {9000}


@pytest.mark.parametrize("thinks", [False, True])
def test_a_plain_question_costs_few_tokens_once_the_limit_is_known_to_be_taken(server, ask, thinks):
    """A model that thinks first may answer that so few are too few: that is no word on the other question."""

    def objects(asked: dict[str, Any]) -> tuple[int, dict[str, Any]] | None:
        refused = moderated(400, 2)(asked)
        few = thinks and asked["max_tokens"] <= servers.PLAIN_TOKENS
        return refused or ((400, {"error": {"message": "Could not finish: max_tokens was reached"}}) if few else None)

    server.objects = objects
    questions = [Question(str(number), f"Question {number}?") for number in range(4)]
    batches = Server(server.url, "big", concurrency=1).ask(questions, max_new_tokens=1024)
    assert [one.key for batch in batches for one in batch if isinstance(one, Failure) and one.withheld] == ["2"]
    plain = [asked["max_tokens"] for asked in server.requests if asked["messages"][-1]["content"] == servers.PLAIN]
    assert plain == [servers.PLAIN_TOKENS, 1024][: 1 + thinks]


def test_a_limit_that_a_server_refuses_without_naming_it_withholds_nothing(server):
    server.objects = lambda asked: (400, {"error": {"message": "Bad request"}}) if asked["max_tokens"] > 512 else None
    came: list[Any] = []
    with pytest.raises(ModelError, match="not even a plain one"):
        came.extend(one for batch in Server(server.url, "big").ask([Question(str(n), "?") for n in range(60)], max_new_tokens=1024) for one in batch)
    assert not any(one.withheld for one in came)


@pytest.mark.parametrize("system", ["", "Be brief."])
def test_a_403_tells_of_the_system_prompt_if_one_was_sent(server, system):
    server.trouble = "403"
    with pytest.raises(ModelError, match="lets nobody in with this key") as error:
        list(Server(server.url, "big", remedy="Do this.").ask([Question("0", "?", system)], max_new_tokens=1))
    assert ("refuses the system prompt that is sent with every question. Do this." in str(error.value)) is bool(system)


def test_an_answer_that_a_filter_held_back_is_none_and_not_asked_for_again(server, ask):
    server.filters = lambda asked: asked["messages"][-1]["content"] == "Question 1?"
    found = ask(3)
    assert found[1] == Failure("1", "the server's own filter held the answer back (finish_reason content_filter)", own=True, withheld=True)
    assert [type(one) for one in found] == [Answer, Failure, Answer]
    assert len(server.requests) == 3


def test_many_questions_in_a_row_that_the_server_will_not_have_do_not_end_the_others(server, ask):
    server.objects = moderated(403, *range(3 * servers.IN_A_ROW))
    found = ask(3 * servers.IN_A_ROW + 5)
    assert [isinstance(one, Failure) and one.withheld for one in found] == [True] * 3 * servers.IN_A_ROW + [False] * 5
    assert all(isinstance(one, Answer) for one in found[-5:])


@pytest.mark.parametrize("status", ["400", "422"])
def test_where_not_even_a_plain_question_is_taken_nothing_is_withheld_and_it_ends_soon(server, status):
    server.trouble, server.after, server.words = status, 3, "System role not supported"
    batches = Server(server.url, "big", concurrency=2).ask([Question(str(n), "?", "Be brief.") for n in range(500)], max_new_tokens=1)
    came: list[Any] = []
    with pytest.raises(ModelError, match=rf"takes no question to 'big', not even a plain one \(HTTP {status}: System role not supported\)"):
        came.extend(one for batch in batches for one in batch)
    assert [type(one) for one in came[:3]] == [Answer] * 3
    assert not any(one.own or one.withheld for one in came[3:])
    assert servers.IN_A_ROW <= len(came) - 3 <= servers.IN_A_ROW + 2
    assert {asked["messages"][0]["content"] for asked in server.requests} == {"Be brief."}, "a plain question is asked as the others are"


@pytest.mark.parametrize("trouble", ["403", "404"])
def test_a_key_that_is_locked_out_later_ends_it_and_withholds_nothing(server, trouble):
    server.trouble, server.after = trouble, 3
    batches = Server(server.url, "big", concurrency=1).ask([Question(str(n), "?") for n in range(50)], max_new_tokens=1)
    came: list[Any] = []
    with pytest.raises(ModelError, match=r"lets nobody in with this key|has no model 'big'"):
        came.extend(one for batch in batches for one in batch)
    assert [type(one) for one in came] == [Answer] * 3
    assert len(server.requests) == 5


@pytest.mark.parametrize(
    ("objects", "not_taken"), [(newer_openai, ["temperature"]), (strict, ["seed"]), (strict_within, ["seed"]), (strictest, ["seed", "temperature"])]
)
@pytest.mark.parametrize("concurrency", [1, 4])
def test_a_parameter_that_a_server_does_not_take_is_renamed_or_left_out_once_for_all(server, objects, not_taken, concurrency):
    server.objects = objects
    asked = Server(server.url, "big", concurrency=concurrency)
    found = [one for batch in asked.ask([Question(str(n), f"Question {n}?") for n in range(20)], max_new_tokens=7, seed=3) for one in batch]
    assert {one.text for one in found} == {"Yes."}
    assert len(found) == 20
    assert asked.not_taken == not_taken
    assert ("own temperature" in asked.told(), asked.told().startswith("big: the server takes no ")) == ("temperature" in not_taken, True)
    last = server.requests[-1]
    assert not {*not_taken} & {*last}
    assert last.get("max_tokens", last.get("max_completion_tokens")) == 7
    assert len(server.requests) <= 20 + concurrency * 5
    before = len(server.requests)
    assert len(list(asked.ask([Question("again", "?")], max_new_tokens=7))) == len(server.requests) - before == 1


def test_a_server_that_will_have_no_limit_of_tokens_is_not_asked_without(server, ask):
    server.objects = lambda asked: next(((400, {"error": {"message": f"{name} is not supported"}}) for name in asked if name.startswith("max_")), None)
    with pytest.raises(ModelError, match="max_completion_tokens is not supported"):
        ask(60)
    assert all({"max_tokens", "max_completion_tokens"} & {*asked} for asked in server.requests)


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
    monkeypatch.setattr(servers.random, "uniform", lambda *_: 0.0)  # no wait of our own choice
    server.trouble, server.until = "429", 1
    server.retry_after = "1" if how == "seconds" else format_datetime(datetime.now(UTC) + timedelta(seconds=2), usegmt=True)
    start = time.monotonic()
    assert all(isinstance(one, Answer) for one in ask(3, concurrency=1))
    assert time.monotonic() - start >= 0.9


def test_a_server_that_asks_for_less_time_than_the_back_off_gets_the_back_off(server, ask, monkeypatch):
    monkeypatch.setattr(servers.random, "uniform", lambda *_: 0.3)
    server.trouble, server.until, server.retry_after = "429", 2, "0"
    start = time.monotonic()
    assert [type(one) for one in ask(1)] == [Answer]
    assert time.monotonic() - start >= 0.6


def test_a_server_that_asks_for_hours_is_not_waited_for(server, ask):
    server.trouble, server.retry_after = "429", "7200"
    assert [one.why for one in ask(1)] == ["HTTP 429: it is broken, asking for 7200 seconds"]
    assert len(server.requests) == 1


@pytest.mark.parametrize("header", ["", "soon", "nan", "inf", "-3", "1e400"])
def test_a_strange_wish_for_time_is_no_wish(header):
    assert servers._seconds(header) is None


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
