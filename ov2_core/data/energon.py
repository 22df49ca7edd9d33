"""Stage shards for those who train with Megatron-Energon: its cookers get our packs, with every group and system turn.

    class Encoder(energon.DefaultTaskEncoder):
        decoder = None                                    # members stay bytes; pictures are decoded when they are cut
        cookers = [energon.Cooker(cook)]

    @energon.stateless
    def cook(sample):
        return {**energon.basic_sample_keys(sample), "pack": encoder.encode(pack_of(sample), on_bad="raise")}

Enters: a crude sample of a folder that `ov2 curriculum --materialize` wrote. Leaves: a LoadedPack, as StageLoader reads it.
`encoder` is a PackEncoder. Energon is not imported here. Its own order, sharding and state are then used instead of ours.
"""

from collections.abc import Mapping
from typing import Any

from ov2_core.data.read_pack import LoadedPack, show_packed


def pack_of(sample: Mapping[str, Any]) -> LoadedPack:
    """The pack of a crude sample whose members are bytes.

    Raises:
        ValueError: members were decoded (set `decoder = None`), or cannot be read.
        KeyError: it is no sample of a stage shard.
    """
    members = {name: value for name, value in sample.items() if not name.startswith("__")}
    decoded = [name for name, value in members.items() if not isinstance(value, bytes)]
    if decoded:
        raise ValueError(f"members {', '.join(decoded[:4])} are not bytes; set `decoder = None` in the task encoder")
    key = str(sample["__key__"]).rsplit("/", 1)[-1]
    number = key.removeprefix("ps_")
    return LoadedPack(number=int(number) if number.isdigit() else -1, key=key, samples=show_packed(members, tar=key))
