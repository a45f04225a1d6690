"""Engines that run an encoder in PyTorch's place: each makes a function of arrays of it, and keeps what it compiled."""

from __future__ import annotations

import hashlib
import io
import os
import sys
import tempfile
import threading
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from napari_peka.core import files
from napari_peka.core.errors import StoreError

Float32Array = npt.NDArray[np.float32]
#: images that one stream of an engine computes together: more gain nothing on a CPU
AT_ONCE = 4
#: times that each stream is given so many in one pass; two passes overlap, so that no stream waits for the others. Four
#: times are 1 % faster and take 100 MB more (ViT-S/16, two streams)
TURNS = 2
#: bytes of weights beyond which what was compiled is not kept: reading it would take as long as compiling
_MOST_KEPT = 2 << 30


#: loads an encoder: float32, on the CPU, in eval mode; ``(b, 3, px, px)`` to ``(b, d)``
Load = Callable[[], nn.Module]


class Run(NamedTuple):
    """What an engine made of an encoder.

    Parameters
    ----------
    function
        float32 ``(b, 3, px, px)`` to ``(b, d)``.
    images
        How many images it takes to keep the machine busy: a stop is heard between two passes of so many.
    """

    function: Callable[[Float32Array], Float32Array]
    images: int


# -- OpenVINO --------------------------------------------------------------------------------------------------------


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


def openvino_run(load: Load, px: int, dtype: torch.dtype, place: Path) -> Run:
    """Return what OpenVINO makes of an encoder: in float32 or bfloat16, a few streams, each of few threads."""
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
        _trace_quietly()
        encoder = load()
        model = ov.convert_model(encoder, example_input=torch.zeros(2, 3, px, px), input=[-1, 3, px, px])
        program = core.compile_model(model, "CPU", options)
        if _is_small(encoder):
            _keep(kept, program.export_model().getvalue())
    streams = int(program.get_property("OPTIMAL_NUMBER_OF_INFER_REQUESTS"))
    own = threading.local()  # a request serves one thread at a time

    def few(images: Float32Array) -> Float32Array:
        if not hasattr(own, "request"):
            own.request = program.create_infer_request()
        own.request.infer([images], share_inputs=True)
        values: Float32Array = own.request.get_output_tensor(0).data.copy()
        return values

    return _in_streams(few, streams, "openvino", px)


def _kept_program(core: Any, path: Path, options: dict[str, Any]) -> Any:
    """Return what was compiled before, or None where it is not there or of another kind of processor."""
    try:
        kept = path.read_bytes()
        program = core.import_model(io.BytesIO(kept), "CPU", options)
    except (OSError, RuntimeError):
        return None
    _used(path)
    return program


# -- ONNX Runtime ----------------------------------------------------------------------------------------------------

#: streams at most: a pass of more images than the engine is given at once would leave some of them without work
_STREAMS = 8
#: the newest operators that every torch from 2.4 on writes
_OPSET = 17


def import_onnxruntime() -> Any:
    """Return the package onnxruntime, without its telemetry.

    Since 1.29 it names the machine by a file in the home folder and reports each session to its makers, unless a
    variable of the environment says otherwise before it is imported; imported before by somebody else, it is told then.
    """
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"
    import onnxruntime

    onnxruntime.disable_telemetry_events()
    return onnxruntime


def onnx_run(load: Load, px: int, dtype: torch.dtype, place: Path) -> Run:
    """Return what ONNX Runtime makes of an encoder: in float32, the only format in which its CPU kernels compute.

    Images are shared out among streams, each of a thread of its own: in one stream of many threads they wait for each
    other after every layer.
    """
    ort = import_onnxruntime()
    threads = torch.get_num_threads()
    streams = min(threads, _STREAMS)
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads - streams + 1  # helpers that all streams share, and the stream itself
    kept = place.with_suffix(".onnx")
    session = _kept_session(ort, kept, options)
    if session is None:
        session = _exported_session(ort, load(), px, kept, options)

    def few(images: Float32Array) -> Float32Array:
        values: Float32Array = session.run(None, {"images": images})[0]
        return values

    return _in_streams(few, streams, "onnx", px)


def _exported_session(ort: Any, encoder: nn.Module, px: int, kept: Path, options: Any) -> Any:
    """Export an encoder, and keep it where it is small; weights beyond 2 GB are files of their own."""
    _trace_quietly()
    with tempfile.TemporaryDirectory(prefix="napari-peka-", ignore_cleanup_errors=True) as folder:
        path = Path(folder) / "encoder.onnx"
        # not torch's newer exporter: it needs three packages more, took twice as long, and is not in torch 2.4
        torch.onnx.export(
            encoder, (torch.zeros(2, 3, px, px),), str(path), dynamo=False, opset_version=_OPSET,
            input_names=["images"], output_names=["embeddings"],
            dynamic_axes={"images": {0: "batch"}, "embeddings": {0: "batch"}},
        )  # fmt: skip
        if _is_small(encoder):
            _keep(kept, path.read_bytes())
        return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def _kept_session(ort: Any, path: Path, options: Any) -> Any:
    """Return a session of what was exported before, or None where it is not there or damaged."""
    if not path.is_file():
        return None
    try:
        session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception:  # noqa: BLE001 - its errors have no class in common; what cannot be read is made anew
        return None
    _used(path)
    return session


# -- both ------------------------------------------------------------------------------------------------------------


def _in_streams(few: Callable[[Float32Array], Float32Array], streams: int, name: str, px: int) -> Run:
    """Return what shares images out among streams, a thread each; two callers fill each other's gaps.

    One image is computed before, in this thread: what an engine's bindings set up at their first call they guard by a
    lock that does not know of Python's, and two threads in it wait for each other for good.
    """
    few(np.zeros((1, 3, px, px), np.float32))
    pool = ThreadPoolExecutor(streams, thread_name_prefix=f"peka-{name}")

    def function(images: Float32Array) -> Float32Array:
        return np.concatenate(list(pool.map(few, (images[at : at + AT_ONCE] for at in range(0, len(images), AT_ONCE)))))

    return Run(function, streams * AT_ONCE * TURNS)


def _trace_quietly() -> None:
    """Ignore what torch says while it traces; catch_warnings would not do in a thread."""
    # shapes become constants, which they are
    warnings.filterwarnings("ignore", category=torch.jit.TracerWarning)
    for said in ("You are using the legacy TorchScript-based ONNX export", "The feature will be removed"):
        warnings.filterwarnings("ignore", said, DeprecationWarning)
    # of layers that normalise their own weights, as some ResNets' do
    warnings.filterwarnings("ignore", "ONNX export mode is set to TrainingMode.EVAL", UserWarning)


def _is_small(encoder: nn.Module) -> bool:
    return int(sum(w.numel() * w.element_size() for w in encoder.parameters())) < _MOST_KEPT


def _keep(path: Path, data: bytes) -> None:
    with suppress(StoreError):  # a full disk costs the next run its time, not this one its end
        files.write_whole(path, data)


def _used(path: Path) -> None:
    with suppress(OSError):  # what was used last goes last from the cache
        os.utime(path)
