"""Stage recipes stage1 .. stage4: the published mixtures, as far as they are published.

A source's weight is its published size unless the sources file says otherwise. What is our own choice says so. Frame budgets are
at 392 x 392 px of area: at most 196 merged tokens a frame or canvas.
"""

from collections.abc import Callable

from ov2_core.data.stage_config import Slot, StageConfig

K, M = 1_000, 1_000_000


def stage(name: str) -> StageConfig:
    """Raises ValueError for an unknown name."""
    if name not in STAGES:
        raise ValueError(f"unknown stage recipe {name!r}; expected one of {', '.join(STAGES)}")
    return STAGES[name]()


def stage1() -> StageConfig:
    """Mid-training: image-text pairs, and captions of clips of up to 30 s at 30 frames."""
    return StageConfig(
        name="stage1",
        version=1,
        sequence_length=32_768,
        slots=(
            Slot(name="image-text", importers=("manifest", "llava-instruct", "finevision"), published_count=85 * M),
            captions("captions-30s", count=4_200 * K, frames=30),
        ),
    )


def stage2() -> StageConfig:
    """Instructions on stills, and captions of clips of 30 to 180 s at 60 and 90 frames."""
    return StageConfig(
        name="stage2",
        version=1,
        sequence_length=32_000,
        slots=(
            *still_instructions(),
            captions("captions-60s", count=2_700 * K, frames=60),
            captions("captions-180s", count=700 * K, frames=90),
        ),
    )


def stage3() -> StageConfig:
    """Video instructions, and captions of clips of 10 to 15 minutes at 384 frames."""
    return StageConfig(
        name="stage3",
        version=1,
        sequence_length=73_728,
        slots=(
            *still_instructions(),
            video("llava-video-178k", importer="llava-video", count=1_600 * K, frames=384),
            video("videochat-flash", importer="videochat-flash", count=None, frames=384),
            captions("captions-10min", count=350 * K, frames=384),
        ),
    )


def stage4() -> StageConfig:
    """Tracking, pointing, space, and the long captions again: as 384 codec canvases and as 768 frames.

    The length of its sequences is not published. 147,456 (twice stage 3's) is ours: 768 frames of 16:9 take about 146,000 tokens.
    """
    return StageConfig(
        name="stage4",
        version=1,
        sequence_length=147_456,
        slots=(
            *still_instructions(),
            video("molmo2-videotrack", importer="molmo2-track", count=None, frames=384),
            video("molmo2-videopoint", importer="molmo2-point", count=None, frames=384),
            Slot(
                name="captions-10min-codec",
                importers=("captions", "token-shards"),
                published_count=350 * K,
                video_modes=("codec",),
                max_images=384,
                tokenize_recipe="codec-384",
            ),
            captions("captions-10min-768", count=350 * K, frames=768),
            Slot(
                name="spatial",
                importers=("spatial-qa",),
                published_count=4 * M,
                video_modes=("uniform", "codec"),
                max_images=384,
                tokenize_recipe="uniform-384",
            ),
        ),
    )


STAGES: dict[str, Callable[[], StageConfig]] = {"stage1": stage1, "stage2": stage2, "stage3": stage3, "stage4": stage4}


def still_instructions() -> tuple[Slot, Slot]:
    """The two instruction sets of stills that stages 2 to 4 share."""
    return (
        Slot(name="llava-onevision-instruct", importers=("llava-instruct",), published_count=22 * M),
        Slot(name="finevision", importers=("finevision",), published_count=24 * M),
    )


def captions(name: str, *, count: int, frames: int) -> Slot:
    """One split of the caption corpus, as uniform frames."""
    return Slot(
        name=name,
        importers=("captions", "token-shards"),
        published_count=count,
        max_images=frames,
        tokenize_recipe=f"uniform-{frames}",
    )


def video(name: str, *, importer: str, count: int | None, frames: int) -> Slot:
    """A set of video instructions, as uniform frames."""
    return Slot(
        name=name,
        importers=(importer,),
        published_count=count,
        max_images=frames,
        tokenize_recipe=f"uniform-{frames}",
    )
