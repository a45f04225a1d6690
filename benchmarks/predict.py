#!/usr/bin/env python3
"""Tiles per second of the whole walk (read, cut, compute, store), against the bare forward pass of the same module.

    python benchmarks/predict.py [SLIDE] [--mpp F] [--mosaic N] [--model demo] [--device auto] [--rounds 3]

Both are measured in turn in one process, so that a noisy machine is noisy for both; the ratio of the medians is what
counts. The bare pass gets tiles that already lie in memory, in batches of the same size. ``--mosaic N`` lays N x N
copies of the slide out as one tiled pyramidal JPEG TIFF first: a slide of a size as scanners make it, with real tissue.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from functools import partial
from pathlib import Path
from time import perf_counter

import numpy as np
import torch

import napari_peka as peka
from napari_peka.config import PredictConfig
from napari_peka.infer.engine import read_tiles
from napari_peka.io.sample import sample_slide
from napari_peka.workflows.predict import plan_tiles


def main() -> None:
    args = arguments()
    with tempfile.TemporaryDirectory() as scratch:
        if args.mosaic > 1:
            args.slide = write_mosaic(args.slide, args.mpp, args.mosaic, Path(scratch))
        measure(args)


def measure(args: argparse.Namespace) -> None:
    model = peka.load_model(args.model)
    config = PredictConfig(device=args.device, precision=args.precision, stride_px=args.stride_px)
    forward = peka.load_forward(model, config)
    device, dtype = forward.device, forward.dtype
    with peka.open_slide(args.slide, mpp=args.mpp) as slide:
        tiles = plan_tiles(slide, model, config)
        images = np.concatenate([read_tiles(slide, tiles, b)[0] for b in tiles.blocks()[:16]])
        n = len(tiles)
        images = np.concatenate([images] * (1 + n // len(images)))[:n]
        forward(images[: forward.batch_size])  # warm up
        walk, bare = [], []
        for _ in range(args.rounds):
            bare.append(n / seconds(partial(forward, images), device))
            with tempfile.TemporaryDirectory() as folder:
                output = Path(folder) / "a.zarr"
                # what one call costs beside its tiles (tissue, planning, assembling the result) is in it
                walk.append(
                    n
                    / seconds(lambda: peka.predict(slide, model, output=output, config=config, forward=forward), device)  # noqa: B023
                )
    print(
        json.dumps(
            {
                "slide": args.slide.name,
                "model": model.name,
                "device": str(device),
                "device_name": torch.cuda.get_device_name(device) if device.type == "cuda" else "",
                "precision": str(dtype).removeprefix("torch."),
                "threads": torch.get_num_threads(),
                "tiles": n,
                "predict_tiles_per_second": round(statistics.median(walk), 2),
                "bare_tiles_per_second": round(statistics.median(bare), 2),
                "ratio": round(statistics.median(walk) / statistics.median(bare), 3),
                "ratios_by_round": [round(w / b, 3) for w, b in zip(walk, bare)],
            },
            indent=1,
        )
    )


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


def seconds(work, device: torch.device) -> float:
    began = perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return perf_counter() - began


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("slide", type=Path, nargs="?", default=sample_slide())
    parser.add_argument("--mpp", type=float)
    parser.add_argument("--mosaic", type=int, default=1)
    parser.add_argument("--model", default="demo")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--stride-px", type=int)
    parser.add_argument("--rounds", type=int, default=3)
    return parser.parse_args()


if __name__ == "__main__":
    main()
