"""Samples to members, members to a tar, and back."""

import io
import json
import os
import tarfile
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from synthetic_run import CONFIG, make_provenance, make_sample, make_tokenized, replace_tokenized

from ov2_core.config import TokenizerConfig
from ov2_core.errors import BadItemError
from ov2_core.storage.writer import (
    canonical_json,
    decode_npy,
    decode_sample,
    encode_sample,
    iter_tar_members,
    positions_digest,
    write_tar,
)
from schemas.tokens import SampleRecord
from schemas.video import Message

TEXT = st.text(st.characters(exclude_categories=["Cs"]))


def encode(tokenized: Any, **changes: Any) -> Any:
    fields: dict[str, Any] = {"key": "k", "provenance": make_provenance(1), "messages": [], "config": CONFIG}
    return encode_sample(tokenized, **(fields | changes))


@pytest.mark.parametrize("still", [False, True])
def test_sample_round_trips(still: bool) -> None:
    tokenized = make_tokenized(3, still=still)
    sample = encode(tokenized, messages=[Message(role="user", content="日本")])
    record, images, positions = decode_sample(sample.members)
    assert record == sample.record
    assert [m.model_dump(exclude={"schema_version"}) for m in record.messages] == [{"role": "user", "content": "日本"}]
    assert np.array_equal(np.stack(positions), tokenized.positions_NP3)
    assert np.stack(positions).dtype == np.int32
    assert np.abs(np.stack(images).astype(int) - tokenized.images_NHW3).mean() < 12  # JPEG 4:2:0 of random 14 px cells
    assert record.positions_digest == positions_digest(list(tokenized.positions_NP3))
    assert record.num_tokens == tokenized.num_tokens == len(images) * 4
    assert record.media == ("image" if still else "video")
    assert (record.fps is None) == still


def test_members_follow_the_token_shard_layout() -> None:
    sample = make_sample(1, num_groups=2)
    assert [name for name, _ in sample.members] == [
        *(f"img_{i:03d}.jpg" for i in range(8)),
        *(f"patch_positions_{i:03d}.npy" for i in range(8)),
        "json",
    ]
    by_name = dict(sample.members)
    plain = json.loads(by_name["json"])
    assert set(plain["messages"][0]) == {"role", "content"}
    assert plain["image_keys"] == [name for name in by_name if name.endswith(".jpg")]
    assert plain["patch_positions_keys"] == [name for name in by_name if name.endswith(".npy")]
    assert plain["fps"] == 24.0
    assert plain["timestamp_decimal"] == 1
    assert by_name["patch_positions_000.npy"][:8] == b"\x93NUMPY\x01\x00"
    positions = np.load(io.BytesIO(by_name["patch_positions_000.npy"]))
    assert positions.dtype == np.int32
    assert positions.shape == (16, 3)
    assert "日本".encode() in by_name["json"]


@pytest.mark.parametrize(("subsampling", "factors"), [("4:2:0", (2, 2)), ("4:4:4", (1, 1))])
def test_jpeg_follows_the_config(subsampling: Any, factors: tuple[int, int]) -> None:
    low, high = (
        dict(encode(make_tokenized(), config=TokenizerConfig(jpeg_quality=q, jpeg_subsampling=subsampling)).members)
        for q in (50, 95)
    )
    assert len(low["img_000.jpg"]) < len(high["img_000.jpg"])
    with Image.open(io.BytesIO(high["img_000.jpg"])) as image:
        assert image.layer[0][1:3] == factors


def test_equal_samples_give_equal_tars_at_any_time(tmp_path: Path, monkeypatch: Any) -> None:
    first = write_tar(tmp_path / "a.tar", ((s.key, s.members) for s in map(make_sample, (1, 2))))
    monkeypatch.setattr(time, "time", lambda: 2e9)
    monkeypatch.setattr(os, "getuid", lambda: 4242)
    monkeypatch.setattr(os, "umask", lambda _: 0)
    second = write_tar(tmp_path / "b.tar", ((s.key, s.members) for s in map(make_sample, (1, 2))))
    assert (tmp_path / "a.tar").read_bytes() == (tmp_path / "b.tar").read_bytes()
    assert first.digest == second.digest
    with tarfile.open(tmp_path / "a.tar") as tar:
        for info in tar:
            assert (info.mtime, info.uid, info.gid, info.uname, info.gname, info.mode) == (0, 0, 0, "", "", 0o644)


@settings(max_examples=25, deadline=None)
@given(
    st.dictionaries(
        st.from_regex(r"[A-Za-z0-9_-]{1,72}", fullmatch=True),
        st.dictionaries(
            st.from_regex(r"[a-z0-9_]{1,20}(\.[a-z0-9]{1,5})?", fullmatch=True),
            st.binary(max_size=1500),
            min_size=1,
            max_size=4,
        ),
        min_size=1,
        max_size=4,
    )
)
def test_tar_offsets_point_at_the_contents(samples: dict[str, dict[str, bytes]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "x.tar"
        written = write_tar(path, ((key, list(parts.items())) for key, parts in samples.items()))
        data = path.read_bytes()
        with tarfile.open(path) as tar:  # the naive reference
            expected = [(info.name, info.offset, info.offset_data, info.size) for info in tar]
            end = tar.offset
        with open(path, "rb") as file:
            streamed = [(key, part, content) for key, part, content in iter_tar_members(file)]
    assert written.num_bytes == len(data)
    found = []
    for sample in written.samples:
        offset = sample.byte_offset
        for part in sample.parts:
            found.append((f"{sample.key}.{part.name}", offset, part.content_byte_offset, part.content_byte_size))
            start = part.content_byte_offset
            assert data[start : start + part.content_byte_size] == samples[sample.key][part.name]
            offset = start + -(-part.content_byte_size // 512) * 512
        assert offset == sample.byte_offset + sample.byte_size
    assert found == expected
    assert offset == end
    assert streamed == [(s.key, part, samples[s.key][part.name]) for s in written.samples for part in s.parts]


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(["system", "user", "assistant"]), TEXT), max_size=4), st.lists(TEXT))
def test_canonical_json_round_trips(turns: list[tuple[Any, str]], tags: list[str]) -> None:
    messages = [Message(role=role, content=content) for role, content in turns]
    record = encode(make_tokenized(still=True), messages=messages, provenance=make_provenance(1, tags=tags)).record
    data = canonical_json(record)
    assert SampleRecord.model_validate_json(data) == record
    shuffled = json.dumps(dict(reversed(json.loads(data).items()))).encode()
    assert canonical_json(SampleRecord.model_validate_json(shuffled)) == data
    assert b"\n" not in data


def _negative(positions: Any) -> None:
    positions[0, 3, 0] = -1


def _outside(positions: Any) -> None:
    positions[0, 3, 1] = 4


def _mixed(positions: Any) -> None:
    positions[1, 0, 0] += 1


@pytest.mark.parametrize("mutate", [_negative, _outside, _mixed])
def test_positions_that_break_an_invariant_never_ship(mutate: Any) -> None:
    tokenized = make_tokenized()
    mutate(tokenized.positions_NP3)
    with pytest.raises(AssertionError):
        encode(tokenized)


def test_images_and_groups_that_break_an_invariant_never_ship() -> None:
    tokenized = make_tokenized()
    for changes in (
        {"images_NHW3": tokenized.images_NHW3[:3]},
        {"images_NHW3": tokenized.images_NHW3[:, :-14]},
        {"images_NHW3": tokenized.images_NHW3.astype(np.float32)},
        {"positions_NP3": tokenized.positions_NP3.astype(np.int64)},
        {"groups": ()},
        {"fps": None},
    ):
        with pytest.raises(AssertionError):
            encode(replace_tokenized(tokenized, **changes))


def test_bad_input_is_refused_by_name(tmp_path: Path) -> None:
    for key in ("a.b", "a/b", "", "ä", "x" * 73):
        with pytest.raises(ValueError, match="sample key"):
            encode(make_tokenized(), key=key)
    members = make_sample(1).members
    with pytest.raises(ValueError, match="'k' is given twice"):
        write_tar(tmp_path / "x.tar", [("k", members), ("k", members)])
    with pytest.raises(ValueError, match="at least one sample"):
        write_tar(tmp_path / "x.tar", [])
    with pytest.raises(ValueError, match="has no member"):
        write_tar(tmp_path / "x.tar", [("k", [])])
    with pytest.raises(ValueError, match="repeated"):
        write_tar(tmp_path / "x.tar", [("k", [members[0], members[1], members[0]])])
    with pytest.raises(ValueError, match=r"img_000\.jpg.* missing"):
        decode_sample(members[1:])
    with pytest.raises(ValueError, match=r"img_000\.jpg: not a readable JPEG"):
        decode_sample([("img_000.jpg", b"text"), *members[1:]])


def test_text_that_is_no_unicode_is_the_items_fault() -> None:
    message = Message.model_construct(role="user", content="half a pair \ud83d")
    provenance = make_provenance(1)
    with pytest.raises((BadItemError, ValueError)):
        encode(make_tokenized(), messages=[message], provenance=provenance)


def test_one_sample_at_a_time_is_held(tmp_path: Path) -> None:
    alive = 0
    most = 0

    class Member(bytes):
        def __new__(cls, *args: Any) -> "Member":
            nonlocal alive, most
            alive += 1
            most = max(most, alive)
            return super().__new__(cls, *args)

        def __del__(self) -> None:
            nonlocal alive
            alive -= 1

    write_tar(tmp_path / "x.tar", ((f"k{i}", [("bin", Member(1000))]) for i in range(50)))
    assert most <= 3


@pytest.mark.parametrize("rows", [0, 1, 784])
def test_plain_positions_are_read_as_numpy_reads_them_without_its_parser(
    rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    positions = np.random.default_rng(rows).integers(-(2**31), 2**31, (rows, 3)).astype(np.int32)
    file = io.BytesIO()
    np.save(file, positions)
    monkeypatch.setattr(np, "load", None)  # its parser of headers is not safe in threads
    found = decode_npy(file.getvalue())
    assert found.dtype == np.int32
    assert np.array_equal(found, positions)
    found[:] = 0  # writable


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (np.asfortranarray(np.arange(12, dtype=np.int32).reshape(4, 3)), None),
        (np.zeros((4, 3), np.int64), "expected int32"),
        (np.zeros((4, 2), np.int32), "expected int32"),
        (np.zeros((4, 3), ">i4"), "expected int32"),
    ],
)
def test_other_headers_go_to_numpy(made: npt.NDArray[np.int32], message: str | None) -> None:
    file = io.BytesIO()
    np.save(file, made)
    if message is None:
        assert np.array_equal(decode_npy(file.getvalue()), made)
    else:
        with pytest.raises(ValueError, match=message):
            decode_npy(file.getvalue())


@pytest.mark.parametrize("cut", [4, 100, 129, -1])
def test_positions_that_are_cut_short_or_too_long_are_named(cut: int) -> None:
    file = io.BytesIO()
    np.save(file, np.zeros((4, 3), np.int32))
    with pytest.raises(ValueError, match="here: not a readable"):
        decode_npy(file.getvalue()[:cut], name="here")
