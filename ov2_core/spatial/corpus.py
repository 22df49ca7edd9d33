"""What no shard can see alone: scenes that stand twice in a run, questions asked twice of the same pictures, and answers that a
question's text tells over the whole corpus ("sofa or stool, which is larger").

Enters: the tars of all committed shards. Leaves: for each of their questions, in order, why it does not ship, if it does not. A
function of the tars alone, so neither workers nor kills change it; records are written from tars and this (run_files.py). Which of
equals fall is decided by a digest of their ids, as in balance.py.

A text tells an answer where questions of the same meaning (sense.py: whatever their phrasing, frames and points) about the same
names and of the same choices have one answer more often than another. Choices that are numbers count by their rank: that the
sofa's height is the greatest of those offered is what its name tells. With two choices and at least MIN_COUNT questions both
answers are levelled to the rarer one; else an answer that is more frequent than two standard deviations of chance allow is
thinned to what the others have on average. So what is always the same (5 times or more) goes altogether.

Memory: 36 bytes a question, as many again while they are levelled, whatever the number of scenes.
"""

import hashlib
import json
import re
from array import array
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from ov2_core.spatial.balance import MIN_COUNT, type_limit
from ov2_core.spatial.formats import LETTERS
from ov2_core.spatial.sense import sense_of
from ov2_core.storage.commit import iter_commits
from ov2_core.storage.files import Store
from ov2_core.storage.layout import tar_rel
from ov2_core.storage.writer import iter_tar_members
from schemas.shard import CommitRecord
from schemas.spatial import SceneYield, SpatialQuestion

QUESTIONS_MEMBER = "questions.jsonl"
SHIPS = 0
REASONS = (
    "",
    "the scene stands in another shard as well",
    "asked before of the same pictures",
    "its text told the answer, over the run",
    "one of two answers was more frequent, over the run",
    "the type's share of the mix, over the run",
)
DUPLICATE, REPEATED, TOLD, PAIR, SHARE = range(1, 6)
MIN_GROUP = 5
"""Fewer questions of one text than these are left as they are: any one answer of four is the more frequent one."""
_DIGITS = re.compile(r"-?\d+(?:\.\d+)?")

U8 = npt.NDArray[np.uint8]
U64 = npt.NDArray[np.uint64]


@dataclass(slots=True)
class CorpusVerdict:
    """What ships of a run."""

    reasons: dict[int, U8] = field(default_factory=dict)
    """Shard -> for each question of its tar, in order, a place in REASONS; 0 where it ships."""
    repeated_scenes: list[str] = field(default_factory=list)
    """Ids of scenes that another shard, or an earlier place, holds already."""


def iter_scenes(store: Store, commit: CommitRecord) -> Iterator[tuple[SceneYield, list[bytes]]]:
    """(what became of it, its questions as lines) of a committed shard's scenes."""
    if commit.tar_name is None:
        return
    fate: SceneYield | None = None
    with store.open_read(tar_rel(commit.shard)) as file:
        for _, part, data in iter_tar_members(file):
            if part.name == "json":
                fate = SceneYield.model_validate_json(data)
            elif part.name == QUESTIONS_MEMBER:
                assert fate is not None, f"shard {commit.shard}: questions before their scene"
                yield fate, data.splitlines(keepends=True)


def level_corpus(store: Store, *, max_share: float) -> CorpusVerdict:
    """Reads all tars once.

    Args:
        max_share: of the mix, for any one type.
    """
    rows = CorpusRows()
    sizes: list[tuple[int, int]] = []
    verdict = CorpusVerdict()
    seen: set[str] = set()
    for commit in iter_commits(store):
        first = len(rows)
        for fate, lines in iter_scenes(store, commit):
            again = bool(fate.fingerprint) and fate.fingerprint in seen
            seen.add(fate.fingerprint)
            if again:
                verdict.repeated_scenes.append(fate.scene_id)
            for line in lines:
                rows.add(SpatialQuestion.model_validate_json(line), DUPLICATE if again else SHIPS)
        sizes.append((commit.shard, len(rows) - first))
    reasons = rows.levelled(max_share)
    at = 0
    for shard, size in sizes:
        verdict.reasons[shard] = reasons[at : at + size]
        at += size
    return verdict


class CorpusRows:
    """All questions of a run, in order, as numbers."""

    def __init__(self) -> None:
        self._order, self._shown, self._text, self._pair = array("Q"), array("Q"), array("Q"), array("Q")
        self._side, self._sides, self._type, self._reason = array("B"), array("B"), array("B"), array("B")
        self._types: dict[str, int] = {}

    def __len__(self) -> int:
        return len(self._reason)

    def add(self, question: SpatialQuestion, reason: int) -> None:
        choices = question.choices or []
        side, named = _side(question)
        self._order.append(_digest(question.id))
        shown = [question.frames, question.video, question.frame_indices]
        self._shown.append(_digest(shown, question.type, question.question, sorted(choices)))
        self._text.append(_digest(question.type, _meaning(question), named) if choices else 0)
        self._pair.append(_digest(question.type, named) if len(choices) == 2 and named != ["#", 2] else 0)
        self._side.append(side)
        self._sides.append(len(choices))
        self._type.append(self._types.setdefault(question.type, len(self._types)))
        self._reason.append(reason)

    def levelled(self, max_share: float) -> U8:
        """Why each does not ship, or 0."""
        reason = np.array(self._reason, np.uint8)
        order = np.array(self._order, np.uint64)
        # One of several equals: that which comes first.
        alive = np.flatnonzero(reason == SHIPS)
        shown = np.array(self._shown, np.uint64)
        _, firsts = np.unique(shown[alive], return_index=True)
        later = np.ones(len(alive), bool)
        later[firsts] = False
        reason[alive[later]] = REPEATED
        side, sides = np.array(self._side, np.uint8), np.array(self._sides, np.uint8)
        for keys, why in ((self._text, TOLD), (self._pair, PAIR)):
            for group in _groups(np.array(keys, np.uint64), reason):
                for value, limit in _limits(side[group], int(sides[group[0]]), only_pairs=why == PAIR):
                    _thin(group[side[group] == value], limit, order, reason, why)
        kinds = np.array(self._type, np.uint8)
        share = type_limit(np.bincount(kinds[reason == SHIPS], minlength=len(self._types)).tolist(), max_share)
        if share is not None:
            for number in range(len(self._types)):
                _thin(np.flatnonzero((reason == SHIPS) & (kinds == number)), share, order, reason, SHARE)
        return reason


def _groups(keys: U64, reason: U8) -> Iterator[npt.NDArray[np.intp]]:
    """Places of the shipping questions of one key, of keys with enough of them; key 0 is none."""
    places = np.flatnonzero((reason == SHIPS) & (keys != 0))
    places = places[np.argsort(keys[places], kind="stable")]
    if len(places):
        cuts = np.flatnonzero(np.diff(keys[places])) + 1
        yield from (group for group in np.split(places, cuts) if len(group) >= MIN_GROUP)


def _limits(side: U8, sides: int, *, only_pairs: bool) -> Iterator[tuple[int, int]]:
    """(answer, how many of it may stay) of those that are too many in a group."""
    counts = np.bincount(side, minlength=sides).tolist()
    total, chance = len(side), 1 / sides
    most = max(range(len(counts)), key=lambda value: counts[value])
    rest = total - counts[most]
    if sides == 2 and total >= MIN_COUNT:
        yield most, rest
    elif not only_pairs and counts[most] - total * chance > 2 * (total * chance * (1 - chance)) ** 0.5:
        yield most, -(-rest // (sides - 1))


def _thin(places: npt.NDArray[np.intp], limit: int, order: U64, reason: U8, why: int) -> None:
    if len(places) > limit:
        reason[places[np.argsort(order[places], kind="stable")][limit:]] = why


def _side(question: SpatialQuestion) -> tuple[int, list[Any]]:
    """(the answer's place among the choices, sorted; the choices as a text's reader can know them)."""
    choices = question.choices or []
    if not choices:
        return 0, []
    right = choices[LETTERS.index(question.answer)]
    numbers = [found for choice in choices if len(found := _DIGITS.findall(choice)) == 1]
    if len(numbers) == len(choices):
        ranked = sorted(choices, key=lambda choice: float(_DIGITS.findall(choice)[0]))
        return ranked.index(right), ["#", len(choices)]
    return sorted(choices).index(right), sorted(choices)


def _meaning(question: SpatialQuestion) -> list[Any]:
    """What the text asks about what, phrasing and frames left out, and names that are choices as well: they stand there."""
    sense = sense_of(question.type, question.question)
    if sense is None:
        return [_DIGITS.sub("#", question.question)]
    family, fields = sense
    choices = {f"the {choice}" for choice in question.choices or []}
    return [family, sorted((name, value) for name, value in fields.items() if value not in choices)]


def _digest(*parts: object) -> int:
    text = json.dumps(parts, sort_keys=True)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") or 1
