"""RUN/gallery.html: a few questions of each type with what they mean drawn over their frames, to check by eye.

Enters: a finished run. Leaves: one page that opens from disk. Boxes of named objects in yellow, points of the question in red, the
answer in green; beside questions of the room a bird's-eye map, world x to the right and y up, with cameras as arrows. What is drawn
is read from the question's text, by the checker's parser.
"""

import base64
import html
import io
from collections import defaultdict
from collections.abc import Iterator

import numpy as np
from PIL import Image

from ov2_core.data.tracking import parse_tracks
from ov2_core.spatial.checker.evidence import Evidence, UnprovableError
from ov2_core.spatial.checker.parse import Asked, read_question
from ov2_core.spatial.checker.places import in_text_order
from ov2_core.spatial.formats import LETTERS, parse_box, parse_points, parse_trace
from ov2_core.spatial.remote import read_scene_file
from ov2_core.spatial.run_files import iter_questions
from ov2_core.spatial.scene import Scene
from ov2_core.spatial.sources import open_source
from ov2_core.storage.commit import iter_commits
from ov2_core.storage.files import Store
from ov2_core.storage.layout import RUN_JSON
from schemas.run import RunRecord
from schemas.spatial import SpatialQuestion

GALLERY_HTML = "gallery.html"
MAX_FRAMES_SHOWN = 3
MAX_SCENES = 12
WIDTH_PX = 400
_EDGES = [(a, a | bit) for bit in (1, 2, 4) for a in range(8) if not a & bit]
_MAPPED = frozenset(
    {
        "distance_objects", "nearest_object", "distance_camera", "direction_standpoint", "imagined_viewpoint", "birds_eye",
        "order_appearance", "trace_3d", "object_motion", "camera_motion", "room_size", "relation_camera",
    }
)  # fmt: skip
_STYLE = """
body{font:15px/1.45 system-ui,sans-serif;margin:2rem auto;max-width:1320px;padding:0 1rem;background:#fff;color:#1b1b1b}
h2{margin:2.2rem 0 .6rem;font-size:1.15rem;border-bottom:1px solid #ddd}
.qa{display:flex;flex-wrap:wrap;gap:10px;margin:0 0 1.4rem}.qa p{flex-basis:100%;margin:.2rem 0}
figure{margin:0;position:relative}figure svg{position:absolute;inset:0}figcaption{font-size:12px;color:#555}
.right{color:#0a7d28;font-weight:600}.map{border:1px solid #ccc}
"""


def write_gallery(store: Store, *, per_type: int = 3) -> str | None:
    """Writes the page; returns its path or URL, or None where the run has no question."""
    chosen = choose(store, per_type)
    if not chosen:
        return None
    run = RunRecord.model_validate_json(store.read_bytes(RUN_JSON))
    source = open_source(run.manifest_uri)
    lines = {sample.id: sample.line for commit in iter_commits(store) for sample in commit.samples}
    sections: dict[str, list[str]] = defaultdict(list)
    by_scene: dict[str, list[SpatialQuestion]] = defaultdict(list)
    for question in chosen:
        by_scene[question.scene_id].append(question)
    for scene_id, questions in by_scene.items():
        scene = source.load(lines[scene_id] - 1)
        evidence = Evidence(scene)
        images = _Images(scene, source.text)
        for question in questions:
            sections[question.type].append(question_html(evidence, question, images))
    body = "".join(f"<h2>{html.escape(kind)}</h2>{''.join(parts)}" for kind, parts in sorted(sections.items()))
    page = (
        f"<!doctype html><meta charset=utf-8><title>Spatial questions</title><style>{_STYLE}</style>"
        f"<h1>Spatial questions</h1><p>{html.escape(run.manifest_uri)}</p>{body}"
    )
    store.write_bytes(GALLERY_HTML, page.encode())
    return store.url(GALLERY_HTML)


def choose(store: Store, per_type: int) -> list[SpatialQuestion]:
    """Questions of each type, from different scenes where there are, and from few scenes in all."""
    found: dict[str, list[SpatialQuestion]] = defaultdict(list)
    scenes: set[str] = set()
    for question in iter_questions(store):
        if question.scene_id not in scenes and len(scenes) >= MAX_SCENES:
            continue
        scenes.add(question.scene_id)
        group = found[question.type]
        if len(group) < per_type and all(question.scene_id != other.scene_id for other in group):
            group.append(question)
    return [question for group in found.values() for question in group]


def question_html(evidence: Evidence, question: SpatialQuestion, images: "_Images") -> str:
    """One question with its pictures."""
    asked = read_question(evidence, question)
    if question.choices is None:
        answer = f"<span class=right>{html.escape(question.answer)}</span>"
    else:
        answer = " &nbsp; ".join(
            f"<span class={'right' if letter == question.answer else 'other'}>{letter}. {html.escape(choice)}</span>"
            for letter, choice in zip(LETTERS, question.choices, strict=False)
        )
    figures = "".join(
        f"<figure>{images.html(frame)}{_overlay(asked, question, frame)}"
        f"<figcaption>frame {asked.frames.index(frame) + 1} of {len(asked.frames)}</figcaption></figure>"
        for frame in _shown(asked)
    )
    if question.type in _MAPPED and evidence.scene.has_geometry:
        figures += f"<figure>{map_svg(asked)}<figcaption>bird's-eye map</figcaption></figure>"
    head = f"<p><b>{html.escape(question.question)}</b><br>{answer} <small>({question.difficulty}, {question.id})</small></p>"
    return f"<div class=qa>{head}{figures}</div>"


def _shown(asked: Asked) -> list[int]:
    """Frames that the text names first, then others evenly."""
    try:
        named = list(dict.fromkeys(asked.named_frames))
    except UnprovableError:
        named = []
    rest = [frame for frame in asked.frames if frame not in named]
    step = max(1, len(rest) // MAX_FRAMES_SHOWN)
    return sorted([*named, *rest[::step]][:MAX_FRAMES_SHOWN], key=asked.frames.index)


class _Images:
    """Frames of a scene as data URLs, each once."""

    def __init__(self, scene: Scene, root: str) -> None:
        self.scene, self.root = scene, root
        self.height = round(WIDTH_PX * scene.record.height_px / scene.record.width_px)

    def html(self, frame: int) -> str:
        scene = self.scene
        if scene.rgb_FHW3 is not None:
            image = Image.fromarray(scene.rgb_FHW3[frame])
        else:
            path = scene.record.frames[frame].rgb
            try:
                image = Image.open(io.BytesIO(read_scene_file(scene.folder or ".", path))).convert("RGB")
            except OSError:
                image = Image.new("RGB", (8, 6), (210, 210, 210))
        out = io.BytesIO()
        image.resize((WIDTH_PX, self.height)).save(out, "JPEG", quality=82)
        data = base64.b64encode(out.getvalue()).decode()
        return f'<img width={WIDTH_PX} height={self.height} src="data:image/jpeg;base64,{data}">'


def _overlay(asked: Asked, question: SpatialQuestion, frame: int) -> str:
    record = asked.evidence.record
    height = WIDTH_PX * record.height_px / record.width_px
    shapes = [*_boxes(asked, frame)]
    for (x, y), at, color, text in _marks(asked, question):
        if at == frame:
            shapes.append(_circle(x * WIDTH_PX, y * height, color, text))
    if question.type == "box_object":
        x1, y1, x2, y2 = (v / 1000 * s for v, s in zip(parse_box(question.answer), (WIDTH_PX, height) * 2, strict=True))
        shapes.append(
            f'<rect x="{x1:.1f}" y="{y1:.1f}" width="{x2 - x1:.1f}" height="{y2 - y1:.1f}" {_stroke("#00d84a")}/>'
        )
    if question.type == "trace_3d" and frame == asked.named_frames[0]:
        points = [(x / 1000 * WIDTH_PX, y / 1000 * height) for x, y, _ in parse_trace(question.answer)]
        shapes.append(f'<polyline points="{_path(points)}" {_stroke("#00d84a")}/>')
        shapes += [_circle(x, y, "#00d84a", "", radius=3) for x, y in points]
    return f'<svg viewBox="0 0 {WIDTH_PX} {height:.0f}" width={WIDTH_PX} height={height:.0f}>{"".join(shapes)}</svg>'


def _boxes(asked: Asked, frame: int) -> Iterator[str]:
    """Edges of the named objects' boxes in a frame."""
    scene = asked.evidence.scene
    if not scene.has_geometry:
        return
    names = list(dict.fromkeys(asked.things))
    for choice in asked.choices or []:
        names += [n for n, name in scene.names.items() if name == choice]
    for number in names:
        thing = scene.objects[number]
        center = scene.track_centers(number)[frame] if thing.moving else None
        if thing.box is None or (thing.moving and center is None):
            continue
        xy, depth = scene.project_world(frame, asked.evidence.corners(number, center=center))
        if depth.min() < 0.1 or not np.isfinite(xy).all():
            continue
        xy = xy / scene.record.width_px * WIDTH_PX
        for a, b in _EDGES:
            (x1, y1), (x2, y2) = xy[a], xy[b]
            yield f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="#ffd400" stroke-width="1.2"/>'
        left, top = xy.min(axis=0)
        yield _label(max(2.0, left), max(11.0, top - 3), scene.names.get(number, thing.label), "#ffd400")


Mark = tuple[tuple[float, float], int, str, str]


def _marks(asked: Asked, question: SpatialQuestion) -> Iterator[Mark]:
    """((x, y) as shares of the image, frame, colour, text) of points of the question and the answer."""
    kind = question.type
    if kind in ("depth_point", "correspondence", "visible_occluded", "same_object"):
        frames = asked.named_frames if len(asked.named_frames) < 2 else list(in_text_order(asked))
        for frame, (x, y) in zip(frames, asked.points, strict=False):
            yield (x / 1000, y / 1000), frame, "#ff3030", ""
        if kind == "correspondence":
            for letter, choice in zip(LETTERS, question.choices or [question.answer], strict=False):
                text = choice if choice.startswith("[") else f"[{choice}]"
                right = question.choices is None or letter == question.answer
                for x, y in parse_points(text):
                    label = letter if question.choices else ""
                    yield (x / 1000, y / 1000), frames[1], "#00d84a" if right else "#4aa3ff", label
    elif kind in ("point_object", "free_space"):
        for x, y in parse_points(question.answer):
            yield (x / 1000, y / 1000), asked.frames[0], "#00d84a", ""
    elif kind == "track_object":
        times = [f"{frame.time_seconds:.1f}" for frame in asked.evidence.record.frames]
        for point in parse_tracks(question.answer):
            yield (point.x / 1000, point.y / 1000), times.index(f"{point.seconds:.1f}"), "#00d84a", "1"


def map_svg(asked: Asked, *, side_px: int = 300) -> str:
    """The room from above: footprints, the named objects filled, the cameras of the named frames as arrows."""
    evidence = asked.evidence
    scene = evidence.scene
    boxes = {t.id: evidence.corners(t.id)[:, :2] for t in evidence.record.objects if t.box is not None}
    room = evidence.record.room
    outline = np.array(room.floor_polygon_xy_m) if room else np.zeros((0, 2))
    eyes = np.stack([evidence.eye(frame)[:2] for frame in asked.frames])
    everything = np.concatenate([outline, eyes, *boxes.values()])
    low, high = everything.min(axis=0) - 0.3, everything.max(axis=0) + 0.3
    scale = side_px / float((high - low).max())

    def at(point: "np.ndarray[tuple[int, ...], np.dtype[np.float64]]") -> tuple[float, float]:
        return float((point[0] - low[0]) * scale), float((high[1] - point[1]) * scale)

    shapes = []
    if len(outline):
        shapes.append(f'<polygon points="{_path([at(p) for p in outline])}" fill="#faf7f0" stroke="#888"/>')
    names = list(dict.fromkeys(asked.things))
    for number, corners in boxes.items():
        ring = [corners[k] for k in (0, 2, 6, 4)]
        fill = "#ffd40099" if number in names else "#dddddd88"
        shapes.append(f'<polygon points="{_path([at(p) for p in ring])}" fill="{fill}" stroke="#777"/>')
    for number in [*names, *(n for n, name in scene.names.items() if name in (asked.choices or []))]:
        x, y = at(boxes[number].mean(axis=0))
        shapes.append(_label(x - 10, y, scene.names[number], "#222", halo="#fff"))
    try:
        shown = list(dict.fromkeys(asked.named_frames))
    except UnprovableError:
        shown = asked.frames[:1]
    for frame in shown:
        eye, ahead = evidence.eye(frame)[:2], evidence.axis(frame, 2)[:2]
        (x1, y1), (x2, y2) = at(eye), at(eye + ahead / np.linalg.norm(ahead) * 0.7)
        shapes.append(f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" {_stroke("#d02020")}/>')
        shapes.append(_circle(x1, y1, "#d02020", "", radius=4))
        shapes.append(_label(x1 + 6, y1 - 5, f"{asked.frames.index(frame) + 1}", "#d02020", halo="#fff"))
    if len(names) >= 3 and ("fac" in asked.text or "looking towards" in asked.text):
        a, b = (at(boxes[n].mean(axis=0)) for n in names[:2])
        shapes.append(f'<line x1="{a[0]:.1f}" y1="{a[1]:.1f}" x2="{b[0]:.1f}" y2="{b[1]:.1f}" {_stroke("#1060d0")}/>')
    width, height = (float(v) for v in (high - low) * scale)
    return (
        f'<svg class=map style="position:static" viewBox="0 0 {width:.0f} {height:.0f}" width={width:.0f} '
        f"height={height:.0f}>{''.join(shapes)}</svg>"
    )


def _stroke(color: str) -> str:
    return f'fill="none" stroke="{color}" stroke-width="2"'


def _path(points: list[tuple[float, float]]) -> str:
    return " ".join(f"{x:.1f},{y:.1f}" for x, y in points)


def _circle(x: float, y: float, color: str, text: str, *, radius: float = 5) -> str:
    shape = f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{radius}" fill="{color}" stroke="#fff"/>'
    return shape + (_label(x + 6, y - 5, text, color) if text else "")


def _label(x: float, y: float, text: str, color: str, *, halo: str = "#000") -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" font-size="11" font-family="sans-serif" fill="{color}" stroke="{halo}" '
        f'stroke-width="2.5" paint-order="stroke">{html.escape(text)}</text>'
    )
