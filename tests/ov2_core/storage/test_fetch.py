"""Fetching from servers that lie, drip, never end or point inwards. The server says byte for byte what it likes."""

import pickle
import socket
import socketserver
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from ov2_core.errors import BadItemError
from ov2_core.redact import redacted
from ov2_core.storage import fetch as fetching
from ov2_core.storage.fetch import FetchLimits, fetch, is_public

MAX_BYTES = 100_000
BODY = bytes(range(256)) * 40
Say = Callable[[bytes], None]


class Server(socketserver.ThreadingTCPServer):
    allow_reuse_address = True
    daemon_threads = True
    hits: Counter[str]
    num_sent = 0
    requests: list[bytes]

    @property
    def host(self) -> str:
        return f"127.0.0.1:{self.server_address[1]}"

    def url(self, path: str) -> str:
        return f"http://{self.host}/{path}"


def head(*lines: str, status: str = "200 OK") -> bytes:
    return "\r\n".join([f"HTTP/1.1 {status}", *lines, "", ""]).encode()


def endless(say: Say) -> None:
    say(head())
    while True:
        say(bytes(10_000))


def endless_chunks(say: Say) -> None:
    say(head("Transfer-Encoding: chunked"))
    while True:
        say(b"2710\r\n" + bytes(10_000) + b"\r\n")


def drip(say: Say) -> None:
    say(head("Content-Length: 10000"))
    while True:
        say(b"x")
        time.sleep(0.05)


def drip_head(say: Say) -> None:
    say(b"HTTP/1.1 200 OK\r\nX-Slow: ")
    while True:
        say(b"x")
        time.sleep(0.05)


def for_ever_continue(say: Say) -> None:
    while True:
        say(b"HTTP/1.1 100 Continue\r\n\r\n")
        time.sleep(0.01)


def silent(say: Say) -> None:
    time.sleep(3)


PAGES: dict[str, bytes | Callable[[Say], None]] = {
    "length": head(f"Content-Length: {len(BODY)}") + BODY,
    "closed": head() + BODY,
    "chunks": head("Transfer-Encoding: chunked")
    + b"1000\r\n"
    + BODY[:4096]
    + b"\r\n1800\r\n"
    + BODY[4096:]
    + b"\r\n0\r\n\r\n",
    "longer than said": head(f"Content-Length: {len(BODY)}") + BODY + b"more" * 1000,
    "shorter than said": head(f"Content-Length: {len(BODY) + 1}") + BODY,
    "chunks cut": head("Transfer-Encoding: chunked") + b"1000\r\n" + BODY[:100],
    "huge": head("Content-Length: 1000000000000"),
    "no length": head("Content-Length: many") + bytes(MAX_BYTES + 1),
    "endless": endless,
    "endless chunks": endless_chunks,
    "drip": drip,
    "drip head": drip_head,
    "continue": for_ever_continue,
    "silent": silent,
    "garbage": b"\x00\x01garbage\r\n\r\n",
    "nothing": b"",
    "404": head("Content-Length: 4", status="404 Not Found") + b"gone",
    "503": head("Content-Length: 4", status="503 Busy") + b"busy",
    "loop": head("Location: /loop", "Content-Length: 0", status="302 Found"),
    "relative": head("Location: length", "Content-Length: 0", status="301 Moved"),
    "to file": head("Location: file:///etc/passwd", status="302 Found"),
    "to metadata": head("Location: http://169.254.169.254/latest/meta-data/", status="307 There"),
    "to localhost": head("Location: http://localhost:1/", status="308 There"),
    "to private": head("Location: //10.0.0.1/x", status="303 There"),
    "to credentials": head("Location: http://a:b@127.0.0.1/", status="302 Found"),
    "to gopher": head("Location: gopher://127.0.0.1/", status="302 Found"),
}


@pytest.fixture
def server() -> Iterator[Server]:
    class Handler(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            lines = []
            while (line := self.rfile.readline()).strip():
                lines.append(line)
            path = lines[0].split()[1].decode().removeprefix("/").replace("%20", " ")
            made.hits[path] += 1
            made.requests.append(b"".join(lines))
            page = PAGES[path] if path != "busy once" else PAGES["503" if made.hits[path] == 1 else "length"]
            try:
                if isinstance(page, bytes):
                    self._say(page)
                else:
                    page(self._say)
            except OSError:
                pass  # the reader has gone: that is what is tested

        def _say(self, data: bytes) -> None:
            self.wfile.write(data)
            made.num_sent += len(data)

    made = Server(("127.0.0.1", 0), Handler)
    made.hits, made.requests = Counter(), []
    thread = threading.Thread(target=made.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    yield made
    made.shutdown()
    made.server_close()
    thread.join()


def get(server: Server, path: str, **limits: Any) -> bytes:
    allowed = {"max_bytes": MAX_BYTES, "timeout_seconds": 5.0, "private_hosts": (server.host,)}
    return fetch(server.url(path), FetchLimits(**{**allowed, **limits}))


def fails(server: Server, path: str, reason: str, message: str | None = None, **limits: Any) -> None:
    with pytest.raises(BadItemError, match=message) as caught:
        get(server, path, **limits)
    assert caught.value.reason == reason
    assert str(caught.value).startswith(server.url(path))
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)


@pytest.mark.parametrize("path", ["length", "closed", "chunks", "longer than said", "relative", "busy once"])
def test_a_body_is_read_however_it_is_framed(server: Server, path: str) -> None:
    assert get(server, path) == BODY
    request = server.requests[0]
    assert b"Accept-Encoding: identity\r\n" in request
    assert f"Host: {server.host}\r\n".encode() in request


@pytest.mark.parametrize("path", ["shorter than said", "chunks cut", "garbage", "nothing", "503"])
def test_a_server_that_fails_three_times_has_no_such_file(server: Server, path: str) -> None:
    fails(server, path, "source_missing")
    assert server.hits[path] == 3


def test_an_answer_that_will_not_change_is_not_asked_for_again(server: Server) -> None:
    fails(server, "404", "source_missing", "answers 404 Not Found")
    fails(server, "loop", "source_missing", "more than 5 redirects")
    assert server.hits == {"404": 1, "loop": 6}


@pytest.mark.parametrize("path", ["endless", "endless chunks", "huge", "no length"])
def test_size_is_what_comes_and_not_what_is_said(server: Server, path: str) -> None:
    fails(server, path, "too_large", f"more than {MAX_BYTES} bytes")
    assert server.num_sent < 20 * 2**20  # the kernel's buffers, not the reader's
    assert get(server, "length", max_bytes=len(BODY)) == BODY
    fails(server, "length", "too_large", max_bytes=len(BODY) - 1)
    fails(server, "closed", "too_large", max_bytes=len(BODY) - 1)


@pytest.mark.parametrize("path", ["drip", "drip head", "continue", "silent"])
def test_the_time_limit_is_of_all_of_it(server: Server, path: str) -> None:
    began = time.monotonic()
    fails(server, path, "deadline_exceeded", r"not fetched in 0\.4 s", timeout_seconds=0.4)
    assert 0.35 < time.monotonic() - began < 2


def test_a_name_that_is_never_resolved_costs_no_more_than_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetching.socket, "getaddrinfo", lambda *_, **__: time.sleep(5))
    began = time.monotonic()
    with pytest.raises(BadItemError) as caught:
        fetch("http://slow.example/", FetchLimits(timeout_seconds=0.3))
    assert caught.value.reason == "deadline_exceeded"
    assert time.monotonic() - began < 2


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("to file", "leads to 'file:///etc/passwd', which is no http"),
        ("to gopher", "no http"),
        ("to metadata", r"169\.254\.169\.254, an address inside a network"),
        ("to localhost", r"localhost is (127\.0\.0\.1|::1), an address inside"),
        ("to private", r"10\.0\.0\.1, an address inside"),
        ("to credentials", "holds credentials"),
    ],
)
def test_a_redirect_goes_nowhere_that_a_row_may_not(server: Server, path: str, message: str) -> None:
    fails(server, path, "refused_uri", message)
    assert server.hits == {path: 1}


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "localhost", "[::1]", "[::ffff:127.0.0.1]", "0.0.0.0", "127.1", "2130706433"]
)
def test_this_machine_is_refused_unless_it_is_named(server: Server, host: str) -> None:
    port = server.server_address[1]
    with pytest.raises(BadItemError, match="--fetch-host") as caught:
        fetch(f"http://{host}:{port}/length", FetchLimits(private_hosts=("127.0.0.1:1", "elsewhere")))
    assert caught.value.reason == "refused_uri"
    assert server.hits == {}


def test_the_address_is_judged_and_kept_whatever_the_name(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """A name of the open internet whose address is inside; and one that would be another at a second look."""
    here = (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", server.server_address[1]))
    answers = [[here]]
    monkeypatch.setattr(fetching.socket, "getaddrinfo", lambda *_, **__: answers.pop(0))
    with pytest.raises(BadItemError, match=r"innocent\.example is 127\.0\.0\.1") as caught:
        fetch("http://innocent.example/length", FetchLimits())
    assert caught.value.reason == "refused_uri"
    answers.append([here])
    assert fetch("http://mine.example/length", FetchLimits(private_hosts=("mine.example",))) == BODY
    assert answers == []  # looked up once: what was judged is what is connected to
    tried: list[Any] = []

    def connect(addresses: list[Any], *_: Any) -> Any:
        tried.extend(addresses)
        raise ConnectionRefusedError("refused")

    monkeypatch.setattr(fetching, "_connect", connect)
    public = (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("93.184.216.34", 80))
    answers += [[here, public]] * 3
    with pytest.raises(BadItemError, match="refused"):
        fetch("http://both.example/", FetchLimits())
    assert tried == [public] * 3


@pytest.mark.parametrize(
    ("address", "public"),
    [
        ("93.184.216.34", True),
        ("2606:2800:220:1:248:1893:25c8:1946", True),
        ("64:ff9b::5db8:d822", True),
        *[(a, False) for a in ("127.0.0.1", "10.1.2.3", "172.16.0.1", "192.168.1.1", "169.254.169.254", "100.64.0.1")],
        *[
            (a, False)
            for a in ("0.0.0.0", "224.0.0.1", "255.255.255.255", "::", "::1", "fe80::1%lo", "fc00::1", "fec0::1")
        ],
        *[(a, False) for a in ("::ffff:10.0.0.1", "64:ff9b::7f00:1", "2002:7f00:1::", "ff02::1")],
    ],
)
def test_public_addresses(address: str, public: bool) -> None:
    assert is_public(address) is public


@pytest.mark.parametrize(
    "url", ["ftp://x/y", "http:///y", "http://x:99999/", "http://[::1/", "http://a:b@x/", "http://x:0/"]
)
def test_a_url_that_is_none_is_refused(url: str) -> None:
    with pytest.raises(BadItemError) as caught:
        fetch(url, FetchLimits())
    assert caught.value.reason == "refused_uri"
    assert redacted(url) in str(caught.value)


@pytest.mark.parametrize("limits", [{"max_bytes": 0}, {"timeout_seconds": 0}, {"private_hosts": ("http://x",)}])
def test_limits_that_are_none_are_refused(limits: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"must be > 0|host or host:port"):
        FetchLimits(**limits)
