#!/usr/bin/env python3
"""Set up napari-peka on a fresh machine and run it. Needs nothing but Python 3.11 to 3.13.

    python3 start.py demo    set up, run the main job on the embedded slide and model, leave a picture
    python3 start.py test    set up, and pass every check and test

Both make the virtual environment ``.venv`` beside this file (another place: NAPARI_PEKA_VENV). On Debian and Ubuntu
the system packages that Qt needs are installed when this runs as root or through sudo without a password, and named
otherwise.
"""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import subprocess
import sys
import venv
from importlib.util import find_spec
from pathlib import Path

HERE = Path(__file__).resolve().parent
VENV = Path(os.environ.get("NAPARI_PEKA_VENV", HERE / ".venv"))
BIN = VENV / ("Scripts" if os.name == "nt" else "bin")
PYTHON = BIN / ("python.exe" if os.name == "nt" else "python")

#: what a Qt window and OpenGL need on bare Debian or Ubuntu, and a virtual display
DEBIAN = (
    "xvfb xauth libgl1 libgl1-mesa-dri libegl1 libxkbcommon-x11-0 libxcb-cursor0 libxcb-icccm4 libxcb-keysyms1 "
    "libxcb-image0 libxcb-render-util0 libxcb-shape0 libxcb-xinerama0 libdbus-1-3"
).split()
#: the release tested here; without a GPU a build of it that needs no CUDA is taken where pip finds one
TORCH = "torch==2.13.0"
#: tests run in as many processes as there are cores; a file's stay together, for what they share is made once
SHARED_OUT = ["-n", "auto", "--maxprocesses", "8", "--dist", "loadfile"]


def main() -> int:
    what = sys.argv[1] if len(sys.argv) == 2 else ""
    if what not in ("demo", "test"):
        print(__doc__)
        return 2
    if not (3, 11) <= sys.version_info[:2] <= (3, 13):
        print(f"error: Python 3.11 to 3.13 is needed, this is {platform.python_version()}")
        return 2
    system_packages(needed=what == "test")
    install("all" if what == "demo" else "all,test,docs")
    return demo() if what == "demo" else test()


def demo() -> int:
    display = sys.platform in ("win32", "darwin") or os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")
    # offline: whatever asked for a network would fail here, not fetch quietly
    env = dict(os.environ, HF_HUB_OFFLINE="1")
    opened = "--open" if display and not os.environ.get("CI") else "--no-open"
    return run([str(BIN / "napari-peka"), "demo", "-o", str(HERE / "napari-peka-demo"), opened], env=env)


def test() -> int:
    tool = [str(PYTHON), "-m"]
    steps = [
        [*tool, "ruff", "check", "."],
        [*tool, "ruff", "format", "--check", "."],
        [*tool, "mypy"],
        [str(BIN / "lint-imports")],
        [*tool, "npe2", "validate", "src/napari_peka/napari.yaml"],
        [*tool, "mkdocs", "build", "--strict", "--site-dir", str(VENV / "site")],
        [*screen(), str(PYTHON), "-X", "faulthandler", "-m", "pytest", "-q", *SHARED_OUT],
    ]
    # each process that tests keeps to one core
    env = {"OMP_NUM_THREADS": "1", **os.environ}
    for step in steps:
        print("\n$", " ".join(step), flush=True)
        if code := run(step, env=env):
            print(f"error: {' '.join(step)} failed", file=sys.stderr)
            return code
    return 0


def screen() -> list[str]:
    """Windows are tested on a virtual screen of known size where there can be one."""
    if sys.platform != "linux" or not shutil.which("xvfb-run"):
        return []
    return ["xvfb-run", "-a", "-s", "-screen 0 1280x1024x24"]


def system_packages(needed: bool) -> None:
    if sys.platform != "linux" or not shutil.which("apt-get"):
        return
    wanted = DEBIAN if find_spec("ensurepip") else ["python3-venv", *DEBIAN]
    missing = [p for p in wanted if run(["dpkg", "-s", p], quiet=True)]
    if not missing:
        return
    root = [] if os.geteuid() == 0 else ["sudo", "-n"]
    env = dict(os.environ, DEBIAN_FRONTEND="noninteractive")
    if (root and run(["sudo", "-n", "true"], quiet=True)) or any(
        run([*root, "apt-get", *args], env=env, quiet=True) for args in (["update"], ["install", "-y", *missing])
    ):
        print(f"These system packages are missing: sudo apt-get install -y {' '.join(missing)}")
        if needed:
            print("Windows cannot be tested without them; going on.", flush=True)


def install(extras: str) -> None:
    if not PYTHON.exists():
        print(f"Making {VENV}", flush=True)
        try:
            venv.create(VENV, with_pip=True)
        except (subprocess.CalledProcessError, ModuleNotFoundError):
            shutil.rmtree(VENV, ignore_errors=True)
            sys.exit(
                "error: this Python cannot make virtual environments; on Debian: sudo apt-get install -y python3-venv"
            )
    stamp = VENV / f"installed-{extras.replace(',', '-')}"
    mark = hashlib.sha256((HERE / "pyproject.toml").read_bytes() + f"{HERE} {sys.version}".encode()).hexdigest()
    if stamp.exists() and stamp.read_text("utf-8") == mark:
        return
    wanted = [f"{HERE}[{extras}]"]
    if sys.platform == "linux" and not shutil.which("nvidia-smi"):
        wanted.insert(0, TORCH)
    command = [
        str(PYTHON),
        "-m",
        "pip",
        "install",
        "-q",
        "--disable-pip-version-check",
        "-e",
        *wanted[-1:],
        *wanted[:-1],
    ]
    print("Installing (some minutes the first time)", flush=True)
    if run(command):
        sys.exit("error: the installation failed; what pip said stands above")
    stamp.write_text(mark, "utf-8")  # the next call needs neither pip nor a network


def run(command: list[str], env: dict[str, str] | None = None, quiet: bool = False) -> int:
    out = subprocess.DEVNULL if quiet else None
    try:
        return subprocess.run(command, cwd=HERE, env=env, stdout=out, stderr=out, check=False).returncode
    except FileNotFoundError:
        return 127


if __name__ == "__main__":
    sys.exit(main())
