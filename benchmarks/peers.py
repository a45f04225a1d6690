#!/usr/bin/env python3
"""napari-peka beside LazySlide, TIAToolbox, WSInfer and a loop in the manner of TRIDENT, in one run.

    python benchmarks/peers.py SLIDE --peers FOLDER [--rounds 2] [--encoder vit] [--tools NAME ...] [--json]

The same slide, encoder (timm's ViT-S/16, random weights of one seed), tiles (224 px at 0.5 µm/px, no overlap) and
batches of 32 (napari-peka: as it chooses them). FOLDER holds a virtual environment a tool, ``lazyslide``,
``tiatoolbox``, ``wsinfer`` and ``trident``
(timm, h5py, openslide-python, openslide-bin and opencv-python-headless), each made by one pip command that names torch
in the version that napari-peka runs with. Tools that are not there are left out.

Each tool runs in a process of its own (``benchmarks/peers/``), one after the other and all of them in each round, so
that a noisy machine is noisy for all. Time goes from opening the slide to results on the disk, finding tissue included;
imports and loading the model are left out. Each tool finds its own tissue, so compare tiles a second. Memory is the
greatest sum of PSS (shared pages counted once) over the tool's processes from their start to their end, with imports
and model. ``error`` is the greatest distance of an embedding from torch in fp32 on the pixels at the tool's own
coordinates, over the greatest value; ``cosine`` the median.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from time import perf_counter, sleep
from typing import NamedTuple

import numpy as np
import psutil

RUNNERS = Path(__file__).parent / "peers"
sys.path.append(str(RUNNERS))

import common  # noqa: E402

#: tiles of each tool whose embeddings are compared with torch's
COMPARED = 64
#: seconds between two looks at the memory
EVERY_S = 0.1


class Tool(NamedTuple):
    """How a tool is run: its runner, its environment (None: this one), its package, and what the runner is told."""

    runner: str
    environment: str | None
    package: str
    options: tuple[str, ...] = ()


def ours(backend: str, precision: str) -> Tool:
    return Tool("run_peka.py", None, "napari-peka", ("--backend", backend, "--precision", precision))


BF16 = ("--precision", "bf16")
PEERS = {
    "LazySlide": Tool("run_lazyslide.py", "lazyslide", "lazyslide"),
    "TIAToolbox": Tool("run_tiatoolbox.py", "tiatoolbox", "tiatoolbox"),
    "WSInfer": Tool("run_wsinfer.py", "wsinfer", "wsinfer"),
    "TRIDENT-style": Tool("run_trident_style.py", "trident", "openslide-python"),
    "LazySlide bf16": Tool("run_lazyslide.py", "lazyslide", "lazyslide", BF16),
    "TRIDENT-style bf16": Tool("run_trident_style.py", "trident", "openslide-python", BF16),
}
OURS = {
    "peka torch": ours("torch", "fp32"),
    "peka openvino": ours("openvino", "fp32"),
    "peka torch bf16": ours("torch", "bf16"),
    "peka openvino bf16": ours("openvino", "bf16"),
}


def main() -> None:
    args = arguments()
    tools = {name: tool for name, tool in (PEERS | OURS).items() if not args.tools or name in args.tools}
    if args.encoder == "noop":  # nothing is computed, so it is run by one backend in one format
        tools = {name: tool for name, tool in tools.items() if "bf16" not in name and "openvino" not in name}
    tools = {name: tool for name, tool in tools.items() if interpreter(tool, args.peers)}
    rows: dict[str, list[dict]] = {}
    with tempfile.TemporaryDirectory() as scratch:
        home = Path(scratch) / "home"
        for number in range(args.rounds):
            for name, tool in tools.items():
                python = interpreter(tool, args.peers)
                if number == 0 and tool.environment is None and args.encoder == "vit":
                    measure(tool, python, args, home, warm_up=True)
                row = measure(tool, python, args, home)
                print(f"round {number + 1}, {name}: {row}", file=sys.stderr)
                rows.setdefault(name, []).append(row)
    told = summed_up(rows)
    told["versions"] = {name: versions(tool, args.peers) for name, tool in tools.items()}
    print(json.dumps(told, indent=1) if args.json else table(told))


def interpreter(tool: Tool, peers: Path | None) -> Path | None:
    if tool.environment is None:
        return Path(sys.executable)
    python = peers and peers / tool.environment / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    return python if python and python.exists() else None


def versions(tool: Tool, peers: Path | None) -> str:
    """Return the versions of a tool and of the torch that it runs on."""
    names = [tool.package, "torch"]
    code = f"from importlib.metadata import version; print(*(f'{{n}} {{version(n)}}' for n in {names}), sep=', ')"
    done = subprocess.run([str(interpreter(tool, peers)), "-c", code], capture_output=True, text=True, check=False)
    return done.stdout.strip()


def measure(tool: Tool, python: Path, args: argparse.Namespace, home: Path, *, warm_up: bool = False) -> dict:
    """Run a tool once. A warm-up makes what the package keeps for the next time (the compiled encoder)."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder)
        command = [python, RUNNERS / tool.runner, args.slide, "--out", out, "--encoder", args.encoder, *tool.options]
        command += ["--batch", args.batch]
        if tool.environment is None:
            command += ["--home", home]
        command += ["--only-load"] if warm_up else []
        environment = {k: v for k, v in os.environ.items() if tool.environment is None or k != "PYTHONPATH"}
        with (out / "log").open("w") as log:
            job = psutil.Popen([str(c) for c in command], stdout=log, stderr=log, env=environment)
            peak = peak_of(job)
        if job.returncode:
            last = (out / "log").read_text().strip().splitlines()[-3:]
            return {"failed": last}
        if warm_up:
            return {"peak_mb": peak}
        told = json.loads((out / common.TOLD).read_text())
        told |= {"tiles_per_s": round(told["tiles"] / told["seconds"], 2), "peak_mb": peak}
        if args.encoder == "vit":
            told |= compared(args.slide, out / common.TILES)
        return told


def peak_of(job: psutil.Popen) -> int:
    """Wait for a process; return the greatest PSS of it and its children together, MB."""
    peak = 0
    while job.poll() is None:
        began, now = perf_counter(), 0
        try:
            for process in (job, *job.children(recursive=True)):
                now += process.memory_full_info().pss
        except (psutil.Error, OSError):  # one of them has just ended
            now = 0
        peak = max(peak, now)
        sleep(max(EVERY_S, 4 * (perf_counter() - began)))
    return round(peak / 1e6)


def compared(slide: Path, tiles: Path) -> dict:
    """Compare embeddings with torch's in fp32 on the pixels where the tool says that they are from."""
    import torch

    import napari_peka as peka
    from napari_peka.models.encoder import Normaliser

    with np.load(tiles) as file:
        left_yx, embeddings = file["left_yx"], file["embeddings"]
    some = np.unique(np.linspace(0, len(left_yx) - 1, COMPARED).astype(int))
    side = common.TILE_PX
    with peka.open_slide(slide) as opened:
        corners = np.rint(left_yx[some]).astype(int)
        images = np.stack([opened.read_level(0, int(y), int(x), side, side) for y, x in corners])
    with torch.inference_mode():
        wanted = common.encoder("vit")(Normaliser(common.MEAN, common.STD)(torch.from_numpy(images))).numpy()
    got = embeddings[some]
    cosine = (wanted * got).sum(1) / np.linalg.norm(wanted, axis=1) / np.linalg.norm(got, axis=1)
    return {
        "cosine": round(float(np.median(cosine)), 6),
        "error": round(float(np.abs(wanted - got).max() / np.abs(wanted).max()), 5),
    }


def summed_up(rows: dict[str, list[dict]]) -> dict:
    """Return medians over rounds, and how ours compare with the best peer of each round."""
    good = {name: [r for r in measured if "failed" not in r] for name, measured in rows.items()}
    good = {name: measured for name, measured in good.items() if measured}
    told: dict = {
        "tools": {name: {k: statistics.median(r[k] for r in m) for k in m[0]} for name, m in good.items()},
        "failed": {name: m for name, m in rows.items() if name not in good},
        "rounds": rows,
        "ratios": {},
    }
    fp32 = [name for name in good if name in PEERS and "bf16" not in name]
    every = [name for name in good if name in PEERS]
    for name in (n for n in good if n in OURS and fp32):
        turns = range(min(len(good[n]) for n in (name, *every)))
        mine = good[name]

        def fastest(names: list[str], turn: int) -> float:
            return max(good[n][turn]["tiles_per_s"] for n in names)

        told["ratios"][name] = {
            "speed_to_best_fp32": median(mine[t]["tiles_per_s"] / fastest(fp32, t) for t in turns),
            "speed_to_best": median(mine[t]["tiles_per_s"] / fastest(every, t) for t in turns),
            "memory": {n: median(mine[t]["peak_mb"] / good[n][t]["peak_mb"] for t in turns) for n in every},
        }
    return told


def median(values) -> float:
    return round(statistics.median(values), 2)


def table(told: dict) -> str:
    keys = ("tiles", "seconds", "tiles_per_s", "peak_mb", "cpu_s", "cosine", "error")
    lines = [f"{'':20}" + "".join(f"{k:>13}" for k in keys)]
    lines += [f"{name:20}" + "".join(f"{row.get(k, ''):>13}" for k in keys) for name, row in told["tools"].items()]
    for name, ratios in told["ratios"].items():
        lines.append(f"{name}: " + ", ".join(f"{k} {v}" for k, v in ratios.items()))
    lines += [f"{name} failed: {m[-1]['failed']}" for name, m in told["failed"].items()]
    return "\n".join(lines)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("slide", type=Path)
    parser.add_argument("--peers", type=Path, help="folder with the tools' virtual environments")
    parser.add_argument("--encoder", choices=["vit", "noop"], default="vit")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--tools", nargs="*", choices=[*PEERS, *OURS], help="only these")
    parser.add_argument("--json", action="store_true")
    return parser.parse_args()


if __name__ == "__main__":
    main()
