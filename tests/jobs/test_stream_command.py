"""`ov2 stream` from the command line: groups as tars and lines, a pipe, what it refuses, how it ends."""

import json
import os
import signal
import subprocess
import sys
import tarfile

import numpy as np
import pytest
from typer.testing import CliRunner

from jobs.cli import app
from jobs.stream_command import GroupWriter, _config
from ov2_core.config import StreamConfig, TokenizerConfig
from ov2_core.evals.clips import write_rope_clip
from ov2_core.storage.writer import decode_sample
from ov2_core.tokenize_stream import tokenize_stream


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    path = tmp_path_factory.mktemp("live") / "rope.ts"
    write_rope_clip(path, seed=6, seconds=4, width_px=224, height_px=168)
    return path


def ov2(*arguments):
    return CliRunner().invoke(app, ["stream", *map(str, arguments)])


def members_of(path):
    with tarfile.open(path) as tar:
        files = [(m.name.partition(".")[2], tar.extractfile(m).read()) for m in tar]
        return tar.getnames()[0].partition(".")[0], files


def test_stream_writes_a_tar_and_a_line_a_group(clip, tmp_path):
    done = ov2(clip, "--out", tmp_path / "out", "--canvases-per-minute", 240, "--set", "jpeg_quality=99")
    assert done.exit_code == 0, done.output
    lines = [json.loads(line) for line in (tmp_path / "out" / "groups.jsonl").read_text().splitlines()]
    assert [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")] == lines
    assert len(lines) >= 4
    assert sum(line["frames"] for line in lines) == 120
    assert max(line["delay_seconds"] for line in lines) <= 2
    groups = list(tokenize_stream(str(clip), TokenizerConfig(policy="evidence"), StreamConfig(canvases_per_minute=240)))
    for line, group in zip(lines, groups, strict=True):
        _, members = members_of(tmp_path / "out" / f"group-{line['group']:08d}.tar")
        record, images, positions = decode_sample(members)
        assert (np.stack(positions) == group.positions_NP3).all()
        assert np.abs(np.stack(images).astype(int) - group.images_NHW3).mean() < 6
        assert record.provenance.start_seconds == group.start_seconds
        assert record.groups[0].num_images == len(images)
        assert record.num_tokens <= record.token_budget
    assert "the source ended" in done.output
    again = ov2(clip, "--out", tmp_path / "out")
    assert again.exit_code == 2
    assert "another stream" in again.output


def test_stream_reads_standard_input_and_stops_at_an_interrupt(clip):
    """A pipe that stays open is ended by Ctrl-C; what was emitted before stands on stdout."""
    command = [sys.executable, "-m", "jobs.cli", "stream", "-", "--canvases-per-minute", "240", "--timeout", "60"]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    process.stdin.write(clip.read_bytes())
    process.stdin.flush()
    first = json.loads(process.stdout.readline())
    assert first["group"] == 0
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=30)
    assert process.returncode == 130
    assert b"groups" in said


def test_stream_that_falls_silent_exits_with_4(clip, tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    holder = os.open(pipe, os.O_RDWR)  # the pipe never ends
    os.write(holder, clip.read_bytes()[: 60 << 10])
    done = ov2(pipe, "--timeout", 0.4, "--canvases-per-minute", 240)
    os.close(holder)
    assert done.exit_code == 4, done.output
    assert "fell silent" in done.output


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--canvases-per-minute", "0"), "canvases_per_minute"),
        (("--canvases-per-minute", "nan"), "canvases_per_minute"),
        (("--set", "stream.burst_groups=0"), "burst_groups"),
        (("--set", "stream.nothing=0"), "nothing"),
        (("--set", "patch_px=0"), "patch_px"),
        (("--set", "budget=8"), "--canvases-per-minute"),
        (("--set", "mode=uniform"), "codec"),
        (("--timeout", "0"), "timeout_seconds"),
        (("--max-seconds", "-1"), "max_seconds"),
        (("--option", "nothing"), "key=value"),
        (("--set", "groups.min_frames=2"), "groups.min_frames"),
    ],
)
def test_stream_refuses_what_cannot_be_met_before_it_opens_the_source(arguments, said):
    done = ov2("nowhere.ts", *arguments)
    assert done.exit_code == 2
    assert said in done.output
    assert "no such source" not in done.output


def test_stream_keeps_no_password_of_its_source(clip, tmp_path):
    writer = GroupWriter(tmp_path, "rtsp://user:secret@camera/1", _config("saliency", []))
    rate = StreamConfig(canvases_per_minute=240)
    writer.write(next(tokenize_stream(str(clip), TokenizerConfig(), rate)), "{}")
    key, members = members_of(tmp_path / "group-00000000.tar")
    record, _, _ = decode_sample(members)
    assert record.provenance.uri == "rtsp://camera/1"
    assert key.endswith("-00000000")


def test_stream_groups_may_be_larger(clip):
    done = ov2(
        clip, "--canvases-per-minute", 480, "--set", "groups.canvases_per_group=8", "--set", "groups.min_frames=8"
    )
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout.splitlines()[0])["canvases"] == 8
