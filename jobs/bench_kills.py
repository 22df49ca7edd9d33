"""Kills a run at every failpoint, each time somebody else, and proves that the same command then ends as if nothing had been.

Enters: options. Leaves: a table (and JSON, to which the next call adds); the exit code is 1 where anything was violated. A case is
a failpoint (ov2_core/storage/failpoint.py) and a victim, and each runs the command `ov2 tokenize` on four tiny clips:

    inline  the process of a run without Ray kills itself at the point
    late    it stops there, the same command ends elsewhere meanwhile, and then it goes on
    worker  the worker process on Ray kills itself; the driver goes on
    actor   the worker stops there; the driver kills its actor (ray.kill) and goes on
    driver  whoever reaches the point stops, the driver is killed
    node    the worker stops there; its node's raylet and all processes below it are killed; the driver goes on elsewhere

Ray is one cluster of two nodes with one worker each, beside a head without any. What must hold: where the driver lived it ends with
0; the same command, given again, does so too; published bytes are those of an undisturbed run; `verify` passes; each row ends once;
nothing is left among the attempts; and a reader that globs shards/ again and again, also while the victim is dead, never sees a
file that is not whole and committed.
"""

import argparse
import contextlib
import hashlib
import json
import multiprocessing
import os
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from jobs.bench_markdown import write_section
from ov2_core.evals.clips import write_canary_clip
from ov2_core.plan import iter_plan_quarantine
from ov2_core.storage.commit import iter_commits
from ov2_core.storage.files import Store
from ov2_core.storage.verify import verify_run

BEGIN, END = "<!-- kills: begin -->", "<!-- kills: end -->"
NUM_CLIPS = 4
WORKER_POINTS = (
    "mid_probe",
    "mid_decode",
    "before_tar",
    "mid_tar",
    "after_tar",
    "before_upload",
    "after_upload",
    "before_commit",
    "after_commit",
    "before_publish",
    "after_publish",
    "before_sidecar",
    "after_sidecar",
    "before_cleanup",
    "after_cleanup",
)
"""Reached by a worker. A tar's digest is computed while it is written, and is known at after_tar."""
DRIVER_POINTS = ("before_plan", "mid_plan", "after_plan", "before_index", "mid_index", "after_index")
WRITES = tuple(f"mid_write:{count}" for count in range(1, 9))
"""The driver's n-th file, written in full but without its name yet: plan, run.json, signs of life, index."""
POINTS = {
    "inline": (*WORKER_POINTS, *DRIVER_POINTS, *WRITES, "mid_decode:9", "mid_tar:3", "after_commit:2"),
    "late": (*WORKER_POINTS, *DRIVER_POINTS),
    "worker": WORKER_POINTS,
    "actor": WORKER_POINTS,
    "driver": (*WORKER_POINTS, *DRIVER_POINTS, *WRITES),
    "node": WORKER_POINTS,
}
BEFORE_A_PLAN = ("mid_probe", "before_plan", "mid_plan", "after_plan", *WRITES)
"""Cases that begin in an empty folder; the others find the plan made."""
COMMAND_SECONDS = 180.0
LOOK_SECONDS = 0.005
DEADLINE_BASE_SECONDS = 8.0
STORE_BYTES = 100 << 20

_PROCESSES = multiprocessing.get_context("forkserver")
_PROCESSES.set_forkserver_preload(["jobs.cli", "pipelines.tokenize_videos", "ov2_core.report.render"])


def main(argv: Iterable[str] | None = None) -> int:
    """Entry point of `ov2 bench kills`."""
    parser = argparse.ArgumentParser(prog="ov2 bench kills", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--victim", action="append", choices=sorted(POINTS), help="default: all")
    parser.add_argument("--point", action="append", help="failpoint; default: all that the victim can meet")
    parser.add_argument("--folder", type=Path, help="keep clips, runs and logs here")
    parser.add_argument(
        "--out", type=Path, help="JSON; cases that stand there already are kept, those run anew replaced"
    )
    parser.add_argument("--table", action="store_true", help="run nothing: only the table of what --out holds")
    parser.add_argument("--markdown", type=Path, help="write the table between its markers in this file")
    args = parser.parse_args(None if argv is None else list(argv))
    known: dict[str, Any] = json.loads(args.out.read_text()) if args.out is not None and args.out.exists() else {}
    if not args.table:
        _run_and_keep(args, known)
    if not known:
        parser.error("no case was run and --out holds none")
    print(table_text(list(known.values())))
    if args.markdown is not None:
        write_section(table_text(list(known.values())), args.markdown, begin=BEGIN, end=END, heading="## Kill matrix")
    return 1 if any(result["violations"] for result in known.values()) else 0


def _run_and_keep(args: argparse.Namespace, known: dict[str, Any]) -> None:
    """Adds a result a case to `known`, and to --out as it goes."""
    with tempfile.TemporaryDirectory(prefix="ov2-kills-") as temporary:
        folder = args.folder or Path(temporary)
        for result in run_kills(folder, victims=args.victim or list(POINTS), points=args.point):
            known[f"{result['victim']} {result['point']}"] = result
            print(_line(result), flush=True)
            if args.out is not None:
                args.out.write_text(json.dumps(known, indent=1) + "\n")


def run_kills(folder: Path, *, victims: Sequence[str], points: Sequence[str] | None = None) -> Iterator[dict[str, Any]]:
    """Runs the cases one after the other; yields victim, point, seconds and violations of each.

    Raises:
        ValueError: a point that no victim asked for can meet.
    """
    unknown = set(points or []) - {point for victim in victims for point in POINTS[victim]}
    if unknown:
        raise ValueError(f"{', '.join(victims)} cannot be killed at {', '.join(sorted(unknown))}")
    corpus = make_kill_corpus(folder)
    for victim in victims:
        chosen = [point for point in POINTS[victim] if points is None or point in points]
        with (
            _Cluster()
            if victim in ("worker", "actor", "driver", "node") and chosen
            else contextlib.nullcontext() as ray
        ):
            for point in chosen:
                where = folder / f"{victim}-{point.replace(':', '-')}"
                shutil.rmtree(where, ignore_errors=True)
                yield Case(corpus, where, victim=victim, point=point, cluster=ray).run()


@dataclass(frozen=True, slots=True)
class KillCorpus:
    """Clips, their manifest, and what an undisturbed run of it publishes."""

    manifest: Path
    planned: Path
    """A run that is planned, no more."""
    published: dict[str, str]
    """{path below the run: sha256}."""
    num_rows: int


def make_kill_corpus(folder: Path) -> KillCorpus:
    """Four clips of 12 frames and a missing file; shards of two samples."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for number in range(NUM_CLIPS):
        path = folder / f"clip-{number}.mp4"
        if not path.exists():
            write_canary_clip(path, video_id=number, num_frames=12, columns=8, rows=8)
        rows.append({"video": str(path), "id": f"v{number}", "caption": f"Clip {number}."})
    rows.insert(2, {"video": str(folder / "nowhere.mp4"), "id": "gone"})
    manifest = folder / "manifest.jsonl"
    manifest.write_text("".join(json.dumps(row) + "\n" for row in rows))
    planned, whole = folder / "planned", folder / "undisturbed"
    for path in (planned, whole):
        shutil.rmtree(path, ignore_errors=True)
    for words in (["plan", *_arguments(manifest, planned)], ["tokenize", *_arguments(manifest, whole)]):
        code = _finish(_start(words, {}, folder / "undisturbed.log"))
        assert code == 0, f"the undisturbed run ends with {code}; see {folder / 'undisturbed.log'}"
    return KillCorpus(manifest, planned, published_digests(whole), len(rows))


def published_digests(run: Path) -> dict[str, str]:
    """{path below the run: sha256} of every file that a reader of the run sees."""
    files = [path for name in ("shards", ".nv-meta") for path in (run / name).glob("*")]
    return {str(path.relative_to(run)): _sha256(path) for path in files}


class Case:
    """One kill, and what became of the run."""

    def __init__(
        self, corpus: KillCorpus, folder: Path, *, victim: str, point: str, cluster: "_Cluster | None"
    ) -> None:
        self._corpus, self._folder, self._cluster = corpus, folder, cluster
        self._victim, self._point = victim, point
        self._run, self._marker = folder / "run", folder / "marker"
        self._violations: list[str] = []

    def run(self) -> dict[str, Any]:
        """The case's line of the report."""
        began = time.monotonic()
        self._folder.mkdir(parents=True)
        if self._point not in BEFORE_A_PLAN:
            shutil.copytree(self._corpus.planned, self._run)
        with GlobReader(self._run, self._corpus.published) as reader:
            code = self._kill()
            reader.look()
            (self._folder / "marker.go").touch()
            self._expect_end("the same command, given again", self._command())
        self._violations += [f"a reader saw {text}" for text in reader.violations]
        self._judge()
        return {
            "victim": self._victim,
            "point": self._point,
            "first_exit_code": code,
            "num_looks": reader.num_looks,
            "seconds": round(time.monotonic() - began, 1),
            "violations": self._violations,
        }

    def _kill(self) -> int | None:
        """The first command with its kill; its exit code, negative for a signal."""
        hold = self._victim in ("late", "actor", "driver", "node")
        environment = {"OV2_FAILPOINT": self._point, "OV2_FAILPOINT_MARKER": str(self._marker)}
        process = self._command(environment | ({"OV2_FAILPOINT_HOLD": "1"} if hold else {}))
        if hold:
            holder = self._wait_for_marker(process)
            if holder is None:
                process.kill()
                self._violations.append(f"the failpoint was not reached; exit code {_finish(process)}")
                return process.exitcode
            if self._victim == "late":
                self._expect_end("the same command beside it", self._command())
                (self._folder / "marker.go").touch()
            elif self._victim == "driver":
                process.kill()
            elif self._victim == "node":
                assert self._cluster is not None
                self._cluster.kill_node_of(holder)
        if self._victim in ("late", "worker", "actor", "node"):
            self._expect_end("the command", process)
        elif _finish(process) != -signal.SIGKILL:
            self._violations.append(f"the driver was not killed: exit code {process.exitcode}")
        if not self._marker.exists():
            self._violations.append("the failpoint was not reached")
        return process.exitcode

    def _command(self, environment: dict[str, str] | None = None) -> BaseProcess:
        words = ["tokenize", *_arguments(self._corpus.manifest, self._run, cluster=self._cluster)]
        return _start(words, environment or {}, self._folder / "log")

    def _expect_end(self, what: str, process: BaseProcess) -> None:
        code = _finish(process)
        if code != 0:
            tail = " | ".join((self._folder / "log").read_text(errors="replace").splitlines()[-3:])
            self._violations.append(f"{what} ended with {code}: {tail[-400:]}")

    def _wait_for_marker(self, process: BaseProcess) -> int | None:
        """Id of the process that holds at the point."""
        until = time.monotonic() + COMMAND_SECONDS
        while process.is_alive() and time.monotonic() < until:
            with contextlib.suppress(FileNotFoundError, ValueError):
                return int(self._marker.read_text())
            time.sleep(0.01)
        return None

    def _judge(self) -> None:
        """What must hold of the run in the end."""
        if not self._run.is_dir():
            self._violations.append("there is no run")
            return
        store, here = Store(self._run), published_digests(self._run)
        for rel in sorted(here.keys() | self._corpus.published.keys()):
            if here.get(rel) != self._corpus.published.get(rel):
                self._violations.append(f"{rel} is not what an undisturbed run publishes")
        self._violations += [f"verify: {error}" for error in verify_run(store).errors]
        ends = Counter(row.line for row in iter_plan_quarantine(store))
        for record in iter_commits(store):
            ends.update(row.line for row in (*record.samples, *record.filtered, *record.quarantined))
        if ends != Counter(range(1, self._corpus.num_rows + 1)):
            self._violations.append(f"rows do not end once each: {dict(ends)}")
        left = [
            path for name in ("attempts", "shards", "commits", "quarantine") for path in (self._run / name).rglob("*")
        ]
        left = [path for path in left if path.is_file() and ("attempts" in path.parts or path.name.endswith(".ov2tmp"))]
        self._violations += [f"left behind: {path.relative_to(self._run)}" for path in left]


class GlobReader:
    """A reader that knows nothing of commits: whatever shards/* shows must be whole, and committed, at any time."""

    def __init__(self, run: Path, published: dict[str, str]) -> None:
        self._run, self._published = run, published
        self._seen: set[tuple[str, int, int, int]] = set()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._loop, daemon=True)
        self.violations: list[str] = []
        self.num_looks = 0

    def __enter__(self) -> "GlobReader":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def look(self) -> None:
        """One look at every file that is new or has changed."""
        self.num_looks += 1
        for path in (self._run / "shards").glob("[!.]*"):
            with contextlib.suppress(FileNotFoundError):
                stat = path.stat()
                version = (path.name, stat.st_ino, stat.st_size, stat.st_mtime_ns)
                if version in self._seen:
                    continue
                self._seen.add(version)
                if _sha256(path) != self._published.get(f"shards/{path.name}"):
                    self.violations.append(f"{path.name} with {stat.st_size} bytes that are not a whole shard's")
                if not (self._run / "commits" / f"{path.name.partition('.')[0]}.json").exists():
                    self.violations.append(f"{path.name} before its commit")

    def _loop(self) -> None:
        while not self._stop.wait(LOOK_SECONDS):
            self.look()


class _Cluster:
    """A head without workers and two nodes of one each, as `ray.cluster_utils` starts them on one machine."""

    def __enter__(self) -> "_Cluster":
        from ray.cluster_utils import Cluster

        from pipelines.runtime import ONE_THREAD

        os.environ.update(ONE_THREAD | {"RAY_USAGE_STATS_ENABLED": "0"})
        self._cluster = Cluster(
            initialize_head=True, head_node_args={"num_cpus": 0, "object_store_memory": STORE_BYTES}
        )
        self._nodes = [self._add() for _ in range(2)]
        self.address: str = self._cluster.address
        return self

    def __exit__(self, *_: object) -> None:
        self._cluster.shutdown()

    def kill_node_of(self, worker: int) -> None:
        """Kills the raylet above a worker process and all that it has started; then another node joins."""
        (node,) = (node for node in self._nodes if _raylet(node) == _parent(worker))
        below = [int(name) for name in os.listdir("/proc") if name.isdigit() and _parent(int(name)) == _raylet(node)]
        for process in (_raylet(node), *below):
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        self._cluster.remove_node(node, allow_graceful=False)
        self._nodes.remove(node)
        self._nodes.append(self._add())

    def _add(self) -> Any:
        return self._cluster.add_node(num_cpus=1, object_store_memory=STORE_BYTES)


def _raylet(node: Any) -> int:
    return int(node.all_processes["raylet"][0].process.pid)


def _parent(process: int) -> int | None:
    try:
        return int(Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return None


def _arguments(manifest: Path, run: Path, *, cluster: _Cluster | None = None) -> list[str]:
    where = ["--workers", "0"] if cluster is None else ["--workers", "2", "--address", cluster.address]
    return [
        *("--manifest", str(manifest), "--out", str(run), "--recipe", "uniform-4", "--progress", "off"),
        *("--set", "shards.max_samples=2", "--set", "area_px=50176"),
        *("--deadline-base", str(DEADLINE_BASE_SECONDS), *where),
    ]


def _start(words: list[str], environment: dict[str, str], log: Path) -> BaseProcess:
    process = _PROCESSES.Process(target=_be_command, args=(words, environment, str(log)))
    process.start()
    return process


def _be_command(words: list[str], environment: dict[str, str], log: str) -> None:
    """What the process of the command `ov2` does, without the seconds that its imports take: the fork server has them."""
    os.environ.update(environment)
    handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(handle, 1)
    os.dup2(handle, 2)
    from jobs import cli

    sys.argv[1:] = words
    cli.main()


def _finish(process: BaseProcess) -> int | None:
    process.join(COMMAND_SECONDS)
    if process.is_alive():
        process.kill()
        process.join()
        return None
    return process.exitcode


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _line(result: dict[str, Any]) -> str:
    return f"{result['victim']:7} {result['point']:15} {result['seconds']:6.1f} s  " + (
        "; ".join(result["violations"]) or "ok"
    )


def table_text(results: Sequence[dict[str, Any]]) -> str:
    """Markdown: failpoints down, victims across; `ok` or the number of violations; then the sums."""
    victims = [victim for victim in POINTS if any(result["victim"] == victim for result in results)]
    points = list(dict.fromkeys(point for victim in POINTS for point in POINTS[victim]))
    by_case = {(result["victim"], result["point"]): result for result in results}

    def cell(victim: str, point: str) -> str:
        result = by_case.get((victim, point))
        return "" if result is None else "ok" if not result["violations"] else f"{len(result['violations'])} violated"

    lines = ["| failpoint | " + " | ".join(victims) + " |", "| --- " * (len(victims) + 1) + "|"]
    for point in points:
        if any((victim, point) in by_case for victim in victims):
            lines.append(f"| {point} | " + " | ".join(cell(victim, point) for victim in victims) + " |")
    count: Callable[[str], int] = lambda victim: sum(result["victim"] == victim for result in results)  # noqa: E731
    lines.append("| cases | " + " | ".join(str(count(victim)) for victim in victims) + " |")
    num_looks = sum(result["num_looks"] for result in results)
    num_violations = sum(len(result["violations"]) for result in results)
    return "\n".join(
        [*lines, "", f"{len(results)} cases, {num_violations} violations; the reader looked {num_looks} times."]
    )


if __name__ == "__main__":
    sys.exit(main())
