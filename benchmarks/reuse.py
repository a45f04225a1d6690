#!/usr/bin/env python3
"""What a map costs when its encoder has seen the slide before: another run, another gene head, a region.

    python benchmarks/reuse.py SLIDE [--mpp F] [--mosaic 2] [--model demo] [--json]

In one process: the slide is predicted with an empty cache; then again into another output, with another gene head, and
for a quarter of the slide. ``ratio_*`` is seconds over those of the first run; the encoder is loaded and tissue is
found before, since neither changes.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import tempfile
from pathlib import Path
from time import perf_counter

import shapely
from pipeline import write_mosaic

import napari_peka as peka


def main() -> None:
    args = arguments()
    with tempfile.TemporaryDirectory() as scratch:
        os.environ["NAPARI_PEKA_CACHE"] = str(Path(scratch) / "cache")
        os.environ["NAPARI_PEKA_REUSE"] = "1"
        if args.mosaic > 1:
            args.slide = write_mosaic(args.slide, args.mpp, args.mosaic, Path(scratch))
        told = measure(args, Path(scratch))
    print(json.dumps(told, indent=1) if args.json else "\n".join(f"{k:24} {v}" for k, v in told.items()))


def measure(args: argparse.Namespace, scratch: Path) -> dict:
    model = peka.load_model(args.model)
    head = dataclasses.replace(model.head, weights=2 * model.head.weights)
    other = dataclasses.replace(model, head=head, digest="0" * 64)
    forward = peka.load_forward(model)
    _ = forward.module
    with peka.open_slide(args.slide, mpp=args.mpp) as slide:
        h, w = slide.shape
        tissue = peka.find_tissue(slide)
        runs = {
            "first": (model, None),
            "again": (model, None),
            "other_head": (other, None),
            "region": (model, shapely.box(w / 4, h / 4, 3 * w / 4, 3 * h / 4)),
        }
        took, tiles, computed = {}, {}, {}
        for name, (which, region) in runs.items():
            began = perf_counter()
            done = peka.predict(
                slide, which, output=scratch / f"{name}.peka.zarr", region=region, tissue=tissue, forward=forward
            )
            took[name] = perf_counter() - began
            tiles[name] = len(done.tiles)
            computed[name] = len(done.tiles) - done.record["run"]["resumed_tiles"]
    return {
        "slide": args.slide.name,
        "tiles": tiles,
        "computed": computed,
        "seconds": {k: round(v, 2) for k, v in took.items()},
        **{f"ratio_{k}": round(v / took["first"], 4) for k, v in took.items() if k != "first"},
    }


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("slide", type=Path)
    parser.add_argument("--mpp", type=float)
    parser.add_argument("--mosaic", type=int, default=1)
    parser.add_argument("--model", default="demo")
    parser.add_argument("--json", action="store_true")
    return parser.parse_args()


if __name__ == "__main__":
    main()
