"""Which pictures of a video a report shows, and what it says of them."""

import re

import numpy as np
import pytest

from ov2_core.data.read_pack import LoadedPack, LoadedSample
from ov2_core.data.stage_samples import colours_of, describe_pack, pack_strip, sample_html
from ov2_core.model.visual import Visual
from schemas.video import Message


def video(*, num_groups: int, packed: bool, fps: float | None = 10.0) -> Visual:
    """Groups of four images of 2 x 4 patches; packed: the last block of each image but the group's first is a tick later."""
    num = 4 * num_groups
    positions = np.zeros((num, 8, 3), np.int32)
    positions[:, :, 0] = np.arange(num)[:, None]
    if packed:
        for image in range(num):
            positions[image, 4:, 0] += image % 4 != 0
    return Visual(
        kind="video" if fps else "image",
        image=lambda i: np.full((28, 56, 3), i, np.uint8),
        positions_NP3=positions,
        rows=2,
        columns=4,
        fps=fps,
        timestamp_decimal=1,
        group_images=(4,) * num_groups,
        patch_px=14,
        merge=2,
    )


def sample(*media: Visual, source: str = "a", tokens: int = 10, text: str = "Q") -> LoadedSample:
    return LoadedSample(
        source=source,
        id="x",
        messages=[Message(role="user", content=text), Message(role="assistant", content="A")],
        media=list(media),
        media_keys=["k"] * len(media),
        num_tokens=tokens,
        num_bytes=0,
        tars=[],
    )


@pytest.mark.parametrize(
    ("visual", "captions"),
    [
        (video(num_groups=2, packed=False), [f"{i + 1} of 8: {i / 10:.1f} s" for i in range(8)]),
        (video(num_groups=6, packed=False), [f"{i + 1} of 24: {i / 10:.1f} s" for i in range(0, 24, 3)]),
        (
            video(num_groups=6, packed=True),
            [
                *("1 of 24: 0.0 s", "2 of 24: 0.1 to 0.2 s", "3 of 24: 0.2 to 0.3 s", "4 of 24: 0.3 to 0.4 s"),
                *("13 of 24: 1.2 s", "14 of 24: 1.3 to 1.4 s", "15 of 24: 1.4 to 1.5 s", "16 of 24: 1.5 to 1.6 s"),
            ],
        ),
    ],
)
def test_frames_are_shown_at_equal_steps_and_canvases_by_whole_groups(visual: Visual, captions: list[str]) -> None:
    page = sample_html(sample(visual), "ps_00000000")
    assert re.findall(r"<figcaption>(.*?)</figcaption>", page) == captions
    assert ("canvases of blocks" in page) == bool(
        visual.positions_NP3[:, 0, 0].tolist() != visual.positions_NP3[:, 7, 0].tolist()
    )


def test_a_strip_is_as_full_as_its_pack() -> None:
    pack = LoadedPack(number=3, key="ps_00000003", samples=[sample(tokens=30), sample(source="b<", tokens=50)])
    strip = pack_strip(pack, sequence_length=100, colours=colours_of(["a", "b<"]))
    assert [float(w) for w in re.findall(r"width:([0-9.]+)%", strip)] == [30.0, 50.0]
    assert "80.00% full" in strip
    assert "b&lt; / x: 50 tokens" in strip
    assert "b<" not in strip
    assert describe_pack(pack).splitlines()[0] == "ps_00000003: 2 samples, 80 tokens"


def test_long_and_odd_texts_are_cut_and_escaped() -> None:
    page = sample_html(sample(text="<b>" + "x" * 2000), "ps_00000000")
    assert "<b>x" not in page.replace("<b>x</b>", "")
    assert "and 503 more characters" in page
