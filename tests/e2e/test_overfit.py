"""From random weights to almost no loss on a handful of samples of every kind, by the way that a real run takes."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("torch")

from jobs.bench_learn import build_stage, tokenized, train_tiny, trained_model
from ov2_core.evals.clips import write_clip
from ov2_core.evals.moving_shapes import draw_scene, scene_frames
from ov2_core.generate import load
from ov2_core.model.answers import greedy_answers
from ov2_core.storage.reader import ShardReader
from schemas.records import RecordOrigin, TrainingRecord
from schemas.video import Message

FAST = ["global_batch=2", "visual.learning_rate=5e-3", "connector.learning_rate=8e-3", "language.learning_rate=8e-3"]


def make_samples(folder: Path, number: int) -> tuple[list[Path], Path]:
    """Token runs of codec canvases, uniform frames and stills, and records of text, number / 4 samples each.

    Each sample asks for two letters of its own, drawn at random, so that nothing but its picture (or its text) tells the answer.
    """
    rng = np.random.default_rng(5)
    codes = iter("".join(chr(97 + int(c)) for c in rng.integers(0, 26, 2)) for _ in range(number))
    runs = []
    for kind, recipe in enumerate(("codec-4", "uniform-4", "stills")):
        part = folder / recipe
        part.mkdir()
        rows = []
        for i in range(number // 4):
            medium = "image" if recipe == "stills" else "video"
            path = part / (f"{i}.png" if medium == "image" else f"{i}.mp4")
            if medium == "image":
                pixels = rng.integers(0, 256, (4, 4, 3), dtype=np.uint8).repeat(14, axis=0).repeat(14, axis=1)
                Image.fromarray(pixels).save(path)
            else:
                write_clip(path, scene_frames(draw_scene(100 * kind + i, "train")), fps=8.0)
            turns = asks(f"<{medium}>\nCode?", next(codes))
            rows.append({medium: path.name, "id": f"{recipe}-{i}", "messages": turns})
        (part / "manifest.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        runs.append(tokenized(part / "manifest.jsonl", recipe))
    texts = [
        TrainingRecord(
            id=f"text-{i}",
            source="texts",
            modality="text",
            media=[],
            messages=[Message(**turn) for turn in asks(f"Code of {i * 37 % 100}?", next(codes))],
            origin=RecordOrigin(file="texts", row=i + 1),
        )
        for i in range(number // 4)
    ]
    (folder / "texts.jsonl").write_text("".join(text.model_dump_json() + "\n" for text in texts))
    return runs, folder / "texts.jsonl"


def asks(question: str, answer: str) -> list[dict[str, Any]]:
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


def overfit(folder: Path, *, number: int, num_steps: int, settings: list[str]) -> None:
    runs, texts = make_samples(folder, number)
    build_stage(folder / "stage", runs, texts=texts)
    losses = train_tiny(folder / "stage", folder / "trained", num_steps=num_steps, settings=settings)
    assert losses[0] > 5  # nothing is known at first: log(512) = 6.2
    assert max(losses[-5:]) < 0.05
    model, processor = trained_model(folder / "trained")
    for run in runs:
        with ShardReader(run) as samples:
            given = greedy_answers(model, processor, [processor.encode(sample) for sample in samples])
        assert given == [[True]] * (number // 4)
    chat = load(folder / "trained/export")
    for row in (folder / "stills/manifest.jsonl").read_text().splitlines()[:2]:
        still = json.loads(row)
        assert chat.ask("Code?", image=folder / "stills" / still["image"]) == still["messages"][1]["content"]


def test_tiny_overfits_16_samples_of_every_kind_of_input(tmp_path: Path) -> None:
    overfit(tmp_path, number=16, num_steps=100, settings=FAST)


@pytest.mark.slow
def test_tiny_overfits_64_samples_of_every_kind_of_input(tmp_path: Path) -> None:
    overfit(tmp_path, number=64, num_steps=280, settings=FAST)
