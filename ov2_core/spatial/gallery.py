"""placeholder until the gallery is drawn"""

from ov2_core.storage.files import Store


def write_gallery(store: Store, *, per_type: int) -> str | None:
    return None
