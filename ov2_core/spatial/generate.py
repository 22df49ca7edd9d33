"""A scene to proven questions.

Enters: a loaded scene, a recipe. Leaves: questions that the checker proves, and why others fell. Same scene, recipe and seed:
same questions, whatever came before. Each type has its own chance, so adding a type changes no other.
"""

import random
from collections import Counter
from dataclasses import dataclass, field

from ov2_core.spatial.checker import Evidence, UnprovableError, prove
from ov2_core.spatial.formats import LETTERS
from ov2_core.spatial.recipe import SpatialRecipe
from ov2_core.spatial.scene import Scene
from ov2_core.spatial.task import Draft, TaskContext, TaskType
from ov2_core.spatial.tasks import TASKS
from schemas.spatial import SpatialQuestion


@dataclass(slots=True)
class SceneQuestions:
    """What became of a scene."""

    questions: list[SpatialQuestion]
    num_drafted: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    """"type: reason"."""


def generate_questions(scene: Scene, recipe: SpatialRecipe) -> SceneQuestions:
    """Questions of all types that the scene can feed, at most the recipe's quota each."""
    found = SceneQuestions([])
    evidence = Evidence(scene)
    for task in TASKS:
        quota = recipe.quota(task.NAME)
        if not quota:
            continue
        missing = missing_needs(scene, task.NEEDS)
        if missing:
            found.dropped[f"{task.NAME}: the scene has no {missing}"] += 1
            continue
        _draw(task, scene, evidence, recipe, quota, found)
    return found


def missing_needs(scene: Scene, needs: tuple[str, ...]) -> str:
    """The first need of a task type that a scene does not meet, or ""."""
    record = scene.record
    has = {
        "depth": scene.depth_FHW is not None and record.kind == "rgbd",
        "boxes": record.kind == "rgbd" and any(thing.box is not None for thing in record.objects),
        "masks": scene.masks_FHW is not None,
        "tracks": bool(record.tracks),
        "tracks3d": any(place and place.center_xyz_m for track in record.tracks for place in track.places),
        "room": record.room is not None,
    }
    return next((need for need in needs if not has[need]), "")


def _draw(
    task: TaskType, scene: Scene, evidence: Evidence, recipe: SpatialRecipe, quota: int, found: SceneQuestions
) -> None:
    rng = random.Random(f"{recipe.seed}/{scene.id}/{task.NAME}")
    context = TaskContext(scene=scene, rng=rng, quota=quota, video=recipe.input != "stills")
    seen: set[tuple[object, ...]] = set()
    place = rng.randrange(64)
    made = 0
    for draft in task.drafts(context):
        key = (draft.question, draft.frames, frozenset(draft.choices or ()))
        if key in seen:
            context.drop("repeated")
            continue
        seen.add(key)
        found.num_drafted += 1
        question = finished(draft, scene, task.NAME, recipe, number=made, place=place + made, rng=rng)
        try:
            prove(evidence, question)
        except UnprovableError as error:
            context.drop(f"unproven: {error}")
            continue
        found.questions.append(question)
        made += 1
        if made >= quota:
            break
    found.dropped.update({f"{task.NAME}: {reason}": count for reason, count in context.drops.items()})


def finished(
    draft: Draft, scene: Scene, kind: str, recipe: SpatialRecipe, *, number: int, place: int, rng: random.Random
) -> SpatialQuestion:
    """A draft as a record: choices in random order, but the right one goes round through the letters."""
    choices = answer = None
    if draft.choices is not None:
        others = [choice for choice in draft.choices if choice != draft.answer]
        rng.shuffle(others)
        at = place % len(draft.choices)
        choices = [*others[:at], draft.answer, *others[at:]]
        answer = LETTERS[at]
    video = recipe.input != "stills"
    return SpatialQuestion(
        id=f"{scene.id}_{kind}_{number:03d}",
        scene_id=scene.id,
        type=kind,
        question=draft.question,
        choices=choices,
        answer=draft.answer if answer is None else answer,
        frames=None if video else [scene.record.frames[k].rgb for k in draft.frames],
        video=scene.record.video if video else None,
        frame_indices=list(draft.frames),
        difficulty=draft.difficulty,
        tags=[f"source:{scene.record.source}", f"input:{recipe.input}"],
    )
