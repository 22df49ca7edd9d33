"""The bench of training: its stage holds what it says, both sides train the same, its section of a file."""

import json
from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")
pytest.importorskip("accelerate")

from jobs.bench_train import main, ratios
from jobs.bench_train_stage import describe, make_stage
from ov2_core.data.loader import StageLoader


def test_packs_of_the_stage_are_filled_to_the_token_with_every_kind(tmp_path: Path) -> None:
    stage, processor = make_stage(tmp_path, num_packs=3, pack_tokens=1500, side_px=112)
    kinds, tokens = set[str](), 0
    for batch in StageLoader(stage, batch_size=1, processor=processor, num_workers=0):
        assert batch.num_tokens == 1500
        kinds |= set(batch.input_kinds[0])
        tokens += batch.num_tokens
    assert kinds == {"codec", "frames", "image", "text"}
    mix = describe(stage)["tokens"]
    assert sum(mix.values()) == tokens
    assert mix["codec"] > mix["frames"] > mix["still"]


@pytest.mark.parametrize(("side_px", "message"), [(100, "multiple of 28"), (392, "take smaller ones")])
def test_pictures_that_do_not_fit_are_refused(tmp_path: Path, side_px: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_stage(tmp_path, num_packs=1, pack_tokens=1024, side_px=side_px)


@pytest.mark.slow
def test_both_sides_train_the_same_and_the_section_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    markdown, report = tmp_path / "benchmarks.md", tmp_path / "report.json"
    sizes = ["--pack-tokens=1024", "--side-px=56", "--packs=2", "--steps=2", "--warm-up=1", "--rounds=1", "--threads=1"]
    assert main([*sizes, f"--markdown={markdown}", f"--json={report}"]) == 0
    found = json.loads(report.read_text())
    losses = {side: rounds[0]["losses"] for side, rounds in found["rounds"].items()}
    assert losses["ours"][0] == losses["loader"][0]
    assert losses["trainer"][0] == pytest.approx(losses["ours"][0], rel=0.01)
    assert all(len(rounds[0]["seconds"]) == 2 for rounds in found["rounds"].values())
    assert found["rounds"]["ours"][0]["tokens"] == [2048, 2048]
    assert ratios(found, "cpu_seconds")[0] > 0
    said = capsys.readouterr().out
    assert said.strip() in markdown.read_text()
    assert "tokens/CPU s" in said


def test_a_wrong_setting_is_told_before_anything_is_made() -> None:
    with pytest.raises(ValueError, match="global_bach"):
        main(["--set", "global_bach=3"])
