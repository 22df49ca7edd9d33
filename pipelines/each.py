"""Several items in one call of a worker: what each became, so that one that could not be read costs the others nothing."""

from collections.abc import Callable, Iterable
from typing import TypeVar

from ov2_core.make_sample import NoneReadError, NotHereError, TransientItemError

Item = TypeVar("Item")
Result = TypeVar("Result")


def each(make: Callable[[Item], Result], items: Iterable[Item]) -> list[Result | None]:
    """What `make` gives of each item. None: it could not be read here and now, and is to be tried alone.

    Raises:
        TransientItemError, NotHereError: of an item alone; the latter too where it holds of all.
        NoneReadError: several items, none of which could be read.
    """
    found: list[Result | None] = []
    problems: list[Exception] = []
    for item in items:
        try:
            found.append(make(item))
        except (TransientItemError, NotHereError) as error:
            found.append(None)
            problems.append(error)
    if problems and len(problems) == len(found):
        if len(found) == 1 or all(isinstance(problem, NotHereError) for problem in problems):
            raise problems[-1]
        raise NoneReadError(str(problems[-1]))
    return found
