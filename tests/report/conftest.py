"""Fixtures of the report: invented run folders, and a headless browser to look at the page."""

import itertools
import json
import os
import shutil
import subprocess
import time
import urllib.request
from pathlib import Path

import pytest
from invented_run import evaluate, write_run

FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]
FLAGS += ["--disable-component-update", "--disable-sync", "--disable-dev-shm-usage", "--remote-debugging-port=0", "--window-size=1400,1000"]
PATIENCE = 60  # seconds until a browser that says nothing has failed


@pytest.fixture
def run(tmp_path):
    """A whole run folder; a test takes parts away."""
    return write_run(tmp_path / "garden-run")


@pytest.fixture
def evaluated(tmp_path):
    """The folder that `docward evaluate --output-dir` makes: one model, its metrics and replies directly in it."""
    folder = tmp_path / "evaluated"
    (folder / "metrics.json").write_text(json.dumps(evaluate(folder, "untuned", 4)), encoding="utf-8")
    return folder


class Page:
    """One page in a headless browser, driven through the DevTools protocol."""

    def __init__(self, socket):
        self.socket, self.numbers, self.events = socket, itertools.count(1), []

    def call(self, method, **parameters):
        number = next(self.numbers)
        self.socket.send(json.dumps({"id": number, "method": method, "params": parameters}))
        while True:
            message = json.loads(self.socket.recv())
            if message.get("id") == number:
                assert "error" not in message, message
                return message["result"]
            self.events.append(message)

    def open(self, path, *, width=1400, dark=False):
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=1000, deviceScaleFactor=1, mobile=width < 600)
        self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}])
        self.call("Page.navigate", url=path.resolve().as_uri())
        self.wait("document.readyState === 'complete' && location.protocol === 'file:'")

    def ask(self, expression):
        answer = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def wait(self, expression):
        until = time.monotonic() + PATIENCE
        while not self.ask(expression):
            assert time.monotonic() < until, f"never became true: {expression}"
            time.sleep(0.05)

    def complaints(self):
        """Everything that the console would show as an error: exceptions, console.error, blocked by the page's policy."""
        self.ask("new Promise(done => setTimeout(done, 200))")  # let late messages come in
        wrong = [event for event in self.events if event["method"] == "Runtime.exceptionThrown"]
        wrong += [event for event in self.events if event["method"] == "Log.entryAdded" and event["params"]["entry"]["level"] == "error"]
        return wrong + [event for event in self.events if event["method"] == "Runtime.consoleAPICalled" and event["params"]["type"] == "error"]

    def requests(self):
        """The addresses asked for, less the page itself and what it carries in it."""
        asked = [event["params"]["request"]["url"] for event in self.events if event["method"] == "Network.requestWillBeSent"]
        return [url for url in asked if not url.startswith(("data:", "blob:")) and not url.endswith("/report.html")]


def start_browser(program, profile):
    process = subprocess.Popen(
        [program, *FLAGS, f"--user-data-dir={profile}", "about:blank"], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    told = profile / "DevToolsActivePort"
    until = time.monotonic() + PATIENCE
    while not (told.is_file() and told.read_text().count("\n")):
        if process.poll() is not None or time.monotonic() > until:
            process.kill()
            process.wait()
            raise AssertionError(f"{program} did not start (exit code {process.returncode})")
        time.sleep(0.05)
    return process, int(told.read_text().split()[0])


@pytest.fixture(scope="session")
def chromium(tmp_path_factory):
    """The address of a headless Chromium that all tests share; skipped where there is none, unless DOCWARD_REQUIRE_BROWSER=1 asks for it."""
    program = next((found for name in ("chromium", "chrome", "google-chrome") if (found := shutil.which(name))), None)
    if program is None:
        reason = "no chromium, chrome or google-chrome on PATH"
        if os.environ.get("DOCWARD_REQUIRE_BROWSER") == "1":
            pytest.fail(f"DOCWARD_REQUIRE_BROWSER=1, but there is {reason}")
        pytest.skip(reason)
    process, port = start_browser(program, Path(tmp_path_factory.mktemp("profile")))
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        try:
            process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@pytest.fixture
def browser(chromium):
    """A page of its own for each test."""
    import websocket

    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # the browser is on this machine
    with direct.open(urllib.request.Request(f"{chromium}/json/new?about:blank", method="PUT"), timeout=PATIENCE) as answer:
        target = json.load(answer)
    socket = websocket.create_connection(target["webSocketDebuggerUrl"], timeout=PATIENCE, suppress_origin=True, http_no_proxy=["127.0.0.1"])
    try:
        yield Page(socket)
    finally:
        socket.close()
        direct.open(f"{chromium}/json/close/{target['id']}", timeout=PATIENCE).close()
