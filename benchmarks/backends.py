#!/usr/bin/env python3
"""What runs an encoder fastest on this CPU, how far it is from float32, and what getting ready costs.

    python benchmarks/backends.py [ENCODER ...] [--backends torch openvino onnx] [--images 32] [--rounds 5]

An encoder is ``demo`` (the embedded model's, with its adapter) or a name of timm's, with random weights; by default
``demo``, ``vit_small_patch16_224`` and ``vit_base_patch16_224``. Backends and number formats take turns within each
round, so that a noisy machine is noisy for all of them. Prints JSON:

- ``ratio``: images a second against those of torch in float32, the median over rounds;
- ``process_ratio``: the same by the processor's time, which others disturb less, though threads that wait count in it;
- ``error``: the greatest difference from torch in float32, over its greatest value;
- ``compile_s``, ``load_s``: seconds to get ready with an empty cache, and with what was kept then.
"""

from __future__ import annotations

import argparse
import copy
import json
import platform
import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path
from time import perf_counter, process_time

import numpy as np
import psutil
import torch
from pipeline import cpu_name

import napari_peka as peka
from napari_peka.models._torchvision import ensure_torchvision
from napari_peka.models.backends import ENGINES, TORCH, compiled
from napari_peka.models.devices import cpu_has_bf16
from napari_peka.models.student import build_student

FORMATS = {"fp32": torch.float32, "bf16": torch.bfloat16}
Run = Callable[[], np.ndarray]


def main() -> None:
    args = arguments()
    told = {
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads, {cpu_name()}",
        "others": f"{psutil.cpu_percent(1.0):.0f} % of the machine was busy before",
        "encoders": {name: measure(name, args) for name in args.encoders},
    }
    print(json.dumps(told, indent=1))


@torch.inference_mode()
def measure(name: str, args: argparse.Namespace) -> dict:
    encoder, px = encoder_of(name)
    images = torch.randn(args.images, 3, px, px, generator=torch.Generator().manual_seed(0))
    runs: dict[str, Run] = {}
    told: dict[str, dict] = {}
    with tempfile.TemporaryDirectory() as folder:
        for backend in args.backends:
            for label, dtype in FORMATS.items():
                if not can(backend, dtype):
                    continue
                key = f"{backend} {label}"
                runs[key], told[key] = ready(encoder, backend, dtype, images, px, Path(folder))
        rates: dict[str, list[tuple[float, float]]] = {key: [] for key in runs}
        exact = runs[f"{TORCH} fp32"]()
        for key, run in runs.items():  # the first pass allocates
            told[key]["error"] = float(f"{np.abs(run() - exact).max() / np.abs(exact).max():.2g}")
        for _ in range(args.rounds):
            for key, run in runs.items():
                began = perf_counter(), process_time()
                run()
                rates[key].append(
                    (args.images / (perf_counter() - began[0]), args.images / (process_time() - began[1]))
                )
    base = rates[f"{TORCH} fp32"]
    for key, own in rates.items():
        told[key]["images_per_second"] = round(statistics.median(clock for clock, _ in own), 1)
        for i, ratio in enumerate(("ratio", "process_ratio")):
            told[key][ratio] = round(statistics.median(a[i] / b[i] for a, b in zip(own, base)), 2)
    return {"parameters": sum(w.numel() for w in encoder.parameters()), "px": px, "runs": told}


def encoder_of(name: str) -> tuple[torch.nn.Module, int]:
    """Return an encoder, and the side of its images in px."""
    if name == "demo":
        model = peka.load_model(name)
        student = build_student(model, offline=True)
        return student.encoder, student.px(model.tile_spec().size_px)
    ensure_torchvision()
    import timm

    torch.manual_seed(0)
    encoder = timm.create_model(name, pretrained=False, num_classes=0).eval().requires_grad_(False)
    return encoder, encoder.default_cfg["input_size"][-1]


def can(backend: str, dtype: torch.dtype) -> bool:
    if dtype == torch.bfloat16 and not cpu_has_bf16():
        return False
    return backend == TORCH or dtype in ENGINES[backend].formats


def ready(
    encoder: torch.nn.Module, backend: str, dtype: torch.dtype, images: torch.Tensor, px: int, folder: Path
) -> tuple[Run, dict]:
    if backend == TORCH:
        own = encoder if dtype == torch.float32 else copy.deepcopy(encoder).to(dtype)
        return lambda: own(images.to(dtype)).float().numpy(), {}

    def load() -> torch.nn.Module:
        return compiled(lambda: encoder, backend, px=px, dtype=dtype, digest="", folder=folder)

    compile_s, _ = timed(load)
    load_s, module = timed(load)
    for kept in folder.iterdir():  # of the next format or engine nothing is there
        kept.unlink()
    return lambda: module(images).numpy(), {"compile_s": round(compile_s, 1), "load_s": round(load_s, 1)}


def timed(work: Callable[[], torch.nn.Module]) -> tuple[float, torch.nn.Module]:
    began = perf_counter()
    made = work()
    return perf_counter() - began, made


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("encoders", nargs="*", default=["demo", "vit_small_patch16_224", "vit_base_patch16_224"])
    parser.add_argument("--backends", nargs="+", choices=[TORCH, *ENGINES], default=[TORCH, *ENGINES])
    parser.add_argument("--images", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=5)
    return parser.parse_args()


if __name__ == "__main__":
    main()
