"""Where a manifest's rows may lead: which addresses and folders, by any spelling, redirect or link. And what texts may carry."""

import http.server
import os
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ov2_core.data.manifest import resolve_uri
from ov2_core.errors import BadItemError
from ov2_core.media.frame_folder import list_frames
from ov2_core.media.probe import probe_video
from ov2_core.redact import one_line, printable, redacted, secret_in
from ov2_core.storage.source import (
    HOSTS_VARIABLE,
    ROOTS_VARIABLE,
    allow_sources,
    list_folder,
    open_source,
    source_identity,
)

SIGNED = "https://b.s3.amazonaws.com/a.mp4?X-Amz-Credential=AKIACANARY%2F2026&X-Amz-Signature=c0ffee0canary&x=1"


class _Handler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        """Quiet."""

    def do_GET(self) -> None:
        self.server.asked.append(self.path)  # type: ignore[attr-defined]
        super().do_GET()

    def do_HEAD(self) -> None:
        self.server.asked.append(self.path)  # type: ignore[attr-defined]
        super().do_HEAD()

    def send_head(self):  # type: ignore[no-untyped-def]
        if self.path.startswith("/to/"):
            self.send_response(302)
            self.send_header("Location", self.path.removeprefix("/to/"))
            self.send_header("Content-Length", "0")
            self.end_headers()
            return None
        return super().send_head()


@pytest.fixture
def site(tmp_path: Path, make_clip: Callable[..., Path]) -> Iterator[http.server.ThreadingHTTPServer]:
    make_clip(tmp_path / "a.mp4")
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), lambda *a: _Handler(*a, directory=str(tmp_path)))
    server.asked = []  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture(autouse=True)
def _no_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (ROOTS_VARIABLE, HOSTS_VARIABLE):
        monkeypatch.setenv(name, "")


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1",
        "localhost",
        "127.1",
        "2130706433",
        "0x7f000001",
        "0177.0.0.1",
        "[::1]",
        "[::ffff:127.0.0.1]",
        "0.0.0.0",
    ],
)
def test_http_into_this_network_is_refused_in_any_spelling(site: http.server.ThreadingHTTPServer, host: str) -> None:
    uri = f"http://{host}:{site.server_port}/a.mp4"
    for look in (source_identity, open_source, list_folder):
        with pytest.raises(BadItemError) as caught:
            look(uri)
        assert caught.value.reason == "refused_uri", caught.value
        assert (
            "--fetch-host" in str(caught.value) or "::" in uri
        )  # which is a chained URL to fsspec, and refused as one
        assert uri in str(caught.value)
    assert site.asked == []  # type: ignore[attr-defined]


@pytest.mark.parametrize("host", ["169.254.169.254", "10.0.0.1", "192.168.1.1", "100.64.0.1", "[fe80::1]", "[fd00::1]"])
def test_metadata_and_private_hosts_are_refused_at_once(host: str) -> None:
    with pytest.raises(BadItemError) as caught:
        source_identity(f"http://{host}/latest/meta-data/iam")
    assert caught.value.reason == "refused_uri"


def test_a_name_is_judged_by_the_address_it_leads_to(
    site: http.server.ThreadingHTTPServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    ask = socket.getaddrinfo

    def lying(host: object, port: object, *args: object, **kwargs: object) -> object:
        return ask("127.0.0.1" if host == "videos.example.org" else host, port, *args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(socket, "getaddrinfo", lying)
    with pytest.raises(BadItemError) as caught:
        source_identity(f"http://videos.example.org:{site.server_port}/a.mp4")
    assert caught.value.reason == "refused_uri"
    assert site.asked == []  # type: ignore[attr-defined]


def test_a_named_host_is_read_and_its_redirects_are_judged(
    site: http.server.ThreadingHTTPServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(HOSTS_VARIABLE, f"127.0.0.1:{site.server_port}")
    here = f"http://127.0.0.1:{site.server_port}"
    assert source_identity(f"{here}/a.mp4").size_bytes > 0
    stream = open_source(f"{here}/to//a.mp4")
    assert not isinstance(stream, str)
    assert probe_video(stream).num_frames == 12
    with pytest.raises(BadItemError) as caught:
        source_identity(f"{here}/to/http://127.0.0.1:9/a.mp4")
    assert caught.value.reason == "refused_uri"
    for there in ("file:///etc/passwd", "ftp://127.0.0.1/a"):
        with pytest.raises(BadItemError) as caught:
            open_source(f"{here}/to/{there}")
        assert caught.value.reason == "source_missing"


def test_local_sources_outside_the_roots_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inside, outside = tmp_path / "in", tmp_path / "in-not"
    inside.mkdir()
    outside.mkdir()
    (inside / "a.png").write_bytes(b"a")
    (outside / "b.png").write_bytes(b"b")
    (inside / "link.png").symlink_to(outside / "b.png")
    (inside / "folder").symlink_to(outside)
    frames = inside / "frames"
    frames.mkdir()
    (frames / "0.png").symlink_to("/etc/hostname")
    monkeypatch.setenv(ROOTS_VARIABLE, "x")
    allow_sources(roots=[str(inside)], fetch_hosts=None)
    assert source_identity((inside / "a.png").as_uri()).size_bytes == 1
    assert open_source(str(inside / "a.png")) == os.path.realpath(inside / "a.png")
    bad = [
        outside / "b.png",
        inside / "link.png",
        inside / "folder" / "b.png",
        inside / ".." / "in-not" / "b.png",
        "/etc/passwd",
    ]
    for path in [*map(str, bad), (outside / "b.png").as_uri(), "file:///etc/%70asswd"]:
        for look in (source_identity, open_source):
            with pytest.raises(BadItemError, match="--source-root") as caught:
                look(path)
            assert caught.value.reason == "refused_uri"
    with pytest.raises(BadItemError, match="--source-root"):
        list_folder(str(inside / "folder"))
    with pytest.raises(BadItemError, match="--source-root"):
        open_source(list_frames(str(frames), 1.0).frame_uris[0])


@pytest.mark.parametrize(("roots", "hosts"), [(["/no/such"], None), (None, ["http://a/b"]), (None, ["a b"])])
def test_limits_that_are_none_are_refused(roots: list[str] | None, hosts: list[str] | None) -> None:
    with pytest.raises(ValueError, match=r"--source-root|private host"):
        allow_sources(roots=roots, fetch_hosts=hosts)


@pytest.mark.parametrize(
    "uri",
    [
        SIGNED,
        "https://me:c0ffee0canary@host/a.mp4",
        "http://c0ffee0canary@host/a.mp4",
        "HTTPS://me:c0ffee0@canary@host/a.mp4",
        "s3://AKIA:c0ffee0canary@bucket/a.mp4",
        "https://acc.blob.core.windows.net/c/a.mp4?sv=2024&sig=c0ffee0canary&se=x",
        "https://storage.googleapis.com/b/a?X-Goog-Signature=c0ffee0canary",
        "https://host/a.mp4?access_token=c0ffee0canary",
        "https://host/a.mp4?v=1&api-key=c0ffee0canary",
    ],
)
def test_credentials_in_a_uri_are_refused_and_never_said(uri: str) -> None:
    assert secret_in(uri) is not None
    with pytest.raises(BadItemError) as caught:
        resolve_uri(uri, "/data/m.jsonl")
    assert caught.value.reason == "refused_uri"
    assert "environment" in str(caught.value)
    for text in (str(caught.value), redacted(f"403, url='{uri}' (x)"), redacted(f'{{"video": "{uri}"}}')):
        assert "canary" not in text
        assert "c0ffee" not in text
    assert secret_in(redacted(uri)) is None or "@" in uri


@pytest.mark.parametrize(
    "uri",
    [
        "https://host/a.mp4?v=1&signature_version=2",
        "s3://bucket/a@b.mp4",
        "abfs://container@account.dfs.core.windows.net/a.mp4",
        "https://host/watch?v=Policy",
        "/local/a?token=x.mp4",
        "https://host/@user/a.mp4",
    ],
)
def test_uris_without_credentials_are_left_alone(uri: str) -> None:
    assert secret_in(uri) is None
    if "://" in uri:
        assert redacted(uri) == uri
        assert resolve_uri(uri, "/data/m.jsonl") == uri


@given(st.text(max_size=80))
def test_redacting_twice_changes_nothing_and_terminals_get_no_commands(text: str) -> None:
    assert redacted(redacted(text)) == redacted(text)
    shown = printable(text)
    assert not any((ord(c) < 32 and c not in "\n\t") or 127 <= ord(c) < 160 for c in shown)
    assert "\n" not in one_line(text)
