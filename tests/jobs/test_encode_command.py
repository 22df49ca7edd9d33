"""`ov2 encode` from the command line: prediction, run, verification, inspection, and what it refuses."""

import re
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

pytest.importorskip("torch")

from jobs.cli import app

FAST = ("--workers", "0", "--progress", "off", "--device", "cpu")


def ov2(*arguments: Any) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_prediction_run_verify_and_inspect_agree(token_run: Path, tiny_model: Path, tmp_path: Path) -> None:
    arguments = (
        "encode",
        "--shards",
        token_run,
        "--out",
        tmp_path / "f",
        "--model",
        tiny_model,
        "--dtype",
        "int8",
        *FAST,
    )
    predicted = ov2(*arguments, "--dry-run")
    assert predicted.exit_code == 0, predicted.output
    assert not (tmp_path / "f").exists()
    num_bytes = int(re.search(r"bytes +([\d,]+)", predicted.stdout)[1].replace(",", ""))
    assert "806" in predicted.stdout

    done = ov2(*arguments)
    assert done.exit_code == 0, done.output
    assert sum(path.stat().st_size for path in (tmp_path / "f" / "shards").glob("*.tar")) == num_bytes
    assert re.search(r"encoder +at work [\d.]+% of [\d.]+ worker seconds, waiting for pixels", done.stdout)
    assert "ok: 6 rows = 6 committed + 0 filtered + 0 quarantined" in done.stdout
    assert "3 of 3 shards stood already" in ov2(*arguments).stdout

    verified = ov2("verify", tmp_path / "f")
    assert verified.exit_code == 0, verified.output
    shown = ov2("inspect", tmp_path / "f", "clip-2")
    assert shown.exit_code == 0, shown.output
    assert "merged (tokens behind the connector), 160 rows x 64, int8" in shown.stdout
    assert "features I8 [160, 64], scales F32 [160]" in shown.stdout
    assert "Canary 2." in shown.stdout


def test_a_feature_run_is_no_token_run(token_run: Path, tiny_model: Path, tmp_path: Path) -> None:
    run = tmp_path / "f"
    assert ov2("encode", "--shards", token_run, "--out", run, "--model", tiny_model, *FAST).exit_code == 0
    for arguments, message in (
        (("report", run), "is a feature run"),
        (("inspect", run, "clip-2", "--png", tmp_path / "x.png"), "holds no canvases"),
        (("encode", "--shards", run, "--out", tmp_path / "g", "--model", tiny_model, *FAST), "made of token shards"),
        (
            ("encode", "--shards", token_run, "--out", run, "--model", tiny_model, "--unmerged", *FAST),
            "config.stage: 'merged' there, 'unmerged' here",
        ),
        (
            ("encode", "--shards", token_run, "--out", run, "--model", tiny_model, "--address", "auto"),
            "say --device cpu or cuda",
        ),
    ):
        result = ov2(*arguments)
        assert result.exit_code == 2, result.output
        assert message in result.stderr
