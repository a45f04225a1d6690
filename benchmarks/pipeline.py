#!/usr/bin/env python3
"""Where the time of a prediction goes, and how near it comes to what the machine can do.

    python benchmarks/pipeline.py [SLIDE] [--mpp F] [--mosaic N] [--model demo] [--backend auto]
        [--against torch] [--rounds 3] [--json]

In one process and in turn, so that a noisy machine is noisy for all of them, it measures

- the whole walk (find tissue, plan, read, cut, compute, store, assemble) and, of it, the part from the first block to
  the last (*steady*);
- the same encoder, number format and backend on tiles that lie in memory already: the ceiling of computing
  (``ratio_forward_ceiling`` is steady over that);
- with ``--against torch`` the same on another backend (``ratio_against``: how much faster);
- the walk with an encoder that does nothing, and the same blocks read by as many threads and thrown away: the ceiling
  of reading (``ratio_decode_ceiling``).

Seconds by stage are of the last walk: *decode* and *resize* are of the reading threads, *wait* is how long computing
waited for reading, *reader_wait* how long reading waited for computing. ``--mosaic N`` lays N x N copies of the slide
out as one tiled pyramidal JPEG TIFF first: a slide of a size as scanners make it, with real tissue.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import queue
import resource
import statistics
import tempfile
import threading
from collections import Counter
from contextlib import ExitStack, contextmanager
from pathlib import Path
from time import perf_counter
from unittest import mock

os.environ["NAPARI_PEKA_REUSE"] = "0"  # what was seen before would be measured as if it were computed

import numpy as np
import torch

import napari_peka as peka
from napari_peka.config import PredictConfig
from napari_peka.core.geometry import Block
from napari_peka.infer import engine
from napari_peka.infer.forward import Forward
from napari_peka.infer.schedule import Schedule
from napari_peka.io.sample import sample_slide
from napari_peka.io.slide import Slide
from napari_peka.io.store import RunStore
from napari_peka.io.tiles import read_tiles
from napari_peka.workflows import predict as walk_module
from napari_peka.workflows.predict import plan_tiles, readers_of


class NoEncoder(torch.nn.Module):
    """Looks at one pixel of each tile."""

    def __init__(self, dims: int) -> None:
        super().__init__()
        self.dims = dims

    def forward(self, tiles: torch.Tensor) -> torch.Tensor:
        return tiles[:, 0, 0, :1].float().expand(-1, self.dims)


def main() -> None:
    args = arguments()
    with tempfile.TemporaryDirectory() as scratch:
        if args.mosaic > 1:
            args.slide = write_mosaic(args.slide, args.mpp, args.mosaic, Path(scratch))
        told = measure(args)
    if args.json:
        print(json.dumps(told, indent=1))
    else:
        for name, value in told.items():
            print(f"{name:24} {value}")


def measure(args: argparse.Namespace) -> dict:
    model = peka.load_model(args.model)
    config = PredictConfig(
        device=args.device,
        precision=args.precision,
        stride_px=args.stride_px,
        backend=args.backend,
        readers=args.readers,
    )
    forward = peka.load_forward(model, config)
    nothing = Forward(
        lambda: NoEncoder(model.head.embedding_dims), forward.device, torch.float32, config.batch_size,
        model.embedding_digest,
    )  # fmt: skip
    began = perf_counter()
    _ = forward.module
    loading = perf_counter() - began
    with peka.open_slide(args.slide, mpp=args.mpp) as slide:
        tiles = plan_tiles(slide, model, config)
        images = np.concatenate([read_tiles(slide, tiles, b)[0] for b in tiles.blocks()[:16]])
        n = len(tiles)
        images = np.concatenate([images] * (1 + n // len(images)))[:n]
        forward(images[: forward.batch_size])  # the first pass allocates
        other = args.against and peka.load_forward(model, config.model_copy(update={"backend": args.against}))
        if other:
            other(images[: other.batch_size])
        rates: dict[str, list[float]] = {k: [] for k in ("forward", "whole", "steady", "no_op", "decode")}
        rates |= {"against": []} if args.against else {}
        for _ in range(args.rounds):
            rates["forward"].append(n / seconds(lambda: forward(images)))
            if other:
                rates["against"].append(n / seconds(lambda: other(images)))
            whole, steady, stages = walk(slide, model, config, forward, n)
            rates["whole"].append(n / whole)
            rates["steady"].append(n / steady)
            rates["no_op"].append(n / walk(slide, model, config, nothing, n)[1])
            rates["decode"].append(n / seconds(lambda: read_all(slide, tiles, readers_of(config, forward))))
    middle = {k: statistics.median(v) for k, v in rates.items()}
    return {
        "slide": args.slide.name,
        "model": model.name,
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads, {cpu_name()}",
        "device": str(forward.device),
        "device_name": torch.cuda.get_device_name(forward.device) if forward.device.type == "cuda" else "",
        "precision": forward.precision,
        "tiles": n,
        "loading_s": round(loading, 2),
        "tiles_per_second": round(middle["whole"], 2),
        "steady_tiles_per_second": round(middle["steady"], 2),
        "forward_tiles_per_second": round(middle["forward"], 2),
        "no_op_tiles_per_second": round(middle["no_op"], 1),
        "decode_tiles_per_second": round(middle["decode"], 1),
        "ratio_whole": ratio(rates, "whole", "forward"),
        "ratio_forward_ceiling": ratio(rates, "steady", "forward"),
        "ratio_decode_ceiling": ratio(rates, "no_op", "decode"),
        **({"against": other.precision, "ratio_against": ratio(rates, "forward", "against")} if other else {}),
        "peak_rss_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
        "seconds_by_stage": {k: round(v, 3) for k, v in stages.items()},
        "rounds": {k: [round(x, 1) for x in v] for k, v in rates.items()},
    }


def ratio(rates: dict[str, list[float]], over: str, under: str) -> float:
    """Return the median over rounds: each round has both, measured one after the other."""
    return round(statistics.median(a / b for a, b in zip(rates[over], rates[under])), 3)


def walk(slide: Slide, model, config: PredictConfig, forward: Forward, n: int) -> tuple[float, float, Counter]:
    """Predict once; return seconds of the whole, from the first block taken to the last done, and by stage."""
    stages: Counter = Counter()
    with tempfile.TemporaryDirectory() as folder, ExitStack() as patches:
        for owner, name, stage in (
            (Slide, "read_block", "read"), (Slide, "_read", "decode"), (Block, "cut", "cut"),
            (Forward, "_pass", "forward"), (RunStore, "write_block", "write"), (RunStore, "finish", "finish"),
            (walk_module, "plan_tiles", "tissue and plan"), (engine, "embed", "embed"),
            (queue.Queue, "put", "reader_wait"), (queue.Queue, "get", "wait"),
        ):  # fmt: skip
            patches.enter_context(timed(owner, name, stages, stage))
        began = perf_counter()
        peka.predict(slide, model, output=Path(folder) / "a.peka.zarr", config=config, forward=forward)
        whole = perf_counter() - began
    stages["resize"] = stages["read"] - stages["decode"]
    steady = stages.pop("embed")
    return whole, steady, stages


@contextmanager
def timed(owner, name: str, stages: Counter, stage: str):
    """Add up the seconds that a function takes, in whatever thread; an outermost call counts once."""
    function, within = getattr(owner, name), threading.local()

    def call(*args, **kwargs):
        if getattr(within, "now", False):
            return function(*args, **kwargs)
        within.now = True
        began = perf_counter()
        try:
            return function(*args, **kwargs)
        finally:
            within.now = False
            stages[stage] += perf_counter() - began

    with mock.patch.object(owner, name, call):
        yield


def read_all(slide: Slide, tiles, readers: int) -> None:
    """Read the blocks that a prediction reads, by as many threads, and throw them away."""
    blocks = tiles.blocks()
    schedule = Schedule(blocks)

    def work() -> None:
        while (block := schedule.take()) is not None:
            slide.read_block(block.rect, tiles.spec.mpp)

    threads = [threading.Thread(target=work) for _ in range(readers)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()


def cpu_name() -> str:
    """Return the processor's name, as Linux has it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")


def write_mosaic(path: Path, mpp: float | None, n: int, folder: Path) -> Path:
    """Write n x n copies of a slide as a tiled pyramid with levels of factor 4."""
    import tifffile

    with peka.open_slide(path, mpp=mpp) as slide:
        own, image = slide.mpp, slide.read_level(0, 0, 0, *slide.shape)
    image = np.tile(image, (n, n, 1))
    out = folder / f"{path.stem}-{n}x{n}.tif"
    with tifffile.TiffWriter(out, bigtiff=True) as writer:
        for factor in (1, 4, 16):
            writer.write(
                np.ascontiguousarray(image[::factor, ::factor]), tile=(256, 256), photometric="rgb", compression="jpeg",
                compressionargs={"level": 85}, subfiletype=int(factor > 1), metadata=None,
                resolution=(1e4 / own[1] / factor, 1e4 / own[0] / factor), resolutionunit="CENTIMETER",
            )  # fmt: skip
    return out


def seconds(work) -> float:
    began = perf_counter()
    work()
    return perf_counter() - began


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("slide", type=Path, nargs="?", default=sample_slide())
    parser.add_argument("--mpp", type=float)
    parser.add_argument("--mosaic", type=int, default=1)
    parser.add_argument("--model", default="demo")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--backend", default="auto")
    parser.add_argument("--against", choices=["torch", "openvino", "onnx"])
    parser.add_argument("--readers", type=int)
    parser.add_argument("--stride-px", type=int)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    return parser.parse_args()


if __name__ == "__main__":
    main()
