"""An HTTP proxy before an S3 server that harms chosen requests, so that tests see what networks and stores do to a client.

Enters: the server's endpoint and a schedule, a function of (operation, key, how often this pair was seen): the same requests are
harmed in each run. Leaves: an endpoint, and `injected`, what was done to which request. Random parts of keys (uuids) are `*`.

    503, 500           refused, not executed
    reset_before       connection reset, not executed
    reset_after        connection reset after the server executed it: a time-out after success
    hang_after         the same, but nothing is told for HANG_SECONDS: the client's own time-out strikes
    truncated          half of the body that Content-Length promises
    slow               answered after SLOW_SECONDS
    twice              executed twice; the second answer is told
    error_in_200       status 200 with an error in its body, not executed (S3 does so for copies and completed uploads)
    ignored_condition  If-None-Match is taken out: a server that does not know conditional puts
    stolen             told 200, but `rival` is called instead: the object is somebody else's
"""

import collections
import hashlib
import http.client
import re
import socket
import struct
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

SLOW_SECONDS, HANG_SECONDS = 0.3, 4.0
ANYWHERE = ("503", "500", "reset_before", "reset_after", "truncated", "slow", "twice")
"""Faults that may befall any request."""
_RANDOM = re.compile(r"[0-9a-f]{32}")
_HOP_HEADERS = frozenset({"connection", "keep-alive", "transfer-encoding", "content-length", "expect"})
_ERRORS = {"503": (503, "SlowDown"), "500": (500, "InternalError"), "error_in_200": (200, "InternalError")}


@dataclass(frozen=True, slots=True)
class S3Request:
    """What a schedule decides by."""

    operation: str
    """PutObject, CreateObject (a conditional put), GetObject, HeadObject, DeleteObject, ListObjects, CopyObject,
    CreateMultipartUpload, UploadPart, CompleteMultipartUpload, AbortMultipartUpload, Other."""
    key: str
    count: int
    """1 for the first request of this operation and key."""


Schedule = Callable[[S3Request], str | None]


def first_of_each(fault: str, *operations: str) -> Schedule:
    """Harms the first request of every key, of the operations named (of none: of all)."""
    return lambda r: fault if r.count == 1 and (not operations or r.operation in operations) else None


def mixed(seed: int, faults: Sequence[str], *, share: float = 1.0) -> Schedule:
    """Harms a share of first requests, and of second ones half as many, each by a fault that seed, operation and key choose."""

    def schedule(r: S3Request) -> str | None:
        digest = hashlib.sha256(f"{seed} {r.operation} {r.key} {r.count}".encode()).digest()
        if r.count > 2 or digest[0] / 256 >= share / r.count:
            return None
        return faults[digest[1] % len(faults)]

    return schedule


class FaultProxy:
    """A context manager. `schedule` may be exchanged while it runs."""

    def __init__(
        self, upstream: str, schedule: Schedule | None = None, *, rival: Callable[[str], None] | None = None
    ) -> None:
        self.upstream = urlsplit(upstream)
        self.schedule: Schedule = schedule or (lambda request: None)
        self.rival = rival
        self.injected: list[tuple[str, S3Request]] = []
        self.requests: list[S3Request] = []
        self._counts: collections.Counter[tuple[str, str]] = collections.Counter()
        self._lock = threading.Lock()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"proxy": self}))
        self._server.daemon_threads = True
        self.endpoint = f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> "FaultProxy":
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def decide(self, operation: str, key: str) -> str | None:
        """The fault of the next request, noted down."""
        with self._lock:
            self._counts[operation, key] += 1
            request = S3Request(operation, key, self._counts[operation, key])
            self.requests.append(request)
            fault = self.schedule(request)
            if fault is not None:
                self.injected.append((fault, request))
            return fault


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    proxy: FaultProxy

    def _handle(self) -> None:
        body = self._read_body()
        operation, key = self._operation()
        fault = self.proxy.decide(operation, _RANDOM.sub("*", key))
        if fault in _ERRORS:
            status, code = _ERRORS[fault]
            text = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>injected: {code}</Message></Error>"
            self._answer(status, [("Content-Type", "application/xml")], text.encode())
        elif fault == "reset_before":
            self._reset()
        elif fault == "stolen":
            assert self.proxy.rival is not None
            self.proxy.rival(key)
            self._answer(200, [("ETag", '"0"')], b"")
        else:
            if fault == "slow":
                time.sleep(SLOW_SECONDS)
            if fault == "twice":
                self._forward(body)
            status, headers, answer = self._forward(body, conditional=fault != "ignored_condition")
            if fault in ("reset_after", "hang_after"):
                time.sleep(HANG_SECONDS if fault == "hang_after" else 0)
                self._reset()
            elif fault == "truncated" and len(answer) > 1:
                self._answer(status, headers, answer, num_sent=len(answer) // 2)
                self._reset()
            else:
                self._answer(status, headers, answer)

    do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = _handle

    def _read_body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        body = b""
        while size := int(self.rfile.readline().split(b";")[0], 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        while self.rfile.readline().strip():
            pass
        return body

    def _operation(self) -> tuple[str, str]:
        parts = urlsplit(self.path)
        query = parse_qs(parts.query, keep_blank_values=True)
        key = unquote(parts.path).strip("/").partition("/")[2]
        method = self.command
        if method == "GET" and not key:
            return "ListObjects", query.get("prefix", [""])[0]
        if "uploads" in query and method == "POST":
            return "CreateMultipartUpload", key
        if "uploadId" in query:
            names = {
                "PUT": "UploadPart",
                "POST": "CompleteMultipartUpload",
                "DELETE": "AbortMultipartUpload",
            }
            part = query.get("partNumber", [""])[0]
            return names.get(method, "Other"), key + (f"#{part}" if part else "")
        if method == "PUT" and "x-amz-copy-source" in self.headers:
            return "CopyObject", key
        if method == "PUT" and "If-None-Match" in self.headers:
            return "CreateObject", key
        names = {"PUT": "PutObject", "GET": "GetObject", "HEAD": "HeadObject", "DELETE": "DeleteObject"}
        return (names.get(method, "Other") if key else "Other"), key

    def _forward(self, body: bytes, *, conditional: bool = True) -> tuple[int, list[tuple[str, str]], bytes]:
        upstream = self.proxy.upstream
        connection = http.client.HTTPConnection(upstream.hostname or "", upstream.port, timeout=60)
        try:
            connection.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
            for name, value in self.headers.items():  # the Host header is signed: it stays the client's
                if name.lower() not in _HOP_HEADERS and (conditional or name.lower() != "if-none-match"):
                    connection.putheader(name, value)
            connection.putheader("Content-Length", str(len(body)))
            connection.endheaders(body)
            response = connection.getresponse()
            headers = [(name, value) for name, value in response.getheaders() if name.lower() not in _HOP_HEADERS]
            if self.command == "HEAD":
                headers.append(("Content-Length", response.getheader("Content-Length") or "0"))
            return response.status, headers, response.read()
        finally:
            connection.close()

    def _answer(self, status: int, headers: list[tuple[str, str]], body: bytes, *, num_sent: int | None = None) -> None:
        self.send_response_only(status)
        for name, value in headers:
            self.send_header(name, value)
        if self.command != "HEAD" and status != 204:
            self.send_header("Content-Length", str(len(body)))
        elif not any(name.lower() == "content-length" for name, _ in headers) and status != 204:
            self.send_header("Content-Length", "0")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body[:num_sent])

    def _reset(self) -> None:
        self.wfile.flush()
        # Linger of 0 s: close() sends RST instead of FIN.
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close_connection = True
        self.connection.shutdown(socket.SHUT_RDWR)

    def log_message(self, format: str, *args: object) -> None:
        """Tests are quiet."""
