#!/usr/bin/env python3
"""How much of a prediction's speed is left when every read of the slide's file takes long, as over a network.

    python benchmarks/latency.py [SLIDE] [--mpp F] [--model demo] [--backend auto] [--milliseconds 50] [--blocks 16]
        [--readers N] [--no-op] [--rounds 2]

The same blocks are embedded in turn from the file as it is and with a wait before every read of it (TIFF reader; two
rounds of each). ``ratio`` is the speed with the wait over that without. ``--no-op`` takes an encoder that does nothing:
then all that is measured is reading, and how many threads were begun for it.
"""

from __future__ import annotations

import argparse
import json
import statistics
import threading
import time
from pathlib import Path
from unittest import mock

import torch

import napari_peka as peka
from napari_peka.config import PredictConfig
from napari_peka.infer.engine import embed
from napari_peka.infer.forward import Forward
from napari_peka.infer.schedule import Schedule
from napari_peka.io.readers.tiff import TiffReader
from napari_peka.io.sample import sample_slide
from napari_peka.workflows.predict import plan_tiles, readers_of


class Reads:
    """Waits before each read, and counts them and the threads that do it."""

    def __init__(self, seconds: float) -> None:
        self.seconds, self.n, self.threads = seconds, 0, set()
        self.read = TiffReader._bytes

    def __call__(self, reader: TiffReader, offset: int, n: int) -> bytes:
        self.n += 1
        self.threads.add(threading.current_thread().name)
        time.sleep(self.seconds)
        return self.read(reader, offset, n)


def main() -> None:
    args = arguments()
    model = peka.load_model(args.model)
    config = PredictConfig(backend=args.backend, readers=args.readers)
    forward = peka.load_forward(model, config)
    if args.no_op:
        forward = Forward(lambda: torch.nn.Flatten(), torch.device("cpu"), torch.float32)
    rates: dict[float, list[float]] = {0.0: [], args.milliseconds / 1000: []}
    seen = {}
    with peka.open_slide(args.slide, mpp=args.mpp) as slide:
        tiles = plan_tiles(slide, model, config)
        forward.module  # noqa: B018 - loaded before the clock runs
        for _ in range(args.rounds):
            for wait, found in rates.items():
                reads = seen[wait] = Reads(wait)
                slide.close()
                # a first block finds the reader and what its tiles look like
                slide.read_block(tiles.blocks()[0].rect, tiles.spec.mpp)
                with mock.patch.object(TiffReader, "_bytes", lambda *a, reads=reads: reads(*a)):
                    found.append(speed(slide, tiles, forward, config, args.blocks))
    reader = slide.reader
    told = {
        "slide": args.slide.name, "reader": reader, "precision": forward.precision, "wait_ms": args.milliseconds,
        "ratio": round(statistics.median(b / a for a, b in zip(*rates.values())), 3),
        "tiles_per_second": {f"{1000 * w:g} ms": [round(r, 1) for r in v] for w, v in rates.items()},
        "reads_per_block": {f"{1000 * w:g} ms": round(s.n / args.blocks, 1) for w, s in seen.items()},
        "threads": {f"{1000 * w:g} ms": len(s.threads) for w, s in seen.items()},
    }  # fmt: skip
    print(json.dumps(told, indent=1))


def speed(slide, tiles, forward: Forward, config: PredictConfig, n: int) -> float:
    """Return tiles a second of the first `n` blocks."""
    schedule = Schedule(tiles.blocks()[:n])
    left = schedule.tiles_left
    began = time.perf_counter()
    embed(
        slide, tiles, forward, schedule, lambda *_: None,
        readers=readers_of(config, forward), more_readers=config.readers is None,
    )  # fmt: skip
    return left / (time.perf_counter() - began)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("slide", type=Path, nargs="?", default=sample_slide())
    parser.add_argument("--mpp", type=float)
    parser.add_argument("--model", default="demo")
    parser.add_argument("--backend", default="auto")
    parser.add_argument("--milliseconds", type=float, default=50)
    parser.add_argument("--blocks", type=int, default=16)
    parser.add_argument("--readers", type=int)
    parser.add_argument("--no-op", action="store_true")
    parser.add_argument("--rounds", type=int, default=2)
    return parser.parse_args()


if __name__ == "__main__":
    main()
