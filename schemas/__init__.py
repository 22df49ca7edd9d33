"""Records of everything that this project reads from or writes to disk.

Pydantic models with `extra="forbid"` and a `schema_version`; no logic, no I/O, no import of the other layers.
"""

from schemas.record import SCHEMA_VERSION, Record

__all__ = ["SCHEMA_VERSION", "Record"]
