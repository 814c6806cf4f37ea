"""A chat server of the OpenAI protocol that says what a test wants, or misbehaves."""

from __future__ import annotations

import json
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Event, Lock, Thread
from typing import Any

STATUS = {"500": 500, "401": 401, "403": 403, "404": 404, "400": 400, "413": 413, "422": 422, "429": 429}


def newer_openai(asked: dict[str, Any]) -> tuple[int, dict[str, Any]] | None:
    """OpenAI's reasoning models, in their own words."""
    if "max_tokens" in asked:
        said = "Unsupported parameter: 'max_tokens' is not supported with this model. Use 'max_completion_tokens' instead."
        return 400, {"error": {"message": said, "type": "invalid_request_error", "param": "max_tokens", "code": "unsupported_parameter"}}
    if asked.get("temperature", 1) != 1:
        said = "Unsupported value: 'temperature' does not support 0.0 with this model. Only the default (1) value is supported."
        return 400, {"error": {"message": said, "type": "invalid_request_error", "param": "temperature", "code": "unsupported_value"}}
    return None


def strict(asked: dict[str, Any]) -> tuple[int, dict[str, Any]] | None:
    """FastAPI with a model that forbids what it does not know; its error repeats what was sent."""
    wrong = {"type": "extra_forbidden", "loc": ["body", "seed"], "msg": "Extra inputs are not permitted", "input": asked.get("seed")}
    return (422, {"detail": [wrong]}) if "seed" in asked else None


def strict_within(asked: dict[str, Any]) -> tuple[int, dict[str, Any]] | None:
    """The same as Mistral's servers wrap it."""
    refused = strict(asked)
    return refused and (refused[0], {"object": "error", "message": refused[1], "type": "invalid_request_error"})


def strictest(asked: dict[str, Any]) -> tuple[int, dict[str, Any]] | None:
    """All of it, one after the other."""
    return newer_openai(asked) or strict(asked)


class ChatServer:
    """Answers with `replies` in turn, or with what `says` makes of a request; requests number `after` to `until` meet its `trouble`.

    Troubles: a status in STATUS (`429` with `retry_after`), `nonsense`, `no choices`, `no text`, `cut` (the connection ends in the middle), `hang`, `drip` (a
    blank every tenth of a second, for ever). Every error says `words`. `most` is how many requests were there at once.

    It `objects` to a request by a function that gives the status and body of an error, or None; it holds an answer back where `filters` says so of a request.

    A word is a token to it. With a `context` it refuses what does not fit, in the words of `refuses` (a function of context, prompt and reply tokens that
    gives what stands in the `error` of a 400, or a status and the whole body); with `counts` it says how many a prompt had; `states` is what its list of
    models says of the context.
    """

    def __init__(self) -> None:
        self.replies, self.requests, self.trouble, self.after, self.until = ["Yes."], [], "", 0, 1_000_000
        self.says: Any = None
        self.words, self.retry_after, self.pause = "it is broken", "", 0.0
        self.context = self.states = 0
        self.counts = False
        self.refuses: Any = None
        self.objects: Any = lambda asked: None
        self.filters: Any = lambda asked: False
        self.keys: list[str] = []
        self.here = self.most = 0
        self.closing = Event()
        self._lock = Lock()
        owner = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                big = {"id": "big", "object": "model"} | ({"max_model_len": owner.states} if owner.states else {})
                names = [{"id": key, "object": "model"} for key in owner.keys[-1:]]
                self.send(200, json.dumps({"object": "list", "data": [big, *names]}).encode())

            def do_POST(self) -> None:
                asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with owner._lock:
                    number = len(owner.requests)
                    owner.requests.append(asked)
                    owner.keys.append(self.headers["Authorization"].removeprefix("Bearer "))
                    owner.here += 1
                    owner.most = max(owner.most, owner.here)
                owner.closing.wait(owner.pause)
                with owner._lock:
                    owner.here -= 1
                trouble = owner.trouble if owner.after <= number < owner.until else ""
                if trouble == "hang":
                    owner.closing.wait()
                elif trouble == "drip":
                    self.drip()
                elif trouble == "cut":
                    self.send(200, b'{"choices": [{"mess', length=500)
                else:
                    self.send(*owner.answer(number, asked, trouble))

            def drip(self) -> None:
                self.send(200, b"", length=1_000_000)
                while not owner.closing.wait(0.1):
                    try:
                        self.wfile.write(b" ")
                    except OSError:
                        return

            def send(self, status: int, body: bytes, *, length: int | None = None) -> None:
                try:
                    self.send_response(status)
                    self.send_header("Content-Type", "application/json")
                    self.send_header("Content-Length", str(len(body) if length is None else length))
                    if status == 429 and owner.retry_after:
                        self.send_header("Retry-After", owner.retry_after)
                    self.end_headers()
                    self.wfile.write(body)
                except OSError:  # who asked has gone
                    pass

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        self.url = f"http://127.0.0.1:{self._server.server_port}/v1"

    def answer(self, number: int, asked: dict[str, Any], trouble: str) -> tuple[int, bytes]:
        if trouble in STATUS:
            return STATUS[trouble], json.dumps({"error": {"message": self.words.format(key=self.keys[number])}}).encode()
        if trouble in ("nonsense", "no choices"):
            return 200, {"nonsense": b"<html>", "no choices": b'{"choices": []}'}[trouble]
        if objection := self.objects(asked):
            return objection[0], json.dumps(objection[1]).encode()
        tokens = sum(len(message["content"].split()) for message in asked["messages"])
        if self.context and tokens + asked["max_tokens"] > self.context:
            refused = self.refuses(self.context, tokens, asked["max_tokens"])
            status, body = refused if isinstance(refused, tuple) else (400, {"error": refused})
            return status, json.dumps(body).encode() if body else b""
        text = self.says(asked) if self.says else self.replies[number % len(self.replies)]
        message = {"role": "assistant", "content": [1] if trouble == "no text" else text.format(key=self.keys[number])}
        if held_back := self.filters(asked):
            message["content"] = "The beginning of"
        choices = [{"index": 0, "message": message, "finish_reason": "content_filter" if held_back else "stop"}]
        usage = {"usage": {"prompt_tokens": tokens, "completion_tokens": 1, "total_tokens": tokens + 1}} if self.counts else {}
        return 200, json.dumps({"id": "1", "object": "chat.completion", "created": 0, "model": "big", "choices": choices, **usage}).encode()

    def __enter__(self) -> ChatServer:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.closing.set()
        self._server.shutdown()
        self._server.server_close()
