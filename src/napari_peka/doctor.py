"""What this machine can do, with the mend for what it cannot."""

from __future__ import annotations

import importlib
import os
import shutil
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any


def examine(load_model: Callable[[str], Any]) -> list[dict[str, Any]]:
    """Return one entry a check: ``name``, ``ok``, ``text`` (with the mend when not ok)."""
    checks = (_python, _torch, _openslide, _napari, _display, lambda: _demo(load_model), _models, _disk)
    return [_run(check) for check in checks]


def _run(check: Callable[[], tuple[str, bool, str]]) -> dict[str, Any]:
    try:
        name, ok, text = check()
    except Exception as e:  # noqa: BLE001 - a broken part of the machine is a finding here
        name = getattr(check, "__name__", "check").strip("_<>")
        ok, text = False, f"{type(e).__name__}: {e}"
    return {"name": name, "ok": ok, "text": text}


def _python() -> tuple[str, bool, str]:
    return "python", True, f"{sys.version.split()[0]} on {sys.platform}, {os.cpu_count()} cores"


def _torch() -> tuple[str, bool, str]:
    import torch

    from napari_peka.models.encoder import choose_device, choose_precision

    device = choose_device("auto")
    precision = str(choose_precision("auto", device)).removeprefix("torch.")
    text = f"torch {torch.__version__}, device {device}, precision {precision}"
    if device.type == "cpu":
        text += "; no GPU found: prediction works, more slowly"
    return "torch", True, text


def _openslide() -> tuple[str, bool, str]:
    openslide = importlib.import_module("openslide")
    return "openslide", True, f"library {openslide.__library_version__}"


def _napari() -> tuple[str, bool, str]:
    if not find_spec("napari"):
        return (
            "napari",
            False,
            "not installed: command line and Python work; for the viewer: pip install 'napari-peka[gui]'",
        )
    if not any(find_spec(m) for m in ("PyQt6", "PySide6", "PyQt5", "PySide2")):
        return "napari", False, "there is no Qt binding: pip install 'napari-peka[gui]'"
    from importlib.metadata import version

    return "napari", True, version("napari")


def _display() -> tuple[str, bool, str]:
    if has_display():
        return "display", True, "there is one"
    return "display", False, "none: pictures are written to files; on a server use xvfb-run to start napari"


def has_display() -> bool:
    """Whether a window could be opened."""
    return sys.platform in ("win32", "darwin") or bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))


def _demo(load_model: Callable[[str], Any]) -> tuple[str, bool, str]:
    model = load_model("demo")
    return "demo model", True, f"{len(model.head.genes)} genes, encoder {model.spec.encoder.name}"


def _models() -> tuple[str, bool, str]:
    from napari_peka.models.folder import models_folder

    folder = models_folder()
    return "models", True, f"{folder}" + ("" if folder.is_dir() else " (not made yet)")


def _disk() -> tuple[str, bool, str]:
    free = shutil.disk_usage(Path.cwd()).free / 1e9
    return (
        "disk",
        free > 2,
        f"{free:.0f} GB free here" + ("" if free > 2 else ": free some space before predicting"),
    )
