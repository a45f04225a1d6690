#!/usr/bin/env python3
"""What grows with the size of a slide: seconds a tile, peak memory, and the time until the first block is read.

    python benchmarks/growth.py [IMAGE] [--mpp F] [--rounds 2] [--keep FOLDER] [--json]

Slides of 20,000 x 20,000, 60,000 x 60,000 and 100,000 x 80,000 px are laid out of mirrored copies of an image of real
tissue (JPEG tiles of 512 px, levels of factor 4), so that the tiles on tissue grow with the area. Each is predicted as
a whole, in a fresh process, by an encoder that does nothing and gives as many numbers as ViT-S: what is left is
reading, cutting and storing. ``seconds`` are of the whole, ``ms_a_tile`` from the first block to the last;
``first_block_s`` goes from the start of the process until the first block may be read, loading the model left out.
Printed besides: the time of ``import napari_peka`` and ``napari-peka --help``, and of Python alone.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from functools import cache, partial
from pathlib import Path
from time import perf_counter, process_time, time

os.environ["NAPARI_PEKA_REUSE"] = "0"

import numpy as np
from large_slide import MPP, TILE, peak_mb, write_slide

SHAPES = {"20k": (20_000, 20_000), "60k": (60_000, 60_000), "100k": (100_000, 80_000)}
#: side of the image that is mirrored, px: whole tiles on all levels but the coarsest
SIDE = 16 * TILE
DIMS = 384


def main() -> None:
    args = arguments()
    if args.child:
        print(json.dumps(predict_whole(args.child, args.began)))
        return
    with tempfile.TemporaryDirectory() as scratch:
        folder = args.keep or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        image = read_image(args.image, args.mpp)
        slides = {name: folder / f"{name}.tif" for name in args.sizes}
        for name, path in slides.items():
            if not path.exists():
                write_slide(path, SHAPES[name], partial(mirrored_tiles, image))
        del image
        rounds = [{name: in_a_fresh_process(path) for name, path in slides.items()} for _ in range(args.rounds)]
    told = {
        "slides": {
            name: {k: statistics.median(r[name][k] for r in rounds) for k in rounds[0][name]} for name in args.sizes
        },
        "of_the_smallest": {
            name: {
                f"{k}_ratio": round(statistics.median(r[name][k] / r[args.sizes[0]][k] for r in rounds), 3)
                for k in ("ms_a_tile", "cpu_ms_a_tile", "peak_mb")
            }
            for name in args.sizes[1:]
        },
        "import_s": run_seconds([sys.executable, "-c", "import napari_peka"]),
        "help_s": run_seconds([sys.executable, "-m", "napari_peka", "--help"]),
        "python_s": run_seconds([sys.executable, "-c", ""]),
    }
    print(json.dumps(told, indent=1) if args.json else table(told))


def in_a_fresh_process(path: Path) -> dict:
    command = [sys.executable, __file__, "--child", str(path), "--began", str(time())]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr)
    return json.loads(done.stdout.strip().splitlines()[-1])


def run_seconds(command: list[str]) -> float:
    """Return the median time of a command, seconds."""
    took = []
    for _ in range(5):
        began = perf_counter()
        subprocess.run(command, capture_output=True, check=True)
        took.append(perf_counter() - began)
    return round(statistics.median(took), 3)


def predict_whole(path: Path, process_began: float) -> dict:
    """Predict a slide by an encoder that does nothing; `process_began` is what the clock said then."""
    import torch

    import napari_peka as peka
    from napari_peka.infer.forward import Forward

    class NoEncoder(torch.nn.Module):
        def forward(self, tiles: torch.Tensor) -> torch.Tensor:
            return tiles[:, 0, 0, :1].float().expand(-1, DIMS)

    model = one_gene()
    config = peka.PredictConfig(device="cpu", precision="fp32", backend="torch")
    forward = Forward(NoEncoder, torch.device("cpu"), torch.float32, digest=model.embedding_digest)
    seen = Seen()
    with tempfile.TemporaryDirectory() as scratch, peka.open_slide(path) as slide:
        output = Path(scratch) / "map.peka.zarr"
        began = perf_counter()
        done = peka.predict(slide, model, output=output, config=config, forward=forward, progress=seen)
        seconds = perf_counter() - began
    n = len(done.tiles)
    return {
        "tiles": n,
        "seconds": round(seconds, 2),
        "ms_a_tile": round(1e3 * (seen.last - seen.first) / n, 3),
        "cpu_ms_a_tile": round(1e3 * (seen.last_cpu - seen.first_cpu) / n, 3),
        "first_block_s": round(seen.first - process_began, 2),
        "first_block_cpu_s": round(seen.first_cpu, 2),
        "peak_mb": peak_mb(),
    }


class Seen:
    """Remembers when the first block was handed out, and when the last was done."""

    def stage(self, name: str, total: int | None = None, done: int = 0) -> None:
        if name == "predicting":
            self.first, self.first_cpu = time(), process_time()

    def advance(self, n: int = 1, **metrics: float) -> None:
        self.last, self.last_cpu = time(), process_time()

    def note(self, text: str) -> None: ...


def one_gene():
    """Return a model of one gene."""
    from napari_peka.models.bundle import save_bundle
    from napari_peka.models.registry import IMAGENET
    from napari_peka.models.spec import BundleSpec

    spec = BundleSpec(
        schema=1, name="one-gene", encoder={"name": "timm:vit_small_patch16_224"},
        preprocessing={"tile_px": 224, "mpp": MPP, "mean": IMAGENET[0], "std": IMAGENET[1]},
        head={"n_dims": DIMS, "genes": ["A"], "unit": "log1p CP10K"},
    )  # fmt: skip
    tensors = {"head.weights": np.ones((DIMS, 1), np.float32), "head.bias": np.zeros(1, np.float32)}
    with tempfile.TemporaryDirectory() as scratch:
        return save_bundle(Path(scratch) / "model", spec, tensors)


def read_image(path: Path | None, mpp: float | None) -> np.ndarray:
    """Return the square that slides are laid out of, uint8 ``(SIDE, SIDE, 3)``; of the embedded slide by default."""
    import napari_peka as peka

    with peka.open_slide(path or peka.sample_slide(), mpp=mpp) as slide:
        image = slide.read_level(0, 0, 0, *(min(SIDE, n) for n in slide.shape))
    return np.pad(image, [(0, SIDE - n) for n in image.shape[:2]] + [(0, 0)], mode="symmetric")


def mirrored_tiles(image: np.ndarray, level: tuple[int, int], factor: int) -> Iterator[bytes]:
    """Yield the JPEG tiles of a level that mirrored copies of `image` cover; each different one is encoded once."""
    import imagecodecs
    from PIL import Image

    small = np.asarray(Image.fromarray(image).reduce(factor))
    if (short := TILE - len(small)) > 0:
        small = np.pad(small, [(0, short), (0, short), (0, 0)], mode="symmetric")
    n = len(small) // TILE

    @cache
    def encoded(y: int, x: int, flip_y: bool, flip_x: bool) -> bytes:
        tile = small[y * TILE : (y + 1) * TILE, x * TILE : (x + 1) * TILE]
        tile = tile[:: -1 if flip_y else 1, :: -1 if flip_x else 1]
        return imagecodecs.jpeg8_encode(np.ascontiguousarray(tile), level=85, subsampling="420")

    def mirrored(k: int) -> tuple[int, bool]:
        turn, at = divmod(k, n)
        return (n - 1 - at, True) if turn % 2 else (at, False)

    for row in range(-(-level[0] // TILE)):
        for column in range(-(-level[1] // TILE)):
            (y, flip_y), (x, flip_x) = mirrored(row), mirrored(column)
            yield encoded(y, x, flip_y, flip_x)


def table(told: dict) -> str:
    keys = list(next(iter(told["slides"].values())))
    lines = [f"{'':6}" + "".join(f"{k:>19}" for k in keys)]
    lines += [f"{name:6}" + "".join(f"{row[k]:>19}" for k in keys) for name, row in told["slides"].items()]
    lines += [f"{name} over the smallest: {ratios}" for name, ratios in told["of_the_smallest"].items()]
    lines += [f"{k} {told[k]}" for k in ("import_s", "help_s", "python_s")]
    return "\n".join(lines)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("image", type=Path, nargs="?")
    parser.add_argument("--mpp", type=float)
    parser.add_argument("--sizes", nargs="+", choices=SHAPES, default=list(SHAPES))
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--keep", type=Path, help="folder to leave the slides in")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--began", type=float, help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    main()
