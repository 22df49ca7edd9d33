import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from jobs.cli import app

FAST = ["--recipe", "uniform-4", "--workers", "0", "--progress", "off"]


def ov2(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture
def run(clip_manifest: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "run"
    result = ov2("tokenize", "--manifest", clip_manifest, "--out", folder, *FAST)
    assert result.exit_code == 0, result.output
    return folder


def test_version_is_printed() -> None:
    result = ov2("--version")
    assert result.exit_code == 0
    assert result.stdout.strip().count(".") == 2


def test_tokenize_ends_with_paths_and_the_proven_sum(clip_manifest: Path, tmp_path: Path) -> None:
    result = ov2("tokenize", "--manifest", clip_manifest, "--out", tmp_path / "run", *FAST)
    assert result.exit_code == 0
    assert "ok: 7 rows = 6 committed + 0 filtered + 1 quarantined" in result.stdout
    assert "1 (source_missing 1)" in result.stdout
    assert str(tmp_path / "run" / "shards") in result.stdout
    assert (tmp_path / "run" / "report.html").stat().st_size > 10_000


@pytest.mark.parametrize(("allowed", "code"), [("0", 3), ("1", 0), ("0.1", 3), ("0.2", 0), ("1.0", 0)])
def test_more_quarantined_than_allowed_is_exit_code_3(run: Path, clip_manifest: Path, allowed: str, code: int) -> None:
    result = ov2("tokenize", "--manifest", clip_manifest, "--out", run, *FAST, "--max-quarantined", allowed)
    assert result.exit_code == code, result.output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--recipe", "codec"], "unknown recipe 'codec'"),
        (["--set", "nothing"], "--set expects key=value"),
        (["--set", "jpeg_qualty=3"], "no such field 'jpeg_qualty'"),
        (["--max-quarantined", "many"], "--max-quarantined must be"),
        (["--max-quarantined", "1.5"], "--max-quarantined must be"),
        (["--workers", "-1"], "workers must be >= 0"),
        (["--manifest", "nowhere.jsonl"], "no such file"),
        (["--address", "127.0.0.1:1", "--workers", "1"], "no Ray cluster answers"),
        (["--set", "jpeg_quality=80"], "config.tokenizer.jpeg_quality: 95 there, 80 here"),
    ],
)
def test_user_error_is_one_message_and_exit_code_2(
    run: Path, clip_manifest: Path, tmp_path: Path, arguments: list[str], message: str
) -> None:
    out = tmp_path / "new" if "--address" in arguments else run
    result = ov2("tokenize", "--manifest", clip_manifest, "--out", out, *FAST, *arguments)
    assert result.exit_code == 2, result.output
    assert message in result.stderr
    assert "Traceback" not in result.output


def test_verify_proves_and_notices_damage(run: Path) -> None:
    good = ov2("verify", run, "--json")
    assert good.exit_code == 0
    assert json.loads(good.stdout)["ok"] is True
    (tar,) = (run / "shards").glob("*.tar")
    data = bytearray(tar.read_bytes())
    data[len(data) // 2] ^= 0xFF
    tar.write_bytes(data)
    bad = ov2("verify", run)
    assert bad.exit_code == 1
    assert "FAILED" in bad.stdout
    assert "shard 0" in bad.stdout


def test_inspect_shows_a_sample_and_draws_it(run: Path, tmp_path: Path) -> None:
    result = ov2("inspect", run, "v1", "--png", tmp_path / "v1.png")
    assert result.exit_code == 0, result.output
    assert "Square 1." in result.stdout
    assert (tmp_path / "v1.png").read_bytes().startswith(b"\x89PNG")


def test_inspect_of_a_quarantined_row_says_why(run: Path) -> None:
    result = ov2("inspect", run, "gone")
    assert result.exit_code == 2
    assert "quarantined as source_missing" in result.stderr
    assert "no sample 'never'" in ov2("inspect", run, "never").stderr


def test_dry_run_predicts_and_leaves_nothing(clip_manifest: Path, tmp_path: Path) -> None:
    result = ov2("plan", "--manifest", clip_manifest, "--out", tmp_path / "run", *FAST, "--dry-run")
    assert result.exit_code == 0, result.output
    assert "planned           6 in 1 shards" in result.stdout
    assert not (tmp_path / "run").exists()


def test_plan_then_tokenize_uses_the_plan(clip_manifest: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    assert ov2("plan", "--manifest", clip_manifest, "--out", out, *FAST).exit_code == 0
    before = (out / "plan" / "plan.json").stat().st_mtime_ns
    assert ov2("tokenize", "--manifest", clip_manifest, "--out", out, *FAST).exit_code == 0
    assert (out / "plan" / "plan.json").stat().st_mtime_ns == before


def test_report_prints_its_path(run: Path) -> None:
    result = ov2("report", run)
    assert result.exit_code == 0
    assert result.stdout.strip() == str(run / "report.html")


def test_doctor_finds_what_a_run_needs() -> None:
    result = ov2("doctor", "--quick")
    assert result.exit_code == 0, result.output
    for name in ("decode H.264", "decode AV1", "compiled kernels", "ray"):
        assert name in result.stdout
    assert "FAIL" not in result.stdout
