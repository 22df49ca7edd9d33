# ruff: noqa: E501 (a question stands on one line)
"""Task types, checker, levelling and guessing, on few scenes; the thousand are `ov2 bench spatial` and the slow test."""

import json
from collections import Counter, defaultdict

import pytest
from spatial_scenes import hand_scene

from ov2_core.spatial.balance import balance
from ov2_core.spatial.blind import blind_scores
from ov2_core.spatial.checker import Evidence, UnprovableError, prove
from ov2_core.spatial.formats import LETTERS, parse_box, parse_number, parse_points, parse_trace
from ov2_core.spatial.generate import generate_questions
from ov2_core.spatial.mutate import mutations
from ov2_core.spatial.procedural import make_scene
from ov2_core.spatial.recipe import SpatialRecipe
from ov2_core.spatial.tasks import BY_NAME, TASKS
from schemas.spatial import SpatialQuestion

NUM_SCENES = 4


@pytest.fixture(scope="module")
def made():
    """[(scene, its questions)]."""
    recipe = SpatialRecipe(questions_per_type=8)
    scenes = [make_scene(2, number) for number in range(NUM_SCENES)]
    return [(scene, generate_questions(scene, recipe)) for scene in scenes]


def ask(kind: str, question: str, answer: str, *, choices=None, frames=(0, 1)) -> SpatialQuestion:
    return SpatialQuestion(
        id="q", scene_id="hand", type=kind, question=question, choices=choices, answer=answer, frames=["x"] * len(frames),
        frame_indices=list(frames), difficulty="easy",
    )  # fmt: skip


# The room of hand_scene: crate to the left, cabinet to the right, table straight ahead behind both, a book on it; the camera
# looks along +y from (0, -3), in the second frame from (0.5, -2).
HAND = [
    ("relation_camera", "Seen by the camera in frame 1, is the crate to the left or to the right of the cabinet?", ["right", "left"], "B"),
    ("relation_camera", "Seen by the camera in frame 1, is the cabinet to the left or to the right of the crate?", ["right", "left"], "A"),
    ("relation_camera", "By depth from the camera in frame 1: is the table in front of the crate or behind it?", ["in front", "behind"], "B"),
    ("relation_camera", "In frame 1, is the centre of the book above or below the centre of the crate, measured in the room's vertical?", ["above", "below"], "A"),
    # At the crate (west), facing the cabinet (east): the table, to the north, is to the left, ahead.
    ("direction_standpoint", "Using these frames: if you stand at the crate and face the cabinet, in which direction is the table?", ["left", "right"], "A"),
    ("direction_standpoint", "From the crate, looking towards the cabinet (see these frames), in what direction do you find the table?", ["back-left", "front-left", "front-right"], "B"),
    # At the cabinet, facing the crate, it is to the right.
    ("direction_standpoint", "Using these frames: if you stand at the cabinet and face the crate, in which direction is the table?", ["left", "right"], "B"),
    # At the table, looking back at the camera in the south, the crate in the west is to the right.
    ("imagined_viewpoint", "Imagine standing at the table in these frames, looking back at the camera of frame 1. Is the crate to your left or to your right?", ["left", "right"], "B"),
    # The camera of frame 1 turned to face west: the table, ahead before, is to the right, a little ahead of right or not: bearing 0 - 90.
    ("imagined_viewpoint", "Imagine the camera of frame 1 turns 90 degrees to the left on the spot. In which direction would the table then be (see these frames)?", ["left", "right", "back"], "B"),
    ("imagined_viewpoint", "Imagine the camera of frame 1 turns by 180 degrees on the spot. In which direction would the table then be (see these frames)?", ["left", "front", "back"], "C"),
    ("birds_eye", "Seen from above, with the camera of frame 1 at (0, 0) looking along +y and +x to its right (metres): where does the crate of these frames stand?", ["(1.5, 3.0)", "(-1.5, 3.0)", "(0.0, 5.0)"], "B"),
    ("nearest_object", "Which of these objects has its centre nearest to the centre of the table in these frames?", ["crate", "book"], "B"),
    ("camera_motion", "From frame 1 to frame 2, did the camera move to its left or to its right, in the view of frame 1?", ["left", "right"], "B"),
    ("camera_motion", "From frame 2 to frame 1, did the camera move forward or backward, in the view of frame 2?", ["forward", "backward"], "B"),
    ("order_appearance", "Using these frames: you walk straight from the crate to the cabinet, then on to the table. At the cabinet, do you turn left or right?", ["left", "right"], "A"),
    ("support_containment", "Does the book stand on the table in these frames?", ["yes", "no"], "A"),
    ("support_containment", "Going by these frames: does the crate carry the book on its top?", ["yes", "no"], "B"),
    ("compare_volumes", "Which has the larger bounding box by volume in these frames: the crate or the table?", ["crate", "table"], "B"),
    ("order_depth", "Order the crate, the book, the table in frame 1 by depth, nearest first.", ["book, table, crate", "crate, book, table"], None),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "text", "choices", "letter"), HAND, ids=[f"{i}-{h[0]}" for i, h in enumerate(HAND)])
def test_conventions_worked_out_by_hand(kind: str, text: str, choices: list[str], letter: str | None) -> None:
    evidence = Evidence(hand_scene())
    proven = []
    for candidate in LETTERS[: len(choices)]:
        try:
            prove(evidence, ask(kind, text, candidate, choices=choices))
            proven.append(candidate)
        except UnprovableError:
            continue
    # The book lies on the table: their depths overlap, and no order of them can be proven.
    assert proven == ([] if letter is None else [letter])


@pytest.mark.parametrize(
    ("kind", "text", "right", "wrong"),
    [
        ("distance_objects", "How far apart are the centres of the crate and the cabinet in these frames, in metres to one decimal?", "3.0", "3.2"),
        ("distance_camera", "How far is the centre of the crate from the camera in frame 1, in metres to one decimal?", "3.5", "3.7"),
        ("size_object", "What is the height of the cabinet in these frames, in centimetres to the nearest 5?", "100", "110"),
        ("size_object", "What is the longest side of the book in these frames, in centimetres to the nearest 5?", "30", "40"),
        ("room_size", "What is the floor area of the room in these frames, in square metres to the nearest whole?", "42", "44"),
        ("count_objects", "How many objects of the kind 'crate' do these frames show in all?", "1", "2"),
    ],
)  # fmt: skip
def test_numbers_worked_out_by_hand(kind: str, text: str, right: str, wrong: str) -> None:
    evidence = Evidence(hand_scene())
    prove(evidence, ask(kind, text, right))
    with pytest.raises(UnprovableError):
        prove(evidence, ask(kind, text, wrong))


def test_every_type_yields_and_every_shipped_answer_is_proven_again(made) -> None:
    counts = Counter(question.type for _, found in made for question in found.questions)
    assert set(counts) == set(BY_NAME), set(BY_NAME) - set(counts)
    for scene, found in made:
        evidence = Evidence(scene)
        for question in found.questions:
            prove(evidence, SpatialQuestion.model_validate_json(question.model_dump_json()))


def test_answers_moved_just_over_the_margin_are_rejected(made) -> None:
    tried = Counter()
    for scene, found in made[:2]:
        evidence = Evidence(scene)
        for question in found.questions:
            for mutant in mutations(evidence, question):
                tried[question.type] += 1
                with pytest.raises(UnprovableError):
                    prove(evidence, mutant)
    assert set(tried) == set(BY_NAME), "each type must have mutants"


def test_answers_are_in_the_text_formats(made) -> None:
    parsers = {
        "point_object": parse_points, "free_space": parse_points, "box_object": parse_box, "trace_3d": parse_trace,
    }  # fmt: skip
    for _, found in made:
        for question in found.questions:
            if question.choices is not None:
                assert question.answer in LETTERS[: len(question.choices)]
                assert len(set(question.choices)) == len(question.choices) >= 2
            elif question.type == "correspondence":
                assert len(parse_points(question.answer)) == 1
            elif question.type in parsers:
                parsers[question.type](question.answer)
            elif question.type == "track_object":
                assert question.answer.startswith('<tracks coords="')
            else:
                parse_number(question.answer)


def test_same_scene_recipe_and_seed_give_the_same_questions(made) -> None:
    scene, found = made[1]
    again = generate_questions(make_scene(2, 1), SpatialRecipe(questions_per_type=8))
    assert again.questions == found.questions
    other = generate_questions(scene, SpatialRecipe(questions_per_type=8, seed=1))
    assert other.questions != found.questions


def test_questions_name_frames_by_time_where_a_video_is_shown() -> None:
    scene = make_scene(2, 0)
    recipe = SpatialRecipe(questions_per_type=3, input="frames")
    questions = generate_questions(scene, recipe).questions
    assert {q.type for q in questions} >= {"camera_motion", "correspondence", "depth_point"}
    for question in questions:
        assert question.frames is None
        assert not any(f"frame {k}" in question.question for k in range(1, 9)), question.question


def test_letters_go_round(made) -> None:
    letters = defaultdict(Counter)
    for _, found in made:
        for question in found.questions:
            if question.choices is not None:
                letters[len(question.choices)][question.answer] += 1
    assert letters[2].total() > 200
    for number, counts in letters.items():
        if counts.total() < 100:
            continue
        assert max(counts.values()) / counts.total() <= 1 / number + 0.08, (number, counts)


def test_each_type_has_several_phrasings(made) -> None:
    for task in TASKS:
        heads = {
            question.question[:6] for _, found in made for question in found.questions if question.type == task.NAME
        }
        assert len(heads) >= 2, task.NAME


def simple(number: int, answer: str, *, kind: str = "relation_camera", choices=("left", "right")) -> SpatialQuestion:
    question = ask(kind, f"question {number}", answer, choices=list(choices) if choices else None)
    return question.model_copy(update={"id": f"q{number}", "scene_id": f"s{number % 40}"})


def test_balance_levels_pairs_numbers_and_types() -> None:
    pairs = [simple(n, "A" if n % 4 else "B") for n in range(200)]
    kept, dropped = balance(pairs, SpatialRecipe(max_share=1.0))
    assert Counter(q.answer for q in kept) == {"A": 50, "B": 50}
    assert dropped["relation_camera: one of two answers was more frequent"] == 100

    numbers = [simple(n, str(1 + (n % 10 > 6) + (n % 10 > 8)), kind="count_objects", choices=None) for n in range(200)]
    kept, _ = balance(numbers, SpatialRecipe(max_share=1.0))
    assert max(Counter(q.answer for q in kept).values()) / len(kept) <= 0.4 + 1e-9

    names = sorted(BY_NAME)[:20]
    mixed = [simple(n, "7", kind=names[min(19, n // 50)], choices=None) for n in range(1500)]
    kept, _ = balance(mixed, SpatialRecipe(max_share=0.08))
    assert max(Counter(q.type for q in kept).values()) <= 0.08 * len(kept)
    assert balance(kept, SpatialRecipe(max_share=0.08))[0] == kept


def test_balance_drops_repeats() -> None:
    question = simple(1, "A")
    kept, dropped = balance([question, question.model_copy(update={"id": "again"})], SpatialRecipe())
    assert kept == [question]
    assert dropped == {"relation_camera: repeated": 1}


def test_the_blind_solver_finds_what_can_be_guessed() -> None:
    """Rigged three ways: by a word, by the middle number, by nearness in one coordinate. And a fair set, where it finds nothing."""
    import random

    rng = random.Random(0)
    word, middle, near, fair = [], [], [], []
    for n in range(1200):
        thing = rng.choice(["mug", "sofa", "book", "bed"])
        right = "small" if thing in ("mug", "book") else "large"
        order = rng.sample(["small", "large"], 2)
        item = simple(n, LETTERS[order.index(right)], kind="size_object", choices=order)
        word.append(item.model_copy(update={"question": f"Is the {thing} small or large?"}))
        values = sorted(rng.sample(range(100), 3))
        shuffled = rng.sample(values, 3)
        middle.append(
            simple(n, LETTERS[shuffled.index(values[1])], kind="depth_object", choices=[str(v) for v in shuffled])
        )
        fair.append(simple(n, rng.choice("ABC"), kind="order_depth", choices=[str(v) for v in shuffled]))
        y = rng.randrange(100, 900)
        places = [
            (rng.randrange(999), y + rng.randrange(-9, 10)),
            *((rng.randrange(999), rng.randrange(999)) for _ in range(3)),
        ]
        shown = rng.sample(places, 4)
        item = simple(
            n, LETTERS[shown.index(places[0])], kind="correspondence", choices=[f"({a}, {b})" for a, b in shown]
        )
        near.append(item.model_copy(update={"question": f"Match ({rng.randrange(999)}, {y})"}))
    scores = {score.type: score for score in blind_scores([*word, *middle, *near, *fair])}
    assert scores["size_object"].excess > 0.4
    assert scores["depth_object"].excess > 0.4
    assert scores["correspondence"].excess > 0.3
    assert abs(scores["order_depth"].excess) < 0.05


def test_the_search_for_the_nearest_point_is_that_of_numpy(made) -> None:
    import numpy as np

    from ov2_core.spatial.checker.evidence import nearest

    rng = np.random.default_rng(0)
    for _ in range(20):
        points = rng.normal(size=(3, 500))
        points[:, rng.integers(0, 500, 40)] = np.nan
        point = rng.normal(size=3)
        squared = ((points - point[:, None]) ** 2).sum(axis=0)
        best, least = nearest(points, point)
        assert best == np.nanargmin(squared)
        assert least == pytest.approx(np.nanmin(squared))
    assert nearest(np.full((3, 4), np.nan), np.zeros(3))[0] == -1


def test_a_question_that_names_an_unknown_or_ambiguous_thing_is_unprovable(made) -> None:
    scene, _ = made[0]
    evidence = Evidence(scene)
    label = next(label for label, n in Counter(t.label for t in scene.record.objects).items() if n > 1)
    for text in (
        f"How far is the centre of the {label} from the camera in the image, in metres to one decimal?",
        "How far is the centre of the piano from the camera in the image, in metres to one decimal?",
    ):
        with pytest.raises(UnprovableError):
            prove(evidence, ask("distance_camera", text, "2.0", frames=(0,)))


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_a_thousand_scenes_hold_what_is_promised() -> None:
    from jobs.bench_spatial import measure

    results = measure(1000, 0, SpatialRecipe())
    assert results.num_disagreed == 0
    assert results.surviving.total() == 0
    assert set(Counter(q.type for q in results.shipped)) == set(BY_NAME)
    assert max(Counter(q.type for q in results.shipped).values()) <= 0.08 * len(results.shipped)
    assert {s.type: s.excess for s in blind_scores(results.shipped) if s.excess > 0.03} == {}
    json.dumps(results.dropped)
