"""`ov2 doctor`: what is installed and what would fail, each as one line with a remedy. Starts nothing that stays."""

import importlib
import importlib.util
import os
import platform
import shutil
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from typing import Literal

_NEEDED = ("ray", "av", "numpy", "numba", "pillow", "pyarrow", "pydantic", "fsspec", "webdataset", "typer", "rich")
_OPTIONAL = {
    "s3fs": "s3:// sources and runs",
    "gcsfs": "gs:// sources and runs",
    "torch": "the model and training (tokenization runs without it)",
    "megatron-energon": "loading shards as Megatron does",
}
_DECODERS = {
    "H.264": ("h264",),
    "HEVC": ("hevc",),
    "VP8": ("vp8", "libvpx"),
    "VP9": ("vp9", "libvpx-vp9"),
    "AV1": ("libdav1d", "libaom-av1"),
    "MPEG-4": ("mpeg4",),
    "MPEG-2": ("mpeg2video",),
    "ProRes": ("prores",),
}
_LOW_BYTES = 2 << 30
_SHM_BYTES = 256 << 20


@dataclass(frozen=True, slots=True)
class Check:
    """One finding."""

    status: Literal["ok", "warn", "FAIL"]
    name: str
    detail: str

    def line(self) -> str:
        """For a terminal."""
        return f"{self.status:<5} {self.name:<18} {self.detail}"


def run_checks(*, start_ray: bool) -> list[Check]:
    """All findings; one that fails unexpectedly is itself a FAIL."""
    checks: list[Check] = []
    parts: tuple[Callable[[], list[Check]], ...] = (_python, _packages, _decoders, _kernels, _machine, _ray)
    for part in (*parts, _started_ray) if start_ray else parts:
        try:
            checks += part()
        except Exception as error:
            checks.append(Check("FAIL", part.__name__.strip("_"), f"{type(error).__name__}: {error}"))
    return checks


def _python() -> list[Check]:
    version = platform.python_version()
    if sys.version_info < (3, 11):  # noqa: UP036 - told, where the package was put on the path without being installed
        return [Check("FAIL", "python", f"{version}; 3.11 or newer is needed")]
    return [Check("ok", "python", f"{version} on {platform.system()} {platform.machine()}")]


def _packages() -> list[Check]:
    checks = [Check("ok", "ov2-pipeline", metadata.version("ov2-pipeline"))]
    for name in _NEEDED:
        version = _version(name)
        if version is None:
            checks.append(Check("FAIL", name, f"not installed; pip install {name}"))
        else:
            checks.append(Check("ok", name, version))
    for name, use in _OPTIONAL.items():
        version = _version(name)
        checks.append(
            Check("ok", name, version) if version else Check("warn", name, f"not installed; needed for {use}")
        )
    return checks


def _decoders() -> list[Check]:
    import av
    from av.codec import Codec
    from av.codec.codec import UnknownCodecError

    checks = [
        Check(
            "ok",
            "ffmpeg libraries",
            " ".join(f"{k[3:]} {'.'.join(map(str, v))}" for k, v in av.library_versions.items()),
        )
    ]
    for name, codecs in _DECODERS.items():
        found = None
        for codec in codecs:
            try:
                found = Codec(codec, "r").name
                break
            except UnknownCodecError:
                continue
        remedy = f"no decoder ({' or '.join(codecs)}); videos of this kind would be quarantined as unsupported"
        checks.append(Check("ok", f"decode {name}", found) if found else Check("warn", f"decode {name}", remedy))
    return checks


def _kernels() -> list[Check]:
    import numpy as np
    from numba import njit

    from ov2_core.build_kernels import REMEDY, existing, missing

    @njit  # type: ignore[misc, untyped-decorator, unused-ignore]
    def total(values: "np.ndarray") -> float:  # type: ignore[type-arg]
        result = 0.0
        for value in values:
            result += value
        return result

    if total(np.arange(4.0)) != 6.0:
        return [Check("FAIL", "compiled kernels", "numba gives a wrong sum")]
    built, lacking = existing(), missing()
    if built is not None:
        ahead = Check("ok", "built kernels", str(built))
    elif lacking is None:
        ahead = Check(
            "warn", "built kernels", "none yet; the first worker builds them, or: python -m ov2_core.build_kernels"
        )
    else:
        ahead = Check("warn", "built kernels", f"{lacking}: {REMEDY}")
    return [Check("ok", "compiled kernels", "numba compiles"), ahead]


def _machine() -> list[Check]:
    from pipelines.options import available_cpus

    checks = [Check("ok", "CPUs", f"{available_cpus()}")]
    for name, folder in (("disk here", os.getcwd()), ("temporary disk", tempfile.gettempdir())):
        free = shutil.disk_usage(folder).free
        text = f"{free / 2**30:.1f} GiB free in {folder}"
        checks.append(
            Check("ok", name, text) if free >= _LOW_BYTES else Check("warn", name, f"{text}; shards may not fit")
        )
    if os.path.isdir("/dev/shm"):
        free = shutil.disk_usage("/dev/shm").free
        text = f"{free / 2**30:.1f} GiB free"
        remedy = f"{text}; Ray's object store would stand on disk: in a container give --shm-size=1g"
        checks.append(Check("ok", "/dev/shm", text) if free >= _SHM_BYTES else Check("warn", "/dev/shm", remedy))
    return checks


def _ray() -> list[Check]:
    import ray
    from fsspec.registry import known_implementations

    usable = [name for name, entry in known_implementations.items() if _importable(str(entry["class"]))]
    shown = [name for name in ("file", "s3", "gcs", "abfs", "http", "hf", "memory") if name in usable]
    address = os.environ.get("RAY_ADDRESS")
    where = f"; RAY_ADDRESS is {address}, which --address auto uses" if address else ""
    return [Check("ok", "ray", f"{ray.__version__} imports{where}"), Check("ok", "fsspec protocols", " ".join(shown))]


def _started_ray() -> list[Check]:
    import ray

    from pipelines.runtime import ray_session

    with ray_session(workers=1):
        answer = ray.get(ray.remote(lambda: os.getpid()).remote(), timeout=120)
    return [Check("ok", "ray workers", f"an embedded Ray starts, and a worker (pid {answer}) answers")]


def _importable(path: str) -> bool:
    try:
        importlib.import_module(path.rpartition(".")[0])
    except Exception:
        return False
    return True


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
