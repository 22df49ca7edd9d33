"""What a task type is, and what it may draw on.

A task type is a module with NAME, NEEDS, TEMPLATES and `drafts(context)`. It yields drafts; it may yield too many, or wrong ones:
the checker proves each, and the caller stops at the quota.

Blindness by exchange. A choice question is made of a set of candidates whose values differ by a margin; the choices are their
values and one candidate is asked about at random. So each choice is as likely as any other, whatever the values' distribution,
as long as names tell nothing of values; candidates are of one kind (Scene.kind_of) for that reason. Two-sided questions
(left or right, yes or no) swap their sides by a coin.
"""

import random
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from ov2_core.spatial.geometry import from_thousand, to_thousand
from ov2_core.spatial.scene import Scene
from schemas.spatial import Difficulty

K = TypeVar("K")
V = TypeVar("V")
Need = Literal["depth", "boxes", "masks", "tracks", "tracks3d", "room"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Draft:
    """A question before it is proven."""

    question: str
    answer: str
    """The right choice's text, or the answer."""
    choices: tuple[str, ...] | None = None
    frames: tuple[int, ...]
    """Of the scene, as shown."""
    difficulty: Difficulty = "medium"


class TaskType(Protocol):
    """A module of tasks/."""

    @property
    def NAME(self) -> str: ...

    @property
    def NEEDS(self) -> tuple[str, ...]:
        """Of Need."""

    def drafts(self, context: "TaskContext") -> "Iterator[Draft]":
        """Questions of a scene, more than the quota if there are."""


@dataclass(kw_only=True)
class TaskContext:
    """A scene, chance, and how many questions are wanted."""

    scene: Scene
    rng: random.Random
    quota: int
    video: bool = False
    """The frames are shown as one video: they are named by their times."""
    drops: Counter[str] = field(default_factory=Counter)
    """Why attempts came to nothing."""

    def attempts(self, factor: int = 3) -> Iterator[int]:
        """As many rounds as may be worth it."""
        yield from range(self.quota * factor)

    def drop(self, reason: str) -> None:
        self.drops[reason] += 1

    def say(self, templates: Sequence[str], **fields: object) -> str:
        """One of the phrasings, filled."""
        return self.rng.choice(templates).format(**fields)

    def image(self, frame: int) -> str:
        """The only frame of a question."""
        return f"the frame at {self.scene.record.frames[frame].time_seconds:.1f} s" if self.video else "the image"

    def frame(self, frames: Sequence[int], position: int) -> str:
        """One of several frames of a question."""
        if self.video:
            return f"the frame at {self.scene.record.frames[frames[position]].time_seconds:.1f} s"
        return f"frame {position + 1}"

    @property
    def views(self) -> str:
        return "the video" if self.video else "these frames"

    def all_frames(self) -> tuple[int, ...]:
        return tuple(range(self.scene.num_frames))

    def random_frame(self) -> int:
        return self.rng.randrange(self.scene.num_frames)

    def the(self, object_id: int) -> str:
        return f"the {self.scene.names[object_id]}"

    def named_visible(self, frame: int) -> list[int]:
        """Visible objects that have a name, in random order."""
        ids = [number for number in self.scene.visible_ids(frame) if number in self.scene.names]
        self.rng.shuffle(ids)
        return ids

    def peers(self, ids: Sequence[int], at_least: int) -> list[int]:
        """Those of one kind, of which there are enough; empty where no kind has them. In random order."""
        groups: dict[str, list[int]] = {}
        for number in ids:
            kind = self.scene.kind_of.get(number)
            if kind is not None and kind != "container" and number in self.scene.names:
                groups.setdefault(kind, []).append(number)
        enough = [group for group in groups.values() if len(group) >= at_least]
        if not enough:
            self.drop("too few comparable objects")
            return []
        # A kind counts as often as it has members, else small kinds would be worn out.
        group = self.rng.choices(enough, [len(group) for group in enough])[0]
        self.rng.shuffle(group)
        return group

    def standing_seen(self, at_least: int) -> list[int]:
        """Named standing objects that some frame shows, in random order; empty if they are too few."""
        ids = [number for number in self.scene.standing if number in self.scene.seen]
        self.rng.shuffle(ids)
        if len(ids) < at_least:
            self.drop("too few comparable objects")
            return []
        return ids

    def contrast(
        self, values: Sequence[tuple[K, V]], apart: Callable[[V, V], bool], *, size: int, at_least: int = 2
    ) -> list[tuple[K, V]]:
        """Candidates whose values differ pairwise, in random order; empty if they are too few."""
        order = list(values)
        self.rng.shuffle(order)
        taken: list[tuple[K, V]] = []
        for item in order:
            if len(taken) < size and all(apart(item[1], other[1]) for other in taken):
                taken.append(item)
        if len(taken) < at_least:
            self.drop("values too close")
            return []
        self.rng.shuffle(taken)
        return taken

    def pixel_name(self, place: int) -> tuple[int, int]:
        """x and y 0-999 of a flat pixel."""
        width, height = self.scene.size_px
        row, column = divmod(int(place), width)
        return to_thousand((column + 0.5, row + 0.5), width, height)

    def pixel_of(self, x: int, y: int) -> tuple[int, int]:
        """(row, column) that x and y 0-999 name."""
        return pixel_of(self.scene, x, y)

    def some(self, places: npt.NDArray[np.int64]) -> int:
        """One of them."""
        return int(places[self.rng.randrange(len(places))])


def pixel_of(scene: Scene, x: int, y: int) -> tuple[int, int]:
    """(row, column) that x and y 0-999 name."""
    width, height = scene.size_px
    column, row = from_thousand(x, y, width, height)
    return int(row), int(column)


def metres_apart(a: float, b: float) -> bool:
    """Two lengths that nobody takes for one another: 0.3 m and 15 %."""
    return abs(a - b) >= max(0.3, 0.15 * max(a, b))


def point_text(x: int, y: int) -> str:
    """(x, y)"""
    return f"({x}, {y})"
