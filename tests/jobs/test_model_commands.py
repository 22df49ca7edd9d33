"""ov2 generate, ov2 model merge and info on tiny random models."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

pytest.importorskip("torch")
pytest.importorskip("transformers")

import torch

from jobs.cli import app
from ov2_core.evals.clips import write_canary_clip
from ov2_core.model import LlavaOnevision2Config, LlavaOnevision2ForConditionalGeneration, LlavaOnevision2Processor
from ov2_core.model.byte_tokenizer import CONFIG_IDS, VOCABULARY_SIZE, byte_tokenizer

RUNNER = CliRunner()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model's folder, and a clip in it."""
    path = tmp_path_factory.mktemp("tiny")
    torch.manual_seed(1)
    config = LlavaOnevision2Config.from_preset("tiny", text_config={"vocab_size": VOCABULARY_SIZE}, **CONFIG_IDS)
    LlavaOnevision2ForConditionalGeneration(config).save_pretrained(path)
    LlavaOnevision2Processor(byte_tokenizer()).save_pretrained(path)
    write_canary_clip(path / "clip.mp4", video_id=1, num_frames=24, fps=10, columns=3, rows=2)
    return path


def generate(folder: Path, *options: str) -> list[str]:
    return [
        "generate",
        "--model",
        str(folder),
        "--device",
        "cpu",
        "--prompt",
        "What?",
        "--max-new-tokens",
        "6",
        *options,
    ]


def test_generate_prints_the_answer_and_the_source_times(folder: Path) -> None:
    clip = str(folder / "clip.mp4")
    shown = RUNNER.invoke(app, generate(folder, "--video", clip, "--input", "frames", "--budget", "3", "--show-times"))
    assert shown.exit_code == 0, shown.output
    assert "video: 3 images, 18 tokens, 3 source times <0.0 seconds> .. <2.3 seconds>" in shown.stderr
    assert "<2.3 seconds> 6 tokens" in shown.stderr
    again = RUNNER.invoke(app, generate(folder, "--video", clip, "--input", "frames", "--budget", "3"))
    assert again.stdout == shown.stdout
    assert shown.stdout.endswith("\n")


def test_generate_takes_recipe_overrides(folder: Path) -> None:
    clip = str(folder / "clip.mp4")
    result = RUNNER.invoke(app, generate(folder, "--video", clip, "--budget", "4", "--set", "timestamp_decimal=2"))
    assert result.exit_code == 0, result.output
    assert "<0.00 seconds>" in result.stderr


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "nothing to ask about"),
        (["--video", "{clip}", "--budget", "2"], "budget must be >= groups.canvases_per_group"),
        (["--video", "{folder}/gone.mp4"], "gone.mp4"),
        (["--video", "{clip}", "--set", "policy"], "--set expects key=value"),
        (["--image", "{clip}"], "clip.mp4"),
    ],
)
def test_generate_refuses_with_a_line_and_code_two(folder: Path, options: list[str], message: str) -> None:
    filled = [option.format(clip=folder / "clip.mp4", folder=folder) for option in options]
    result = RUNNER.invoke(app, generate(folder, *filled))
    assert result.exit_code == 2, result.output
    assert message in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1


def test_merge_makes_a_model_that_answers(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "merged"
    merged = RUNNER.invoke(app, ["model", "merge", "--encoder", str(folder), "--llm", str(folder), "--out", str(out)])
    assert merged.exit_code == 0, merged.output
    config = json.loads((out / "config.json").read_text())
    assert {name: config[name] for name in CONFIG_IDS} == CONFIG_IDS, "the tokenizer's ids, not Qwen's"
    assert RUNNER.invoke(app, ["model", "info", str(out)]).exit_code == 0
    answer = RUNNER.invoke(
        app, generate(out, "--video", str(folder / "clip.mp4"), "--input", "frames", "--budget", "2")
    )
    assert answer.exit_code == 0, answer.output


def test_info_names_a_missing_tensor_with_code_one(folder: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    broken = tmp_path / "broken"
    shutil.copytree(folder, broken)
    tensors = load_file(broken / "model.safetensors")
    tensors.pop("model.visual.merger.mlp.2.bias")
    save_file(tensors, broken / "model.safetensors")
    result = RUNNER.invoke(app, ["model", "info", str(broken)])
    assert result.exit_code == 1
    assert "missing: model.visual.merger.mlp.2.bias" in result.stdout
    asked = RUNNER.invoke(app, generate(broken, "--video", str(folder / "clip.mp4")))
    assert asked.exit_code == 2
    assert "model.visual.merger.mlp.2.bias" in asked.stderr


def test_the_command_line_starts_without_torch() -> None:
    code = "import sys, jobs.cli; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
