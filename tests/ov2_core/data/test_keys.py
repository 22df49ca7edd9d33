import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ov2_core.data.keys import IdLedger, derived_id, key_of
from ov2_core.storage.writer import KEY_PATTERN
from schemas.video import ManifestRow

HOSTILE = [
    "../../etc/passwd",
    "a.b.c",
    "x" * 10_000,
    "\x00\x1b[2J",
    "日本語",
    " ",
    "-",
    ".",
    "a/b",
    "\ud800",
    "a\nb",
    "%00",
]


@pytest.mark.parametrize("id", HOSTILE)
def test_key_of_hostile_id_is_safe(id: str) -> None:
    assert KEY_PATTERN.fullmatch(key_of(id))


@pytest.mark.parametrize("id", ["a", "clip_7", "dQw4w9WgXcQ", "-abc_DEF-9", "x" * 72])
def test_key_of_safe_id_is_the_id(id: str) -> None:
    assert key_of(id) == id


def test_key_of_id_that_looks_hashed_is_hashed_again() -> None:
    hashed = key_of("a.b")
    assert re.fullmatch(r"a-b-[0-9a-f]{16}", hashed)
    assert key_of(hashed) != hashed


def test_key_of_empty_id_is_refused() -> None:
    with pytest.raises(ValueError, match="empty"):
        key_of("")


@settings(max_examples=200)
@given(st.lists(st.text(min_size=1, max_size=90), unique=True, max_size=30))
def test_keys_are_safe_and_injective_even_against_their_own_keys(ids: list[str]) -> None:
    everything = sorted({*ids, *(key_of(id) for id in ids)})
    keys = [key_of(id) for id in everything]
    assert all(KEY_PATTERN.fullmatch(key) for key in keys)
    assert len(set(keys)) == len(everything)


def test_ledger_refuses_the_second_of_an_id_and_names_the_first_line() -> None:
    with IdLedger() as ledger:
        assert ledger.claim("a", 1) == ("a", None)
        assert ledger.claim("b", 2) == ("b", None)
        key, refusal = ledger.claim("a", 9)
    assert key == "a"
    assert refusal is not None
    assert "line 1" in refusal


@pytest.mark.parametrize(
    "change", [{"video": "b.mp4"}, {"start": 1.0}, {"end": 2.0}, {"caption": "other"}, {"caption": None}]
)
def test_derived_id_depends_on_uri_range_and_text(change: dict[str, object]) -> None:
    row = ManifestRow(video="dir/a.mp4", caption="text")
    other = ManifestRow.model_validate({"video": "dir/a.mp4", "caption": "text", **change})
    assert derived_id(row) == derived_id(row.model_copy())
    assert derived_id(row) != derived_id(other)
    assert derived_id(row).startswith("a_")
    assert key_of(derived_id(row)) == derived_id(row)
