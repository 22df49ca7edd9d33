"""A benchmark's table between its markers in a Markdown file."""

from pathlib import Path


def write_section(text: str, path: Path, *, begin: str, end: str, heading: str | None = None) -> None:
    """Replaces what stands between the markers, or appends both under a heading; the rest of the file is not touched.

    Raises:
        ValueError: one marker without the other.
    """
    old = path.read_text() if path.exists() else ""
    if (begin in old) != (end in old):
        raise ValueError(f"{path} holds only one of {begin} and {end}; put the other back")
    section = f"{begin}\n\n{text}\n\n{end}"
    if begin in old:
        head, rest = old.split(begin, 1)
        path.write_text(head + section + rest.split(end, 1)[1])
    else:
        parts = [old.rstrip(), heading or "", section]
        path.write_text("\n\n".join(part for part in parts if part) + "\n")
