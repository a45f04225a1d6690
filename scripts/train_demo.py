#!/usr/bin/env python3
"""Fit the embedded demo model: a frozen DINOv2 ViT-S/14 with a PCA + ridge head, on real paired ST sections.

    python scripts/train_demo.py DATA [--hold-out C5] [-o src/napari_peka/assets/demo]

DATA is a folder with the her2st sections of patient C (Andersson et al., Nat Commun 2021, CC BY 4.0): C2.jpg,
C2.tsv.gz, C2_selection.tsv and so on. The held-out section is never looked at while fitting: genes, number of
components and penalty are chosen on the other sections, leaving one of them out in turn. Its Pearson correlations are
what the bundle and its card state. The head that is shipped is the one that was judged: it is not refitted on all.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from napari_peka.core.geometry import TileSpec, TileTable
from napari_peka.infer.engine import Forward, embed
from napari_peka.infer.schedule import Schedule
from napari_peka.io.slide import open_slide
from napari_peka.models.bundle import BundleSpec, save_bundle
from napari_peka.models.encoder import choose_device, choose_precision, load_encoder
from napari_peka.models.registry import encoder_card
from napari_peka.models.student import Student
from napari_peka.train.gene_head import fit_pca_ridge, pearson

ENCODER = "dinov2-vits14-demo"
PITCH_UM = 200.0  # centre to centre of ST spots
UNIT = "log1p CP10K"
#: a gene must be seen in this share of the training spots, or nothing can be learnt of it
MIN_DETECTED = 0.10
N_GENES = 2000
#: genes that a breast pathologist asks for first: kept whatever their variance
WANTED = (
    "ERBB2 GRB7 ESR1 PGR MKI67 KRT8 KRT18 KRT19 EPCAM CD24 GATA3 COL1A1 COL3A1 VIM ACTA2 PECAM1 PTPRC CD3E CD8A CD4 "
    "CD79A MS4A1 CD68 CD74 IGKC FN1 SPARC"
).split()


@dataclass
class Section:
    name: str
    fingerprint: str
    mpp: float
    centre_yx: np.ndarray
    counts: pd.DataFrame
    features: np.ndarray


def main() -> None:
    args = arguments()
    names = sorted(p.name.removesuffix(".tsv.gz") for p in args.data.glob("*.tsv.gz"))
    sections = [read(args.data, n) for n in names]
    train = [s for s in sections if s.name != args.hold_out]
    (test,) = (s for s in sections if s.name == args.hold_out)
    genes = choose_genes(train)
    y = {s.name: targets(s, genes) for s in sections}
    k, alpha, inner = choose_penalty(train, y)
    head = fit_pca_ridge(stack(train), np.concatenate([y[s.name] for s in train]), n_components=k, alpha=alpha)
    pcc = pearson(head(test.features), y[test.name])
    variable = np.argsort(-np.concatenate([y[s.name] for s in train]).var(0))[:50]
    summary = {
        "held_out": args.hold_out,
        "pcc_hvg50": round(float(np.nanmean(pcc[variable])), 4),
        "pcc_all": round(float(np.nanmean(pcc)), 4),
        "inner_pcc_hvg50": round(inner, 4),
        "n_components": k,
        "alpha": alpha,
    }
    split = f"one breast tumour (her2st, patient C), its section {args.hold_out} left out"
    card, p = encoder_card(ENCODER), spec_of(ENCODER)
    spec = BundleSpec(
        schema=1,
        name="demo",
        description="Demonstration: HER2-positive breast cancer, one patient. Frozen DINOv2 ViT-S/14, PCA + ridge.",
        licence="weights Apache-2.0 (DINOv2), head CC BY 4.0 (fitted on her2st)",
        encoder={"name": ENCODER, "sha256": card.sha256},
        preprocessing={"tile_px": p.size_px, "mpp": p.mpp, "mean": card.mean, "std": card.std},
        head={
            "features": "image",
            "n_dims": card.dim,
            "genes": genes,
            "unit": UNIT,
            "pcc": [None if np.isnan(v) else round(float(v), 4) for v in pcc],
            "pcc_split": split,
        },
        training={
            "data": "her2st patient C, Andersson et al. 2021, doi:10.1038/s41467-021-26271-2, CC BY 4.0",
            "sections": [{"name": s.name, "patient": "C", "fingerprint": s.fingerprint} for s in train],
            "tissue": "breast",
            "summary": summary,
        },
    )
    save_bundle(args.output, spec, {"head.weights": head.weights, "head.bias": head.bias})
    (args.output / "README.md").write_text(model_card(summary, genes, pcc, variable, split), "utf-8")
    print(json.dumps(summary, indent=1))


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--hold-out", default="C5")
    default = Path(__file__).parent.parent / "src/napari_peka/assets/demo"
    parser.add_argument("-o", "--output", type=Path, default=default)
    return parser.parse_args()


def spec_of(encoder: str) -> TileSpec:
    card = encoder_card(encoder)
    return TileSpec(card.px, card.mpp)


def read(folder: Path, name: str) -> Section:
    """Read one section and embed its spots."""
    spots, counts, mpp = read_spots(folder, name)
    centre = spots[["pixel_y", "pixel_x"]].to_numpy(float)
    with open_slide(folder / f"{name}.jpg", mpp=mpp) as slide:
        features = embed_spots(slide, centre)
        print(f"{name}: {len(spots)} spots, {mpp:.4f} µm/px", flush=True)
        return Section(name, slide.fingerprint, mpp, centre, counts, features)


def read_spots(folder: Path, name: str) -> tuple[pd.DataFrame, pd.DataFrame, float]:
    """Return the selected spots of a section, their counts, and the image's µm per pixel from the array's pitch."""
    spots = pd.read_csv(folder / f"{name}_selection.tsv", sep="\t")
    spots = spots[spots["selected"] == 1]
    counts = pd.read_csv(folder / f"{name}.tsv.gz", sep="\t", index_col=0)
    spots.index = [f"{x}x{y}" for x, y in zip(spots["x"], spots["y"])]
    both = [i for i in spots.index if i in counts.index]
    spots, counts = spots.loc[both], counts.loc[both]
    # spots are printed with some jitter: the slope over the whole array is the pitch, not the nearest neighbour
    pitch = [np.polyfit(spots[array], spots[pixel], 1)[0] for array, pixel in (("x", "pixel_x"), ("y", "pixel_y"))]
    return spots, counts, PITCH_UM / float(np.mean(pitch))


def embed_spots(slide, centre: np.ndarray) -> np.ndarray:
    tiles, order = TileTable.spots(centre, slide.mpp, spec_of(ENCODER))
    card = encoder_card(ENCODER)
    device = choose_device("auto")
    student = Student(load_encoder(card), card.mean, card.std)
    forward = Forward(lambda: student, device, choose_precision("fp32", device))
    out = np.zeros((len(centre), card.dim), np.float32)

    def keep(block, embeddings, ok):
        assert ok.all()
        out[order[block.start : block.stop]] = embeddings

    embed(slide, tiles, forward, Schedule(tiles.blocks()), keep)
    return out


def targets(section: Section, genes: list[str]) -> np.ndarray:
    return targets_of(section.counts, genes)


def targets_of(counts: pd.DataFrame, genes: list[str]) -> np.ndarray:
    """Return log1p counts per ten thousand of some genes, ``(n_spots, n_genes)``."""
    total = counts.to_numpy(float).sum(1, keepdims=True)
    return np.log1p(counts.reindex(columns=genes, fill_value=0).to_numpy(float) / total * 1e4)


def choose_genes(train: list[Section]) -> list[str]:
    """Return the most variable genes of the training sections, in alphabetical order."""
    common = sorted(set.intersection(*(set(s.counts.columns) for s in train)))
    counts = np.concatenate([s.counts[common].to_numpy() for s in train])
    y = np.concatenate([targets(s, common) for s in train])
    seen = (counts > 0).mean(0) > MIN_DETECTED
    rank = np.argsort(-np.where(seen, y.var(0), -1))[: min(N_GENES, int(seen.sum()))]
    return sorted({common[i] for i in rank} | (set(WANTED) & {g for g, s in zip(common, seen) if s}))


def choose_penalty(train: list[Section], y: dict[str, np.ndarray]) -> tuple[int, float, float]:
    """Return components and penalty with the best mean PCC (50 most variable genes), a section left out in turn."""
    variable = np.argsort(-np.concatenate([y[s.name] for s in train]).var(0))[:50]
    scores = {}
    for k in (32, 64, 128, 256):
        for alpha in (0.003, 0.01, 0.03, 0.1, 0.3):
            got = []
            for left in train:
                rest = [s for s in train if s is not left]
                head = fit_pca_ridge(
                    stack(rest), np.concatenate([y[s.name][:, variable] for s in rest]), n_components=k, alpha=alpha
                )
                got.append(np.nanmean(pearson(head(left.features), y[left.name][:, variable])))
            scores[k, alpha] = float(np.mean(got))
    (k, alpha), best = max(scores.items(), key=lambda item: item[1])
    return k, alpha, best


def stack(sections: list[Section]) -> np.ndarray:
    return np.concatenate([s.features for s in sections])


def model_card(summary: dict, genes: list[str], pcc: np.ndarray, variable: np.ndarray, split: str) -> str:
    order = np.argsort(-np.nan_to_num(pcc, nan=-2))
    rows = "\n".join(f"| {genes[i]} | {pcc[i]:.3f} |" for i in order[:25])
    wanted = "\n".join(f"| {g} | {pcc[genes.index(g)]:.3f} |" for g in WANTED if g in genes)
    return f"""# Demo model

Research use only. Not for diagnosis.

A frozen DINOv2 ViT-S/14 (Apache-2.0), PCA to {summary["n_components"]} dimensions and ridge, fitted on sections of
**one** HER2-positive breast tumour (her2st, patient C; Andersson et al., Nature Communications 2021,
doi:10.1038/s41467-021-26271-2, CC BY 4.0). It shows what the tool does. It has seen one patient and one laboratory's
stain; on anything else expect far less than the figures below.

- predicts {len(genes)} genes, unit {UNIT}, tiles of 224 px at {spec_of(ENCODER).mpp} µm/px
- split: {split}; genes, components and penalty were chosen on the other sections
- mean PCC on the held-out section: **{summary["pcc_hvg50"]:.3f}** over the 50 most variable genes,
  {summary["pcc_all"]:.3f} over all

Made by `python scripts/train_demo.py DATA`.

## Genes often asked for

| gene | held-out PCC |
|---|---|
{wanted}

## Best predicted

| gene | held-out PCC |
|---|---|
{rows}

The whole list is in `peka.json` (`head.genes`, `head.pcc`).
"""


if __name__ == "__main__":
    main()
