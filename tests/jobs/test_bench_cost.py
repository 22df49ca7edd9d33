import json
import random
import shutil
from pathlib import Path

import pytest

from jobs import bench_cost
from jobs.bench_cost import fit, main, measure, predicted, table_text
from ov2_core.config import recipe
from ov2_core.prediction import COST_SECONDS, cost_terms, predict
from schemas.video import ProbeRecord

TRUTH = {"sample": 0.02, "mpx h264": 0.003, "image_mpx saliency": 0.05}


def made(cpu_seconds: float, terms: dict[str, float]) -> dict[str, object]:
    return {
        "clip": "c",
        "recipe": "codec-8",
        "terms": terms,
        "cpu_seconds": cpu_seconds,
        "tokens": [10, 10],
        "bytes": [4, 5],
    }


def test_fit_finds_the_constants_that_made_the_seconds() -> None:
    draw = random.Random(0)
    found = []
    for _ in range(30):
        terms = {"sample": 1.0, "mpx h264": draw.uniform(1, 3000), "image_mpx saliency": draw.uniform(0.1, 5)}
        found.append(made(predicted(terms, TRUTH), terms))
    constants = fit(found)
    assert constants == pytest.approx(TRUTH, rel=0.02)
    row = table_text(found, constants).splitlines()[2]
    assert row.split(" | ")[2:4] == ["1.00", "1.00 .. 1.00"]
    assert row.split(" | ")[5:] == ["1.25", "1.00 |"]


def test_fit_weighs_a_short_clip_as_a_long_one_and_one_far_off_hardly_moves_it() -> None:
    terms = [{"sample": 1.0, "frame": 10.0 * 2**i} for i in range(12)]
    found = [made(0.01 + 0.002 * one["frame"], one) for one in terms]
    far = made(0.0002, {"sample": 1.0, "frame": 1000.0})
    constants = fit([*found, far])
    assert constants["frame"] == pytest.approx(0.002, rel=0.1)
    assert min(fit([made(1.0, {"sample": 1.0}), made(1.0, {"sample": 1.0, "frame": 5.0})]).values()) == 0.0


@pytest.mark.parametrize("name", ["codec-8", "evidence-8", "uniform-8", "stills"])
@pytest.mark.parametrize("codec", ["h264", "mpeg2video", "unheard_of"])
def test_prediction_is_the_sum_of_its_terms_and_every_term_has_a_constant(name: str, codec: str) -> None:
    probe = ProbeRecord(
        media="image" if name == "stills" else "video",
        container="x",
        codec=codec,
        pixel_format="yuv420p",
        width_px=640,
        height_px=360,
        num_frames=1 if name == "stills" else 90,
        duration_seconds=3.0,
        fps=30.0,
        variable_rate=False,
        rotation_degrees=0,
        size_bytes=1,
        video_bytes=1,
    )
    config = recipe(name).tokenizer
    assert predict(probe, config).cpu_seconds == pytest.approx(
        predicted(cost_terms(probe, config), COST_SECONDS), abs=1e-4
    )


def test_measurements_are_kept_and_not_made_again(
    clip_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(bench_cost, "_GENERATED", ())
    kept = tmp_path / "kept.json"
    videos = tmp_path / "videos"
    videos.mkdir()
    for name in ("clip_0.mp4", "clip_1.mp4"):
        shutil.copy(clip_folder / name, videos)
    arguments = ["--videos", str(videos), "--recipe", "uniform-4", "--repeats", "1", "--json", str(kept)]
    arguments += ["--folder", str(tmp_path / "clips")]
    assert main(arguments) == 0
    first = json.loads(kept.read_text())
    assert [one["clip"] for one in first] == ["clip_0.mp4", "clip_1.mp4"]
    assert all(one["tokens"][0] == one["tokens"][1] for one in first)
    monkeypatch.setattr(bench_cost, "measure", lambda *_: pytest.fail("measured again"))
    capsys.readouterr()
    assert main([*arguments, "--check", "--markdown", str(tmp_path / "page.md")]) == 0
    assert capsys.readouterr().out.startswith("| recipe")
    assert json.loads(kept.read_text()) == first
    assert bench_cost.BEGIN in (tmp_path / "page.md").read_text()


def test_file_that_is_no_video_is_named(tmp_path: Path) -> None:
    (tmp_path / "text.mp4").write_text("hello " * 500)
    with pytest.raises(ValueError, match=r"text\.mp4 cannot be probed"):
        measure(tmp_path / "text.mp4", recipe("uniform-4"), 1)
