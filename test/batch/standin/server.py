"""A stand-in for the platform's REST API over HTTPS on loopback: answers, checks and faults as the platform's.

Each token has an account of its own. What a request must hold follows the platform's serializers; what the client
expects of an answer follows gcapi's models.
"""

from __future__ import annotations

import json
import re
import socket
import ssl
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.metadata import version
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from .account import SLUG, Account, example_outputs
from .api import ROUTES
from .call import Call, RefusalError
from .faults import Fault, RandomFaults

__all__ = ["SLUG", "Account", "Fault", "Platform", "RandomFaults", "example_outputs", "make_certificate"]


class Platform:
    """The server; `accounts` by token."""

    def __init__(self, certificate: Path, key: Path) -> None:
        self.accounts: dict[str, Account] = {}
        self.latest_version = self.lowest_version = version("gcapi")
        self.lock = threading.Lock()
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"platform": self}))
        self.server.daemon_threads = True
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate, key)
        self.server.socket = context.wrap_socket(
            self.server.socket, server_side=True, do_handshake_on_connect=False, suppress_ragged_eofs=True
        )
        self.origin = f"https://127.0.0.1:{self.server.server_port}"
        self.url = f"{self.origin}/api/v1/"

    def account(self, token: str) -> Account:
        return self.accounts.setdefault(token, Account(pk=f"user-{len(self.accounts) + 1}"))

    @contextmanager
    def serving(self) -> Iterator[Platform]:
        thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        thread.start()
        try:
            yield self
        finally:
            self.server.shutdown()
            self.server.server_close()
            thread.join()


def make_certificate(folder: Path) -> tuple[Path, Path]:
    """A certificate for 127.0.0.1, valid for two days, and its key."""
    certificate, key = folder / "certificate.pem", folder / "key.pem"
    curve = "-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=stand-in".split()
    names = ["-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(key), "-out", str(certificate)]
    subprocess.run(["openssl", "req", "-x509", *curve, *names], check=True, capture_output=True)
    return certificate, key


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    platform: Platform
    timeout = 20
    disable_nagle_algorithm = True
    wbufsize = -1

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def handle(self) -> None:
        try:
            super().handle()
        except OSError:  # the client was killed, or a fault ended the connection
            self.close_connection = True

    def handle_one_request(self) -> None:
        if hasattr(socket, "TCP_QUICKACK"):  # else the client waits 40 ms between the head and the body of a request
            self.connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)
        super().handle_one_request()

    def do_GET(self) -> None:
        self._serve()

    def do_POST(self) -> None:
        self._serve()

    def do_PATCH(self) -> None:
        self._serve()

    def do_PUT(self) -> None:
        self._serve()

    def _serve(self) -> None:
        split = urlsplit(self.path)
        account = self._account(split.path)
        fault = account and self._fault(account, split.path)
        length = int(self.headers.get("Content-Length", 0))
        if fault and fault.what == "drop":
            self.rfile.read(length // 2)
            return self._hang_up()
        body = self.rfile.read(length)
        if len(body) < length:  # the client was killed
            return self._hang_up()
        if fault and fault.what == "refuse":
            return self._send(fault.status, fault.text.encode(), fault.headers)
        with self.platform.lock:
            try:
                answer = self._answer(account, split.path, parse_qs(split.query), body)
            except RefusalError as refusal:
                return self._send_json(refusal.status, refusal.body)
        if fault and fault.what == "lose":
            return self._send(fault.status, fault.text.encode(), fault.headers)
        if isinstance(answer, bytes):
            return self._send_content(answer, fault.what if fault else "")
        if isinstance(answer, dict) and "headers" in answer:
            return self._send(answer["status"], b"", answer["headers"])
        self._send_json(201 if self.command == "POST" else 200, answer, fault.what if fault else "")

    def _account(self, path: str) -> Account | None:
        if path.startswith(("/s3/", "/signed/")):
            accounts = self.platform.accounts.values()
            return next((account for account in accounts if account.pk == path.split("/")[2]), None)
        return self.platform.accounts.get(self.headers.get("Authorization", "").removeprefix("BEARER "))

    def _fault(self, account: Account, path: str) -> Fault | None:
        with self.platform.lock:
            for fault in account.faults:
                if fault.times > 0 and fault.method == self.command and re.match(fault.path, path):
                    fault.times -= 1
                    return fault
        return None

    def _send_json(self, status: int, body: Any, what: str = "") -> None:
        self._send(status, json.dumps(body).encode(), {"Content-Type": "application/json"}, what=what)

    def _send_content(self, content: bytes, what: str) -> None:
        self._send(200, content, {"Content-Type": "application/octet-stream"}, what=what)

    def _send(self, status: int, content: bytes, headers: dict[str, str], *, what: str = "") -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        if what == "shorten":
            self.send_header("Connection", "close")
        else:
            self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if what in ("cut", "shorten"):
            self.wfile.write(content[: len(content) // 2])
            return self._hang_up()
        self.wfile.write(content)
        self.wfile.flush()

    def _hang_up(self) -> None:
        self.wfile.flush()
        self.connection.shutdown(socket.SHUT_RDWR)
        self.close_connection = True

    def _answer(self, account: Account | None, path: str, query: dict[str, list[str]], body: bytes) -> Any:
        if path == "/api/v1/gcapi/":
            return {
                "latest_version": self.platform.latest_version,
                "lowest_supported_version": self.platform.lowest_version,
            }
        if account is None:
            raise RefusalError(401, {"detail": "Invalid token."})
        account.requests.append((self.command, self.path, body))
        account.heads.append(str(self.headers))
        for method, pattern, answer in ROUTES:
            found = re.fullmatch(pattern, path) if method == self.command else None
            if found:
                call = Call(account, self.platform.origin, self.headers, query, body)
                return answer(call, *found.groups())
        account.breaches.append(f"{self.command} {path}: no such address")
        raise RefusalError(404, {"detail": "Not found."})
