"""What a tokenization is asked to do: frozen dataclasses, validated when made, and the named recipes.

A recipe name ends in its budget: codec-384 (published method, policy saliency), evidence-384 (hold-DP), uniform-32; codec-384-fast
and evidence-384-fast cost less and tell a little less; then uniform-auto (8, 16 or the maximum by length), stills, and
authors-legacy-32 (places as codec-video-prep chooses them).
`with_overrides(config, {"policy": "evidence"})` is what the command line's `--set key=value` calls; the digest of the resolved
config identifies the run.
"""

import dataclasses
import hashlib
import json
import math
import re
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Literal, TypeVar, cast

from ov2_core.filters.config import FilterConfig

Mode = Literal["codec", "uniform", "still"]
Policy = Literal["saliency", "evidence", "legacy"]
LegacyGrouping = Literal["fixed", "readiness"]
Normalisation = Literal["frame", "clip"]
Subsampling = Literal["4:2:0", "4:4:4"]
Decoder = Literal["software", "cuda"]
_Config = TypeVar("_Config")
_FIXED = ("recipe", "name", "version")
"""Fields that say which recipe a config is."""


@dataclass(frozen=True, kw_only=True, slots=True)
class GroupConfig:
    """GOP partition (tokenizer/gop.py)."""

    canvases_per_group: int = 4
    """1 I-canvas + P P-canvases. Released readers attend in windows of 4."""
    max_canvases_per_group: int = 0
    """Neighbouring groups become one, up to this many canvases, unless a spike divides them: 8 mixes 1 I + 3 P with 1 I + 7 P.
    0: none do."""
    min_frames: int = 4
    """Fewest source frames in a group."""
    uniform_share: float = 0.5
    """Weight of elapsed time against cumulative bit cost in the placing of boundaries."""
    median_window_frames: int = 61
    """Window of the local median that replaces keyframes' sizes and defines a spike."""
    spike_ratio: float = 4.0
    """A boundary snaps to a frame whose cost exceeds this multiple of the local median."""
    snap_share: float = 0.125
    """How far a boundary may move, as a share of the mean group length."""

    def __post_init__(self) -> None:
        if self.canvases_per_group < 2:
            raise ValueError(
                f"groups.canvases_per_group must be >= 2 (1 I + at least 1 P), got {self.canvases_per_group}"
            )
        if self.max_canvases_per_group and self.max_canvases_per_group < self.canvases_per_group:
            raise ValueError(
                f"groups.max_canvases_per_group must be >= groups.canvases_per_group ({self.canvases_per_group}) or 0, "
                f"got {self.max_canvases_per_group}"
            )
        if self.min_frames < self.canvases_per_group:
            raise ValueError(
                f"groups.min_frames must be >= groups.canvases_per_group ({self.canvases_per_group}), got {self.min_frames}: "
                "a group needs one source frame a canvas to be filled without padding"
            )
        if not 0 <= self.uniform_share <= 1:
            raise ValueError(f"groups.uniform_share must be in [0, 1], got {self.uniform_share}")
        if not 3 <= self.median_window_frames <= 9999 or self.median_window_frames % 2 == 0:
            raise ValueError(f"groups.median_window_frames must be odd and in 3..9999, got {self.median_window_frames}")
        if not 1 < self.spike_ratio < math.inf:
            raise ValueError(
                f"groups.spike_ratio must be > 1 and finite, got {self.spike_ratio}; groups.snap_share 0 switches snapping off"
            )
        if not 0 <= self.snap_share < 0.5:
            raise ValueError(f"groups.snap_share must be in [0, 0.5), got {self.snap_share}")


@dataclass(frozen=True, kw_only=True, slots=True)
class ScoreConfig:
    """Block scores (tokenizer/score.py): motion_weight * mv + residual_weight * res + intra_weight * intra."""

    motion_weight: float = 0.25
    residual_weight: float = 1.0
    intra_weight: float = 0.5
    normalisation: Normalisation = "frame"
    """"frame": each map by its 95th percentile in the frame (published). "clip": by its 99th over the candidates of the group,
    which tells more of most clips (docs/tokenizer.md)."""

    def __post_init__(self) -> None:
        names = ("motion_weight", "residual_weight", "intra_weight")
        for name in names:
            if not 0 <= getattr(self, name) <= 1e6:
                raise ValueError(f"score.{name} must be in 0..1e6, got {getattr(self, name)}")
        if not any(getattr(self, name) for name in names):
            raise ValueError(f"one of {', '.join(f'score.{name}' for name in names)} must be > 0, got 0 for all")
        _one_of("score.normalisation", self.normalisation, Normalisation)


@dataclass(frozen=True, kw_only=True, slots=True)
class EvidenceConfig:
    """Hold-DP (tokenizer/blocks.py, policy "evidence")."""

    structure_share: float = 0.3
    """How much lost structure (1 - SSIM^2 of a block) counts beside squared error: 0..1."""
    event_period_seconds: float = 0.23
    """Regions are forced in frames at least so far apart, single blocks in frames half as far. 0 switches forced events off."""
    event_smoothing_seconds: float = 0.12
    """Sigma of the Gaussian over time that activity is averaged with before events are looked for. 0: none."""
    event_blocks: int = 1
    """Blocks forced in every event frame, all from one frame."""
    event_region_blocks: int = 14
    """In the strong ones as many, as far as max_event_share goes."""
    event_contrast: float = 3.0
    """How much more than the median of its frame a region must move to be an event. 0: something is forced in every period."""
    event_strength: float = 0.7
    """Weaker events than this share of the group's strong ones have no region. 0: all have."""
    max_event_share: float = 0.6
    """Share of a group's budget that forced blocks may take; past it the weakest events lose theirs."""
    max_torn_event_share: float = 0.4
    """The same where all moves, so that what is left would be torn."""

    def __post_init__(self) -> None:
        for name in ("structure_share", "event_strength", "max_event_share", "max_torn_event_share"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"evidence.{name} must be in [0, 1], got {getattr(self, name)}")
        if not 0 <= self.event_period_seconds < math.inf:
            raise ValueError(
                f"evidence.event_period_seconds must be >= 0 and finite, got {self.event_period_seconds}; 0 forces no events"
            )
        for name in ("event_smoothing_seconds", "event_contrast"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"evidence.{name} must be >= 0 and finite, got {getattr(self, name)}")
        if self.event_blocks < 1:
            raise ValueError(f"evidence.event_blocks must be >= 1, got {self.event_blocks}")
        if self.event_region_blocks < self.event_blocks:
            raise ValueError(
                f"evidence.event_region_blocks must be >= evidence.event_blocks ({self.event_blocks}), "
                f"got {self.event_region_blocks}"
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenizerConfig:
    """One tokenization: input mode, budget, sizes."""

    mode: Mode = "codec"
    policy: Policy = "saliency"
    budget: int = 32
    """Canvases (codec) or frames (uniform); cut to what a short clip has. 0 with mode uniform: 8, 16 or max_frames by length."""
    frames_by_seconds: tuple[tuple[float, int], ...] = ((8.0, 8), (16.0, 16))
    """For uniform-auto: (clips shorter than, frames), ascending; longer clips get max_frames."""
    max_frames: int = 384
    area_px: int = 392 * 392
    """Largest canvas or frame area; smaller sources are not enlarged."""
    still_area_px: int = 1792 * 1792
    """The same for stills, which otherwise keep their native size."""
    patch_px: int = 14
    merge: int = 2
    max_candidates: int = 96
    """Frames of a group whose pixels are kept while it is open; bounds memory for long groups."""
    saliency_candidates_per_canvas: int = 8
    """The same for policy "saliency", per canvas: choosing among fewer frames keeps the blocks of one event together."""
    keyframe_reach: float = 0.25
    """Uniform mode, long clips: a sample moves by at most this share of the sampling step, to a keyframe or else towards the one
    before it, which saves decoding where samples are about as far apart as keyframes. 0: samples stay at equal steps."""
    keyframe_reach_min_seconds: float = 300.0
    """How long a clip must be for that; the samples of shorter ones stay at equal steps."""
    max_step_seconds: float = 0.1
    """Codec mode: frames that no other frame needs are not decoded where what is left is at most this far apart. 0: decode all."""
    short_groups_whole: bool = True
    """Codec mode: all frames of a group are looked at that would have fewer than two left for each of its canvases. False: it has
    shorter steps, which is cheaper at budgets that are large for the clip, and loses detail there."""
    codec_vectors: bool = True
    """Policy "saliency": motion comes from the codec's vectors where it gives any. False: always from block matching."""
    loop_filter: bool = True
    """Codec mode: False decodes H.264 and HEVC without their loop filters. That saves time, and pixels drift a little from what the
    encoder meant until the next keyframe."""
    decoder: Decoder = "software"
    """Codec and uniform mode: "cuda" decodes on an NVIDIA GPU what that can (media/hardware.py), policy "legacy" aside."""
    jpeg_quality: int = 95
    jpeg_subsampling: Subsampling = "4:2:0"
    legacy_grouping: LegacyGrouping = "fixed"
    """Policy "legacy": groups of equal length; or by what their blocks score, where the budget is the most that can come of it."""
    max_source_px: int = 8192 * 8192
    """Larger sources are refused before decoding."""
    timestamp_decimal: int = 1
    groups: GroupConfig = field(default_factory=GroupConfig)
    score: ScoreConfig = field(default_factory=ScoreConfig)
    evidence: EvidenceConfig = field(default_factory=EvidenceConfig)

    def __post_init__(self) -> None:
        _one_of("mode", self.mode, Mode)
        _one_of("policy", self.policy, Policy)
        _one_of("decoder", self.decoder, Decoder)
        _one_of("legacy_grouping", self.legacy_grouping, LegacyGrouping)
        _one_of("jpeg_subsampling", self.jpeg_subsampling, Subsampling)
        for name in ("patch_px", "merge", "max_frames", "max_source_px"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be >= 1, got {getattr(self, name)}")
        if self.patch_px % 2:
            raise ValueError(f"patch_px must be even (canvases keep colour at half resolution), got {self.patch_px}")
        for name in ("area_px", "still_area_px"):
            if getattr(self, name) < self.block_px**2:
                raise ValueError(
                    f"{name} must hold one block of patch_px * merge = {self.block_px} px ({self.block_px**2}), "
                    f"got {getattr(self, name)}"
                )
        if self.mode == "codec" and self.budget < self.groups.canvases_per_group:
            raise ValueError(
                f"budget must be >= groups.canvases_per_group ({self.groups.canvases_per_group}) for mode codec, got {self.budget}"
            )
        if self.legacy_grouping == "readiness" and self.groups.canvases_per_group > 8:
            raise ValueError(
                f"groups.canvases_per_group must be <= 8 for legacy_grouping readiness, whose groups may have 8 frames, "
                f"got {self.groups.canvases_per_group}"
            )
        if self.budget < 0:
            raise ValueError(f"budget must be > 0 (or 0 with mode uniform: by frames_by_seconds), got {self.budget}")
        limits = [0.0, *(limit for limit, _ in self.frames_by_seconds), math.inf]
        if any(not low < high for low, high in pairwise(limits)) or any(n < 1 for _, n in self.frames_by_seconds):
            raise ValueError(
                f"frames_by_seconds must be (seconds, frames) pairs, seconds ascending from above 0 and finite, frames >= 1, "
                f"got {self.frames_by_seconds}"
            )
        if self.max_candidates < self.groups.min_frames:
            raise ValueError(
                f"max_candidates must be >= groups.min_frames ({self.groups.min_frames}), got {self.max_candidates}"
            )
        if self.saliency_candidates_per_canvas < 1:
            raise ValueError(f"saliency_candidates_per_canvas must be >= 1, got {self.saliency_candidates_per_canvas}")
        if not 0 <= self.keyframe_reach < 0.5:
            raise ValueError(f"keyframe_reach must be in [0, 0.5), got {self.keyframe_reach}")
        if not self.keyframe_reach_min_seconds >= 0:
            raise ValueError(f"keyframe_reach_min_seconds must be >= 0, got {self.keyframe_reach_min_seconds}")
        if not 0 <= self.max_step_seconds < math.inf:
            raise ValueError(
                f"max_step_seconds must be >= 0 and finite, got {self.max_step_seconds}; 0 decodes every frame"
            )
        if not 1 <= self.jpeg_quality <= 100:
            raise ValueError(f"jpeg_quality must be in 1..100, got {self.jpeg_quality}")
        if not 0 <= self.timestamp_decimal <= 6:
            raise ValueError(f"timestamp_decimal must be in 0..6, got {self.timestamp_decimal}")

    @property
    def block_px(self) -> int:
        """Side of a merged block: patch_px * merge."""
        return self.patch_px * self.merge

    @property
    def reads_vectors(self) -> bool:
        """Whether motion comes from the codec where it gives any: the published method. "evidence" always matches blocks."""
        return self.policy == "saliency" and self.codec_vectors

    def most_candidates(self, num_canvases: int) -> int:
        """Most frames of a group of so many canvases that blocks are chosen from, its first included."""
        if self.policy == "evidence":
            return self.max_candidates
        sampled = self.saliency_candidates_per_canvas * num_canvases
        return min(self.max_candidates, max(sampled, self.groups.min_frames))

    @property
    def token_budget(self) -> int:
        """Merged tokens of a clip that is long and large enough: budget x tokens of a full-area canvas."""
        return (self.budget or self.max_frames) * (self.area_px // self.block_px**2)


@dataclass(frozen=True, kw_only=True, slots=True)
class StreamConfig:
    """Streams (tokenizer/stream.py), beside a TokenizerConfig of mode "codec" whose budget does not count."""

    canvases_per_minute: float = 60.0
    burst_groups: int = 2
    """Groups that may be given ahead of the rate, and that a quiet time can save up."""
    cost_memory_seconds: float = 60.0
    """Over how long the running mean of the bit cost fades to 1 / e."""
    max_reach_seconds: float = 0.5
    """A boundary snaps to a spike at most this far, and is decided this much later. Also bound by groups.snap_share."""
    max_gap_seconds: float = 2.0
    """A group does not run across a longer gap between two frames."""
    max_jump_seconds: float = 3600.0
    """A longer jump ahead, like any jump back, is a new clock and not time that went by."""

    def __post_init__(self) -> None:
        for name in ("canvases_per_minute", "cost_memory_seconds", "max_gap_seconds", "max_jump_seconds"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be > 0 and finite, got {getattr(self, name)}")
        if self.burst_groups < 1:
            raise ValueError(
                f"burst_groups must be >= 1 (less than one group could never be paid), got {self.burst_groups}"
            )
        if not 0 <= self.max_reach_seconds <= 0.75:
            raise ValueError(
                f"max_reach_seconds must be in [0, 0.75] (a group is emitted within 2 s), got {self.max_reach_seconds}"
            )
        if self.max_jump_seconds <= self.max_gap_seconds:
            raise ValueError(
                f"max_jump_seconds must be > max_gap_seconds ({self.max_gap_seconds}), got {self.max_jump_seconds}"
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class ShardConfig:
    """How samples are gathered into tars."""

    target_bytes: int = 256 << 20
    """A shard is closed before its predicted size passes this."""
    max_samples: int = 512

    def __post_init__(self) -> None:
        if self.target_bytes < 1 or self.max_samples < 1:
            raise ValueError(f"shards.target_bytes and shards.max_samples must be >= 1, got {self}")


@dataclass(frozen=True, kw_only=True, slots=True)
class TextConfig:
    """How a row's caption becomes messages."""

    video_prompt: str = "Describe this video in detail."
    image_prompt: str = "Describe this image in detail."


@dataclass(frozen=True, kw_only=True, slots=True)
class RunConfig:
    """All that decides the rows and bytes of a run's shards. Workers, addresses and deadlines do not, and stand elsewhere."""

    recipe: str
    tokenizer: TokenizerConfig = field(default_factory=TokenizerConfig)
    shards: ShardConfig = field(default_factory=ShardConfig)
    text: TextConfig = field(default_factory=TextConfig)
    filter: FilterConfig = field(default_factory=FilterConfig)


def _one_of(name: str, value: str, kind: Any) -> None:
    if value not in typing.get_args(kind):
        raise ValueError(f"{name} must be one of {', '.join(typing.get_args(kind))}, got {value!r}")


FAST: dict[str, Any] = {
    "max_step_seconds": 0.134,
    "short_groups_whole": False,
    "codec_vectors": False,
    "loop_filter": False,
}
"""What the recipes named -fast set: every fourth frame of 30 a second, every third of 25 is looked at (docs/tokenizer.md)."""


def recipe(name: str) -> RunConfig:
    """The whole config of a named recipe: codec-N, evidence-N (either also with -fast), uniform-N, uniform-auto, stills or
    authors-legacy-N.

    Raises:
        ValueError: the name is none of these, or the budget cannot be met.
    """
    if name == "stills":
        return RunConfig(recipe=name, tokenizer=TokenizerConfig(mode="still"))
    if name == "uniform-auto":
        return RunConfig(recipe=name, tokenizer=TokenizerConfig(mode="uniform", budget=0))
    match = re.fullmatch(r"(codec|evidence|uniform|authors-legacy)-([1-9]\d{0,5})(-fast)?", name)
    if match is None or (match[3] and match[1] in ("uniform", "authors-legacy")):
        raise ValueError(
            f"unknown recipe {name!r}; expected codec-N, evidence-N, codec-N-fast, evidence-N-fast, uniform-N, uniform-auto, "
            "stills or authors-legacy-N (N >= 1)"
        )
    kind, budget, fast = match[1], int(match[2]), FAST if match[3] else {}
    if kind == "uniform":
        return RunConfig(recipe=name, tokenizer=TokenizerConfig(mode="uniform", budget=budget))
    policies: dict[str, Policy] = {"codec": "saliency", "evidence": "evidence", "authors-legacy": "legacy"}
    return RunConfig(recipe=name, tokenizer=TokenizerConfig(mode="codec", policy=policies[kind], budget=budget, **fast))


def with_overrides(config: RunConfig, overrides: Mapping[str, str]) -> RunConfig:
    """A copy with fields set from strings. Keys are dotted; a tokenizer field may leave "tokenizer." out.

    Raises:
        ValueError: an unknown key (the message lists the valid ones) or a value of another type.
    """
    roots = {f.name for f in dataclasses.fields(RunConfig)}
    settings = []
    for key, text in overrides.items():
        path = key.split(".")
        settings.append(_Setting(key, path if path[0] in roots else ["tokenizer", *path], text))
    return _set_all(config, settings)


def with_settings(config: _Config, settings: Sequence[str]) -> _Config:
    """A copy of any frozen config with fields set from "a.b=value" texts.

    Raises:
        ValueError: no "=", an unknown key (the valid ones are listed), or a value of another type.
    """
    parsed = []
    for text in settings:
        key, equals, value = text.partition("=")
        if not equals or not key:
            raise ValueError(f"--set expects key=value, got {text!r}")
        parsed.append(_Setting(key.strip(), key.strip().split("."), value))
    return _set_all(config, parsed)


class _Setting(typing.NamedTuple):
    key: str
    """As it was written."""
    path: list[str]
    """What is left of it below the node in hand."""
    text: str


def _set_all(node: _Config, settings: Sequence[_Setting]) -> _Config:
    """All fields of a node at once, so that it is validated once, whatever the order. Of one field the last setting counts."""
    names = [f.name for f in dataclasses.fields(cast(Any, node))]
    values: dict[str, Any] = {}
    below: dict[str, list[_Setting]] = {}
    for setting in settings:
        name, rest = setting.path[0], setting.path[1:]
        if name not in names or (not rest and name in _FIXED):
            valid = ", ".join(n for n in names if n not in _FIXED)
            raise ValueError(f"--set {setting.key}: no such field {name!r}; valid here: {valid}")
        value = getattr(node, name)
        if rest and not dataclasses.is_dataclass(value):
            raise ValueError(f"--set {setting.key}: {name!r} has no fields")
        if rest:
            below.setdefault(name, []).append(setting._replace(path=rest))
            continue
        if dataclasses.is_dataclass(value):
            fields = ", ".join(f.name for f in dataclasses.fields(value))
            raise ValueError(f"--set {setting.key}: name one of its fields: {fields}")
        values[name] = _parse(setting.text, typing.get_type_hints(type(node))[name], setting.key)
    values |= {name: _set_all(getattr(node, name), part) for name, part in below.items()}
    return cast(_Config, dataclasses.replace(cast(Any, node), **values))


def _parse(text: str, hint: Any, key: str) -> Any:
    origin = typing.get_origin(hint)
    if origin is Literal:
        if text not in typing.get_args(hint):
            raise ValueError(f"--set {key}: expected one of {', '.join(map(str, typing.get_args(hint)))}, got {text!r}")
        return text
    if hint is str:
        return text
    if type(None) in typing.get_args(hint):
        return None if text == "none" else _parse(text, typing.get_args(hint)[0], key)
    try:
        if hint is bool:
            return {"true": True, "false": False}[text]
        if hint is int:
            return int(text)
        if hint is float:
            return float(text)
        if origin in (tuple, types.GenericAlias):
            return tuple((float(a), int(b)) for a, b in json.loads(text))
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f"--set {key}: cannot read {text!r} as {hint}: {error}") from None
    raise ValueError(f"--set {key}: fields of type {hint} cannot be set from the command line")


def to_dict(config: Any) -> dict[str, Any]:
    """The config as plain JSON types."""
    result: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(config)))
    return result


def digest(config: Any) -> str:
    """sha256 (first 16 hex digits) of the canonical JSON of a config."""
    return hashlib.sha256(json.dumps(to_dict(config), sort_keys=True).encode()).hexdigest()[:16]
