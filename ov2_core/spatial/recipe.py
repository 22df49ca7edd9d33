"""What a spatial run makes: quotas, shares, seed, and what questions are shown with."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from schemas.spatial import InputForm

RECIPES = ("spatial-4m",)


@dataclass(frozen=True, kw_only=True)
class SpatialRecipe:
    """A named recipe, resolved."""

    name: str = "spatial-4m"
    version: int = 1
    seed: int = 0
    questions_per_type: int = 20
    """Of a scene, at most."""
    quotas: dict[str, int] = field(default_factory=dict)
    """Types that differ from that."""
    max_share: float = 0.08
    """Of the mix, for any one type."""
    max_answer_share: float = 0.4
    """Of a type's numbers, for any one of them in a shard."""
    input: InputForm = "stills"
    scenes_per_shard: int = 50

    def __post_init__(self) -> None:
        from ov2_core.spatial.tasks import BY_NAME

        if self.name not in RECIPES:
            raise ValueError(f"recipe must be one of {', '.join(RECIPES)}, got {self.name!r}")
        if self.questions_per_type < 1 or self.scenes_per_shard < 1:
            raise ValueError("questions_per_type and scenes_per_shard must be >= 1")
        if not 0 < self.max_share <= 1 or not 0 < self.max_answer_share <= 1:
            raise ValueError("max_share and max_answer_share must be in (0, 1]")
        for name, quota in self.quotas.items():
            if name not in BY_NAME:
                raise ValueError(f"quotas: {name!r} is no task type; there are {', '.join(sorted(BY_NAME))}")
            if quota < 0:
                raise ValueError(f"quotas: {name} must be >= 0, got {quota}")

    def quota(self, task: str) -> int:
        """Questions of a type that a scene may give."""
        return self.quotas.get(task, self.questions_per_type)

    def to_dict(self) -> dict[str, Any]:
        """All fields, for run.json."""
        return asdict(self)


_SETTABLE = {"max_share": float, "max_answer_share": float, "scenes_per_shard": int}


def with_settings(recipe: SpatialRecipe, settings: Sequence[str]) -> SpatialRecipe:
    """A copy with fields set from "key=value" texts; quotas.TYPE sets one type's. Raises ValueError naming the keys."""
    for text in settings:
        key, _, value = text.partition("=")
        kind = int if key.startswith("quotas.") else _SETTABLE.get(key)
        if kind is None or not value:
            raise ValueError(f"--set expects key=value with a key of {', '.join(_SETTABLE)}, quotas.TYPE, got {text!r}")
        try:
            parsed = kind(value)
        except ValueError:
            raise ValueError(f"--set {key}: expected {kind.__name__}, got {value!r}") from None
        if key.startswith("quotas."):
            recipe = replace(recipe, quotas={**recipe.quotas, key.removeprefix("quotas."): int(parsed)})
        else:
            recipe = replace(recipe, **{key: parsed})
    return recipe
