"""ov2 eval, eval-data and eval-curves as a user calls them."""

import json
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from jobs.cli import app
from ov2_core.data.tracking import TrackPoint, format_tracks
from ov2_core.evals.clips import write_clip
from ov2_core.evals.curves import CurvePoint, curves_text, draw_curves

RUNNER = CliRunner()
SMALL = ("--seconds", "1.5", "--width", "112", "--height", "84")


def run(*arguments: object, code: int = 0) -> str:
    result = RUNNER.invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == code, result.output
    return result.stdout if code == 0 else result.output


def write_lines(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("jumps")
    text = run("eval-data", "jumpscore", "--out", folder, "--clips", 3, "--split", "heldout", "--seed", 2, *SMALL)
    assert "3 clips" in text
    return folder


def perfect(clips: Path) -> list[dict]:
    rows = [json.loads(line) for line in (clips / "truth.jsonl").read_text().splitlines()]
    return [{"id": row["id"], "prediction": row["answer"]} for row in rows]


def test_predictions_of_any_model_are_scored_as_json(tmp_path: Path, clips: Path) -> None:
    predictions = write_lines(tmp_path / "p.jsonl", perfect(clips)[:2])
    text = run("eval", "--suite", "jumpscore", "--predictions", predictions, "--truth", clips / "truth.jsonl", "--json")
    found = json.loads(text)
    assert found["metrics"]["mAP"] == pytest.approx(2 / 3)
    assert (found["num_items"], found["num_answered"], found["num_missing"]) == (3, 2, 1)
    assert found["intervals_95"]["mAP"][0] <= 2 / 3 <= found["intervals_95"]["mAP"][1]
    assert len(found["items"]) == 3


def test_answers_to_items_beyond_the_limit_are_nothing_odd(tmp_path: Path, clips: Path) -> None:
    predictions = write_lines(tmp_path / "p.jsonl", [*perfect(clips), {"id": "other", "prediction": "[1]"}])
    options = ("--suite", "jumpscore", "--truth", clips / "truth.jsonl", "--predictions", predictions, "--json")
    found = json.loads(run("eval", *options, "--limit", 1))
    assert (found["num_items"], found["unknown_ids"]) == (1, ["other"])


def test_scoring_needs_no_torch(tmp_path: Path, clips: Path) -> None:
    predictions = write_lines(tmp_path / "p.jsonl", perfect(clips))
    code = (
        "import sys; sys.modules['torch'] = None; from jobs.cli import app; "
        f"app(['eval', '--suite', 'jumpscore', '--truth', {str(clips / 'truth.jsonl')!r}, '--predictions', {str(predictions)!r}, "
        f"'--report', {str(tmp_path / 'r.html')!r}])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "mAP            1.0000" in done.stdout


class _Page(HTMLParser):
    """Tags and what they carry."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[str] = []

    def handle_starttag(self, tag: str, attrs: list) -> None:
        self.tags.append(tag)
        self.attributes += [name for name, _ in attrs]


def test_report_draws_timelines_and_no_answer_becomes_markup(tmp_path: Path, clips: Path) -> None:
    rows = perfect(clips)
    rows[1]["prediction"] = "<script>alert()</script> \ud800 & <img src=x onerror=y>"
    page = tmp_path / "report.html"
    run(
        "eval", "--suite", "jumpscore", "--truth", clips / "truth.jsonl",
        "--predictions", write_lines(tmp_path / "p.jsonl", rows), "--report", page,
    )  # fmt: skip
    parsed = _Page()
    parsed.feed(page.read_text())
    assert {"script", "img"}.isdisjoint(parsed.tags)
    assert not [name for name in parsed.attributes if name.startswith("on")]
    assert page.read_text().count("class='clip'") == 3
    assert "Unreadable answers, counted as wrong: 1" in page.read_text()


def test_report_shows_every_clip_and_says_what_it_does_not_draw(tmp_path: Path) -> None:
    rows = [
        {"id": "none", "answer": [], "duration_seconds": 0.4},
        {"id": "hour", "answer": [1.0], "duration_seconds": 3600},
        {"id": "runs on", "answer": [1.0], "duration_seconds": 8},
    ]
    many = [{"id": "none", "prediction": []}, {"id": "runs on", "prediction": [i / 500 for i in range(3000)]}]
    page = tmp_path / "report.html"
    run(
        "eval", "--suite", "jumpscore", "--truth", write_lines(tmp_path / "t.jsonl", rows), "--predictions",
        write_lines(tmp_path / "p.jsonl", many), "--report", page,
    )  # fmt: skip
    text = page.read_text()
    assert text.count("class='clip'") == 3
    assert all(f">{label}<" in text for label in ("0.08 s", "12:00", "60:00", "1.6 s"))
    assert "3000 answered; the first 2000 are drawn" in text
    assert 2000 < text.count("<rect class='false'") + text.count("<rect class='hit'") < 2050
    assert "tokens over time" not in text


def test_tokens_are_scored_by_the_events_they_show(tmp_path: Path, clips: Path) -> None:
    text = run("eval", "--suite", "evidence", "--truth", clips / "truth.jsonl", "--recipe", "uniform-64", "--json")
    found = json.loads(text)
    assert found["metrics"]["event_recall"] == 1.0  # all frames are shown
    assert found["run"]["mean_tokens"] > 0
    page = tmp_path / "few.html"
    options = ("--truth", clips / "truth.jsonl", "--recipe", "uniform-1", "--report", page)
    few = json.loads(run("eval", "--suite", "evidence", *options, "--json"))
    assert few["metrics"]["event_recall"] < 0.5
    num_events = sum(
        len(json.loads(line)["event_seconds"]) for line in (clips / "truth.jsonl").read_text().splitlines()
    )
    legend = 1
    found, missed = (page.read_text().count(f"<rect class='{tone}'") - legend for tone in ("truth", "miss"))
    assert found + missed == num_events
    assert missed >= num_events / 2
    assert ">answer</text>" not in page.read_text()


def test_grounding_annotations_become_truth_and_are_scored(tmp_path: Path) -> None:
    (tmp_path / "charades.txt").write_text("AAA 0.0 6.0##a person sits.\nBBB 2.0 4.0##a person stands.\n")
    truth = tmp_path / "truth.jsonl"
    run("eval-data", "grounding", "--annotations", tmp_path / "charades.txt", "--kind", "charades-sta", "--out", truth)
    rows = [{"id": "AAA_1", "prediction": "From 0 to 3 s"}, {"id": "BBB_2", "prediction": "[2, 4]"}]
    predictions = write_lines(tmp_path / "p.jsonl", rows)
    found = json.loads(run("eval", "--suite", "grounding", "--truth", truth, "--predictions", predictions, "--json"))
    assert found["metrics"] == {"mIoU": 0.75, "R@0.3": 1.0, "R@0.5": 1.0, "R@0.7": 0.5}


def test_tracking_with_masks_has_j_and_f(tmp_path: Path) -> None:
    pytest.importorskip("scipy")
    height, width, num_frames = 64, 96, 12
    frames = np.full((num_frames, height, width, 3), 60, np.uint8)
    masks = np.zeros((num_frames, height, width), np.uint8)
    for t in range(num_frames):
        frames[t, 20:40, 10 + 3 * t : 30 + 3 * t], masks[t, 20:40, 10 + 3 * t : 30 + 3 * t] = (230, 30, 30), 1
    write_clip(tmp_path / "a.mp4", iter(frames), fps=6, options={"crf": "4"}, pixel_format="yuv444p")
    np.savez_compressed(tmp_path / "a.npz", masks=masks)
    points = [
        TrackPoint(t / 6, 1, round((20 + 3 * t) / width * 1000), round(30 / height * 1000)) for t in range(0, 12, 6)
    ]
    answer = format_tracks(points)
    row = {"id": "a", "video": "a.mp4", "masks": "a.npz", "expression": "red square", "answer": answer}
    truth = write_lines(tmp_path / "t.jsonl", [row, {**row, "id": "b"}])
    predictions = write_lines(tmp_path / "p.jsonl", [{"id": "a", "prediction": answer}])
    options = ("--suite", "tracking", "--truth", truth, "--predictions", predictions, "--json")
    found = json.loads(run("eval", *options, "--propagator", "colour"))
    items = {item["id"]: item for item in found["items"]}
    assert items["a"]["J&F"] > 0.95
    assert items["a"]["HOTA@0.5"] == 1.0
    assert (items["b"]["J&F"], items["b"]["HOTA@0.5"], items["b"]["status"]) == (0.0, 0.0, "missing")
    assert "J&F" not in json.loads(run("eval", *options))["metrics"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ((), "give one of --predictions, --model and --server"),
        (("--server", "http://127.0.0.1:9/v1"), "give --out"),
        (("--server", "http://127.0.0.1:9/v1", "--out", "x.jsonl"), "--server-model"),
        (("--predictions", "none.jsonl"), "cannot be opened"),
        (("--predictions", "p", "--propagator", "colour"), "belongs to the suite tracking"),
        (("--predictions", "p", "--recipe", "codec-4"), "--recipe belongs to the suite evidence"),
        (("--predictions", "p", "--out", "x.jsonl"), "--out and --set belong to --model and --server"),
        (("--predictions", "p", "--set", "area_px=50176"), "--out and --set belong to --model and --server"),
    ],
)
def test_wrong_calls_are_one_line(clips: Path, options: tuple[str, ...], message: str) -> None:
    output = run("eval", "--suite", "jumpscore", "--truth", clips / "truth.jsonl", *options, code=2)
    assert message in output
    assert "Traceback" not in output


def test_evidence_needs_tokens(clips: Path) -> None:
    assert "--tokens RUN" in run("eval", "--suite", "evidence", "--truth", clips / "truth.jsonl", code=2)


def test_tokens_of_no_clip_are_an_error_and_of_some_are_named(tmp_path: Path, clips: Path) -> None:
    rows = [json.loads(line) for line in (clips / "truth.jsonl").read_text().splitlines()]
    options = ("--suite", "evidence", "--recipe", "uniform-2")
    truth = write_lines(tmp_path / "t.jsonl", [{**row, "video": "none.mp4"} for row in rows])
    assert "none of the 3 clips has tokens" in run("eval", *options, "--truth", truth, code=2)
    rows[0]["video"] = str(clips / rows[0]["video"])
    write_lines(truth, [rows[0], {**rows[1], "video": "none.mp4"}])
    assert f"missing, counted as wrong: 1 ({rows[1]['id']}: " in run("eval", *options, "--truth", truth)


def test_a_server_that_is_not_there_is_named_and_fails_the_command(tmp_path: Path) -> None:
    row = {"id": "a", "answer": "[1]", "video": "none.mp4"}
    result = RUNNER.invoke(
        app,
        [
            "eval", "--suite", "jumpscore", "--truth", str(write_lines(tmp_path / "t.jsonl", [row])), "--out",
            str(tmp_path / "a.jsonl"), "--server", "http://127.0.0.1:9/v1", "--server-model", "m", "--json",
        ],
    )  # fmt: skip
    assert result.exit_code == 1
    assert "1 of 1 questions failed" in result.stderr
    assert "no such file" in result.stderr
    found = json.loads(result.stdout)
    assert (found["num_missing"], found["run"]["num_failed"]) == (1, 1)


def test_clips_of_odd_sides_are_refused(tmp_path: Path) -> None:
    assert "even" in run("eval-data", "jumpscore", "--out", tmp_path, "--clips", 1, "--width", 49, code=2)


def test_annotations_may_open_with_a_byte_order_mark_and_must_hold_something(tmp_path: Path) -> None:
    source, truth = tmp_path / "a.txt", tmp_path / "t.jsonl"
    options = ("eval-data", "grounding", "--annotations", source, "--kind", "charades-sta", "--out", truth)
    source.write_text("AAA 0.0 6.0##a person sits.\n", encoding="utf-8-sig")
    run(*options)
    assert json.loads(truth.read_text())["id"] == "AAA_1"
    source.write_text("\n")
    assert "no annotations" in run(*options, code=2)


def test_wrong_rates_are_refused(tmp_path: Path) -> None:
    assert "30000/1001" in run("eval-data", "jumpscore", "--out", tmp_path, "--clips", 1, "--fps", "fast", code=2)


def _point(mode: str, budget: int, value: float) -> CurvePoint:
    return CurvePoint(
        mode=mode, budget=budget, metric="mAP", value=value, low=value / 2, high=min(1, value * 1.5), mean_tokens=196.0 * budget,
        mean_seconds=0.1, num_items=10, num_missing=0, event_recall=value,
    )  # fmt: skip


def test_curves_are_drawn_with_a_mark_for_each_point() -> None:
    points = [
        _point(mode, budget, share)
        for mode in ("codec", "frames")
        for budget, share in ((4, 0.1), (128, 0.9), (16, 0.4))
    ]
    for field in ("value", "event_recall"):
        root = ElementTree.fromstring(draw_curves(points, title="a < b & c", field=field))
        names = [element.tag.split("}")[1] for element in root.iter()]
        assert names.count("circle") == 6
        assert names.count("polyline") == 2
        circles = [element for element in root.iter() if element.tag.endswith("circle")]
        places = [(float(c.get("cx")), float(c.get("cy"))) for c in circles[:3]]
        assert places == sorted(places)  # by tokens, to the right
        assert [y for _, y in places] == sorted((y for _, y in places), reverse=True)  # higher values, higher up
    assert len(curves_text(points).splitlines()) == 7
    with pytest.raises(ValueError, match="strict_event_recall"):
        draw_curves(points, title="x", field="strict_event_recall")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model of random weights."""
    torch = pytest.importorskip("torch")
    pytest.importorskip("transformers")
    from ov2_core.model import LlavaOnevision2Config, LlavaOnevision2ForConditionalGeneration, LlavaOnevision2Processor
    from ov2_core.model.byte_tokenizer import CONFIG_IDS, VOCABULARY_SIZE, byte_tokenizer

    path = tmp_path_factory.mktemp("tiny")
    torch.manual_seed(1)
    config = LlavaOnevision2Config.from_preset("tiny", text_config={"vocab_size": VOCABULARY_SIZE}, **CONFIG_IDS)
    LlavaOnevision2ForConditionalGeneration(config).save_pretrained(path)
    LlavaOnevision2Processor(byte_tokenizer()).save_pretrained(path)
    return path


def test_a_model_is_asked_over_modes_and_budgets_and_the_run_resumes(tmp_path: Path, clips: Path, model: Path) -> None:
    command = (
        "eval-curves", "--suite", "jumpscore", "--truth", clips / "truth.jsonl", "--out", tmp_path, "--model", model,
        "--modes", "codec,frames", "--budgets", "4,8", "--max-new-tokens", 3, "--device", "cpu", "--limit", 2,
    )  # fmt: skip
    text = run(*command)
    assert text.count("codec") == text.count("frames") == 2
    curves = json.loads((tmp_path / "curves.json").read_text())["points"]
    assert [(point["mode"], point["budget"]) for point in curves] == [
        ("codec", 4),
        ("codec", 8),
        ("frames", 4),
        ("frames", 8),
    ]
    assert curves[0]["mean_tokens"] < curves[1]["mean_tokens"]
    assert all(
        point["num_items"] == 2 and point["num_missing"] == 0 and 0 <= point["event_recall"] <= 1 for point in curves
    )
    assert curves[1]["event_recall"] >= curves[0]["event_recall"]
    assert (tmp_path / "curves.svg").read_text().startswith("<svg")
    assert "<svg" in (tmp_path / "report.html").read_text()
    before = (tmp_path / "codec-4.jsonl").read_bytes()
    assert run(*command) == text
    assert (tmp_path / "codec-4.jsonl").read_bytes() == before
    lines = [json.loads(line) for line in before.splitlines()]
    assert all(line["num_visual_tokens"] > 0 for line in lines)


def test_a_model_is_asked_and_scored_by_one_command(tmp_path: Path, clips: Path, model: Path) -> None:
    text = run(
        "eval", "--suite", "jumpscore", "--truth", clips / "truth.jsonl", "--model", model, "--input", "evidence", "--budget", 4,
        "--max-new-tokens", 2, "--device", "cpu", "--limit", 1, "--out", tmp_path / "a.jsonl", "--json",
    )  # fmt: skip
    found = json.loads(text)
    assert found["run"]["mode"] == "evidence"
    assert found["run"]["num_answered"] == 1
