"""Over a corpus: what repeats and what its text tells falls, whatever the order, and little else does."""

import random
from collections import Counter

from hypothesis import given, settings
from hypothesis import strategies as st

from ov2_core.spatial.balance import type_limit
from ov2_core.spatial.blind import blind_scores
from ov2_core.spatial.corpus import REASONS, REPEATED, SHIPS, TOLD, CorpusRows
from ov2_core.spatial.generate import generate_questions
from ov2_core.spatial.procedural import make_scene
from ov2_core.spatial.recipe import SpatialRecipe
from ov2_core.spatial.sense import sense_of
from schemas.spatial import SpatialQuestion

SIZES = {"sofa": 9, "table": 6, "stool": 2, "mug": 1}


def ask(
    number: int, text: str, choices: list[str] | None, answer: str, kind: str = "compare_volumes"
) -> SpatialQuestion:
    return SpatialQuestion(
        id=f"s{number // 4}_{kind}_{number}", scene_id=f"s{number // 4}", type=kind, question=text, choices=choices,
        answer=answer, frames=[f"{number // 4}.jpg"], frame_indices=[0], difficulty="easy",
    )  # fmt: skip


def levelled(questions: list[SpatialQuestion], max_share: float = 1.0) -> list[int]:
    rows = CorpusRows()
    for question in questions:
        rows.add(question, SHIPS)
    return rows.levelled(max_share).tolist()


def larger(rng: random.Random, number: int, truth: float) -> SpatialQuestion:
    """The thing that is larger by its name is so with this probability."""
    a, b = rng.sample(sorted(SIZES), 2)
    right = max(a, b, key=SIZES.__getitem__) if rng.random() < truth else min(a, b, key=SIZES.__getitem__)
    choices = [a, b] if rng.random() < 0.5 else [b, a]
    text = f"Which is larger in frames {number % 7}: the {a} or the {b}?"
    return ask(number, text, choices, "AB"[choices.index(right)])


def test_what_a_label_tells_is_levelled() -> None:
    rng = random.Random(1)
    questions = [larger(rng, number, 0.85) for number in range(4000)]
    (before,) = blind_scores(questions)
    reasons = levelled(questions)
    (after,) = blind_scores([q for q, why in zip(questions, reasons, strict=True) if why == SHIPS])
    assert before.excess > 0.3
    assert after.excess < 0.03
    assert after.num_questions > 2 * 0.15 * 4000 * 0.9  # both answers, each as often as the rarer one
    assert set(reasons) == {SHIPS, TOLD}


def test_what_is_always_the_same_goes_and_what_is_not_told_stays() -> None:
    rng = random.Random(2)
    certain = [larger(rng, number, 1.0) for number in range(300)]
    assert Counter(levelled(certain))[TOLD] == 300
    fair = [larger(rng, number, 0.5) for number in range(4000)]
    assert Counter(levelled(fair))[SHIPS] > 3600


def test_the_rank_of_a_number_is_what_a_label_tells() -> None:
    rng = random.Random(3)

    def height(number: int, *, told: bool) -> SpatialQuestion:
        values = sorted(rng.sample(range(20, 200, 5), 4))
        value = values[-1] if told else rng.choice(values)
        choices = [f"{v} cm" for v in rng.sample(values, 4)]
        answer = "ABCD"[choices.index(f"{value} cm")]
        return ask(number, "How high is the sofa, in centimetres?", choices, answer, "size_object")

    told = [height(number, told=True) for number in range(40)]
    assert set(levelled(told)) == {TOLD}
    fair = [height(number, told=False) for number in range(400)]
    assert Counter(levelled(fair))[SHIPS] > 360


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6), st.floats(0.3, 1.0))
def test_the_order_changes_nothing(seed: int, truth: float) -> None:
    rng = random.Random(seed)
    questions = [larger(rng, number, truth) for number in range(120)]
    ships = {q.id for q, why in zip(questions, levelled(questions), strict=True) if why != REPEATED}
    repeated = [q for q, why in zip(questions, levelled(questions), strict=True) if why == REPEATED]
    questions = [q for q in questions if q not in repeated]
    shuffled = rng.sample(questions, len(questions))
    one, two = (
        {q.id: REASONS[why] for q, why in zip(group, levelled(group), strict=True)} for group in (questions, shuffled)
    )
    assert one == two
    assert set(one) == ships


def test_phrasing_order_and_frames_change_no_meaning() -> None:
    first = ("compare_volumes", "Which has the larger bounding box by volume in these frames: the bed or the red cup?")
    again = (
        "compare_volumes",
        "Of the red cup and the bed in the video, which one takes up the larger box-shaped space?",
    )
    other = (
        "compare_volumes",
        "Of the red cup and the bed in the video, which one takes up the smaller box-shaped space?",
    )
    assert sense_of(*first) == ("TEMPLATES.", {"way": "larger", "a": "the bed", "b": "the red cup"})
    assert sense_of(*again) == ("TEMPLATES.", {"way": "larger", "a": "the red cup", "b": "the bed"})
    assert sense_of(*other) == ("TEMPLATES.", {"way": "smaller", "a": "the red cup", "b": "the bed"})
    assert sense_of("compare_volumes", "Is it big?") is None
    asked = [ask(4 * k, first[1] if k % 2 else again[1], ["bed", "red cup"], "A") for k in range(12)]
    assert set(levelled(asked)) == {TOLD}
    both = [*asked, *(ask(4 * k + 1, other[1], ["bed", "red cup"], "B") for k in range(12))]
    assert set(levelled(both)) == {TOLD}  # one of them is the larger, the other the smaller: told both ways
    fair = [q.model_copy(update={"answer": "AB"[k % 2]}) for k, q in enumerate(asked)]
    assert set(levelled(fair)) == {SHIPS}


def test_every_phrasing_of_every_type_has_a_sense() -> None:
    found = generate_questions(make_scene(2, 0), SpatialRecipe(questions_per_type=6))
    for question in found.questions:
        sense = sense_of(question.type, question.question)
        assert sense is not None, question.question
        assert not any("frame" in value for value in sense[1].values()), question.question


def test_a_question_asked_twice_of_the_same_pictures_ships_once() -> None:
    one = ask(0, "How many dogs are there?", None, "2", "track_count")
    again = one.model_copy(update={"id": "other", "scene_id": "other", "answer": "3"})
    elsewhere = again.model_copy(update={"frames": ["b.jpg"]})
    assert levelled([one, again, elsewhere]) == [SHIPS, REPEATED, SHIPS]


def test_no_type_takes_more_than_its_share_of_the_corpus() -> None:
    counts = {kind: 5 * k for k, kind in enumerate("abcdefghijklmnopqrst", start=1)}
    questions = [
        ask(1000 * k + i, f"{kind} {i}?", None, str(i), kind)
        for k, (kind, count) in enumerate(counts.items())
        for i in range(count)
    ]
    kept = Counter(q.type for q, why in zip(questions, levelled(questions, 0.06), strict=True) if why == SHIPS)
    assert max(kept.values()) <= 0.06 * kept.total()
    assert kept["a"] == 5


@given(st.lists(st.integers(0, 60), max_size=8), st.floats(0.1, 1.0))
def test_the_limit_of_a_type_is_the_greatest_that_holds(counts: list[int], share: float) -> None:
    limit = type_limit(counts, share)
    some = [count for count in counts if count]
    if not some or len(some) * share < 1:
        assert limit is None
    else:
        holds = [x for x in range(1, max(some) + 1) if x <= share * sum(min(count, x) for count in some)]
        assert limit == max(holds, default=1)
