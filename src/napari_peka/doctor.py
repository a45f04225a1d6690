"""What this machine can do, with the mend for what it cannot."""

from __future__ import annotations

import importlib
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

#: what was found, and what to do about it (None: nothing)
Finding = tuple[str, str | None]

_AGAIN = "install again: pip install --force-reinstall napari-peka"
_GUI = "for the viewer: pip install 'napari-peka[gui]'"
_BINDINGS = ("PyQt6", "PySide6", "PyQt5", "PySide2")
#: GB below which a whole-slide map may not fit
LEAST_FREE_GB = 2


def examine(load_model: Callable[[str], Any]) -> list[dict[str, Any]]:
    """Return one entry a check: ``name``, ``ok``, ``text`` and ``mend`` (None when ok).

    Parameters
    ----------
    load_model
        Loads a model by name; given by the caller, since this file stands beside the rooms.
    """
    checks: dict[str, tuple[Callable[[], Finding], str]] = {
        "python": (_python, _AGAIN),
        "torch": (_torch, "install torch as https://pytorch.org/get-started says for this machine"),
        "openslide": (_openslide, "vendors' slides need it: pip install openslide-python openslide-bin"),
        "results": (_results, "install again: pip install --force-reinstall anndata zarr"),
        "napari": (_napari, _GUI),
        "display": (_display, "set DISPLAY, or start napari under xvfb-run"),
        "demo model": (lambda: _demo(load_model), _AGAIN),
        "models": (_models, "set NAPARI_PEKA_MODELS to a folder that you may read"),
        "disk": (_disk, "change to a folder that exists and that you may write to"),
    }
    return [_run(name, *check) for name, check in checks.items()]


def as_text(checks: list[dict[str, Any]]) -> str:
    """Return the checks for a person: a line each, and one for the mend."""
    lines = []
    for c in checks:
        lines.append(f"{'ok' if c['ok'] else '--'}  {c['name']:<12} {c['text']}")
        if c["mend"]:
            lines.append(f"{'':<16} mend: {c['mend']}")
    return "\n".join(lines)


def _run(name: str, check: Callable[[], Finding], usual_mend: str) -> dict[str, Any]:
    try:
        text, mend = check()
    except Exception as e:  # noqa: BLE001 - a broken part of the machine is a finding here
        text, mend = f"{type(e).__name__}: {' '.join(str(e).split())}", usual_mend
    return {"name": name, "ok": mend is None, "text": text, "mend": mend}


def _python() -> Finding:
    return (
        f"{sys.version.split()[0]} on {sys.platform}, {os.cpu_count()} cores, napari-peka {version('napari-peka')}",
        None,
    )


def _torch() -> Finding:
    import torch

    from napari_peka.models.backends import choose_backend
    from napari_peka.models.devices import choose_device, choose_precision

    device = choose_device("auto")
    dtype = choose_precision("auto", device)
    precision, backend = str(dtype).removeprefix("torch."), choose_backend("auto", device, dtype)
    text = f"torch {torch.__version__}, device {device}, precision {precision}, encoders run by {backend}"
    if device.type == "cuda":
        name, memory = torch.cuda.get_device_name(device), torch.cuda.get_device_properties(device).total_memory
        return f"{text}, {name} with {memory / 1e9:.0f} GB", None
    if device.type == "cpu":
        if shutil.which("nvidia-smi"):
            return (
                f"{text}, though this machine has an NVIDIA driver",
                "install the CUDA build of torch: https://pytorch.org/get-started",
            )
        text += "; no GPU found: prediction works, more slowly"
    return text, None


def _openslide() -> Finding:
    openslide = importlib.import_module("openslide")
    return f"library {openslide.__library_version__}", None


def _results() -> Finding:
    for name in ("anndata", "zarr"):
        importlib.import_module(name)
    return f"anndata {version('anndata')}, zarr {version('zarr')}", None


def _napari() -> Finding:
    if not find_spec("napari"):
        return "not installed; command line and Python work without", _GUI
    if not any(find_spec(m) for m in _BINDINGS):
        return f"{version('napari')}, without a Qt binding", _GUI
    # in a process of its own: a Qt that lacks a system library may abort instead of raising
    command = [sys.executable, "-c", "import qtpy.QtWidgets, qtpy; print(qtpy.API_NAME, qtpy.QT_VERSION)"]
    ran = subprocess.run(command, capture_output=True, encoding="utf-8", errors="replace", timeout=60, check=False)
    if ran.returncode:
        reason = (ran.stderr.strip().splitlines() or [f"it ended with code {ran.returncode}"])[-1]
        return (
            f"{version('napari')}, but Qt cannot be loaded ({reason})",
            "on Debian or Ubuntu: sudo apt-get install libegl1 libgl1 libxkbcommon-x11-0 libxcb-cursor0 libdbus-1-3",
        )
    return f"{version('napari')} with {ran.stdout.strip()}", None


def _display() -> Finding:
    if has_display():
        return "there is one", None
    return (
        "none; command line and Python work without, and write pictures",
        "to see napari, work on a desktop or over a remote one, or start it under xvfb-run",
    )


def has_display() -> bool:
    """Whether a window could be opened."""
    return sys.platform in ("win32", "darwin") or bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))


def _demo(load_model: Callable[[str], Any]) -> Finding:
    model = load_model("demo")
    return f"{len(model.head.genes)} genes, encoder {model.spec.encoder.name}", None


def _models() -> Finding:
    from napari_peka.models.folder import models_folder

    folder = models_folder()
    if folder.exists() and not folder.is_dir():
        return f"{folder} is not a folder", "set NAPARI_PEKA_MODELS to a folder"
    if not folder.is_dir():
        return f"{folder} (not made yet; bundles and encoder weights go there)", None
    entries = len(list(folder.iterdir()))
    return f"{folder}, {entries} {'entry' if entries == 1 else 'entries'}", None


def _disk() -> Finding:
    free = shutil.disk_usage(Path.cwd()).free / 1e9
    few = free < LEAST_FREE_GB
    return f"{free:.0f} GB free here", "free some space before predicting, or write elsewhere" if few else None
