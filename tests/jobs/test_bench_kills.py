"""The kill matrix: two kills without Ray by default, one failpoint with every victim in the slow run. And that the judge sees."""

import hashlib
import json
from pathlib import Path

import pytest

from jobs import bench_kills
from jobs.bench_kills import POINTS, WORKER_POINTS, Case, GlobReader, KillCorpus, main, published_digests, run_kills


def test_killed_mid_decode_and_after_a_commit_ends_in_the_same_bytes(tmp_path: Path) -> None:
    results = list(run_kills(tmp_path, victims=["inline"], points=["mid_decode", "after_commit"]))
    assert [(result["victim"], result["point"], result["violations"]) for result in results] == [
        ("inline", "mid_decode", []),
        ("inline", "after_commit", []),
    ]
    assert all(result["first_exit_code"] == -9 and result["num_looks"] > 10 for result in results)
    # What the judge says of the same run when something is wrong with it.
    run = tmp_path / "inline-after_commit" / "run"
    corpus = KillCorpus(tmp_path / "manifest.jsonl", tmp_path / "planned", published_digests(run), 5)
    for harm in ("bytes", "orphan", "row"):
        tar, attempt = run / "shards" / "shard-000000.tar", run / "attempts" / "shard-000000" / "x.tar"
        if harm == "bytes":
            tar.write_bytes(tar.read_bytes()[:-1] + b"\1")
        elif harm == "orphan":
            attempt.parent.mkdir(parents=True)
            attempt.touch()
        else:
            (run / "commits" / "shard-000001.json").unlink()
    case = Case(corpus, tmp_path / "inline-after_commit", victim="inline", point="after_commit", cluster=None)
    case._judge()
    found = " | ".join(case._violations)
    for expected in (
        "shards/shard-000000.tar is not what an undisturbed run publishes",
        "verify: shard 0",
        "rows do not end once each",
        "left behind: attempts/shard-000000/x.tar",
    ):
        assert expected in found


def test_a_glob_reader_sees_what_is_not_whole_or_not_committed(tmp_path: Path) -> None:
    shards, commits = tmp_path / "shards", tmp_path / "commits"
    shards.mkdir()
    commits.mkdir()
    published = {f"shards/shard-00000{n}.tar": hashlib.sha256(bytes([n])).hexdigest() for n in range(3)}
    reader = GlobReader(tmp_path, published)
    (shards / ".half.ov2tmp").write_bytes(b"no glob shows it")
    for number in range(3):
        (shards / f"shard-00000{number}.tar").write_bytes(bytes([number]) if number != 1 else b"half")
        if number != 2:
            (commits / f"shard-00000{number}.json").touch()
    reader.look()
    reader.look()
    assert sorted(reader.violations) == [
        "shard-000001.tar with 4 bytes that are not a whole shard's",
        "shard-000002.tar before its commit",
    ]


def test_the_command_adds_to_its_report_and_fails_where_something_is_violated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out, page = tmp_path / "kills.json", tmp_path / "page.md"
    for point, violations, code in (("mid_tar", [], 0), ("after_tar", ["a reader saw it"], 1), ("after_tar", [], 0)):
        result = {"victim": "node", "point": point, "seconds": 1.0, "num_looks": 7, "violations": violations}
        monkeypatch.setattr(bench_kills, "run_kills", lambda *_, r=result, **__: iter([r]))
        assert main(["--out", str(out), "--markdown", str(page)]) == code
        assert ("| after_tar | 1 violated |" in capsys.readouterr().out) == bool(code)
    assert sorted(json.loads(out.read_text())) == ["node after_tar", "node mid_tar"]
    assert "| mid_tar | ok |\n| after_tar | ok |\n| cases | 2 |" in page.read_text()
    assert "2 cases, 0 violations; the reader looked 14 times." in page.read_text()

    monkeypatch.setattr(bench_kills, "run_kills", None)  # not to be called
    assert main(["--table", "--out", str(out)]) == 0
    assert "2 cases, 0 violations" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main(["--table", "--out", str(tmp_path / "none.json")])


def test_there_are_cases_enough_and_unknown_points_are_refused(tmp_path: Path) -> None:
    assert sum(len(POINTS[victim]) for victim in ("worker", "actor", "driver", "node")) >= 60
    assert all(set(WORKER_POINTS) <= set(points) for points in POINTS.values())
    with pytest.raises(ValueError, match="worker cannot be killed at before_index"):
        list(run_kills(tmp_path, victims=["worker"], points=["before_index"]))


@pytest.mark.slow
@pytest.mark.parametrize("victim", ["late", "worker", "actor", "driver", "node"])
def test_every_victim_killed_before_a_commit(tmp_path: Path, victim: str) -> None:
    (result,) = run_kills(tmp_path, victims=[victim], points=["before_commit"])
    assert result["violations"] == []
