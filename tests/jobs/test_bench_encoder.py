"""The encoder's benchmark: operations counted by hand, a whole run at the smallest size, its section of a file."""

import json

import pytest

pytest.importorskip("torch", reason="the encoder needs torch")
pytest.importorskip("transformers", reason="the encoder needs transformers")

import torch

from jobs.bench_encoder import main
from ov2_core.model import OneVisionEncoder, OneVisionEncoderConfig
from ov2_core.model.measure import encoder_flops


def test_operations_are_those_that_torch_counts():
    from torch.utils.flop_counter import FlopCounterMode

    config = OneVisionEncoderConfig(
        hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=2, out_hidden_size=32
    )
    encoder = OneVisionEncoder(config)
    lengths = [16, 16, 8]
    pixels, positions = torch.randn(40, config.patch_values), torch.zeros(40, 3)
    with FlopCounterMode(display=False) as counter:
        encoder(pixels, positions, lengths)
    # torch's counter does not know the CPU's fused attention: its operations are added here.
    attention = 2 * 4 * 64 * sum(length**2 for length in lengths)
    counted = counter.get_total_flops()
    assert encoder_flops(config, lengths) in (counted, counted + attention)
    assert encoder_flops(config, lengths) - encoder_flops(config, lengths, merged=False) == 2 * 10 * 256 * (256 + 32)


def test_bench_encoder_runs_and_writes_its_section(tmp_path, capsys):
    report, page = tmp_path / "report.json", tmp_path / "page.md"
    page.write_text("# Benchmarks\n\nBefore.\n")
    options = [
        "--size-px=28",
        "--canvases=5",
        "--windows=1",
        "--window-canvases=2",
        "--layers=1",
        "--repeats=2",
        "--threads=1",
        "--peak-sides=64",
    ]
    assert main([*options, f"--json={report}", f"--markdown={page}"]) == 0
    found = json.loads(report.read_text())
    assert [case["group_lengths"] for case in found["cases"]] == [[16, 4], [4, 4]]
    for case in found["cases"]:
        assert case["backend"] == "grouped"
        assert case["waste"] == 0
        assert len(case["seconds"]) == len(case["peak_flops"]) == 2
        assert min(case["seconds"]) > 0
        assert all(mean <= best for mean, best in zip(case["peak_flops"], case["best_flops"], strict=True))
    text = page.read_text()
    assert text.startswith("# Benchmarks\n\nBefore.\n\n## Encoder\n")
    assert "| 5 canvases of 28x28, windows of 4 | 2 x 16 | grouped |" in text
    assert "share of best" in capsys.readouterr().out


def test_size_that_is_no_multiple_of_a_block_is_refused():
    with pytest.raises(ValueError, match="multiple of 28, got 30"):
        main(["--size-px=30"])
