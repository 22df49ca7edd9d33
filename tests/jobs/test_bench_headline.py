"""The miniature experiment: whole on a handful of clips, and each number that needs no model."""

import json
from pathlib import Path

import pytest

pytest.importorskip("torch")

from jobs.bench_headline import main, read_truth, regular_score, shown_share

SMALL = ["--clips", "5", "--held-out", "2", "--steps", "2", "--budgets", "4", "--seeds", "0", "--side", "56"]
SMALL += ["--forms", "uniform,codec"]


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("headline")
    assert main(["--work", str(folder), *SMALL, "--seconds", "2", "--markdown", str(folder / "table.md")]) == 0
    return folder


def test_every_form_is_trained_scored_and_tabled(work: Path) -> None:
    results = [json.loads(path.read_text()) for path in sorted(work.glob("result-*.json"))]
    assert {result["form"] for result in results} == {"uniform", "codec"}
    for result in results:
        assert set(result["answers"]) == set(read_truth(work / "heldout-2"))
        assert 0 <= result["mAP"] <= 1
        assert 0 <= result["shown"] <= 1
    table = (work / "table.md").read_text()
    assert all(f"| 4 | {form} |" in table for form in ("uniform", "codec"))


def test_what_stands_is_not_done_again(work: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in work.rglob("*") if path.is_file() and path.name != "table.md"}
    assert main(["--work", str(work), *SMALL, "--seconds", "2"]) == 0
    assert all(path.stat().st_mtime_ns == stamp for path, stamp in before.items() if path.name.startswith("result-"))


def test_codec_tokens_are_near_at_least_as_many_jumps_as_frames(work: Path) -> None:
    truth = read_truth(work / "heldout-2")
    shares = {form: shown_share(work / f"heldout-2-{form}-4", truth) for form in ("uniform", "codec")}
    assert shares["codec"] >= shares["uniform"]
    everywhere = {name: [0.0] for name in truth}
    assert shown_share(work / "heldout-2-uniform-4", everywhere) == 1.0  # the first frame is always shown
    nowhere = {name: [1e6] for name in truth}
    assert shown_share(work / "heldout-2-codec-4", nowhere) == 0.0


def test_the_mean_rate_is_a_guess_worth_what_chance_gives() -> None:
    train = {"a": [1.0, 3.0], "b": [0.5, 2.5]}
    assert regular_score(train, {"x": [1.0, 3.0]}, seconds=4.0) == pytest.approx(1.0)
    assert regular_score(train, {"x": [2.0]}, seconds=4.0) == 0.0
