"""A radosgw with the least Ceph behind it (one monitor, one memory store), started and stopped by a test.

Enters: a folder; binaries of Debian's radosgw, ceph-mon, ceph-osd and ceph-common on PATH, or unpacked (`dpkg -x`) in the folder
that OV2_CEPH_ROOT names. Leaves: an S3 endpoint on 127.0.0.1 with one user. Nothing is asked of the system's own Ceph.
"""

import os
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.request
import uuid
from pathlib import Path

ROOT_VARIABLE = "OV2_CEPH_ROOT"
PROGRAMS = ("ceph-mon", "ceph-osd", "radosgw", "radosgw-admin", "monmaptool", "ceph")
ACCESS_KEY, SECRET_KEY = "test", "test-secret"
READY_SECONDS = 90.0


def missing_programs() -> list[str]:
    """What is not installed; empty if a server can be started."""
    return [name for name in PROGRAMS if _find(name) is None]


class RadosgwServer:
    """Use as a context manager; `endpoint` is its URL, `version` what `radosgw --version` says."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._processes: list[subprocess.Popen[bytes]] = []
        self._mon_port, self._rgw_port = _free_port(), _free_port()
        self.endpoint = f"http://127.0.0.1:{self._rgw_port}"
        self.version = ""

    def __enter__(self) -> "RadosgwServer":
        try:
            self._start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for process in reversed(self._processes):
            process.kill()
            process.wait()

    def log_text(self) -> str:
        """The end of every program's output, for a failed test."""
        return "\n".join(f"{path.name}: {path.read_text()[-2000:]}" for path in sorted(self._folder.glob("*.log")))

    def _start(self) -> None:
        folder, fsid = self._folder, str(uuid.uuid4())
        library = _root() / "usr/lib/x86_64-linux-gnu" if _root() else Path("/usr/lib/x86_64-linux-gnu")
        (folder / "ceph.conf").write_text(
            f"""[global]
fsid = {fsid}
mon host = [v1:127.0.0.1:{self._mon_port}]
auth cluster required = none
auth service required = none
auth client required = none
run dir = {folder}
admin socket = {folder}/$name.asok
log to stderr = true
log file =
mon cluster log file = /dev/null
crash dir = {folder}
plugin dir = {library}/ceph
erasure code dir = {library}/ceph/erasure-code
osd class dir = {library}/rados-classes
osd class load list = *
osd class default allow list = *
osd pool default size = 1
osd pool default min size = 1
osd pool default pg num = 1
osd pool default pgp num = 1
osd pool default pg autoscale mode = off
osd crush chooseleaf type = 0
osd objectstore = memstore
memstore device bytes = 2147483648
mon allow pool size one = true
mon data = {folder}/mon
mon data avail crit = 1
osd data = {folder}/osd
osd journal = {folder}/osd/journal
rgw frontends = beast endpoint=127.0.0.1:{self._rgw_port}
rgw data = {folder}/rgw
rgw thread pool size = 32
rgw override bucket index max shards = 1
rgw crypt require ssl = false
"""
        )
        for name in ("mon", "osd", "rgw"):
            (folder / name).mkdir()
        self._run("monmaptool", "--create", "--addv", "a", f"[v1:127.0.0.1:{self._mon_port}]", "--fsid", fsid, "monmap")
        self._run("ceph-mon", "--mkfs", "-i", "a", "--monmap", "monmap")
        self._spawn("ceph-mon", "-i", "a", "-f")
        osd_uuid = str(uuid.uuid4())
        osd_id = self._run("ceph", "--connect-timeout", str(int(READY_SECONDS)), "osd", "new", osd_uuid).strip()
        self._run("ceph-osd", "-i", osd_id, "--mkfs", "--osd-uuid", osd_uuid)
        self._spawn("ceph-osd", "-i", osd_id, "-f")
        self._spawn("radosgw", "-n", "client.rgw", "-f")
        self._run(
            "radosgw-admin", "-n", "client.rgw", "user", "create", "--uid", "test", "--display-name", "test",
            "--access-key", ACCESS_KEY, "--secret-key", SECRET_KEY,
        )  # fmt: skip
        self._wait_until_ready()
        self.version = self._run("radosgw", "--version").strip()

    def _wait_until_ready(self) -> None:
        deadline = time.monotonic() + READY_SECONDS
        while time.monotonic() < deadline:
            dead = [process.args for process in self._processes if process.poll() is not None]
            if dead:
                raise RuntimeError(f"{dead} ended early\n{self.log_text()}")
            try:
                urllib.request.urlopen(self.endpoint, timeout=5)
                return
            except urllib.error.HTTPError:
                return
            except OSError:
                time.sleep(0.2)
        raise RuntimeError(f"radosgw does not answer after {READY_SECONDS} s\n{self.log_text()}")

    def _environment(self) -> dict[str, str]:
        root = _root()
        if root is None:
            return dict(os.environ)
        libraries = [
            root / "usr/lib/x86_64-linux-gnu",
            root / "lib/x86_64-linux-gnu",
            root / "usr/lib/x86_64-linux-gnu/ceph",
        ]
        return {
            **os.environ,
            "LD_LIBRARY_PATH": os.pathsep.join(map(str, libraries)),
            "PYTHONPATH": str(root / "usr/lib/python3/dist-packages"),
        }

    def _arguments(self, name: str, arguments: tuple[str, ...]) -> list[str]:
        config = [] if name == "monmaptool" else ["-c", str(self._folder / "ceph.conf")]
        found = _find(name)
        assert found is not None
        program = ["/usr/bin/python3", found] if name == "ceph" else [found]
        return [*program, *config, *arguments]

    def _spawn(self, name: str, *arguments: str) -> None:
        with open(self._folder / f"{name}.log", "wb") as log:
            self._processes.append(
                subprocess.Popen(
                    self._arguments(name, arguments), cwd=self._folder, env=self._environment(), stdout=log, stderr=log
                )
            )

    def _run(self, name: str, *arguments: str) -> str:
        done = subprocess.run(
            self._arguments(name, arguments),
            cwd=self._folder, env=self._environment(), capture_output=True, text=True, timeout=READY_SECONDS, check=False,
        )  # fmt: skip
        if done.returncode:
            raise RuntimeError(f"{name} {' '.join(arguments)}: {done.stderr[-2000:]}\n{self.log_text()}")
        return done.stdout


def _root() -> Path | None:
    value = os.environ.get(ROOT_VARIABLE)
    return Path(value) if value else None


def _find(name: str) -> str | None:
    root = _root()
    if root is not None:
        path = root / "usr/bin" / name
        return str(path) if path.exists() else None
    return shutil.which(name)


def _free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])
