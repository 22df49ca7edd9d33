"""`ov2 spatial` and `ov2 verify` as a user types them."""

import json
from pathlib import Path

from typer.testing import CliRunner

from jobs.cli import app


def run(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(app, list(arguments))
    return result.exit_code, result.output


def test_spatial_makes_a_run_resumes_it_and_verify_proves_it(tmp_path: Path) -> None:
    out = str(tmp_path / "run")
    command = ("spatial", "--scenes", "procedural:2?seed=1", "--out", out, "--per-type", "2", "--workers", "0")
    code, text = run(*command, "--progress", "off", "--gallery", "1")
    assert code == 0, text
    assert "2 used, 0 filtered, 0 quarantined" in text
    assert "trace_3d" in text
    assert "verify            ok" in text
    for name in ("gallery.html", "report.json", "run.json", "records/shard-000000.jsonl"):
        assert (tmp_path / "run" / name).stat().st_size > 0
    code, text = run(*command, "--progress", "off", "--gallery", "0")
    assert code == 0
    assert "1 of 1 shards stood already" in text
    assert run("verify", out)[0] == 0
    records = tmp_path / "run/records/shard-000000.jsonl"
    kept = records.read_bytes()
    records.write_bytes(kept.replace(b'"A"', b'"B"', 1))
    assert run("verify", out)[0] == 1
    code, text = run("verify", out, "--quick")
    assert code == 0, text
    records.write_bytes(kept)
    (tmp_path / "run/shards/shard-000000.tar").write_bytes(b"x")
    assert run("verify", out, "--quick")[0] == 1
    assert run("verify", out)[0] == 1


def test_spatial_says_what_is_wrong_with_its_arguments(tmp_path: Path) -> None:
    code, text = run("spatial", "--scenes", "procedural:many", "--out", str(tmp_path / "run"))
    assert code == 2
    assert "procedural:COUNT" in text
    code, text = run("spatial", "--scenes", "procedural:1", "--out", str(tmp_path / "run"), "--recipe", "spatial-5m")
    assert code == 2
    assert "spatial-4m" in text
    for setting, said in (
        ("max_share", "quotas.TYPE"),
        ("max_share=x", "float"),
        ("max_share=2", "max_share"),
        ("quotas.nothing=3", "no task type"),
    ):
        code, text = run("spatial", "--scenes", "procedural:1", "--out", str(tmp_path / "run"), "--set", setting)
        assert code == 2
        assert said in text


def test_a_type_may_take_more_than_its_share_if_configured(tmp_path: Path) -> None:
    out = tmp_path / "run"
    code, text = run(
        "spatial", "--scenes", "procedural:1?seed=1", "--out", str(out), "--per-type", "1", "--workers", "0",
        "--progress", "off", "--gallery", "0", "--set", "quotas.depth_point=20", "--set", "max_share=1",
    )  # fmt: skip
    assert code == 0, text
    report = json.loads((out / "report.json").read_text())
    assert report["shipped"]["depth_point"] > 0.2 * report["num_questions"]
