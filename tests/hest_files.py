"""A small stand-in of HEST-bench's folders."""

from __future__ import annotations

import json
from pathlib import Path

import anndata
import h5py
import numpy as np
import pandas as pd
from scipy import sparse

GENES = ("ERBB2", "KRT8", "CD3E", "MKI67")
#: source pixels that a patch of 112 µm was cut from: 0.25 µm each
SOURCE_PX = 448


def write_task(folder: Path, folds: list[tuple[list[str], list[str]]], *, side: int = 6, seed: int = 0) -> Path:
    """Write a task whose genes follow the redness of the patches, in an order that is not the counts'."""
    rng = np.random.default_rng(seed)
    for name in ("splits", "patches", "adata"):
        (folder / name).mkdir(parents=True)
    (folder / "var_50genes.json").write_text(json.dumps({"genes": list(GENES)}))
    for sample in sorted({s for fold in folds for s in (*fold[0], *fold[1])}):
        _write_sample(folder, sample, side, rng)
    for k, fold in enumerate(folds):
        for part, names in zip(("train", "test"), fold):
            rows = [{"sample_id": s, "patches_path": f"patches/{s}.h5", "expr_path": f"adata/{s}.h5ad"} for s in names]
            pd.DataFrame(rows).to_csv(folder / "splits" / f"{part}_{k}.csv", index=False)
    return folder


def _write_sample(folder: Path, sample: str, side: int, rng: np.random.Generator) -> None:
    n = side * side
    y, x = np.divmod(np.arange(n), side)
    red = rng.uniform(60, 220, n)
    rate = np.c_[np.full(n, 20.0), red / 8, 30 - red / 8, red / 20, red / 30, rng.uniform(5, 9, (n, 12))]
    barcodes = [f"{sample}-{i}" for i in range(n)]
    adata = anndata.AnnData(
        sparse.csr_matrix(rng.poisson(rate).astype(np.float32)),
        obs=pd.DataFrame(index=barcodes),
        var=pd.DataFrame(index=["ACTB", *GENES, *(f"G{i}" for i in range(12))]),
        obsm={"spatial": np.c_[x, y] * 400.0 + 200},
    )
    adata.write_h5ad(folder / "adata" / f"{sample}.h5ad")
    kept = rng.permutation(n)[: n - 2]
    patches = np.full((len(kept), 224, 224, 3), 150, np.uint8)
    patches[..., 0] = red[kept, None, None].astype(np.uint8)
    patches += rng.integers(0, 20, patches.shape, dtype=np.uint8)
    with h5py.File(folder / "patches" / f"{sample}.h5", "w") as f:
        f["img"] = patches
        f["img"].attrs["patch_size"] = SOURCE_PX
        f["coords"] = np.c_[y, x][kept]
        f["barcode"] = np.array([[barcodes[i]] for i in kept], dtype="S")
