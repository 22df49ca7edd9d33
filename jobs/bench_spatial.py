"""`ov2 bench spatial`: proofs, guessing and cost of spatial questions on procedural scenes; the numbers of docs/benchmarks.md.

Measured in one process: CPU seconds of making a scene, and of its questions (drafts and proofs) from the loaded scene. Every
question that ships is read back from JSON and proven once more on fresh evidence; on a share of the scenes each is also moved
just over the margin, and on as many the scene is written, read again (depth in whole millimetres) and its questions proven on
that.
"""

import argparse
import os
import platform
import resource
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path

from ov2_core.spatial.balance import balance
from ov2_core.spatial.blind import BlindScore, blind_scores
from ov2_core.spatial.checker import Evidence, UnprovableError, prove
from ov2_core.spatial.corpus import REASONS, SHIPS, CorpusRows
from ov2_core.spatial.generate import generate_questions
from ov2_core.spatial.mutate import mutations
from ov2_core.spatial.procedural import make_scene
from ov2_core.spatial.recipe import SpatialRecipe
from ov2_core.spatial.scene import Scene
from ov2_core.spatial.scene_files import read_scene, write_scene
from schemas.spatial import SpatialQuestion

BEGIN, END = "<!-- bench spatial: begin -->", "<!-- bench spatial: end -->"
PLANNED = 4_000_000


@dataclass(slots=True)
class Results:
    """What was counted."""

    num_scenes: int = 0
    num_proven: int = 0
    shipped: list[SpatialQuestion] = field(default_factory=list)
    dropped: Counter[str] = field(default_factory=Counter)
    num_disagreed: int = 0
    num_mutants: int = 0
    surviving: Counter[str] = field(default_factory=Counter)
    num_reread: int = 0
    num_reread_fell: Counter[str] = field(default_factory=Counter)
    scene_seconds: float = 0.0
    question_seconds: float = 0.0
    peak_rss_bytes: int = 0


def measure(num_scenes: int, seed: int, recipe: SpatialRecipe, *, every: int = 10) -> Results:
    """Runs it; `every`: scenes from one with mutants to the next."""
    results = Results(num_scenes=num_scenes)
    make_scene(seed, 0)  # compiles
    generate_questions(make_scene(seed, 0), recipe)
    pending: list[SpatialQuestion] = []
    for number in range(num_scenes):
        began = time.process_time()
        scene = make_scene(seed, number)
        made = time.process_time()
        found = generate_questions(scene, recipe)
        results.scene_seconds += made - began
        results.question_seconds += time.process_time() - made
        results.num_proven += len(found.questions)
        results.dropped.update(found.dropped)
        pending += found.questions
        fresh = Evidence(Scene(record=scene.record, depth_FHW=scene.depth_FHW, masks_FHW=scene.masks_FHW))
        results.num_disagreed += sum(not _holds(fresh, _again(question)) for question in found.questions)
        if number % every == 0:
            for question in found.questions:
                for mutant in mutations(fresh, question):
                    results.num_mutants += 1
                    results.surviving[question.type] += _holds(fresh, mutant)
            _reread(scene, found.questions, results)
        if number % recipe.scenes_per_shard == recipe.scenes_per_shard - 1 or number == num_scenes - 1:
            kept, fell = balance(pending, recipe)
            results.shipped += kept
            results.dropped.update(fell)
            pending = []
    rows = CorpusRows()
    for question in results.shipped:
        # Scenes in memory have no folders: their frames' paths are told apart by the scene, as a run's are.
        frames = [f"{question.scene_id}/{path}" for path in question.frames or []]
        rows.add(question.model_copy(update={"frames": frames}), SHIPS)
    reasons = rows.levelled(recipe.max_share).tolist()
    results.dropped.update(f"{q.type}: {REASONS[why]}" for q, why in zip(results.shipped, reasons, strict=True) if why)
    results.shipped = [q for q, why in zip(results.shipped, reasons, strict=True) if not why]
    results.peak_rss_bytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return results


def _again(question: SpatialQuestion) -> SpatialQuestion:
    return SpatialQuestion.model_validate_json(question.model_dump_json())


def _holds(evidence: Evidence, question: SpatialQuestion) -> bool:
    try:
        prove(evidence, question)
    except UnprovableError:
        return False
    return True


def _reread(scene: Scene, questions: list[SpatialQuestion], results: Results) -> None:
    with tempfile.TemporaryDirectory(prefix="ov2-scene-") as folder:
        write_scene(scene, folder)
        evidence = Evidence(read_scene(folder))
    for question in questions:
        results.num_reread += 1
        results.num_reread_fell[question.type] += not _holds(evidence, question)


def markdown(results: Results, scores: list[BlindScore], *, seed: int) -> str:
    """The section between the markers."""
    total = len(results.shipped)
    by_type = Counter(question.type for question in results.shipped)
    rate = results.num_proven / results.question_seconds
    per_scene = total / results.num_scenes
    scenes = PLANNED / per_scene
    cpu_hours = scenes * (results.scene_seconds + results.question_seconds) / results.num_scenes / 3600
    fell = results.num_reread_fell.total()
    lines = [
        BEGIN,
        "",
        f"Measured {date.today()} on {platform.machine()}, {os.cpu_count()} CPUs shared with other work, python "
        f"{platform.python_version()}; procedural:{results.num_scenes}?seed={seed}, 8 frames of 320 x 240.",
        "",
        "| what | measured |",
        "| --- | ---: |",
        f"| questions proven | {results.num_proven:,} |",
        f"| shipped after levelling, of shards and of the corpus | {total:,} |",
        f"| shipped questions that the checker does not agree with | {results.num_disagreed} |",
        f"| answers moved just over the margin | {results.num_mutants:,} |",
        f"| of these, not rejected | {results.surviving.total()} |",
        f"| questions proven again on scenes written and read | {results.num_reread - fell:,} of "
        f"{results.num_reread:,} |",
        f"| questions a second and core, from loaded scenes (drafts and proofs) | {rate:,.0f} |",
        f"| CPU seconds of a scene: making it, its questions | {results.scene_seconds / results.num_scenes:.3f}, "
        f"{results.question_seconds / results.num_scenes:.3f} |",
        f"| most frequent type | {max(by_type.values()) / total:.1%} |",
        f"| peak memory of the process, all shipped questions included | {results.peak_rss_bytes / 1e6:,.0f} MB |",
        f"| on paper: {PLANNED:,} questions | {scenes:,.0f} scenes, {cpu_hours:.1f} CPU hours |",
        "",
        "A blind solver (text alone; the best of a learned scorer, most frequent letter, most frequent text, middle number):",
        "",
        "| type | questions | share | with choices | chance | blind | excess |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    found = {score.type: score for score in scores}
    for kind, count in sorted(by_type.items()):
        score = found.get(kind)
        row = f"| {kind} | {count:,} | {count / total:.1%} |"
        if score is None:
            lines.append(f"{row} 0 | | | |")
        else:
            lines.append(
                f"{row} {score.num_questions:,} | {score.chance:.3f} | {score.accuracy:.3f} ({score.guesser}) "
                f"| {score.excess:+.3f} |"
            )
    lines += [
        "",
        "The most frequent reasons for which drafts and attempts fell:",
        "",
        "| type: reason | number |",
        "| --- | ---: |",
    ]
    lines += [f"| {reason} | {count:,} |" for reason, count in results.dropped.most_common(14)]
    return "\n".join([*lines, "", END])


def main(argv: list[str]) -> int:
    """Exit code 1 if a promise does not hold."""
    parser = argparse.ArgumentParser(
        prog="ov2 bench spatial", description=__doc__.partition("\n")[0] if __doc__ else None
    )
    parser.add_argument("--scenes", type=int, default=100, help="procedural scenes (1000 for the promises)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--markdown", type=Path, help="write the section between its markers of this file")
    arguments = parser.parse_args(argv)
    results = measure(arguments.scenes, arguments.seed, SpatialRecipe())
    scores = blind_scores(results.shipped)
    text = markdown(results, scores, seed=arguments.seed)
    print(text)
    if arguments.markdown is not None:
        page = arguments.markdown.read_text(encoding="utf-8")
        before, found, rest = page.partition(BEGIN)
        after = rest.partition(END)[2] if found else ""
        arguments.markdown.write_text(
            before.rstrip("\n") + "\n\n" + text + after if found else f"{page.rstrip()}\n\n{text}\n"
        )
    failed = []
    if results.num_disagreed or results.surviving.total():
        failed.append("the checker disagrees, or lets a wrong answer pass")
    if arguments.scenes >= 1000:
        failed += [f"{score.type} is guessed at {score.excess:+.3f}" for score in scores if score.excess > 0.03]
    print("\n".join(f"FAILED: {reason}" for reason in failed) or "all promises hold", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
