"""Set up an environment and run the project in it. Needs Python >= 3.11 and nothing else (standard library only).

    python3 infra/bootstrap.py demo     install the core, run the main job on a small sample corpus
    python3 infra/bootstrap.py test     install everything, pass the tests
    python3 infra/bootstrap.py check    lint, types, layers (after `test`, or by itself)
    python3 infra/bootstrap.py setup    install everything and stop

Further arguments go to the command: `demo --out DIR`, `test tests/ov2_core -k hold`. The environment is .venv in the
checkout (OV2_VENV names another folder); it is reused until pyproject.toml or infra/constraints.txt change.
"""

import hashlib
import os
import subprocess
import sys
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = Path(os.environ.get("OV2_VENV", ROOT / ".venv"))
BIN = VENV / ("Scripts" if os.name == "nt" else "bin")
CONSTRAINTS = ROOT / "infra" / "constraints.txt"
EXTRAS = {"demo": "samples", "test": "dev", "check": "dev", "setup": "dev,model"}
TORCH_PIN = "torch==2.13.0"
"""Installed first and by its exact version: an open range would fetch several gigabytes of CUDA builds."""


def main(arguments: list[str]) -> int:
    """Run one of the commands above; returns its exit code."""
    if sys.version_info < (3, 11):
        print(
            f"Python >= 3.11 is needed, this is {sys.version.split()[0]}: call a newer one, e.g. python3.11 {sys.argv[0]}"
        )
        return 2
    if not arguments or arguments[0] not in EXTRAS:
        print(__doc__)
        return 0 if arguments[:1] in (["-h"], ["--help"]) else 2
    command, rest = arguments[0], arguments[1:]
    install(EXTRAS[command])
    python = str(BIN / "python")
    if command == "demo":
        return run([str(BIN / "ov2"), "demo", *rest])
    if command == "test":
        spread = ["-n", str(min(os.cpu_count() or 1, 4)), "--dist", "loadgroup", "--no-loadscope-reorder"]
        return run([python, "-m", "pytest", *spread, *rest])
    if command == "check":
        checks = [["ruff", "check", "."], ["ruff", "format", "--check", "."], ["mypy"], ["lint-imports"]]
        return max(run([str(BIN / name), *options]) for name, *options in checks)
    return 0


def install(extras: str) -> None:
    """Make the environment and install the project with extras, unless a stamp says that this was done."""
    digest = hashlib.sha256((ROOT / "pyproject.toml").read_bytes() + CONSTRAINTS.read_bytes()).hexdigest()
    stamp = VENV / f"installed-{extras.replace(',', '-')}"
    if stamp.is_file() and stamp.read_text() == digest:
        return
    if not (BIN / "python").exists():
        print(f"making the environment {VENV}", flush=True)
        try:
            venv.create(VENV, with_pip=True)
        except (subprocess.CalledProcessError, ImportError, SystemExit) as error:
            sys.exit(
                f"could not make {VENV} ({error}); on Debian and Ubuntu: apt-get install python3-venv, then delete {VENV}"
            )
    pip = [
        str(BIN / "python"),
        "-m",
        "pip",
        "install",
        "--quiet",
        "--disable-pip-version-check",
        "-c",
        str(CONSTRAINTS),
    ]
    print(f"installing the project with extras [{extras}] (a minute or two)", flush=True)
    if extras != "samples" and run([*pip, TORCH_PIN]) != 0:
        sys.exit(f"could not install {TORCH_PIN}; see pip's message above")
    if run([*pip, "-e", f"{ROOT}[{extras}]"]) != 0:
        sys.exit("could not install the project; see pip's message above")
    run([str(BIN / "python"), "-m", "ov2_core.build_kernels"])
    stamp.write_text(digest)


def run(command: list[str]) -> int:
    """Run a command in the checkout; its output passes through."""
    return subprocess.run(command, cwd=ROOT, check=False).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
