"""Rules as a pure function of scores and thresholds; text; configs that cannot be met."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ov2_core.config import digest, recipe, with_overrides
from ov2_core.filters.config import FilterConfig
from ov2_core.filters.rules import judge, script_share, text_of
from schemas.shard import PlannedRow
from schemas.video import ManifestRow, PixelScores, ProbeRecord, SourceIdentity


def planned(*, pixels: PixelScores | None = None, row: dict[str, Any] | None = None, **probe: Any) -> PlannedRow:
    base: dict[str, Any] = {
        "media": "video",
        "container": "mp4",
        "codec": "h264",
        "pixel_format": "yuv420p",
        "width_px": 640,
        "height_px": 360,
        "num_frames": 100,
        "duration_seconds": 4.0,
        "fps": 25.0,
        "variable_rate": False,
        "rotation_degrees": 0,
        "size_bytes": 1000,
        "video_bytes": 288_000,
    }
    return PlannedRow(
        line=3,
        key="k",
        id="k",
        uri="/v.mp4",
        shard=0,
        row=ManifestRow.model_validate({"video": "v.mp4", **(row or {})}),
        probe=ProbeRecord.model_validate({**base, **probe}),
        identity=SourceIdentity(size_bytes=1, stamp=""),
        predicted_tokens=1,
        predicted_bytes=1,
        predicted_cpu_seconds=1,
        pixels=pixels,
    )


def look(*, change: list[float], dark: list[float]) -> PixelScores:
    return PixelScores(
        seconds=[float(i) for i in range(len(dark))], change_levels=change, dark_share=dark, hashes=[None] * len(dark)
    )


@pytest.mark.parametrize(
    ("field", "strict", "exact", "value"),
    [
        ("min_duration_seconds", 4.001, 4.0, 4.0),
        ("max_duration_seconds", 3.999, 4.0, 4.0),
        ("min_short_side_px", 361, 360, 360),
        ("min_fps", 25.1, 25.0, 25.0),
        ("max_fps", 24.9, 25.0, 25.0),
        ("min_bits_per_px", 0.1001, 0.1, 0.1),
        ("min_text_characters", 6, 5, 5),
        ("max_text_characters", 4, 5, 5),
    ],
)
def test_each_threshold_is_inclusive_and_its_rule_tells_value_and_threshold(
    field: str, strict: float, exact: float, value: float
) -> None:
    row = planned(row={"caption": "abcde"})
    assert judge(row, FilterConfig(**{field: exact})) is None
    found = judge(row, FilterConfig(**{field: strict}))
    assert found is not None
    assert (found.rule, found.threshold, found.line) == (field, strict, 3)
    assert found.value == pytest.approx(value)
    assert f"{value:g}" in found.message


def test_stills_are_not_asked_for_time() -> None:
    still = planned(media="image", num_frames=1, duration_seconds=0.0, fps=None)
    assert judge(still, FilterConfig(min_duration_seconds=1, min_fps=5, min_bits_per_px=100)) is None
    small = judge(still, FilterConfig(min_short_side_px=400))
    assert small is not None
    assert small.rule == "min_short_side_px"


def test_static_and_black_are_shares_of_what_was_looked_at() -> None:
    row = planned(pixels=look(change=[0.0, 0.5, 1.0, 9.0], dark=[1.0, 0.99, 0.5, 0.0, 0.0]))
    assert judge(row, FilterConfig(max_static_share=0.75, max_black_share=0.4)) is None
    static = judge(row, FilterConfig(max_static_share=0.7))
    assert static is not None
    assert (static.rule, static.value) == ("max_static_share", 0.75)
    assert judge(row, FilterConfig(max_static_share=0.5, static_levels=0.5)) is None
    black = judge(row, FilterConfig(max_black_share=0.3))
    assert black is not None
    assert (black.rule, black.value) == ("max_black_share", 0.4)
    assert judge(row, FilterConfig(max_black_share=0.3, black_dark_share=0.995)) is None


def test_rule_on_pixels_that_nobody_looked_at_is_refused() -> None:
    with pytest.raises(ValueError, match=r"line 3, k: its pixels were not looked at.*measure_pixels=true"):
        judge(planned(), FilterConfig(max_black_share=0.5))


def test_text_is_what_the_assistant_says() -> None:
    messages = [{"role": "user", "content": "What?"}, {"role": "assistant", "content": " A dog. "}]
    turns = [{"from": "human", "value": "What?"}, {"from": "gpt", "value": "A dog."}]
    rows = [{"caption": "A dog.\n"}, {"messages": messages}, {"conversations": turns}]
    assert [text_of(ManifestRow.model_validate({"video": "v", **row})) for row in rows] == ["A dog."] * 3
    assert text_of(ManifestRow(video="v")) == ""


def test_denied_text_is_shown_and_case_ignored() -> None:
    row = planned(row={"caption": "As an AI Language model, I cannot"})
    found = judge(row, FilterConfig(deny_text="as an ai|subscribe"))
    assert found is not None
    assert (found.rule, found.value, found.message) == ("deny_text", None, "the text says 'As an AI'")
    assert judge(row, FilterConfig(deny_text="subscribe")) is None


@pytest.mark.parametrize(
    ("text", "script", "share"),
    [
        ("A dog, 12 times!", "LATIN", 1.0),
        ("Привет dog", "LATIN", 1 / 3),
        ("Привет dog", "LATIN+CYRILLIC", 1.0),
        ("犬が走る。", "CJK+HIRAGANA", 1.0),
        ("ｄｏｇ", "LATIN", 1.0),
        ("كلب dogs", "ARABIC", 3 / 7),
        ("1234 ...", "LATIN", None),
    ],
)
def test_script_is_counted_over_letters_alone(text: str, script: str, share: float | None) -> None:
    assert script_share(text, script) == (None if share is None else pytest.approx(share))


def test_row_of_another_script_is_left_out_and_one_without_letters_is_not() -> None:
    config = FilterConfig(script="LATIN")
    found = judge(planned(row={"caption": "Собака бежит"}), config)
    assert found is not None
    assert (found.rule, found.value, found.threshold) == ("min_script_share", 0.0, 0.8)
    assert judge(planned(row={"caption": "42"}), config) is None
    assert judge(planned(), config) is None


@given(st.floats(0.1, 100), st.floats(0.1, 100), st.none() | st.floats(0, 100), st.none() | st.floats(0, 100))
def test_looser_thresholds_never_leave_out_more(
    seconds: float, slack: float, low: float | None, high: float | None
) -> None:
    if low is not None and high is not None and low > high:
        low, high = high, low
    row = planned(duration_seconds=seconds)
    strict = FilterConfig(min_duration_seconds=low, max_duration_seconds=high)
    loose = FilterConfig(
        min_duration_seconds=None if low is None else max(0.0, low - slack),
        max_duration_seconds=None if high is None else high + slack,
    )
    outside = (low is not None and seconds < low) or (high is not None and seconds > high)
    assert (judge(row, strict) is not None) == outside
    if judge(row, strict) is None:
        assert judge(row, loose) is None


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"min_duration_seconds": -1.0}, "min_duration_seconds must be >= 0"),
        ({"min_fps": 30.0, "max_fps": 10.0}, "no row could meet both"),
        ({"max_static_share": 1.5}, r"must be in \[0, 1\]"),
        ({"deny_text": "("}, "no regular expression"),
        ({"script": "latin"}, "in capitals"),
        ({"max_duplicate_bits": 20.0}, "at most 16"),
    ],
)
def test_thresholds_that_make_no_sense_are_refused_by_name(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FilterConfig(**fields)


def test_thresholds_are_set_like_any_other_field_and_identify_the_run() -> None:
    config = with_overrides(recipe("codec-32"), {"filter.min_duration_seconds": "2", "filter.script": "LATIN"})
    assert (config.filter.min_duration_seconds, config.filter.script) == (2.0, "LATIN")
    assert with_overrides(config, {"filter.script": "none"}).filter.script is None
    assert digest(config) != digest(recipe("codec-32"))
    assert not config.filter.needs_pixels
    assert with_overrides(config, {"filter.max_black_share": ".5"}).filter.needs_pixels
