"""`ov2 bench learn`: a model that is trained on generated clips answers questions about others."""

import json
from pathlib import Path

import pytest

pytest.importorskip("torch")

from jobs.bench_learn import (
    accuracy,
    build_stage,
    judge,
    main,
    tokenized,
    train_tiny,
    wilson_interval,
)
from ov2_core.evals.moving_shapes import write_shape_clips

FAST = ["global_batch=1", "connector.learning_rate=5e-3", "language.learning_rate=5e-3", "visual.learning_rate=3e-3"]


def test_colours_of_unseen_clips_are_learned_from_codec_canvases_and_from_frames(tmp_path: Path) -> None:
    """One model for both."""
    runs = {}
    for split, number in (("train", 100), ("held_out", 40)):
        manifest = write_shape_clips(
            tmp_path / split, num_clips=number, split=split, questions=["colour"], initials=True
        )
        runs[split] = [tokenized(manifest, recipe) for recipe in ("codec-4", "uniform-4")]
    build_stage(tmp_path / "stage", runs["train"])
    train_tiny(tmp_path / "stage", tmp_path / "trained", num_steps=120, settings=FAST)
    for run in runs["held_out"]:
        found = accuracy(judge(tmp_path / "trained", run)["colour"], "colour")
        assert found["low"] > 1.5 * found["chance"], (run.name, found)


def test_one_model_of_all_inputs_is_judged_on_each(tmp_path: Path) -> None:
    small = ["--clips", "6", "--held-out", "2", "--steps", "2", "--questions", "colour", "--budget", "4", "--joint"]
    assert main([*small, "--work", str(tmp_path), "--json", str(tmp_path / "report.json")]) == 0
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["joint"]
    assert {form: found["recipe"] for form, found in report["forms"].items()} == {
        "codec": "codec-4",
        "frames": "uniform-4",
    }
    assert report["forms"]["codec"]["last_loss"] == report["forms"]["frames"]["last_loss"]
    assert [path.name for path in tmp_path.glob("trained-*")] == ["trained-codec-frames-0"]


@pytest.mark.slow
@pytest.mark.parametrize("form", ["codec", "frames"])
def test_colours_and_events_of_unseen_clips_are_learned(tmp_path: Path, form: str) -> None:
    """Minutes."""
    arguments = ["--clips", "2000", "--steps", "600", "--questions", "colour,event", "--input", form]
    assert main([*arguments, "--work", str(tmp_path), "--json", str(tmp_path / "report.json")]) == 0
    report = json.loads((tmp_path / "report.json").read_text())
    for question in ("colour", "event"):
        found = report["forms"][form]["accuracy"][question]
        assert found["low"] > 2 * found["chance"], (form, question, found)


@pytest.mark.slow
@pytest.mark.parametrize("form", ["codec", "frames"])
def test_the_count_of_unseen_clips_is_learned(tmp_path: Path, form: str) -> None:
    """Minutes. Asked alone, at a rate that hardly falls (docs/benchmarks.md)."""
    arguments = [
        "--clips",
        "3000",
        "--steps",
        "900",
        "--questions",
        "count",
        "--input",
        form,
        "--set",
        "schedule_steps=3000",
    ]
    for part in ("visual", "connector", "language"):
        arguments += ["--set", f"{part}.learning_rate=1e-3"]
    assert main([*arguments, "--work", str(tmp_path), "--json", str(tmp_path / "report.json")]) == 0
    found = json.loads((tmp_path / "report.json").read_text())["forms"][form]["accuracy"]["count"]
    assert found["low"] > 2 * found["chance"], found


def test_intervals_are_those_of_wilson() -> None:
    """Newcombe (1998), table I: 81 of 263 is .2553 to .3662, 0 of 20 is 0 to .1611."""
    assert wilson_interval(81, 263) == pytest.approx((0.2553, 0.3662), abs=1e-4)
    assert wilson_interval(0, 20) == pytest.approx((0, 0.1611), abs=1e-4)


def test_an_unknown_form_is_refused() -> None:
    with pytest.raises(ValueError, match="--input must be of"):
        main(["--input", "sound"])
