"""Media files as inputs: a URI goes in; a path or a seekable stream for PyAV comes out, and what identifies the bytes.

Sources are untrusted text from a manifest, so only known schemes are opened and fsspec's chained URLs ("a::b") are
refused. Credentials and endpoints come from the environment or fsspec's config, never from the manifest. Two more limits are the
process's, for workers inherit the environment:

    OV2_SOURCE_ROOTS    folders (separated as in PATH); local sources outside them, by a link too, are refused. Unset: none is
    OV2_FETCH_HOSTS     host or host:port, comma-separated: http(s) may reach them although their addresses are private or local
"""

import os
import socket
import stat
from typing import Any, BinaryIO, cast
from urllib.parse import unquote, urlsplit

import fsspec

from ov2_core.errors import BadItemError
from ov2_core.storage.fetch import FetchLimits, is_public
from ov2_core.storage.local_file import read_failed
from ov2_core.storage.retry import has_no_credentials, is_transient, retry_transient, retry_within
from schemas.shard import Stage
from schemas.video import SourceIdentity

SOURCE_SCHEMES = frozenset({"s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "http", "https", "hf", "memory"})
ROOTS_VARIABLE, HOSTS_VARIABLE = "OV2_SOURCE_ROOTS", "OV2_FETCH_HOSTS"
_BLOCK_BYTES = 4 << 20
_STAMPS = ("ETag", "etag", "md5Hash", "content_md5", "mtime", "LastModified", "last_modified", "updated", "created")


def local_path(uri: str) -> str | None:
    """The path behind a local path or file:// URI; None for a remote one."""
    if "://" not in uri:
        return uri
    parts = urlsplit(uri)
    if parts.scheme in ("file", "local"):
        return unquote(parts.path) if parts.scheme == "file" else uri.removeprefix("local://")
    return None


def open_source(uri: str, *, storage_options: dict[str, Any] | None = None) -> str | BinaryIO:
    """What PyAV can open: the path itself for a local file, else a seekable binary stream (the caller closes it).

    Raises:
        BadItemError: refused_uri, source_missing.
    """
    path = local_path(uri)
    if path is not None:
        path = _inside_roots(uri, path)
        _local_stat(uri, path)
        return path
    fs, remote = _remote(uri, storage_options)
    try:
        return cast(
            BinaryIO,
            retry_transient(lambda: fs.open(remote, "rb", block_size=_BLOCK_BYTES, cache_type="readahead")),
        )
    except Exception as error:
        raise _missing(uri, error) from error


def source_identity(uri: str, *, storage_options: dict[str, Any] | None = None) -> SourceIdentity:
    """Size and ETag (object store) or modification time in ns (local), without reading the content.

    Raises:
        BadItemError: refused_uri, source_missing, source_empty.
    """
    path = local_path(uri)
    if path is not None:
        status = _local_stat(uri, _inside_roots(uri, path))
        size, stamp = status.st_size, str(status.st_mtime_ns)
    else:
        fs, remote = _remote(uri, storage_options)
        try:
            info = retry_transient(lambda: fs.info(remote))
        except Exception as error:
            raise _missing(uri, error) from error
        if info.get("type") == "directory" or info.get("size") is None:
            raise _bad("source_missing", f"{uri}: not a file of known size; give the URI of one media file")
        size = int(info["size"])
        stamp = object_stamp(info)
    if size == 0:
        raise _bad("source_empty", f"{uri}: 0 bytes; upload or copy it again")
    return SourceIdentity(size_bytes=size, stamp=stamp)


def opened_identity(source: str | BinaryIO) -> SourceIdentity | None:
    """Of the version that an object store's stream reads; None where that tells nothing."""
    details = getattr(source, "details", None)
    if not isinstance(details, dict) or not details.get("size") or not (details.get("ETag") or details.get("etag")):
        return None
    return SourceIdentity(size_bytes=int(details["size"]), stamp=object_stamp(details))


def list_folder(uri: str, *, storage_options: dict[str, Any] | None = None) -> list[tuple[str, SourceIdentity]]:
    """(URI, identity) of the files directly in a folder, in no order, by one listing.

    Raises:
        BadItemError: refused_uri, source_missing (nothing there, or no folder).
    """
    path = local_path(uri)
    if path is not None:
        try:
            with os.scandir(_inside_roots(uri, path)) as entries:
                found = [(entry.path, entry.stat()) for entry in entries if entry.is_file()]
        except OSError as error:
            raise _missing(uri, read_failed(path, error)) from error
        except ValueError as error:
            raise (error if isinstance(error, BadItemError) else _missing(uri, error)) from error
        return [(name, SourceIdentity(size_bytes=s.st_size, stamp=str(s.st_mtime_ns))) for name, s in found]
    fs, remote = _remote(uri, storage_options)
    try:
        infos = retry_transient(lambda: fs.ls(remote, detail=True))
    except Exception as error:
        raise _missing(uri, error) from error
    files = [info for info in infos if info.get("type") == "file" and info["name"].rstrip("/") != remote.rstrip("/")]
    if infos and not files and infos[0]["name"].rstrip("/") == remote.rstrip("/"):
        raise _bad("source_missing", f"{uri}: a file, not a folder of frames; leave frames_fps out")
    return [
        (str(fs.unstrip_protocol(i["name"])), SourceIdentity(size_bytes=i["size"], stamp=object_stamp(i)))
        for i in files
    ]


def object_stamp(info: dict[str, Any]) -> str:
    """What a file system tells of an object's version: its ETag, else a time; empty where it tells nothing."""
    return next((str(info[name]).strip('"') for name in _STAMPS if info.get(name)), "")


def allow_sources(*, roots: list[str] | None, fetch_hosts: list[str] | None) -> None:
    """Set the limits of this process and of those it starts.

    Raises:
        ValueError: a root that is no folder, or a host that is none.
    """
    for root in roots or []:
        if not os.path.isdir(root) or os.pathsep in root:
            raise ValueError(f"--source-root {root}: not a folder on this machine (or its name holds {os.pathsep!r})")
    FetchLimits(private_hosts=tuple(fetch_hosts or ()))
    if roots:
        os.environ[ROOTS_VARIABLE] = os.pathsep.join(os.path.realpath(root) for root in roots)
    if fetch_hosts:
        os.environ[HOSTS_VARIABLE] = ",".join(fetch_hosts)


def _inside_roots(uri: str, path: str) -> str:
    """The path, links followed where there are roots, so that it is what was looked at that is opened."""
    roots = [root for root in os.environ.get(ROOTS_VARIABLE, "").split(os.pathsep) if root]
    if not roots:
        return path
    try:
        real = os.path.realpath(path)
    except OSError as error:
        raise _missing(uri, read_failed(path, error)) from error
    except ValueError as error:
        raise _missing(uri, error) from error
    if not any(os.path.commonpath([real, root]) == root for root in map(os.path.realpath, roots)):
        raise _bad(
            "refused_uri",
            f"{uri}: lies outside the folders that sources may come from ({', '.join(roots)}); move it there, or add its folder "
            "by --source-root",
        )
    return real


async def _guarded_client(**kwargs: Any) -> Any:
    """An aiohttp session that looks at the address of each connection: redirects and names that resolve anew included."""
    import aiohttp

    connector = aiohttp.TCPConnector(socket_factory=_judged_socket, happy_eyeballs_delay=None)
    return aiohttp.ClientSession(connector=connector, trust_env=False, **kwargs)


def _judge_number(uri: str) -> None:
    """Refuses a host that is a number in one of inet_aton's spellings (2130706433, 0x7f.1), which the client would not take."""
    try:
        parts = urlsplit(uri)
        address = socket.inet_ntoa(socket.inet_aton(parts.hostname or ""))
        port = parts.port or (443 if parts.scheme == "https" else 80)
    except (OSError, ValueError):
        return
    try:
        _judge(address, port)
    except BadItemError as error:
        raise _bad("refused_uri", f"{uri}: {error}") from None


def _judged_socket(info: Any) -> socket.socket:
    family, kind, protocol, _, address = info
    _judge(*address[:2])
    return socket.socket(family, kind, protocol)


def _judge(host: str, port: int) -> None:
    if not is_public(host) and not _is_named(host, port):
        raise _bad(
            "refused_uri",
            f"leads to {host}, an address inside a network, where rows may not lead: if it is yours, allow it with "
            f"--fetch-host HOST:{port}",
        )


def _is_named(address: str, port: int) -> bool:
    for named in os.environ.get(HOSTS_VARIABLE, "").split(","):
        parts = urlsplit(f"//{named}")
        if not parts.hostname or parts.port not in (None, port):
            continue
        try:
            found = socket.getaddrinfo(parts.hostname, port, type=socket.SOCK_STREAM)
        except OSError:
            continue
        if any(row[4][0] == address for row in found):
            return True
    return False


def _local_stat(uri: str, path: str) -> os.stat_result:
    try:
        status = os.stat(path)
    except OSError as error:
        raise _missing(uri, read_failed(path, error)) from error
    except ValueError as error:  # an embedded null byte
        raise _missing(uri, error) from error
    if not stat.S_ISREG(status.st_mode):
        raise _bad("refused_uri", f"{uri}: not a regular file; give the path of one media file")
    return status


def _remote(uri: str, storage_options: dict[str, Any] | None) -> tuple[Any, str]:
    scheme = uri.partition("://")[0]
    if "::" in uri or scheme not in SOURCE_SCHEMES:
        raise _bad(
            "refused_uri", f"{uri}: scheme not allowed; use a local path or one of {', '.join(sorted(SOURCE_SCHEMES))}"
        )
    options = {"use_listings_cache": False, **(storage_options or {})}
    if scheme in ("http", "https"):
        _judge_number(uri)
        options["get_client"] = _guarded_client
    try:
        fs, path = fsspec.core.url_to_fs(uri, **options)
    except ImportError as error:
        raise _bad("refused_uri", f"{uri}: this scheme needs a package that is not installed here: {error}") from error
    retry_within(fs)
    return fs, path


def _missing(uri: str, error: Exception) -> Exception:
    """What a failed open says of the item.

    An error that is not the store's answer (no credentials, our own bug) stays itself.
    """
    refused = _refusal_in(error)
    if refused is not None:
        return _bad("refused_uri", f"{uri}: {refused}")
    if is_transient(error):
        return BadItemError("transient_error", f"{uri}: still failing after retries: {error}; run again", stage="probe")
    if has_no_credentials(error):
        return _bad(
            "transient_error",
            f"{uri}: this machine has no credentials for it ({error}); give them to all nodes, replay",
        )
    if not isinstance(error, (OSError, ValueError)) and not isinstance(getattr(error, "status", None), int):
        return error
    if isinstance(error, PermissionError):
        return _bad("source_missing", f"{uri}: permission denied (or missing, which some stores answer alike): {error}")
    return _bad("source_missing", f"{uri}: cannot be opened: {error}; check the path and the manifest's folder")


def _refusal_in(error: BaseException | None) -> BadItemError | None:
    """fsspec wraps what its client raised."""
    while error is not None:
        if isinstance(error, BadItemError):
            return error
        error = error.__cause__ or error.__context__
    return None


def _bad(reason: Any, message: str, stage: Stage = "probe") -> BadItemError:
    return BadItemError(reason, message, stage=stage)
