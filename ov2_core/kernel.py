"""Kernels: loops that are machine code, built ahead of time where that was done, else compiled by numba when they are called.

Numba and LLVM take about 125 MiB and a third of a second of a process before the first frame is looked at, even if all code
is in numba's cache. A worker needs neither: `python -m ov2_core.build_kernels` compiles the kernels that have signatures into one
extension module (numba.pycc), and a call goes there if its arrays are of the types that were built. Anything else is compiled
as before.

The module's name holds a digest of the sources, so that code that has changed since is never called. OV2_KERNELS=jit passes
it over.
"""

import hashlib
import importlib.util
import logging
import os
import platform
import re
import sysconfig
from collections.abc import Callable, Sequence
from functools import cache, cached_property
from importlib.machinery import ExtensionFileLoader, ModuleSpec
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any

import numpy as np

PACKAGE = Path(__file__).parent
SOURCES = (
    "kernel.py",
    "build_kernels.py",
    "data/packing.py",
    "media/scale.py",
    "signals/cells.py",
    "signals/motion.py",
    "signals/residual.py",
    "tokenizer/hold.py",
    "tokenizer/legacy.py",
    "tokenizer/structure.py",
)
"""Where kernels with signatures stand, and the constants that are compiled into them."""
X86_LEVEL, X86_FLAGS = "x86-64-v3", {"avx2", "bmi1", "bmi2", "f16c", "fma", "movbe"}
"""Built for any x86 of the last ten years rather than for the machine at hand: an image serves nodes of several kinds."""
_C_CONTIGUOUS, _ALIGNED = 0x1, 0x100
"""Bits of ndarray.flags.num, as in NumPy's C API."""
_TYPE = re.compile(r"(\w+)(?:\[([:, ]+?)(1?)\])?")

_Array = tuple[int, np.dtype[Any], int, int]
"""Of an argument: position, type, axes, bits that its flags must have."""


class Kernel:
    """A function in the part of Python that numba compiles, to be called as it is.

    Args:
        function: it may call other kernels.
        signatures: of its arguments, as numba writes them: "float32[:, ::1], int64"; built ahead of time.
        fastmath: of LLVM's flags those that may be used, as numba's option; True: all.
    """

    def __init__(self, function: FunctionType, signatures: Sequence[str], *, fastmath: bool | set[str]) -> None:
        self.function, self.signatures, self._fastmath = function, signatures, fastmath
        self.__name__, self.__doc__ = function.__name__, function.__doc__
        self._built: list[tuple[list[_Array], Callable[..., Any]]] | None = None

    def __call__(self, *arguments: Any) -> Any:
        """The function's result."""
        if self._built is None:
            self._built = self._find()
        for arrays, built in self._built:
            for position, dtype, axes, flags in arrays:
                array = arguments[position]
                if array.dtype != dtype or array.ndim != axes or array.flags.num & flags != flags:
                    break
            else:
                return built(*arguments)
        return self.dispatcher(*arguments)

    @cached_property
    def dispatcher(self) -> Callable[..., Any]:
        """Numba's; compiles what comes, or takes it from numba's cache."""
        import numba

        function, outside = self.function, self.function.__globals__
        called = {name: outside[name] for name in function.__code__.co_names if name in outside}
        compiled = {name: kernel.dispatcher for name, kernel in called.items() if isinstance(kernel, Kernel)}
        same = FunctionType(function.__code__, {**outside, **compiled}, function.__name__, function.__defaults__)
        same.__qualname__, same.__module__ = function.__qualname__, function.__module__
        dispatcher: Callable[..., Any] = numba.njit(cache=True, nogil=True, fastmath=self._fastmath)(same)
        return dispatcher

    def _find(self) -> list[tuple[list[_Array], Callable[..., Any]]]:
        library = load_library() if self.signatures else None
        if library is None:
            return []
        return [
            (_arrays(signature), getattr(library, exported_name(self, number)))
            for number, signature in enumerate(self.signatures)
        ]


def kernel(*signatures: str, fastmath: bool | set[str] = False) -> Callable[[Callable[..., Any]], Kernel]:
    """Makes a Kernel of the function below."""

    def decorate(function: Callable[..., Any]) -> Kernel:
        assert isinstance(function, FunctionType)
        return Kernel(function, signatures, fastmath=fastmath)

    return decorate


def exported_name(kernel: Kernel, signature: int) -> str:
    """In the built module."""
    return f"{kernel.function.__module__.rpartition('.')[2]}{kernel.__name__}_{signature}"


def target_cpu() -> str:
    """What is built for, as LLVM calls it."""
    if platform.machine().lower() not in ("x86_64", "amd64"):
        return "generic"
    try:
        flags = set(re.findall(r"^flags\s*:(.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)[0].split())
    except (OSError, IndexError):
        return "generic"
    return X86_LEVEL if flags >= X86_FLAGS else "generic"


def library_path(folder: Path) -> Path:
    """Of the module built from these sources for this Python, NumPy and CPU."""
    digest = hashlib.sha256()
    for part in (target_cpu(), np.__version__.partition(".")[0], *SOURCES):
        digest.update(part.encode())
    for name in SOURCES:
        digest.update((PACKAGE / name).read_bytes())
    return folder / f"ov2_kernels_{digest.hexdigest()[:16]}{sysconfig.get_config_var('EXT_SUFFIX')}"


def library_folders() -> list[Path]:
    """Where the module is looked for, and built in the first that can be written: NUMBA_CACHE_DIR, beside the sources, the
    user's cache."""
    named = os.environ.get("NUMBA_CACHE_DIR")
    folders = [*([Path(named)] if named else []), PACKAGE / "__pycache__"]
    user = Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"))
    return [*folders, user / "ov2"] if user.is_absolute() else folders  # a container's user may have no home


@cache
def load_library() -> ModuleType | None:
    """The built module; None where there is none, or OV2_KERNELS=jit."""
    if os.environ.get("OV2_KERNELS") == "jit":
        return None
    for path in map(library_path, library_folders()):
        if path.is_file():
            name = path.name.partition(".")[0]
            try:
                loader = ExtensionFileLoader(name, str(path))
                module = importlib.util.module_from_spec(ModuleSpec(name, loader, origin=str(path)))
                loader.exec_module(module)
            except ImportError as error:
                logging.getLogger(__name__).warning("kernels are compiled by numba: %s does not load (%s)", path, error)
                return None
            return module
    return None


def _arrays(signature: str) -> list[_Array]:
    found = []
    for position, (name, axes, contiguous) in enumerate(_TYPE.findall(signature)):
        if axes:
            flags = _ALIGNED | (_C_CONTIGUOUS if contiguous else 0)
            found.append((position, np.dtype(name), axes.count(",") + 1, flags))
    return found
