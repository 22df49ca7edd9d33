"""One small file from a web server that a dataset's row names, and that nobody trusts.

Enters: an http(s) URL and limits. Leaves: its bytes, or a BadItemError that names the URL. What a hostile row or server can do:

- point at this machine or its network (localhost, 10.0.0.0/8, a cloud's 169.254.169.254): the address that is connected to is
  looked at, not the name, at every redirect anew; so a name that resolves elsewhere the second time gains nothing. Hosts in
  `private_hosts` are exempt;
- lead to another scheme (file://): redirects are followed here, five at most, to http and https alone;
- send without end, or say another length than it sends: parts are counted as they come, whatever the headers say;
- send slowly: one deadline holds for everything, from the name's resolution to the last byte.

Nothing is decompressed, no cookie, proxy or credential is used. The standard library's HTTP parser reads from a socket whose
timeout is, before each read, what is left of the deadline.
"""

import http.client
import io
import ipaddress
import re
import socket
import ssl
import threading
import time
from dataclasses import dataclass
from typing import Any, cast
from urllib.parse import SplitResult, quote, urljoin, urlsplit

from ov2_core.errors import BadItemError

MAX_REDIRECTS = 5
_ATTEMPTS = 3
_CONNECT_SECONDS = 10.0
_READ_BYTES = 1 << 16
_SCHEMES = {"http": 80, "https": 443}
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_BUSY = frozenset({408, 425, 429, 500, 502, 503, 504})
_NAT64 = ipaddress.ip_network("64:ff9b::/96")
_HOST = re.compile(r"[A-Za-z0-9._-]+(:\d+)?|\[[0-9A-Fa-f:]+\](:\d+)?")


@dataclass(frozen=True, kw_only=True, slots=True)
class FetchLimits:
    """What one fetch may cost, and where it may go."""

    max_bytes: int = 64 << 20
    timeout_seconds: float = 30.0
    """Of all of it: name, connection, redirects, retries, every byte."""
    private_hosts: tuple[str, ...] = ()
    """"host" or "host:port" (IPv6 in brackets) whose addresses may be private, local or reserved."""

    def __post_init__(self) -> None:
        if self.max_bytes < 1 or self.timeout_seconds <= 0:
            raise ValueError(f"max_bytes and timeout_seconds must be > 0, got {self}")
        for host in self.private_hosts:
            if not _HOST.fullmatch(host):
                raise ValueError(f"a private host is written host or host:port, without a scheme or path; got {host!r}")


class _BusyError(Exception):
    """An answer or a failure that may be another one in a moment."""


def fetch(url: str, limits: FetchLimits) -> bytes:
    """The body of a GET.

    Raises:
        BadItemError: refused_uri (scheme, credentials, an address that is not public), source_missing (no such host or file, an
            error of the server after three attempts), too_large, deadline_exceeded.
    """
    deadline = time.monotonic() + limits.timeout_seconds
    attempt = 0
    try:
        while True:
            attempt += 1
            try:
                return _follow(url, limits, deadline)
            except _BusyError as error:
                wait = 0.2 * 2**attempt
                if attempt == _ATTEMPTS or time.monotonic() + wait >= deadline:
                    raise BadItemError("source_missing", f"{url}: {error}", stage="import") from error
                time.sleep(wait)
    except TimeoutError as error:
        raise BadItemError(
            "deadline_exceeded", f"{url}: not fetched in {limits.timeout_seconds:g} s", stage="import"
        ) from error


def is_public(address: str) -> bool:
    """Whether an IP address is one of the open internet: not private, local, reserved or multicast, however it is wrapped."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address):
        if ip in _NAT64:
            return is_public(str(ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)))
        inner = ip.ipv4_mapped or ip.sixtofour or (ip.teredo[1] if ip.teredo is not None else None)
        if inner is not None:
            return is_public(str(inner))
        if ip.is_site_local:
            return False
    return ip.is_global and not ip.is_multicast


def _follow(url: str, limits: FetchLimits, deadline: float) -> bytes:
    here = url
    for _ in range(MAX_REDIRECTS + 1):
        parts = _checked(here, url)
        found = _get(parts, url, limits, deadline)
        if isinstance(found, bytes):
            return found
        here = urljoin(here, found)
    raise BadItemError("source_missing", f"{url}: more than {MAX_REDIRECTS} redirects", stage="import")


def _checked(here: str, url: str) -> SplitResult:
    """The parts of a URL that may be asked for."""
    led = "" if here == url else f" leads to {here!r}, which"
    try:
        parts = urlsplit(here)
        good = parts.scheme in _SCHEMES and parts.hostname and (parts.port is None or parts.port > 0)
    except ValueError:
        good = False
    if not good:
        raise BadItemError("refused_uri", f"{url}:{led} is no http(s) URL with a host", stage="import")
    if parts.username is not None or parts.password is not None:
        raise BadItemError("refused_uri", f"{url}:{led} holds credentials", stage="import")
    return parts


def _get(parts: SplitResult, url: str, limits: FetchLimits, deadline: float) -> bytes | str:
    """The body, or where the answer says to go."""
    assert parts.hostname is not None
    port = parts.port or _SCHEMES[parts.scheme]
    try:
        host = parts.hostname if ":" in parts.hostname else parts.hostname.encode("idna").decode()
    except UnicodeError as error:
        raise BadItemError("refused_uri", f"{url}: {parts.hostname!r} is no host's name", stage="import") from error
    shown = f"[{host}]" if ":" in host else host
    private = not {shown, f"{shown}:{port}"}.isdisjoint(limits.private_hosts)
    addresses = _resolve(host, port, url, deadline)
    open_to_us = [address for address in addresses if private or is_public(address[4][0])]
    if not open_to_us:
        raise BadItemError(
            "refused_uri",
            f"{url}: {shown} is {addresses[0][4][0]}, an address inside a network; rows may not lead there: "
            f"if it is yours, allow it with --fetch-host {shown}:{port}",
            stage="import",
        )
    target = quote(parts.path or "/", safe="/%:@!$&'()*+,;=~") + (
        "?" + quote(parts.query, safe="/%:@!$&'()*+,;=~?[]") if parts.query else ""
    )
    named = shown if port == _SCHEMES[parts.scheme] else f"{shown}:{port}"
    request = (
        f"GET {target} HTTP/1.1\r\nHost: {named}\r\nUser-Agent: ov2\r\nAccept: */*\r\n"
        "Accept-Encoding: identity\r\nConnection: close\r\n\r\n"
    )
    try:
        with _connect(open_to_us, host if parts.scheme == "https" else None, deadline) as connection:
            connection.settimeout(_left(deadline))
            connection.sendall(request.encode("ascii"))
            response = http.client.HTTPResponse(cast(socket.socket, _Incoming(connection, deadline)), method="GET")
            with response:
                response.begin()
                return _read(response, url, limits)
    except TimeoutError:
        if time.monotonic() >= deadline:
            raise
        raise _BusyError(f"{shown} does not answer") from None
    except (OSError, http.client.HTTPException) as error:
        raise _BusyError(f"{type(error).__name__}: {error}") from error


def _read(response: http.client.HTTPResponse, url: str, limits: FetchLimits) -> bytes | str:
    status, location = response.status, response.headers.get("Location")
    if status in _REDIRECTS and location:
        return location
    if status in _BUSY:
        raise _BusyError(f"the server answers {status} {response.reason}")
    if status != 200:
        raise BadItemError("source_missing", f"{url}: the server answers {status} {response.reason}", stage="import")
    too_large = BadItemError("too_large", f"{url} has more than {limits.max_bytes} bytes", stage="import")
    if response.length is not None and response.length > limits.max_bytes:
        raise too_large
    body = bytearray()
    while part := response.read1(_READ_BYTES):
        body += part
        if len(body) > limits.max_bytes:
            raise too_large
    if response.length:
        raise _BusyError(f"the connection closed {response.length} bytes before the end")
    return bytes(body)


def _resolve(host: str, port: int, url: str, deadline: float) -> list[Any]:
    """getaddrinfo's rows. It knows no timeout, so a thread waits for it, that is left alone where it takes too long."""
    found: list[Any] = []

    def ask() -> None:
        try:
            found.append(socket.getaddrinfo(host, port, type=socket.SOCK_STREAM))
        except (OSError, UnicodeError) as error:
            found.append(error)

    thread = threading.Thread(target=ask, daemon=True, name="resolve")
    thread.start()
    thread.join(_left(deadline))
    if not found:
        raise TimeoutError(f"{host} is not resolved")
    if isinstance(found[0], socket.gaierror) and found[0].errno == socket.EAI_AGAIN:
        raise _BusyError(f"{host} cannot be resolved now: {found[0]}")
    if isinstance(found[0], Exception) or not found[0]:
        raise BadItemError("source_missing", f"{url}: no such host: {found[0]}", stage="import")
    rows: list[Any] = found[0]
    return rows


def _connect(addresses: list[Any], tls_host: str | None, deadline: float) -> socket.socket:
    """A connection to the first address that takes one; none is looked up again."""
    failed: OSError = OSError("no address")
    for family, kind, protocol, _, address in addresses:
        connection = socket.socket(family, kind, protocol)
        try:
            connection.settimeout(min(_left(deadline), _CONNECT_SECONDS))
            connection.connect(address)
            if tls_host is None:
                return connection
            connection.settimeout(_left(deadline))
            return ssl.create_default_context().wrap_socket(connection, server_hostname=tls_host)
        except OSError as error:
            connection.close()
            failed = error
        except BaseException:
            connection.close()
            raise
    raise failed


def _left(deadline: float) -> float:
    """Seconds to the deadline. Raises TimeoutError."""
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError("the deadline has passed")
    return left


class _Incoming(io.RawIOBase):
    """What comes over a connection, each read bounded by the deadline of all."""

    def __init__(self, connection: socket.socket, deadline: float) -> None:
        self._connection, self._deadline = connection, deadline

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        self._connection.settimeout(_left(self._deadline))
        return self._connection.recv_into(buffer)

    def makefile(self, mode: str) -> io.BufferedReader:
        """As http.client asks a socket."""
        return io.BufferedReader(self)
