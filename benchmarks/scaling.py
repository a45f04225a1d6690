#!/usr/bin/env python3
"""How prediction by workers scales: 1 and 2 of them measured, and up to 1,000 simulated from what was measured.

    python benchmarks/scaling.py SLIDE [--mpp F] [--mosaic 2] [--rounds 3] [--json]
    python benchmarks/scaling.py --simulate-only [--json]

Measured, on local worker processes of one thread each, with an encoder that does nothing (so that reading, sending,
writing and putting together are all there is): tiles a second of 1 and of 2 workers, in turn; seconds that an item
costs this process (``item_ms``: an empty one, sent and heard of), and that a finished block costs it (``block_ms``:
read back and put in), and that a map costs it beside (``map_s``: opened, planned and written).

Simulated, event by event, with the code's own rules for which slides workers do by themselves, the size of items and
their number under way: one process that does one thing at a time, for the costs above, and N workers that take what a
tile takes, with a spread of a quarter. ``efficiency`` is what they reach of N times the speed of one that only
computes.
"""

from __future__ import annotations

import argparse
import heapq
import json
import os
import statistics
import tempfile
from collections import deque
from pathlib import Path
from time import perf_counter

os.environ["NAPARI_PEKA_REUSE"] = "0"

import numpy as np
from distributed import WorkerPlugin
from pipeline import NoEncoder, write_mosaic

import napari_peka as peka
from napari_peka.workflows import crew as rules
from napari_peka.workflows.crew import open_crew
from napari_peka.workflows.crew_many import TOGETHER, whole_slides

#: costs of this process by which is simulated where nothing is measured: docs/scaling.md says of which machine
KNOWN = {"item_ms": 8.7, "block_ms": 0.02, "map_s": 0.9}
#: tiles a second of one worker: ViT-L in bf16 on two cores, ViT-S on two cores, ViT-L on a GPU
SPEEDS = {"2.5 tiles/s (ViT-L, one core)": 2.5, "60 tiles/s (ViT-S, two cores)": 60.0, "1,000 tiles/s (a GPU)": 1000.0}
WORKERS = (1, 2, 10, 100, 1000)
#: a slide of common size: 15 x 15 mm of tissue at 112 µm a tile
SLIDE_TILES, BLOCK_TILES = 18_000, 64
#: slides of a pile, a worker
SLIDES_A_WORKER = 20
#: spread of what the same work takes, of the logarithm
SPREAD = 0.25


class NoOp(WorkerPlugin):
    """Gives workers an encoder that does nothing, in place of a model's."""

    name = "no-op"

    def __init__(self, dims: int) -> None:
        self.dims = dims

    def setup(self, worker) -> None:
        import torch

        from napari_peka.infer.forward import Forward
        from napari_peka.workflows import predict

        def load(model, config=None, **_):
            module = NoEncoder(self.dims)
            return Forward(lambda: module, torch.device("cpu"), torch.float32, 32, model.embedding_digest)

        predict.load_forward = load


def main() -> None:
    args = arguments()
    told = {}
    costs = KNOWN
    if not args.simulate_only:
        with tempfile.TemporaryDirectory() as scratch:
            if args.mosaic > 1:
                args.slide = write_mosaic(args.slide, args.mpp, args.mosaic, Path(scratch))
            told = measure(args, Path(scratch))
        costs = {k: told[k] for k in KNOWN}
    told["simulated"] = {name: {str(n): simulate(n, speed, costs) for n in WORKERS} for name, speed in SPEEDS.items()}
    print(json.dumps(told, indent=1) if args.json else as_text(told))


def measure(args: argparse.Namespace, scratch: Path) -> dict:
    model = peka.load_model("demo")
    config = peka.PredictConfig(device="cpu", precision="fp32", backend="torch")
    rates: dict[int, list[float]] = {1: [], 2: []}
    with peka.open_slide(args.slide, mpp=args.mpp) as slide:
        tissue = peka.find_tissue(slide)
        for turn in range(args.rounds):
            for n in rates:
                with open_crew("local", n) as crew:
                    crew.client.wait_for_workers(n)
                    crew.client.register_plugin(NoOp(model.head.embedding_dims))
                    forward = crew.forward(model, config)
                    out = scratch / f"{turn}-{n}.peka.zarr"
                    predict = lambda path, f=forward: peka.predict(  # noqa: E731
                        slide, model, output=path, tissue=tissue, config=config, forward=f
                    )
                    predict(scratch / f"warm-{turn}-{n}.peka.zarr")
                    done = predict(out)
                    rates[n].append(done.record["run"]["tiles_per_second"])
                    if n == 1:
                        item_ms = item_cost(crew.client)
        block_ms, map_s = costs_here(slide, model, config, tissue, done, scratch)
    ratios = [b / a for a, b in zip(rates[1], rates[2])]
    return {
        "slide": args.slide.name,
        "tiles": len(done.tiles),
        "tiles_per_second": {str(n): [round(r, 1) for r in v] for n, v in rates.items()},
        "ratio_2_to_1": round(statistics.median(ratios), 2),
        "item_ms": round(item_ms, 2),
        "block_ms": round(block_ms, 2),
        "map_s": round(map_s, 2),
    }


def item_cost(client, n: int = 500) -> float:
    """Return the ms that an empty item costs from being sent to being heard of, many under way."""
    began = perf_counter()
    futures = {client.submit(int, i, pure=False) for i in range(n)}
    while futures:
        futures -= rules._finished(futures)
    return 1000 * (perf_counter() - began) / n


def costs_here(slide, model, config, tissue, done, scratch: Path) -> tuple[float, float]:
    """Return the ms that a block costs to be read back, and the seconds of a map besides."""
    from napari_peka.io.block_files import BlockFiles

    files = BlockFiles(scratch, model.head.embedding_dims)
    blocks = done.tiles.blocks()
    for b in blocks:
        files.write(b.index, done.embeddings[b.start : b.stop], done.read_ok[b.start : b.stop])
    began = perf_counter()
    for b in blocks:
        done.embeddings[b.start : b.stop], _ = files.read(b.index, len(b))
    block_ms = 1000 * (perf_counter() - began) / len(blocks)
    os.environ["NAPARI_PEKA_REUSE"] = "1"
    os.environ["NAPARI_PEKA_CACHE"] = str(scratch / "cache")
    try:  # of a map that is known nothing is computed: what is left is planning and writing
        peka.predict(slide, model, output=scratch / "seen.peka.zarr", tissue=tissue, config=config)
        began = perf_counter()
        peka.predict(slide, model, output=scratch / "known.peka.zarr", tissue=tissue, config=config)
        return block_ms, perf_counter() - began
    finally:
        os.environ["NAPARI_PEKA_REUSE"] = "0"


def simulate(workers: int, tiles_per_second: float, costs: dict[str, float], seed: int = 0) -> dict[str, float]:
    """Return tiles a second and efficiency of so many workers on a pile of slides."""
    rng = np.random.default_rng(seed)
    slides = SLIDES_A_WORKER * workers + 3
    whole = whole_slides(slides, workers)
    block_s, blocks = BLOCK_TILES / tiles_per_second, -(-SLIDE_TILES // BLOCK_TILES)
    item_s, read_s, map_s = costs["item_ms"] / 1000, costs["block_ms"] / 1000, costs["map_s"]
    here = 0.0  # until when this process is busy
    idle = workers
    waiting: tuple[deque, deque] = deque(), deque()  # items that are sent and not begun: whole slides, and blocks
    left, out = {}, {}  # of a shared slide: blocks that are not sent, items that are not back
    to_send, to_open = whole, list(range(whole, slides))
    under_way = finished = number = 0
    events: list[tuple[float, int, str, int, float]] = []
    now = 0.0

    def at(time: float, what: str, slide: int = 0, cost: float = 0.0) -> None:
        nonlocal number
        number += 1
        heapq.heappush(events, (time, number, what, slide, cost))

    def busy(seconds: float) -> float:
        nonlocal here
        here = max(here, now) + seconds
        return here

    def took(tiles: float) -> float:
        return tiles / tiles_per_second * float(rng.lognormal(-(SPREAD**2) / 2, SPREAD))

    def send_whole() -> None:
        nonlocal to_send, under_way
        while to_send and under_way < rules.UNDER_WAY * workers:
            to_send -= 1
            under_way += 1
            at(busy(item_s), "sent", -1, took(SLIDE_TILES) + map_s)

    def send_blocks(slide: int) -> None:
        shares = rules.UNDER_WAY * workers
        while left[slide] and out[slide] < shares:
            n = min(round(rules.ITEM_S / block_s), rules.ITEM_BLOCKS, -(-left[slide] // shares))
            n = min(max(1, n), left[slide])
            left[slide] -= n
            out[slide] += 1
            at(busy(item_s), "sent", slide, took(n * BLOCK_TILES))

    def open_next() -> None:
        if to_open:
            at(busy(map_s / 2), "planned", to_open.pop(0))

    send_whole()
    for _ in range(TOGETHER):
        open_next()
    while finished < slides:
        now, _, what, slide, cost = heapq.heappop(events)
        if what == "planned":
            left[slide], out[slide] = blocks, 0
            send_blocks(slide)
        elif what == "sent":
            waiting[slide >= 0].append((slide, cost))
        elif what == "written":
            finished += 1
            open_next()
        elif slide < 0:  # a whole slide is back
            idle, under_way, finished = idle + 1, under_way - 1, finished + 1
            send_whole()
        else:
            idle, out[slide] = idle + 1, out[slide] - 1
            send_blocks(slide)
            if not out[slide]:
                at(busy(map_s / 2 + read_s * blocks), "written", slide)
        while idle and any(waiting):
            of, cost = (waiting[0] or waiting[1]).popleft()
            idle -= 1
            at(now + cost, "done", of)
    rate = slides * SLIDE_TILES / now
    return {"tiles_per_second": round(rate, 1), "efficiency": round(rate / (workers * tiles_per_second), 3)}


def as_text(told: dict) -> str:
    lines = [f"{k:20} {v}" for k, v in told.items() if k != "simulated"]
    for name, by in told["simulated"].items():
        lines.append(name)
        lines += [
            f"  {n:>5} workers: {d['tiles_per_second']:>12,.0f} tiles/s, {d['efficiency']:.1%}" for n, d in by.items()
        ]
    return "\n".join(lines)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("slide", type=Path, nargs="?")
    parser.add_argument("--mpp", type=float)
    parser.add_argument("--mosaic", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--simulate-only", action="store_true")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    if args.slide is None and not args.simulate_only:
        parser.error("a slide is needed, or --simulate-only")
    return args


if __name__ == "__main__":
    main()
