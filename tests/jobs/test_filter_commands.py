"""refilter through the command line, without Ray."""

from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from jobs.cli import app

FAST = ["--workers", "0", "--progress", "off"]
RECIPE = ["--recipe", "uniform-4", "--set", "area_px=12544"]


def ov2(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture
def run(clip_manifest: Path, tmp_path: Path) -> Path:
    """Clips of 1.0, 1.2 .. 2.0 s, those below 1.3 s left out, and a missing one."""
    folder = tmp_path / "run"
    sets = [*RECIPE, "--set", "filter.min_duration_seconds=1.3"]
    planned = ov2("plan", "--manifest", clip_manifest, "--out", folder, *sets, *FAST)
    assert "2 (min_duration_seconds 2)" in planned.stdout, planned.output
    made = ov2("tokenize", "--manifest", clip_manifest, "--out", folder, *sets, *FAST)
    assert made.exit_code == 0, made.output
    assert "4 committed + 2 filtered + 1 quarantined" in made.stdout
    return folder


def test_refilter_counts_then_takes_in_and_status_tells_by_rule(run: Path) -> None:
    assert "2 (min_duration_seconds 2)" in ov2("status", run).stdout
    dry = ov2("refilter", run, "--set", "filter.min_duration_seconds=1.5", "--dry-run")
    assert "1 (min_duration_seconds 1) would be filtered now; they stay" in dry.stdout
    done = ov2("refilter", run, "--set", "filter.min_duration_seconds=1.1", *FAST)
    assert done.exit_code == 0, done.output
    assert "1; left out still: 1 (min_duration_seconds 1)" in done.stdout
    assert "1 (refilter): 1 rows, 1 planned" in done.stdout
    assert "verify            ok: 7 rows = 5 committed + 1 filtered + 1 quarantined" in ov2("verify", run).stdout


def test_plan_is_rewritten_and_its_thresholds_are_those_that_tokenize_must_name(
    clip_manifest: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    ov2("plan", "--manifest", clip_manifest, "--out", out, *RECIPE, *FAST)
    again = ov2("refilter", out, "--set", "filter.max_duration_seconds=1.5")
    assert "3 (max_duration_seconds 3)" in again.stdout, again.output
    refused = ov2("tokenize", "--manifest", clip_manifest, "--out", out, *RECIPE, *FAST)
    assert refused.exit_code == 2
    sets = ["--set", "filter.max_duration_seconds=1.5"]
    assert ov2("tokenize", "--manifest", clip_manifest, "--out", out, *RECIPE, *sets, *FAST).exit_code == 0


def test_refilter_without_a_threshold_or_a_plan_is_refused(run: Path, tmp_path: Path) -> None:
    assert "at least one threshold" in ov2("refilter", run).stderr
    assert "no such field 'min_length'" in ov2("refilter", run, "--set", "filter.min_length=1").stderr
    assert "holds no plan" in ov2("refilter", tmp_path / "nothing", "--set", "filter.min_fps=1").stderr
