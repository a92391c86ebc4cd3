"""An OpenAI-compatible endpoint of the tests' own: real HTTP, and all that goes wrong with it."""

import json
import threading
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class Endpoint(ThreadingHTTPServer):
    """Does what the last message says: `NAME TIMES` goes wrong that often, then answers. With
    `write` it answers by that, after one trouble for every third message."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.seen: list[dict[str, Any]] = []
        self.keys: set[str] = set()
        self.tries: Counter[str] = Counter()
        self.lock = threading.Lock()
        self.now = self.most = 0
        self.write: Callable[[str], str] | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that hangs up is part of the test."""


_TROUBLES = ("429", "500", "503", "cut", "garbled", "shapeless")


class _Handler(BaseHTTPRequestHandler):
    server: Endpoint

    def log_message(self, *args: object) -> None:
        """Says nothing."""

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        content = body["messages"][-1]["content"]
        with self.server.lock:
            self.server.seen.append({"path": self.path, **body})
            self.server.keys.add(self.headers["Authorization"])
            self.server.tries[content] += 1
            self.server.now += 1
            self.server.most = max(self.server.most, self.server.now)
            number = self.server.tries[content]
        try:
            self._answer(content, number)
        finally:
            with self.server.lock:
                self.server.now -= 1

    def _answer(self, content: str, number: int) -> None:
        if self.server.write is not None:
            trouble = zlib.crc32(content.encode())
            said, first = self.server.write(content), number == 1 and trouble % 3 == 0
            name, times = _TROUBLES[trouble // 3 % len(_TROUBLES)], str(int(first))
        else:
            name, _, times = content.partition(" ")
            said = f"about {content}"
        wrong = number <= int(times or 0)
        if name == "slow":
            time.sleep(15.0 if wrong else 0.2)
        if wrong and name.isdigit():
            self._reply(int(name), json.dumps({"error": {"message": f"it is a {name}"}}))
        elif wrong and name == "cut":
            self.send_response(200)
            self.send_header("Content-Length", "9999")
            self.end_headers()
            self.wfile.write(b'{"id"')
            self.close_connection = True
        elif wrong and name == "garbled":
            self._reply(200, '{"choices": [')
        elif wrong and name == "shapeless":
            self._reply(200, '{"choices": []}')
        else:
            text = {"empty": "  ", "nothing": None}.get(name, said)
            choice = {
                "index": 0,
                "finish_reason": "length" if name == "long" else "stop",
                "message": {"role": "assistant", "content": text},
            }
            usage = {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10}
            usage = {"unmetered": None, "partly": {"prompt_tokens": None}}.get(name, usage)
            self._reply(200, json.dumps({"id": "x", "choices": [choice], "usage": usage}))

    def _reply(self, status: int, text: str) -> None:
        data = text.encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.send_header("retry-after-ms", "20")
        self.end_headers()
        self.wfile.write(data)


@contextmanager
def serving() -> Iterator[Endpoint]:
    """An endpoint that serves."""
    server = Endpoint()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
