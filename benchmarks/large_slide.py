#!/usr/bin/env python3
"""Does memory grow with the size of a slide? Peak resident memory on a small and on a very large generated slide.

    xvfb-run -a python benchmarks/large_slide.py [--height 100000 --width 80000] [--keep FOLDER]

Both slides hold the same tissue at the same place, level 0 at 0.35 µm/px, JPEG tiles of 512 px, a pyramid of factors
4. On each, in a fresh process: open, find tissue and predict a region of 12 x 12 tiles; and, where napari and a
display are there, open it in napari, zoom into the tissue and take a screenshot. A file of some hundred MB is written
to the temporary folder and removed.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import resource
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from time import perf_counter

os.environ["NAPARI_PEKA_REUSE"] = "0"

import numpy as np

MPP = 0.35
TILE = 512
#: level-0 px (y, x, height, width) of the predicted region; it lies inside the tissue of every slide
REGION = (2048, 2048, 12 * 448, 12 * 448)
Tiles = Callable[[tuple[int, int], int], Iterator[bytes]]


def main() -> None:
    args = arguments()
    if args.child:
        print(json.dumps({"predict": predict_region, "napari": show_in_napari}[args.child](args.slide)))
        return
    with tempfile.TemporaryDirectory() as scratch:
        folder = args.keep or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        sizes = {"small": (10_000, 8_000), "large": (args.height, args.width)}
        table = {}
        for name, shape in sizes.items():
            path = folder / f"{name}.tif"
            if not path.exists():
                write_slide(path, shape)
            row = {"shape": shape, "file_mb": round(path.stat().st_size / 1e6)}
            for job in ("predict", "napari"):
                row[job] = in_a_fresh_process(job, path)
            table[name] = row
        table["growth_mb"] = {
            job: round(table["large"][job]["peak_mb"] - table["small"][job]["peak_mb"])
            for job in ("predict", "napari")
            if "peak_mb" in table["large"][job]
        }
        print(json.dumps(table, indent=1))


def in_a_fresh_process(job: str, path: Path) -> dict:
    command = [sys.executable, __file__, "--child", job, "--slide", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        return {"failed": done.stderr.strip().splitlines()[-1:]}
    return json.loads(done.stdout.strip().splitlines()[-1])


def predict_region(path: Path) -> dict:
    from shapely import box

    import napari_peka as peka

    began = perf_counter()
    y, x, h, w = REGION
    with peka.open_slide(path) as slide:
        opened = perf_counter() - began
        tissue = peka.find_tissue(slide)
        found = perf_counter() - began - opened
        done = peka.predict(slide, peka.load_model("demo"), region=box(x, y, x + w, y + h), tissue=tissue)
    return {"open_s": round(opened, 3), "tissue_s": round(found, 3), "tiles": len(done.tiles), "peak_mb": peak_mb()}


def show_in_napari(path: Path) -> dict:
    import napari

    import napari_peka as peka
    from napari_peka.gui.layers import slide_layer

    viewer = napari.Viewer()
    began = perf_counter()
    slide = peka.open_slide(path)
    data, settings, _ = slide_layer(slide)
    viewer.add_image(data, **settings)
    opened = perf_counter() - began
    viewer.reset_view()
    viewer.screenshot(canvas_only=False)
    y, x, h, w = (v * MPP for v in REGION)
    for zoom in (0.05, 0.2, 0.8, 2.0):
        viewer.camera.center, viewer.camera.zoom = (y + h / 2, x + w / 2), zoom
        viewer.screenshot(canvas_only=False)
    shown = viewer.screenshot(canvas_only=True)[..., :3]
    viewer.close()
    return {"open_s": round(opened, 3), "picture_sd": round(float(shown.std()), 1), "peak_mb": peak_mb()}


def peak_mb() -> float:
    status = Path("/proc/self/status")
    if status.exists():  # getrusage's maximum begins with that of the parent process
        return round(int(re.search(r"VmHWM:\s+(\d+)", status.read_text())[1]) / 1e3)
    unit = 1e6 if sys.platform == "darwin" else 1e3
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit)


def write_slide(path: Path, shape: tuple[int, int], tiles: Tiles | None = None) -> None:
    """Write a pyramid of JPEG tiles, one after the other; `tiles` yields those of a level of that shape and factor."""
    import tifffile

    began = perf_counter()
    with tifffile.TiffWriter(path, bigtiff=True) as writer:
        factor = 1
        while True:
            level = -(-shape[0] // factor), -(-shape[1] // factor)
            writer.write(
                (tiles or encoded_tiles)(level, factor), shape=(*level, 3), dtype=np.uint8, tile=(TILE, TILE),
                photometric="ycbcr", subsampling=(2, 2), compression="jpeg", subfiletype=int(factor > 1), metadata=None,
                resolution=(1e4 / MPP / factor, 1e4 / MPP / factor), resolutionunit="CENTIMETER",
            )  # fmt: skip
            if max(level) <= 2048:
                break
            factor *= 4
    print(f"{path.name}: {shape[0]:,} x {shape[1]:,} px in {perf_counter() - began:.0f} s", file=sys.stderr)


def encoded_tiles(level: tuple[int, int], factor: int) -> Iterator[bytes]:
    """Yield the JPEG tiles of a level: textured tissue at the upper left and in stripes below, glass elsewhere."""
    import imagecodecs

    rng = np.random.default_rng(0)
    glass = np.full((TILE, TILE, 3), 243, np.uint8)
    noise = rng.normal(0, 22, (TILE, TILE, 1)) + rng.normal(0, 8, (TILE, TILE, 3))
    pink = np.clip(np.array([200, 130, 180]) + noise, 0, 255).astype(np.uint8)

    def encode(image: np.ndarray) -> bytes:
        return imagecodecs.jpeg8_encode(image, level=85, subsampling="420")

    all_glass, all_pink = encode(glass), encode(pink)
    for y in range(-(-level[0] // TILE)):
        rows = (y * TILE + np.arange(TILE)[:, None]) * factor
        for x in range(-(-level[1] // TILE)):
            columns = (x * TILE + np.arange(TILE)[None]) * factor
            tissue = (rows >= 1000) & (rows < 9000) & (columns >= 1000) & (columns < 7000)
            tissue |= (rows > 12_000) & ((rows // 8192) % 3 == 0) & (columns % 16_384 < 12_000)
            if tissue.all() or not tissue.any():
                yield all_pink if tissue.any() else all_glass
            else:
                yield encode(np.where(tissue[..., None], pink, glass))


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--height", type=int, default=100_000)
    parser.add_argument("--width", type=int, default=80_000)
    parser.add_argument("--keep", type=Path, help="folder to leave the slides in")
    parser.add_argument("--child", choices=("predict", "napari"), help=argparse.SUPPRESS)
    parser.add_argument("--slide", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    main()
