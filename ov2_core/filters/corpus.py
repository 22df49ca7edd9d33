"""Rules that depend on more than the row: lists of rows to leave out, and near-duplicates of rows that stay.

Enters: rows in order, after their own rules (rules.py). Leaves: each as it is, or filtered. Lives in the driver.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from ov2_core.filters.config import FilterConfig
from ov2_core.filters.duplicates import DuplicateIndex
from ov2_core.filters.rules import filtered_row
from ov2_core.make_sample import without_cost
from ov2_core.storage.files import Store
from schemas.shard import FilteredRow, PlannedRow


class CorpusRules:
    """Asked row by row; remembers the rows that stay."""

    def __init__(self, left_out: dict[str, FilteredRow], duplicates: DuplicateIndex | None) -> None:
        self._left_out = left_out
        self._duplicates = duplicates

    def judge(self, planned: PlannedRow) -> PlannedRow:
        """The row, filtered where a rule says so.

        Raises:
            ValueError: near-duplicates are asked for, and nobody looked at its pixels.
        """
        if planned.filtered is not None:
            return planned
        named = self._left_out.get(planned.id)
        if named is not None:
            found = filtered_row(
                planned, rule=named.rule, message=named.message, value=named.value, threshold=named.threshold
            )
            return without_cost(planned, found)
        return planned if self._duplicates is None else _without_repeat(planned, self._duplicates)


@contextmanager
def corpus_rules(config: FilterConfig, kept: Iterable[PlannedRow] = ()) -> Iterator[CorpusRules | None]:
    """The rules, or None where none is set. kept: rows that stay already.

    Raises:
        ValueError: the list cannot be read.
    """
    if config.leave_out is None and config.max_duplicate_bits is None:
        yield None
        return
    left_out = {} if config.leave_out is None else load_left_out(config.leave_out)
    if config.max_duplicate_bits is None:
        yield CorpusRules(left_out, None)
        return
    with DuplicateIndex(config.max_duplicate_bits) as duplicates:
        for row in kept:
            if row.pixels is not None:
                duplicates.add(row.line, row.id, row.pixels)
        yield CorpusRules(left_out, duplicates)


def load_left_out(uri: str) -> dict[str, FilteredRow]:
    """{id: row} of a list of rows to leave out: FilteredRow as JSON lines.

    Raises:
        ValueError: no such file, or a line that is no such row.
    """
    folder, _, name = uri.rpartition("/")
    try:
        data = Store(folder or ("/" if uri.startswith("/") else ".")).read_bytes(name)
    except FileNotFoundError:
        raise ValueError(f"filter.leave_out: no such file: {uri}") from None
    found: dict[str, FilteredRow] = {}
    for number, line in enumerate(data.splitlines(), start=1):
        try:
            row = FilteredRow.model_validate_json(line)
        except ValueError as error:
            raise ValueError(
                f"filter.leave_out: {uri}:{number} is no row of `ov2 near-duplicates` (line, id, uri, rule, message): {error}"
            ) from None
        found[row.id] = row
    return found


def _without_repeat(planned: PlannedRow, duplicates: DuplicateIndex) -> PlannedRow:
    if planned.pixels is None:
        raise ValueError(
            f"line {planned.line}, {planned.id}: its pixels were not looked at, and filter.max_duplicate_bits asks for them; "
            "plan anew with it, or with filter.measure_pixels=true"
        )
    found = duplicates.find(planned.pixels)
    if found is None:
        duplicates.add(planned.line, planned.id, planned.pixels)
        return planned
    message = f"looks like line {found.line} ({found.id}): {found.bits:.3g} of 64 bits a frame differ"
    filtered = filtered_row(
        planned, rule="near_duplicate", value=found.bits, threshold=duplicates.max_bits, message=message
    )
    return without_cost(planned, filtered)
