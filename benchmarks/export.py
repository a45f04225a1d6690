#!/usr/bin/env python3
"""Exports of a large map: how near to the speed of the disk, and in how much memory.

    python benchmarks/export.py [--tiles 100000 --genes 18000 --format h5ad csv] [--context 300] [--folder FOLDER]

A synthetic map with random embeddings is exported, each format in a process of its own, between two plain writes of as
many bytes as the values have in float32 (whole chunks, pushed to the disk at the end), since the speed of a shared disk
changes. ``ratio_plain`` is the export's speed, in bytes of values, against the mean of the two; ``ratio_cpu`` the
processor time of a plain write and of computing the values against the export's: near 1 nothing else costs.
``growth_mb`` is the peak of resident memory above what the process held with the map and all libraries loaded.
What is written is removed.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from time import perf_counter, process_time
from typing import Any

import numpy as np

MB = 1e6


def main() -> None:
    args = arguments()
    if args.child:
        print(json.dumps(measured(args)))
        return
    table: dict[str, Any] = {"tiles": args.tiles, "genes": args.genes, "dims": args.dims, "context_um": args.context}
    for name in args.format:
        command = [sys.executable, __file__, "--child", *sys.argv[1:], "--format", name]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        table[name] = json.loads(done.stdout) if not done.returncode else {"failed": done.stderr.splitlines()[-1:]}
        print(json.dumps({name: table[name]}), file=sys.stderr, flush=True)
    print(json.dumps(table, indent=1))


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiles", type=int, default=100_000)
    parser.add_argument("--genes", type=int, default=18_000)
    parser.add_argument("--dims", type=int, default=384)
    parser.add_argument("--context", type=float, help="µm within which the head reads a tile's neighbours")
    parser.add_argument("--format", nargs="+", default=["h5ad"])
    parser.add_argument("--folder", type=Path, help="where to write; the temporary folder by default")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args()


def measured(args: argparse.Namespace) -> dict[str, Any]:
    from napari_peka.io.export import FORMATS, export
    from napari_peka.io.exports.base import Export

    (name,) = args.format
    prediction = prediction_of(args, args.tiles)
    size = 4 * len(prediction.tiles) * args.genes
    with tempfile.TemporaryDirectory(dir=args.folder) as scratch:
        folder = Path(scratch)
        ending = FORMATS[name].endings[0]
        export(prediction_of(args, 16), name, folder / f"small{ending}")  # what it needs is imported
        before = [plain_write(folder / "plain", size)]
        target = folder / f"map{ending}"
        forget_peak()
        held = memory_mb("VmRSS")
        began, worked = perf_counter(), process_time()
        export(prediction, name, target, genes=prediction.genes)
        seconds, cpu = perf_counter() - began, process_time() - worked
        growth = memory_mb("VmHWM") - held
        written = sum(f.stat().st_size for f in (target.rglob("*") if target.is_dir() else [target]) if f.is_file())
        remove(target)
        before.append(plain_write(folder / "plain", size))
    plain, plain_cpu = np.mean(before, 0)
    began, worked = perf_counter(), process_time()
    for _ in Export(prediction, prediction.genes, {}).by_tiles():
        pass
    computing, computing_cpu = perf_counter() - began, process_time() - worked
    return {
        "seconds": round(seconds, 1), "cpu_seconds": round(cpu, 1), "values_mb": round(size / MB),
        "written_mb": round(written / MB), "mb_s": round(size / MB / seconds),
        "plain_mb_s": [round(size / MB / s) for s, _ in before], "computing_mb_s": round(size / MB / computing),
        "ratio_plain": round(plain / seconds, 2), "ratio_cpu": round((plain_cpu + computing_cpu) / cpu, 2),
        "growth_mb": round(growth), "held_mb": round(held),
    }  # fmt: skip


def prediction_of(args: argparse.Namespace, n: int):
    from napari_peka.core.geometry import TileSpec, TileTable
    from napari_peka.core.head import GeneHead
    from napari_peka.io.prediction import Prediction

    rng = np.random.default_rng(0)
    across = round(n**0.5)
    tiles = TileTable.grid((-(-n // across) * 224, across * 224), (0.5, 0.5), TileSpec(224, 0.5))
    d = args.dims * (1 if args.context is None else 2)
    head = GeneHead(
        rng.normal(size=(d, args.genes)).astype(np.float32) / d, np.ones(args.genes, np.float32),
        tuple(f"GENE{i}" for i in range(args.genes)), "log1p CP10K", (), None, args.context,
    )  # fmt: skip
    embeddings = np.empty((len(tiles), args.dims), np.float16)
    for at in range(0, len(tiles), 4096):
        embeddings[at : at + 4096] = rng.normal(size=embeddings[at : at + 4096].shape)
    return Prediction(tiles, embeddings, head, np.ones(len(tiles), bool), {"slide": {"name": "synthetic"}})


def plain_write(path: Path, size: int) -> tuple[float, float]:
    """Return the seconds that as many bytes take when nothing is computed, on the clock and of the processor."""
    part = np.random.default_rng(0).integers(0, 256, 32 * 2**20, np.uint8)
    began, worked = perf_counter(), process_time()
    with path.open("wb", buffering=0) as file:
        for at in range(0, size, len(part)):
            file.write(part[: size - at].data)
        os.fsync(file.fileno())
    took = perf_counter() - began, process_time() - worked
    remove(path)
    return took


def remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()


def forget_peak() -> None:
    """Let Linux count the peak of resident memory from here."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        print("the peak counts from the start of the process", file=sys.stderr)


def memory_mb(what: str) -> float:
    found = re.search(rf"{what}:\s+(\d+)", Path("/proc/self/status").read_text())
    return int(found[1]) * 1024 / MB if found else float("nan")


if __name__ == "__main__":
    main()
