"""The independent checker: reads question and answer as text and proves the answer from the scene by another path.

Enters: a scene's Evidence and a SpatialQuestion. Leaves: nothing, or UnprovableError with the reason. It shares no geometry with
the task types: points come from back-projection and searches over all pixels, boxes from corners that surface points bear out.
"""

from collections.abc import Callable, Mapping

from ov2_core.spatial.checker import measures, relations
from ov2_core.spatial.checker.evidence import Evidence, UnprovableError
from ov2_core.spatial.checker.measures import Value
from ov2_core.spatial.checker.parse import Asked, read_question
from ov2_core.spatial.checker.places import PLACES
from ov2_core.spatial.formats import parse_number
from schemas.spatial import SpatialQuestion

__all__ = ["Evidence", "UnprovableError", "margin_of", "prove"]


def _object_motion(asked: Asked) -> Value:
    (thing, *_) = asked.things
    i, j = asked.named_frames[:2]
    offset = asked.evidence.middle_at(thing, i) - asked.evidence.middle_at(thing, j)
    return float((offset @ offset) ** 0.5), measures.HALF_STEP_M + measures.NOISE_M


NUMBERS: Mapping[str, Callable[[Asked], Value]] = {
    "depth_point": measures.depth_point,
    "depth_object": measures.depth_object,
    "distance_objects": measures.distance_objects,
    "distance_camera": measures.distance_camera,
    "size_object": measures.size_object,
    "count_objects": measures.count_objects,
    "room_size": measures.room_size,
    "track_count": measures.track_count,
    "track_time": measures.track_time,
    "object_motion": _object_motion,
}
WORDS: Mapping[str, Callable[[Asked], str]] = {
    "order_depth": relations.order_depth,
    "nearest_object": relations.nearest_object,
    "compare_volumes": relations.compare_volumes,
    "relation_camera": relations.relation_camera,
    "direction_standpoint": relations.direction_standpoint,
    "imagined_viewpoint": relations.imagined_viewpoint,
    "birds_eye": relations.birds_eye,
    "support_containment": relations.support_containment,
    "camera_motion": relations.camera_motion,
    "order_appearance": relations.order_appearance,
    "object_motion": relations.object_motion_word,
}


def prove(evidence: Evidence, question: SpatialQuestion) -> None:
    """Returns if the answer is proven.

    Raises:
        UnprovableError: it is wrong, ambiguous, or the scene does not tell; the message is the reason, in few words.
    """
    try:
        asked = read_question(evidence, question)
        if question.type in PLACES:
            PLACES[question.type](asked)
        elif question.type in NUMBERS and not (question.type in WORDS and question.choices is not None):
            _prove_number(asked, NUMBERS[question.type](asked))
        elif question.type in WORDS:
            if question.choices is None:
                raise UnprovableError("no choices")
            if WORDS[question.type](asked) != asked.answer:
                raise UnprovableError("wrong")
        else:
            raise UnprovableError("the type is unknown")
    except UnprovableError:
        raise
    except (ValueError, IndexError, KeyError) as error:
        raise UnprovableError("the question or answer is not understood") from error


def margin_of(evidence: Evidence, question: SpatialQuestion) -> float | None:
    """How far a number may be from the proven value; None where the answer is no number."""
    if question.type not in NUMBERS or question.choices is not None:
        return None
    return NUMBERS[question.type](read_question(evidence, question))[1]


def _prove_number(asked: Asked, value: Value) -> None:
    true, tolerance = value
    if asked.choices is None:
        if abs(parse_number(asked.answer) - true) > tolerance:
            raise UnprovableError("the number is off")
        return
    fits = []
    for choice in asked.choices:
        off = abs(parse_number(choice.partition(" ")[0]) - true)
        if off <= tolerance:
            fits.append(choice)
        elif off <= 2 * tolerance:
            raise UnprovableError("a wrong choice is nearly right")
    if fits != [asked.answer]:
        raise UnprovableError("no choice, or two, fit")
