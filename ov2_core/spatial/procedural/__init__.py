"""Rooms made up from a seed: exact depth, masks, boxes and tracks, textured pixels."""

from ov2_core.spatial.procedural.room import make_scene

__all__ = ["make_scene"]
