"""Builds the kernels ahead of time: `python -m ov2_core.build_kernels`, a few seconds, once for an environment or an image.

Enters: the kernels with signatures (kernel.py), a C compiler and Python's headers. Leaves: one extension module that needs
neither numba nor LLVM, in the first of library_folders() that can be written. Where something is missing it says what, and
numba compiles the kernels when they are called.

numba.pycc is to be replaced by its authors some day ("pending deprecation" since 0.57); what it gives is not to be had otherwise.
"""

import fcntl
import importlib
import logging
import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import warnings
from pathlib import Path
from typing import Any

from ov2_core.kernel import SOURCES, Kernel, exported_name, library_folders, library_path, target_cpu

REMEDY = (
    "install a C compiler and Python's headers (Debian: gcc, python3-dev), or go on without: numba then compiles the kernels in "
    "each process"
)


class CannotBuildError(Exception):
    """Something that building needs is not here."""


def ensure_built(*, timeout_seconds: float = 300.0) -> Path | None:
    """Path of the module, built now, in a process of its own, if it is not there: once on a machine, while others wait.

    Returns:
        None where it cannot be built, or could not be before; why stands in a file beside it (`failure`).
    """
    if os.environ.get("OV2_KERNELS") == "jit" or existing() is not None or missing() is not None:
        return existing()
    try:
        folder = writable_folder()
        with (folder / "ov2_kernels.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if existing() is None and not failure(folder).exists():
                command = [sys.executable, "-m", "ov2_core.build_kernels"]
                subprocess.run(command, check=False, capture_output=True, timeout=timeout_seconds)
    except (CannotBuildError, OSError, subprocess.TimeoutExpired) as error:
        logging.getLogger(__name__).warning("kernels are compiled by numba: %s", error)
    return existing()


def failure(folder: Path) -> Path:
    """File that says why these sources could not be built here, so that not every process tries."""
    return library_path(folder).with_suffix(".failed")


def existing() -> Path | None:
    """The module of these sources."""
    return next((path for path in map(library_path, library_folders()) if path.is_file()), None)


def missing() -> str | None:
    """What is not here that building needs; None: all is."""
    compiler = shlex.split(sysconfig.get_config_var("CC") or "cc")[0]
    if shutil.which(compiler) is None and shutil.which("cc") is None:
        return f"no C compiler ({compiler})"
    headers = Path(sysconfig.get_path("include")) / "Python.h"
    return None if headers.is_file() else f"no {headers}"


def writable_folder() -> Path:
    """First of library_folders() in which a file can be made.

    Raises:
        CannotBuildError: there is none.
    """
    for folder in library_folders():
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=folder):
                return folder
        except OSError:
            continue
    raise CannotBuildError(f"none of {', '.join(map(str, library_folders()))} can be written; set NUMBA_CACHE_DIR")


def build(folder: Path) -> Path:
    """Compile all kernels with signatures into a module in `folder`.

    Raises:
        CannotBuildError: the compiler or a header is missing, or the compiler fails.
    """
    lacking = missing()
    if lacking is not None:
        raise CannotBuildError(lacking)
    target = library_path(folder)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            make_compiler: Any = importlib.import_module("numba.pycc").CC
        compiler = make_compiler(target.name.partition(".")[0], source_module=sys.modules[__name__])
        compiler.target_cpu = target_cpu()
        for kernel in kernels():
            for number, signature in enumerate(kernel.signatures):
                compiler.export(exported_name(kernel, number), f"({signature},)")(_calling(kernel))
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            compiler.output_dir = scratch
            compiler.compile()
            (Path(scratch) / target.name).replace(target)
    except Exception as error:  # setuptools has exceptions of its own for each way in which a compiler fails
        failure(folder).write_text(f"{type(error).__name__}: {error}\n")
        raise CannotBuildError(f"{type(error).__name__}: {error}") from error
    failure(folder).unlink(missing_ok=True)
    return target


def kernels() -> list[Kernel]:
    """Those with signatures."""
    names = [f"ov2_core.{source.removesuffix('.py').replace('/', '.')}" for source in SOURCES[2:]]
    found = [value for name in names for value in vars(importlib.import_module(name)).values()]
    return list(dict.fromkeys(k for k in found if isinstance(k, Kernel) and k.signatures))


def _calling(kernel: Kernel) -> object:
    """A function that numba's builder takes: it must be plain, and the kernel keeps flags of its own inside."""
    names = ", ".join(kernel.function.__code__.co_varnames[: kernel.function.__code__.co_argcount])
    outside: dict[str, object] = {"compiled": kernel.dispatcher}
    exec(f"def call({names}): return compiled({names})", outside)
    return outside["call"]


def main() -> int:
    """Builds, unless it is there."""
    path = existing()
    if path is None:
        try:
            path = build(writable_folder())
        except CannotBuildError as error:
            sys.stdout.write(f"kernels are not built ahead of time: {error}; {REMEDY}\n")
            return 0
    sys.stdout.write(f"kernels: {path}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
