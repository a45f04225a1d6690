"""What runs an encoder: PyTorch, or an engine that is faster on a CPU where it is installed.

An engine is given the encoder as a torch module and returns a module that computes the same, so that whatever stands
around it (crops, rotations, translation) stays as it is. Engines keep what they compiled, for compiling takes longer
than a small slide.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn

from napari_peka.core.errors import PekaError, SettingError
from napari_peka.models.engines import Load, Run, onnx_run, openvino_run

ENVIRONMENT = "NAPARI_PEKA_BACKEND"
TORCH, OPENVINO, ONNX = "torch", "openvino", "onnx"


class Engine(NamedTuple):
    """An engine besides PyTorch.

    Parameters
    ----------
    needs
        Packages without which it is not there.
    extra
        Of this package, that installs them.
    formats
        Number formats that it computes in.
    compile
        From what loads an encoder, the side of its images in px, the format, and a path without ending under which it
        may keep what it compiled, to what computes float32 ``(b, 3, px, px)`` → ``(b, d)``.
    """

    needs: tuple[str, ...]
    extra: str
    formats: tuple[torch.dtype, ...]
    compile: Callable[[Load, int, torch.dtype, Path], Run]


def choose_backend(name: str, device: torch.device, dtype: torch.dtype) -> str:
    """Return what runs the encoder.

    ``"auto"``: what ``$NAPARI_PEKA_BACKEND`` names; else OpenVINO on a CPU where it is installed, which was faster than
    PyTorch with each encoder that was measured (``docs/performance.md``); else PyTorch. It never depends on a
    measurement of the moment: what computes a result is known before anything is loaded, and an interrupted run goes on
    with the same numbers, on another machine too. ``napari-peka doctor --speed`` measures, and a person chooses.

    Raises
    ------
    SettingError
        If there is no such backend, it is not installed, or does not compute on this device or in this format.
    """
    by = ""
    if name == "auto" and (said := os.environ.get(ENVIRONMENT)):
        name, by = said, f" (the environment variable {ENVIRONMENT} asks for it)"
    if name == "auto":
        return TORCH if _why_not(OPENVINO, device, dtype) else OPENVINO
    if name == TORCH:
        return name
    if name not in ENGINES:
        raise SettingError(f"there is no backend {name!r}{by}; one of auto, {TORCH}, {', '.join(ENGINES)}")
    if why := _why_not(name, device, dtype):
        raise SettingError(why + by)
    return name


def _why_not(name: str, device: torch.device, dtype: torch.dtype) -> str:
    """Return why an engine cannot run an encoder here, with what to do; empty where it can."""
    engine = ENGINES[name]
    if missing := [package for package in engine.needs if find_spec(package) is None]:
        return (
            f"the backend {name} needs {' and '.join(missing)}, not installed here: pip install "
            f"'napari-peka[{engine.extra}]', or choose the backend {TORCH}"
        )
    if device.type != "cpu":
        return f"the backend {name} computes on the CPU, not on {device}; choose that device, or {TORCH}"
    if dtype not in engine.formats:
        known, asked = " and ".join(map(_name, engine.formats)), _name(dtype)
        return f"the backend {name} computes in {known}, not in {asked}; choose that precision, or the backend {TORCH}"
    return ""


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def compiled(
    load: Load, backend: str, *, px: int, dtype: torch.dtype, digest: str, folder: Path
) -> nn.Module:  # fmt: skip
    """Return a module that computes what an encoder does, by an engine.

    Parameters
    ----------
    load
        Loads the encoder: float32, on the CPU, in eval mode; ``(b, 3, px, px)`` to ``(b, d)``. It is asked for where
        nothing is kept: else neither its weights nor what builds it take time and memory.
    backend
        One of :data:`ENGINES`.
    px
        Side of the images.
    dtype
        Number format to compute in; what comes in and out is float32.
    digest
        What the encoder computes.
    folder
        Where what was compiled is kept: of the same encoder it is taken again.

    Raises
    ------
    SettingError
        If the engine does not know one of the encoder's layers.
    """
    said = f"{backend} {_versions(backend)} torch {torch.__version__} {digest} {px} {dtype}"
    key = hashlib.sha256(said.encode()).hexdigest()[:16]
    try:
        run = ENGINES[backend].compile(load, px, dtype, folder / f"{backend}-{key}")
    except PekaError:  # it cannot be loaded
        raise
    except Exception as e:  # an encoder of unusual layers; each engine has errors of its own
        reason = (str(e).strip().splitlines() or [type(e).__name__])[0]
        raise SettingError(f"{backend} cannot run this encoder ({reason}); choose the backend {TORCH}") from e
    return Compiled(run)


class Compiled(nn.Module):
    """An encoder that an engine runs, a few images at once."""

    def __init__(self, run: Run) -> None:
        super().__init__()
        self.images = run.images
        self.passes = _Pass(run)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return the embeddings of images, float32."""
        parts = images.to(torch.float32).split(self.images)
        return torch.cat([self.passes(part) for part in parts])


class _Pass(nn.Module):
    """A layer of its own, so that whoever stops a module between two layers stops it between two passes."""

    def __init__(self, run: Run) -> None:
        super().__init__()
        self._function = run.function

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return torch.from_numpy(self._function(images.contiguous().numpy()))


def _versions(backend: str) -> str:
    found = []
    for package in ENGINES[backend].needs:
        with suppress(PackageNotFoundError):  # it goes by other names too, such as onnxruntime-gpu
            found.append(f"{package} {version(package)}")
    return " ".join(found)


ENGINES = {
    OPENVINO: Engine(("openvino",), "openvino", (torch.float32, torch.bfloat16), openvino_run),
    ONNX: Engine(("onnxruntime", "onnx"), "onnx", (torch.float32,), onnx_run),
}
