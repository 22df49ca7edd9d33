"""A shard's questions to those that ship: no answer can be guessed from its frequency, no type crowds out the rest.

Enters: the proven questions of a shard's scenes. Leaves: a subset, and how many fell by type and reason. A function of the
questions alone; which of equals fall is decided by a digest of their ids, so no order and no chance enters.

Choices are balanced by construction (task.py); what is levelled here is what proofs and dropped attempts may have tilted: of a
closed pair of choices (left and right, yes and no) both are right equally often, and no number makes up more than its share.
"""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Sequence

from ov2_core.spatial.formats import LETTERS
from ov2_core.spatial.recipe import SpatialRecipe
from schemas.spatial import SpatialQuestion

MIN_COUNT = 20
"""Fewer than these are not levelled: chance tilts them, not the world."""
NUMBERS = frozenset({"count_objects", "track_count", "track_time"})
"""Types whose numbers come in few values."""


def balance(questions: Sequence[SpatialQuestion], recipe: SpatialRecipe) -> tuple[list[SpatialQuestion], Counter[str]]:
    """(what ships, in the order given; "type: reason" of what fell)."""
    dropped: Counter[str] = Counter()
    kept = {question.id: question for question in questions}
    fallen: dict[str, str] = {}
    _drop_repeats(questions, fallen)
    _level_pairs([q for q in questions if q.id not in fallen], fallen)
    _level_numbers([q for q in questions if q.id not in fallen], recipe.max_answer_share, fallen)
    _cap_types([q for q in questions if q.id not in fallen], recipe.max_share, fallen)
    for id_, reason in fallen.items():
        dropped[f"{kept[id_].type}: {reason}"] += 1
    return [question for question in questions if question.id not in fallen], dropped


def _drop_repeats(questions: Sequence[SpatialQuestion], fallen: dict[str, str]) -> None:
    seen = set()
    for question in questions:
        shown = (question.scene_id, question.type, question.question, tuple(question.frame_indices))
        key = (*shown, frozenset(question.choices or ()))
        if key in seen:
            fallen[question.id] = "repeated"
        seen.add(key)


def _level_pairs(questions: Sequence[SpatialQuestion], fallen: dict[str, str]) -> None:
    groups: dict[tuple[str, frozenset[str]], dict[str, list[SpatialQuestion]]] = defaultdict(lambda: defaultdict(list))
    for question in questions:
        if question.choices is not None and len(question.choices) == 2:
            right = question.choices[LETTERS.index(question.answer)]
            groups[question.type, frozenset(question.choices)][right].append(question)
    for sides in groups.values():
        if sum(map(len, sides.values())) >= MIN_COUNT:
            least = min(map(len, sides.values())) if len(sides) == 2 else 0
            for side in sides.values():
                _thin(side, least, "one of two answers was more frequent", fallen)


def _level_numbers(questions: Sequence[SpatialQuestion], max_share: float, fallen: dict[str, str]) -> None:
    groups: dict[str, dict[str, list[SpatialQuestion]]] = defaultdict(lambda: defaultdict(list))
    for question in questions:
        if question.type in NUMBERS and question.choices is None:
            groups[question.type][question.answer].append(question)
    for answers in groups.values():
        total = sum(map(len, answers.values()))
        if total < MIN_COUNT or len(answers) * max_share < 1:
            continue
        largest = max(answers.values(), key=len)
        # x of (rest + x) is the share.
        limit = int(max_share / (1 - max_share) * (total - len(largest))) if max_share < 1 else total
        _thin(largest, limit, "one number was more frequent", fallen)


def _cap_types(questions: Sequence[SpatialQuestion], max_share: float, fallen: dict[str, str]) -> None:
    types: dict[str, list[SpatialQuestion]] = defaultdict(list)
    for question in questions:
        types[question.type].append(question)
    limit = type_limit([len(group) for group in types.values()], max_share)
    if limit is not None:
        for group in types.values():
            _thin(group, limit, "the type's share of the mix", fallen)


def type_limit(counts: Sequence[int], max_share: float) -> int | None:
    """The most questions that one type may have, of so many in each; None where so few types yield that no cap can hold."""
    counts = [count for count in counts if count]
    if not counts or len(counts) * max_share < 1:
        return None
    low, high = 1, max(counts)
    while low < high:  # the share that a limit leaves falls with it
        middle = (low + high + 1) // 2
        if middle <= max_share * sum(min(count, middle) for count in counts):
            low = middle
        else:
            high = middle - 1
    return low


def _thin(questions: Sequence[SpatialQuestion], limit: int, reason: str, fallen: dict[str, str]) -> None:
    if len(questions) > limit:
        ordered = sorted(questions, key=lambda q: hashlib.blake2b(q.id.encode(), digest_size=8).digest())
        fallen.update((question.id, reason) for question in ordered[limit:])
