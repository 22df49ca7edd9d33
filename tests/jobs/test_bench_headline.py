"""The miniature experiment: whole on a handful of clips, and each number that needs no model."""

import json
from pathlib import Path

import pytest

pytest.importorskip("torch")

from jobs.bench_headline import main, read_truth, regular_score, scores, shown_share

SMALL = [
    "--clips",
    "5",
    "--held-out",
    "2",
    "--stills",
    "6",
    "--first-steps",
    "1",
    "--steps",
    "2",
    "--budgets",
    "4",
    "--seeds",
    "0",
]
SMALL += ["--side", "56", "--forms", "uniform,codec", "--workers", "0"]


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("headline")
    assert (
        main(["--work", str(folder), *SMALL, "--markdown", str(folder / "t.md"), "--figures", str(folder / "f")]) == 0
    )
    return folder


def test_every_form_is_asked_scored_tabled_and_drawn(work: Path) -> None:
    (result,) = [json.loads(path.read_text()) for path in work.glob("result-*.json")]
    truth = read_truth(work / "heldout-2")
    assert {name: set(answers) for name, answers in result["answers"].items()} == {
        "uniform-4": set(truth),
        "codec-4": set(truth),
    }
    table = (work / "t.md").read_text()
    assert all(f"| 4 | 16 | {form} |" in table for form in ("uniform", "codec"))
    assert "codec, 4 images: " in table
    assert "<svg" in (work / "f" / "headline.svg").read_text()


def test_what_stands_is_not_done_again(work: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in work.rglob("*") if path.is_file()}
    assert main(["--work", str(work), *SMALL]) == 0
    assert {path: path.stat().st_mtime_ns for path in work.rglob("*") if path.is_file()} == before


def test_held_out_truth_is_exact_and_shared_by_no_training_clip(work: Path) -> None:
    truth = [json.loads(line) for line in (work / "heldout-2" / "truth.jsonl").read_text().splitlines()]
    assert read_truth(work / "heldout-2") == {line["id"]: line["event_seconds"] for line in truth}
    assert not set(read_truth(work / "heldout-2")) & set(read_truth(work / "train-5"))


def test_codec_tokens_are_near_at_least_as_many_jumps_as_frames(work: Path) -> None:
    truth = read_truth(work / "heldout-2")
    shares = {form: shown_share(work / f"heldout-2-{form}-4", truth) for form in ("uniform", "codec")}
    assert shares["codec"] >= shares["uniform"]
    everywhere = {name: [0.0] for name in truth}
    assert shown_share(work / "heldout-2-uniform-4", everywhere) == 1.0  # the first frame is always shown
    nowhere = {name: [1e6] for name in truth}
    assert shown_share(work / "heldout-2-codec-4", nowhere) == 0.0


def test_answers_are_scored_against_their_own_clip_and_against_another() -> None:
    truth = {"a": [0.5], "b": [1.5]}
    right = scores({"a": "[0.5]", "b": "[1.5]"}, truth)
    assert (right["mAP"], right["other_clip"]) == (1.0, 0.0)
    swapped = scores({"a": "[1.5]", "b": "[0.5]"}, truth)
    assert (swapped["mAP"], swapped["other_clip"]) == (0.0, 1.0)
    silent = scores({"a": "none seen"}, truth)
    assert (silent["mAP"], silent["values"]) == (0.0, [0.0, 0.0])


def test_the_mean_rate_is_a_guess_worth_what_chance_gives() -> None:
    train = {"a": [1.0, 3.0], "b": [0.5, 2.5]}
    assert regular_score(train, {"x": [1.0, 3.0]}, seconds=4.0) == pytest.approx(1.0)
    assert regular_score(train, {"x": [2.0]}, seconds=4.0) == 0.0


def test_an_unknown_form_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="--forms must be of"):
        main(["--work", str(tmp_path), "--forms", "sound"])
