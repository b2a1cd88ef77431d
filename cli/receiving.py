"""A web server on a thread that hands each POST to a function: what the receivers of this command line are made of."""

from __future__ import annotations

import json
import socket
import sys
import threading
from collections.abc import Callable, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Self

from standardwebhooks import Webhook, WebhookVerificationError

MAX_BODY_BYTES = 16_777_216  # as large as the platform's largest event

# Path, headers with names in lower case, body: the status and a word about it.
Answer = Callable[[str, Mapping[str, str], bytes], tuple[int, str]]


def holds(secret: str, headers: Mapping[str, str], body: bytes) -> bool:
    """Whether the library of Standard Webhooks accepts the signature."""
    try:
        Webhook(secret).verify(body, dict(headers))
    except (WebhookVerificationError, ValueError):
        return False
    return True


class Server:
    """Serves within the `with` block."""

    def __init__(self, answer: Answer, host: str = "127.0.0.1", port: int = 0) -> None:
        self._server = (_Server6 if ":" in host else _Server)((host, port), answer)
        self._thread = threading.Thread(target=self._server.serve_forever, name="receiver", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    @property
    def port(self) -> int:
        return self._server.server_port


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, address: tuple[str, int], answer: Answer) -> None:
        self.answer = answer
        super().__init__(address, _Handler)

    def server_bind(self) -> None:
        """Without the look for our host name, which may wait for DNS."""
        socket.socket.bind(self.socket, self.server_address)
        self.server_address = self.socket.getsockname()
        self.server_name, self.server_port = "receiver", int(self.socket.getsockname()[1])

    def handle_error(self, request: object, client_address: object) -> None:
        if not isinstance(sys.exception(), OSError):  # a sender that hangs up is no fault of ours
            super().handle_error(request, client_address)  # type: ignore[arg-type]


class _Server6(_Server):
    address_family = socket.AF_INET6


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # head and body go in two writes, and the second would wait 40 ms
    timeout = 75  # a connection on which nothing comes; longer than senders keep theirs
    server: _Server

    def do_POST(self) -> None:
        text = self.headers.get("Content-Length", "0")
        if "Transfer-Encoding" in self.headers or not (text.isascii() and text.isdecimal()):
            self.send_error(411)
            return
        if int(text) > MAX_BODY_BYTES:
            self.send_error(413)
            return
        body = self.rfile.read(int(text))
        if len(body) < int(text):
            self.close_connection = True  # it hung up: not a request that came
            return
        headers = {name.lower(): value for name, value in self.headers.items()}
        status, said = self.server.answer(self.path, headers, body)
        answer = json.dumps({"message": said}).encode() + b"\n"
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *_: object) -> None:
        """What arrives is told by whoever answers it."""
