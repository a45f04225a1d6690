#!/usr/bin/env python3
"""Seconds and memory of the read-out for all genes, with its penalty chosen, against scikit-learn's RidgeCV.

    python benchmarks/ridge.py [--spots 10000 --genes 18000 --dims 1024 --sections 4 --components 256] [--rounds 1]

Every job runs in a fresh process on the same made-up float32 arrays and tries the same penalties. ``gcv`` chooses by
generalised cross-validation, ``groups`` leaves each section out in turn and is judged by all genes, or by 50 as in
training; RidgeCV uses its closed form of leave-one-out.
``cpu_seconds`` sums the threads: on a busy machine it says more. ``extra_mb`` is the peak of resident memory above what
the process held with its data; ``targets_mb`` the size of the targets. ``--skip sklearn`` leaves a job out: at full
size scikit-learn needs minutes and several GB.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import subprocess
import sys
from pathlib import Path
from time import perf_counter, process_time

import numpy as np

JOBS = ("gcv", "gcv, no PCA", "groups", "groups, 50 judge", "sklearn", "sklearn, no PCA")


def main() -> None:
    args = arguments()
    if args.job:
        print(json.dumps(run(args)))
        return
    done = {job: in_a_fresh_process(job, args) for job in JOBS if job not in args.skip}
    print(
        json.dumps(
            {
                "spots": args.spots,
                "genes": args.genes,
                "dims": args.dims,
                "sections": args.sections,
                "components": args.components,
                "targets_mb": round(args.spots * args.genes * 4 / 1e6),
                "jobs": done,
            },
            indent=1,
        )
    )


def in_a_fresh_process(job: str, args: argparse.Namespace) -> dict:
    sizes = [f"--{k}={getattr(args, k)}" for k in ("spots", "genes", "dims", "sections", "components", "rounds")]
    command = [sys.executable, __file__, "--job", job, *sizes]
    out = subprocess.run(command, capture_output=True, text=True, check=False)
    if out.returncode:
        return {"failed": out.stderr.strip().splitlines()[-1:]}
    return json.loads(out.stdout.strip().splitlines()[-1])


def run(args: argparse.Namespace) -> dict:
    from napari_peka.training.gene_head import RELATIVE_ALPHAS, fit_head

    x, y, section = made_up(args)
    k = None if args.job.endswith("no PCA") else args.components

    def ours():
        how = "groups" if args.job.startswith("groups") else "gcv"
        judges = np.arange(50) if args.job.endswith("judge") else None
        head = fit_head(x, y, n_components=k, alpha=how, groups=section, judged_genes=judges)
        return head(x[:100])

    def theirs():
        from sklearn.decomposition import PCA
        from sklearn.linear_model import RidgeCV
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler

        steps = [StandardScaler()] + ([PCA(k, svd_solver="covariance_eigh")] if k else [])
        z = make_pipeline(*steps).fit_transform(x)
        top = np.linalg.norm(z, 2) ** 2
        return RidgeCV([a * top for a in RELATIVE_ALPHAS]).fit(z, y).predict(z[:100])

    job = theirs if args.job.startswith("sklearn") else ours
    if args.job.startswith("sklearn"):
        import sklearn.linear_model  # noqa: F401  importing is not fitting
    before = memory("VmRSS")
    seconds, cpu = [], []
    for _ in range(args.rounds):
        began = perf_counter(), process_time()
        predicted = job()
        seconds.append(perf_counter() - began[0])
        cpu.append(process_time() - began[1])
    return {
        "seconds": round(statistics.median(seconds), 2),
        "cpu_seconds": round(statistics.median(cpu), 2),
        "extra_mb": round(memory("VmHWM") - before),
        "check": round(float(predicted.std()), 5),
    }


def made_up(args: argparse.Namespace) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return features that share directions of falling strength, targets that follow some, and sections."""
    rng = np.random.default_rng(0)
    strength = (1 + np.arange(args.dims, dtype=np.float32)) ** -0.7
    x = rng.standard_normal((args.spots, args.dims), np.float32) * strength
    y = rng.standard_normal((args.spots, args.genes), np.float32)
    y += x[:, :64] @ rng.standard_normal((min(64, args.dims), args.genes), np.float32)
    return x, y, np.arange(args.spots) * args.sections // args.spots


def memory(field: str) -> float:
    """Return a field of this process's memory in MB."""
    return int(re.search(rf"{field}:\s+(\d+)", Path("/proc/self/status").read_text())[1]) / 1e3


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--spots", type=int, default=10_000)
    parser.add_argument("--genes", type=int, default=18_000)
    parser.add_argument("--dims", type=int, default=1024)
    parser.add_argument("--sections", type=int, default=4)
    parser.add_argument("--components", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--skip", nargs="*", default=[], choices=JOBS)
    parser.add_argument("--job", choices=JOBS, help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    main()
