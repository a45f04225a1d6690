"""What runs an encoder: PyTorch, or an engine that is faster on a CPU where it is installed.

An engine is given the encoder as a torch module and returns a module that computes the same, so that whatever stands
around it (crops, rotations, translation) stays as it is. Engines keep what they compiled, for compiling takes longer
than a small slide.
"""

from __future__ import annotations

import hashlib
import io
import os
import sys
import warnings
from collections.abc import Callable
from contextlib import suppress
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from napari_peka.core import files
from napari_peka.core.errors import SettingError

ENVIRONMENT = "NAPARI_PEKA_BACKEND"
TORCH, OPENVINO = "torch", "openvino"
#: images that one stream of an engine computes together: more gain nothing on a CPU
AT_ONCE = 4


class Run(NamedTuple):
    """What an engine made of an encoder.

    Parameters
    ----------
    function
        float32 ``(b, 3, px, px)`` to ``(b, d)``.
    images
        How many images it takes to keep the machine busy: a stop is heard between two passes of so many.
    """

    function: Callable[[npt.NDArray[np.float32]], npt.NDArray[np.float32]]
    images: int


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
        From an encoder, the side of its images in px, the format, and a path without ending under which it may keep
        what it compiled, to what computes float32 ``(b, 3, px, px)`` → ``(b, d)``.
    """

    needs: tuple[str, ...]
    extra: str
    formats: tuple[torch.dtype, ...]
    compile: Callable[[nn.Module, int, torch.dtype, Path], Run]


def choose_backend(name: str, device: torch.device, dtype: torch.dtype) -> str:
    """Return what runs the encoder.

    ``"auto"``: what ``$NAPARI_PEKA_BACKEND`` names; else OpenVINO on a CPU where it is installed, which was faster than
    PyTorch with the encoder that was measured (``docs/performance.md``); else PyTorch. It never depends on a
    measurement of the moment, so that an interrupted run goes on with the same numbers.

    Raises
    ------
    SettingError
        If there is no such backend, it is not installed, or does not compute on this device or in this format.
    """
    if name == "auto":
        name = os.environ.get(ENVIRONMENT) or "auto"
    if name == "auto":
        return TORCH if _why_not(OPENVINO, device, dtype) else OPENVINO
    if name == TORCH:
        return name
    if name not in ENGINES:
        raise SettingError(f"there is no backend {name!r}; one of auto, {TORCH}, {', '.join(ENGINES)}")
    if why := _why_not(name, device, dtype):
        raise SettingError(why)
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
        known = ", ".join(str(f).removeprefix("torch.") for f in engine.formats)
        return f"the backend {name} computes in {known}; choose one of them, or the backend {TORCH}"
    return ""


def compiled(
    encoder: nn.Module, backend: str, *, px: int, dtype: torch.dtype, digest: str, folder: Path
) -> nn.Module:  # fmt: skip
    """Return a module that computes what an encoder does, by an engine.

    Parameters
    ----------
    encoder
        float32, on the CPU, in eval mode; ``(b, 3, px, px)`` to ``(b, d)``.
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
    """
    said = f"{backend} {_version(backend)} torch {torch.__version__} {digest} {px} {dtype}"
    key = hashlib.sha256(said.encode()).hexdigest()[:16]
    return Compiled(ENGINES[backend].compile(encoder, px, dtype, folder / f"{backend}-{key}"))


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


# -- OpenVINO --------------------------------------------------------------------------------------------------------

#: bytes of weights beyond which what was compiled is not kept: reading it would take as long as compiling
_MOST_KEPT = 2 << 30


def import_openvino() -> Any:
    """Return the package openvino, without the telemetry that it would send when it is imported and when it converts.

    Its own stand-in for a telemetry package that is not installed is used.
    """
    if "openvino" in sys.modules:
        return sys.modules["openvino"]
    name = "openvino_telemetry"
    before = sys.modules.get(name)
    sys.modules[name] = None  # type: ignore[assignment]  # cannot be imported
    try:
        import openvino
    finally:
        del sys.modules[name]
        if before is not None:
            sys.modules[name] = before
    return openvino


def _openvino_run(encoder: nn.Module, px: int, dtype: torch.dtype, place: Path) -> Run:
    ov = import_openvino()
    core = ov.Core()
    options: dict[str, Any] = {
        "INFERENCE_PRECISION_HINT": "bf16" if dtype == torch.bfloat16 else "f32",
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        "PERFORMANCE_HINT": "THROUGHPUT",  # a few streams, each of few threads
    }
    machine = hashlib.sha256(str(core.get_property("CPU", "FULL_DEVICE_NAME")).encode()).hexdigest()[:8]
    kept = place.with_name(f"{place.name}-{machine}.blob")
    program = _kept_program(core, kept, options)
    if program is None:
        # of shapes that become constants, which they are; catch_warnings would not do in a thread
        warnings.filterwarnings("ignore", category=torch.jit.TracerWarning)
        model = ov.convert_model(encoder, example_input=torch.zeros(2, 3, px, px), input=[-1, 3, px, px])
        program = core.compile_model(model, "CPU", options)
        if sum(w.numel() * w.element_size() for w in encoder.parameters()) < _MOST_KEPT:
            files.write_whole(kept, program.export_model().getvalue())
    streams = int(program.get_property("OPTIMAL_NUMBER_OF_INFER_REQUESTS"))
    requests = ov.AsyncInferQueue(program, streams)

    def function(images: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        done: dict[int, npt.NDArray[np.float32]] = {}
        requests.set_callback(lambda request, at: done.__setitem__(at, request.get_output_tensor(0).data.copy()))
        for at in range(0, len(images), AT_ONCE):
            requests.start_async([images[at : at + AT_ONCE]], at, share_inputs=True)
        requests.wait_all()
        return np.concatenate([done[at] for at in sorted(done)])

    return Run(function, streams * AT_ONCE)


def _kept_program(core: Any, path: Path, options: dict[str, Any]) -> Any:
    """Return what was compiled before, or None where it is not there or of another kind of processor."""
    try:
        kept = path.read_bytes()
        program = core.import_model(io.BytesIO(kept), "CPU", options)
    except (OSError, RuntimeError):
        return None
    with suppress(OSError):  # what was used last goes last from the cache
        os.utime(path)
    return program


def _version(backend: str) -> str:
    return " ".join(version(package) for package in ENGINES[backend].needs)


ENGINES = {
    OPENVINO: Engine(("openvino",), "openvino", (torch.float32, torch.bfloat16), _openvino_run),
}
