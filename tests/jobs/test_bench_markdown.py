"""Sections of benchmarks.md."""

from pathlib import Path

import pytest

from jobs.bench_markdown import write_section

MARKS = {"begin": "<!-- a: begin -->", "end": "<!-- a: end -->"}


def test_a_section_is_replaced_between_its_markers_and_nothing_else(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"Before.\n\n{MARKS['begin']}\nold\n{MARKS['end']}\n\nAfter.\n")
    for text in ("new", "newer"):
        write_section(text, page, heading="## Not again", **MARKS)
        assert page.read_text() == f"Before.\n\n{MARKS['begin']}\n\n{text}\n\n{MARKS['end']}\n\nAfter.\n"


@pytest.mark.parametrize(("old", "new"), [("", ""), ("Before.\n\n", "Before.\n\n")])
def test_a_first_section_comes_last_under_its_heading(tmp_path: Path, old: str, new: str) -> None:
    page = tmp_path / "page.md"
    if old:
        page.write_text(old)
    write_section("text", page, heading="## A", **MARKS)
    assert page.read_text() == f"{new}## A\n\n{MARKS['begin']}\n\ntext\n\n{MARKS['end']}\n"


def test_half_a_section_is_refused(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(MARKS["begin"])
    with pytest.raises(ValueError, match="only one of"):
        write_section("text", page, **MARKS)
