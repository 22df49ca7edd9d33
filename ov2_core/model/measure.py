"""How fast the encoder is on this machine, held against the machine's own matrix product in the same minute.

Enters: a config, a grid, a device. Leaves: seconds, rates and bytes. A rate is worth something only beside the peak of its moment.
On a CPU, which others may use too, a matrix product is timed before every layer of the pass and its seconds are taken off: both
rates cover the same minutes, however busy they were. On a GPU, where that would break the queue, the peak is measured before
and after the pass. Floating-point operations are those of the matrix products and of attention inside groups (2 a multiply-add);
norms, GELU and rotation count as nothing.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Self

import torch

from ov2_core.model.attention import AttentionBackend, GroupLayout, choose_backend, group_lengths
from ov2_core.model.config import OneVisionEncoderConfig
from ov2_core.model.encoder import OneVisionEncoder
from ov2_core.model.patch_order import grid_positions

Pass = Literal["inference", "training"]

PEAK_SIDES = (2048, 4096)
"""Square products whose best rate is the machine's peak, besides the encoder's own."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Turn:
    """Peak and encoder, one after the other."""

    best_flops: float
    """Best rate of a matrix product before, during and after the pass, in operations a second."""
    peak_flops: float
    """CPU: the rate of the matrix products during the pass, all their operations by all their seconds. Else `best_flops`."""
    seconds: float
    """One pass of the encoder, without the products timed in it."""
    memory_bytes: int | None
    """Most memory during the pass beyond what was held before it: allocated on CUDA, resident on a Linux CPU, else unknown."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EncoderTiming:
    """One grid and one window."""

    lengths: tuple[int, ...]
    num_patches: int
    flops: int
    """Operations of the pass."""
    backend: AttentionBackend
    waste: float
    """Query-key pairs computed beyond those needed, as a share of those needed."""
    turns: tuple[Turn, ...]
    activation_bytes: int
    """What a training pass must keep: 16 rows of the width a patch and layer."""


def encoder_flops(config: OneVisionEncoderConfig, lengths: Sequence[int], *, merged: bool = True) -> int:
    """Operations of one forward pass over groups of these lengths, connector included if `merged`."""
    num_patches, width = sum(lengths), config.hidden_size
    layer = num_patches * (8 * width * width + 4 * width * config.intermediate_size)
    attention = 4 * width * sum(length * length for length in lengths)
    total = 2 * num_patches * config.patch_values * width + config.num_hidden_layers * (layer + attention)
    if merged:
        row = width * config.spatial_merge_size**2
        total += 2 * num_patches // config.spatial_merge_size**2 * row * (row + config.out_hidden_size)
    return total


def activation_bytes(config: OneVisionEncoderConfig, num_patches: int, *, itemsize: int) -> int:
    """What a backward pass needs of the layers: two norms' inputs and outputs, q, k, v, attended rows, both sides of the GELU."""
    return num_patches * config.num_hidden_layers * itemsize * (8 * config.hidden_size + 2 * config.intermediate_size)


def measure_peak(
    device: torch.device, dtype: torch.dtype, *, shapes: Sequence[tuple[int, int, int]], repeats: int = 3
) -> float:
    """Best rate of a matrix product over shapes (rows, inner, columns) and repeats, in operations a second."""
    best = 0.0
    for rows, inner, columns in shapes:
        a = torch.randn(rows, inner, device=device, dtype=dtype)
        b = torch.randn(columns, inner, device=device, dtype=dtype)
        out = torch.empty(rows, columns, device=device, dtype=dtype)
        for _ in range(repeats):
            seconds = _seconds(lambda a=a, b=b, out=out: torch.mm(a, b.T, out=out), device)  # type: ignore[misc]
            best = max(best, 2 * rows * inner * columns / seconds)
    return best


def measure_encoder(
    encoder: OneVisionEncoder,
    grid_thw: Sequence[Sequence[int]],
    *,
    window: int,
    repeats: int,
    kind: Pass = "inference",
    peak_sides: Sequence[int] = PEAK_SIDES,
) -> EncoderTiming:
    """Times passes over random pixels, peak and encoder in turns.

    Args:
        encoder: on its device, in its dtype, with its connector.
        window: canvases that attend to each other.
        kind: "training" is forward and backward; its operations count three times the forward ones.
    """
    config, weight = encoder.config, encoder.layernorm_pre.weight
    groups = GroupLayout(group_lengths(grid_thw, frame_windows_size=window))
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randn(groups.num_patches, config.patch_values, generator=generator).to(weight)
    positions = grid_positions(grid_thw, merge=config.spatial_merge_size).to(weight.device)
    backend = encoder.attention_backend
    backend = choose_backend(weight.device, weight.dtype) if backend == "auto" else backend

    def run() -> None:
        if kind == "inference":
            with torch.no_grad():
                encoder(pixels, positions, groups)
        else:
            encoder(pixels, positions, groups).float().square().mean().backward()
            encoder.zero_grad(set_to_none=True)

    own = (min(groups.max_length, 4096), config.hidden_size, config.intermediate_size)
    shapes = (*((side, side, side) for side in peak_sides), own, (own[0], own[2], own[1]))
    _warm_up(encoder, config)
    turns = []
    for _ in range(repeats):
        before = measure_peak(weight.device, weight.dtype, shapes=shapes)
        held = reset_memory(weight.device)
        with _Probes(encoder, side=min(peak_sides)) as probes:
            seconds = _seconds(run, weight.device) - sum(probes.seconds)
        most = most_memory(weight.device)
        after = measure_peak(weight.device, weight.dtype, shapes=shapes)
        best = max(before, after, probes.best_flops())
        turns.append(
            Turn(
                best_flops=best,
                peak_flops=probes.mean_flops() or best,
                seconds=seconds,
                memory_bytes=None if held is None or most is None else most - held,
            )
        )
    return EncoderTiming(
        lengths=groups.lengths,
        num_patches=groups.num_patches,
        flops=encoder_flops(config, groups.lengths) * (3 if kind == "training" else 1),
        backend=backend,
        waste=groups.num_pairs_computed(backend) / groups.num_pairs() - 1,
        turns=tuple(turns),
        activation_bytes=activation_bytes(config, groups.num_patches, itemsize=weight.element_size()),
    )


def make_encoder(
    *, num_layers: int = 24, device: str = "cpu", dtype: str = "float32", threads: int | None = None
) -> OneVisionEncoder:
    """The released encoder's sizes with random weights.

    Args:
        threads: of torch, on a CPU.
    """
    if threads is not None:
        torch.set_num_threads(threads)
    torch.manual_seed(0)
    encoder = OneVisionEncoder(OneVisionEncoderConfig(num_hidden_layers=num_layers))
    return encoder.to(device=torch.device(device), dtype=getattr(torch, dtype))


def device_name(device: str) -> str:
    """For people."""
    if device.startswith("cuda"):
        return torch.cuda.get_device_name(torch.device(device))
    return f"{torch.get_num_threads()} threads, {torch.backends.cpu.get_cpu_capability()}"


class _Probes:
    """Times a matrix product before every layer, on a CPU; on other devices nothing."""

    def __init__(self, encoder: OneVisionEncoder, *, side: int) -> None:
        weight = encoder.layernorm_pre.weight
        self.seconds: list[float] = []
        self._flops = 2 * side**3
        self._layers = list(encoder.encoder.layers) if weight.device.type == "cpu" else []
        self._a, self._b = (torch.randn(side, side, dtype=weight.dtype) for _ in range(2))
        self._out = torch.empty_like(self._a)

    def __enter__(self) -> Self:
        self._handles = [layer.register_forward_pre_hook(self._probe) for layer in self._layers]
        return self

    def __exit__(self, *error: object) -> None:
        for handle in self._handles:
            handle.remove()

    def _probe(self, *inputs: object) -> None:
        with torch.no_grad():
            self.seconds.append(_seconds(lambda: torch.mm(self._a, self._b, out=self._out), self._a.device))

    def mean_flops(self) -> float:
        return self._flops * len(self.seconds) / sum(self.seconds) if self.seconds else 0.0

    def best_flops(self) -> float:
        return self._flops / min(self.seconds) if self.seconds else 0.0


def _warm_up(encoder: OneVisionEncoder, config: OneVisionEncoderConfig) -> None:
    side = config.spatial_merge_size * 4
    pixels = torch.zeros(side * side, config.patch_values).to(encoder.layernorm_pre.weight)
    positions = grid_positions([[1, side, side]], merge=config.spatial_merge_size).to(pixels.device)
    with torch.no_grad():
        encoder(pixels, positions, [side * side])


def _seconds(run: Callable[[], object], device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    began = time.perf_counter()
    run()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - began


def reset_memory(device: torch.device) -> int | None:
    """Bytes held now; the peak counts from here."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return torch.cuda.memory_allocated(device)
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return None
    return _status_bytes("VmRSS")


def most_memory(device: torch.device) -> int | None:
    """Most bytes held since `reset_memory`: allocated on CUDA, resident on a Linux CPU, else unknown."""
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else _status_bytes("VmHWM")


def _status_bytes(field: str) -> int | None:
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(field + ":")), None)
