"""What dead processes left in a run, found and removed, beside a run that may be alive.

Enters: a Store and an age. Leaves: the orphans, each with the reason why nobody can need it. (`collect_orphans` in commit.py
is the other broom: at the end of a run, when every shard is committed and no writer is left, it asks for no age.)

What a live writer may need is told by two rules:

- an attempt of a committed shard is needed by its commit alone, and only until its tar is published: all others go;
- everything else (attempts of open shards, scratch folders, temporaries, files of a plan or round that was never created) goes only
  when it is older than `older_than_seconds` and no invocation on this run has given a sign of life for as long
  (invocations.py). An uploaded attempt whose writer was about to commit would otherwise be lost, and its commit would
  point at nothing.

Parts of multipart uploads that were never completed are not files: a rule of the bucket removes them (infra/s3).

Ages are by the storage's clock where it keeps one; it should agree with this machine's within a small part of the age.
"""

import contextlib
import os
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from ov2_core.plan import stray_plan_files
from ov2_core.rounds import stray_round_files
from ov2_core.storage.commit import committed_shards, load_commit
from ov2_core.storage.files import Store, retry_transient
from ov2_core.storage.invocations import INVOCATIONS_DIR, load_invocations
from ov2_core.storage.layout import ATTEMPTS_DIR, COMMITS_DIR, INDEX_DIR, PLAN_DIR, QUARANTINE_DIR, SHARDS_DIR, tar_rel

_TEMPORARY_SUFFIX = ".ov2tmp"
_FOLDERS = (SHARDS_DIR, COMMITS_DIR, QUARANTINE_DIR, INDEX_DIR, PLAN_DIR, INVOCATIONS_DIR, "")


@dataclass(frozen=True, kw_only=True, slots=True)
class Orphan:
    """One file, or a local scratch folder, that nobody needs."""

    rel: str
    num_bytes: int
    age_seconds: float
    why: str


@dataclass(frozen=True, kw_only=True, slots=True)
class GcReport:
    """Orphans in the order of their paths; `kept` may yet be needed, with the reason."""

    orphans: list[Orphan]
    kept: list[Orphan]


def find_orphans(store: Store, *, older_than_seconds: float, now: float | None = None) -> GcReport:
    """Looks at everything that a writer can leave behind; removes nothing. now: Unix seconds, for tests."""
    now = time.time() if now is None else now
    alive = _alive(store, now - older_than_seconds)
    orphans: list[Orphan] = []
    kept: list[Orphan] = []

    def judge(entry: "_Entry", why: str, *, at_once: bool = False) -> None:
        young = now - entry.modified_unix_seconds < older_than_seconds
        kept_for = "" if at_once else alive or ("younger than the age asked" if young else "")
        found = Orphan(
            rel=entry.rel,
            num_bytes=entry.num_bytes,
            age_seconds=round(now - entry.modified_unix_seconds, 1),
            why=kept_for or why,
        )
        (kept if kept_for else orphans).append(found)

    committed = set(committed_shards(store))
    for folder in _scan(store, ATTEMPTS_DIR):
        number = folder.rel.removeprefix(f"{ATTEMPTS_DIR}/shard-")
        if not folder.is_folder or not number.isdigit():
            judge(folder, "scratch of a writer that died")
            continue
        needed = _needed_attempt(store, int(number)) if int(number) in committed else None
        for entry in _scan(store, folder.rel):
            if entry.rel == needed:
                continue
            if int(number) in committed and not entry.is_temporary:
                judge(entry, "its shard is committed", at_once=True)
            else:
                judge(entry, "attempt of a writer that died before its commit")
    for rel in _FOLDERS:
        for entry in _scan(store, rel):
            if entry.is_temporary:
                judge(entry, "half-written by a process that died")
    strays = {**dict.fromkeys(stray_plan_files(store), "plan"), **dict.fromkeys(stray_round_files(store), "round")}
    for folder_rel in (PLAN_DIR, QUARANTINE_DIR):
        for entry in _scan(store, folder_rel):
            if entry.rel in strays:
                judge(entry, f"of a {strays[entry.rel]} that was never created")
    key = lambda orphan: orphan.rel  # noqa: E731
    return GcReport(orphans=sorted(orphans, key=key), kept=sorted(kept, key=key))


def remove_orphans(store: Store, report: GcReport) -> None:
    """Removes the report's orphans, and the folders of attempts that are then empty. Repeatable."""
    for orphan in report.orphans:
        if store.is_local and os.path.isdir(store.local(orphan.rel)):
            shutil.rmtree(store.local(orphan.rel), ignore_errors=True)
        else:
            store.remove(orphan.rel)
    for folder in store.list(ATTEMPTS_DIR):
        store.remove_empty_dirs(f"{ATTEMPTS_DIR}/{folder}")


@dataclass(frozen=True, slots=True)
class _Entry:
    rel: str
    num_bytes: int
    modified_unix_seconds: float
    is_folder: bool

    @property
    def is_temporary(self) -> bool:
        return self.rel.endswith(_TEMPORARY_SUFFIX)


def _alive(store: Store, since: float) -> str:
    """Who has given a sign of life since then and has not ended; empty if nobody."""
    for record in reversed(load_invocations(store)):
        if record.state == "running" and record.seen_unix_seconds >= since:
            seconds = time.time() - record.seen_unix_seconds
            return f"{record.stage} on {record.host} (pid {record.pid}) gave a sign of life {seconds:.0f} s ago"
    return ""


def _needed_attempt(store: Store, shard: int) -> str | None:
    """The attempt that the shard's commit has still to publish."""
    record = load_commit(store, shard)
    if record.tar_name is None:
        return None
    with contextlib.suppress(FileNotFoundError):
        if store.size(tar_rel(shard)) == record.tar_bytes:
            return None
    return record.attempt


def _scan(store: Store, rel_dir: str) -> Iterator[_Entry]:
    """Everything directly in a folder, temporaries too, with its age; of a folder, the age of the youngest thing in it."""
    prefix = f"{rel_dir}/" if rel_dir else ""
    if store.is_local:
        with contextlib.suppress(FileNotFoundError, NotADirectoryError), os.scandir(store.local(rel_dir)) as entries:
            for entry in entries:
                with contextlib.suppress(FileNotFoundError):
                    size, modified = _tree(entry.path) if entry.is_dir() else _stat(entry.path)
                    yield _Entry(f"{prefix}{entry.name}", size, modified, entry.is_dir())
        return
    folder = store.url(rel_dir).partition("://")[2].strip("/")
    try:
        infos = retry_transient(lambda: store.fs.ls(store.url(rel_dir), detail=True))
    except FileNotFoundError:
        return
    for info in infos:
        path = info["name"].strip("/")
        if path != folder:
            name = path.rsplit("/", 1)[-1]
            is_folder = info["type"] == "directory"
            yield _Entry(f"{prefix}{name}", 0 if is_folder else int(info["size"]), _modified(info), is_folder)


def _stat(path: str) -> tuple[int, float]:
    found = os.stat(path)
    return found.st_size, max(found.st_mtime, found.st_ctime)  # a renamed file keeps its mtime


def _tree(path: str) -> tuple[int, float]:
    size, modified = 0, os.stat(path).st_mtime
    for folder, _, names in os.walk(path):
        for name in names:
            with contextlib.suppress(FileNotFoundError):
                one_size, one_modified = _stat(os.path.join(folder, name))
                size, modified = size + one_size, max(modified, one_modified)
    return size, modified


def _modified(info: dict[str, Any]) -> float:
    """Unix seconds; now where the storage does not tell, so that nothing is old by mistake."""
    for name in ("LastModified", "mtime", "last_modified", "updated", "created"):
        value = info.get(name)
        if isinstance(value, str):
            with contextlib.suppress(ValueError):
                value = datetime.fromisoformat(value.replace("Z", "+00:00"))
        if isinstance(value, datetime):
            return (value if value.tzinfo else value.replace(tzinfo=UTC)).timestamp()
        if isinstance(value, int | float):
            return float(value)
    return time.time()
