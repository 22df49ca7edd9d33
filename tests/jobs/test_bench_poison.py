"""The poison corpus: a few files of it by default, the whole and crashing workers in the slow run. And that the judge sees."""

import json
from pathlib import Path
from typing import Any

import pytest

from jobs import bench_poison
from jobs.bench_poison import main, run_poison, table_text
from ov2_core.evals.poison import write_poison


def test_a_few_of_each_kind_end_and_no_innocent_is_lost(tmp_path: Path) -> None:
    report = run_poison(tmp_path, recipe_name="uniform-4", per_family=1)
    assert report["violations"] == []
    assert report["rows"] <= 25
    assert report["good"] >= 3
    assert report["committed"] + sum(report["quarantined"].values()) == report["rows"]
    assert set(report["families"]) >= {"cut at a box", "lying size", "huge picture", "image bomb", "noise", "good"}
    assert "| uniform-4 | 0 |" in table_text([report])


def test_the_corpus_is_the_same_each_time_and_large_enough(tmp_path: Path) -> None:
    rows = [write_poison(tmp_path / name, per_family=2, seed=3) for name in ("a", "b")]
    assert rows[0] == rows[1]
    for row in rows[0]:
        a, b = tmp_path / "a" / row.name, tmp_path / "b" / row.name
        if row.family not in ("few frames", "no file", "folder of frames"):
            assert a.read_bytes() == b.read_bytes(), row.name


@pytest.mark.parametrize("sin", ["lost", "misbound", "slow", "internal_error"])
def test_the_judge_sees(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sin: str) -> None:
    """Each kind of violation, made on purpose."""
    write = bench_poison.write_poison

    def spoiled(folder: Path, **options: Any) -> Any:
        rows = write(folder, **options)
        good = [row.name for row in rows if row.video_id is not None]
        if sin == "lost":
            (folder / good[0]).write_bytes(b"gone")
        elif sin == "misbound":
            (folder / good[0]).write_bytes((folder / good[1]).read_bytes())
        return [row for row in rows if row.video_id is not None]

    monkeypatch.setattr(bench_poison, "write_poison", spoiled)
    if sin == "internal_error":
        monkeypatch.setattr("ov2_core.make_sample.tokenize_video", lambda *_, **__: 1 / 0)
    limit = 1e-6 if sin == "slow" else 20.0
    found = " ".join(run_poison(tmp_path, recipe_name="uniform-4", per_family=1, limit_seconds=limit)["violations"])
    expected = {
        "lost": "an innocent was quarantined as not_media",
        "misbound": "shows the pixels of video",
        "slow": "tokenize took",
        "internal_error": "internal_error: ",
    }
    assert expected[sin] in found


def test_the_command_fails_where_something_is_violated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    report = run_poison(tmp_path / "x", recipe_name="uniform-4", per_family=1)
    for violations, code in (([], 0), (["line 1: lost"], 1)):
        monkeypatch.setattr(bench_poison, "run_poison", lambda *_, v=violations, **__: {**report, "violations": v})
        out, page = tmp_path / "out.json", tmp_path / "page.md"
        assert main(["--recipe", "uniform-4", "--out", str(out), "--markdown", str(page)]) == code
        assert json.loads(out.read_text())[0]["violations"] == violations
        assert "## Poison corpus" in page.read_text()
        assert ("violated: line 1: lost" in capsys.readouterr().err) == bool(code)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("recipe_name", ["codec-8", "evidence-8", "uniform-4"])
def test_the_whole_corpus_ends(tmp_path: Path, recipe_name: str, seed: int) -> None:
    report = run_poison(tmp_path, recipe_name=recipe_name, seed=seed)
    assert report["violations"] == []
    assert report["rows"] - report["good"] >= 300


@pytest.mark.slow
@pytest.mark.ray
def test_crashing_and_hanging_decoders_are_charged_alone(local_ray: None, tmp_path: Path) -> None:
    report = run_poison(tmp_path, recipe_name="uniform-4", workers=2, per_family=1, limit_seconds=5.0)
    assert report["violations"] == []
    assert report["families"]["simulated crash"] == {"worker_died": 2}
    assert report["families"]["simulated hang"] == {"deadline_exceeded": 2}
