#!/usr/bin/env python3
"""Draw what a model predicts on a section that was left out of its training, beside what was measured there.

    napari-peka train DATA/C2.tsv.gz DATA/C3.tsv.gz DATA/C4.tsv.gz DATA/C5.tsv.gz --patient C --hold-out C5 -o MODEL
    python scripts/show_held_out.py MODEL DATA/C5.tsv.gz [--genes ERBB2,CD24] [-o docs/img/held_out.png]

A section that the model was fitted on is refused. The correlation in each title is that of the map, read at the nearest
tile, with the measured spots.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from scipy.spatial import cKDTree

import napari_peka as peka
from napari_peka.config import PredictConfig
from napari_peka.io.figure import COLORMAP, contrast_limits
from napari_peka.training.targets import expression


def main() -> None:
    args = arguments()
    model = peka.load_model(args.model)
    with peka.read_section(args.section) as section:
        seen = {t["fingerprint"] for t in model.trained_on if t.get("part") == "train"}
        if section.fingerprint in seen:
            raise SystemExit(f"{section.section_id} was used to fit the model")
        slide, name, centre, mpp = section.slide, section.section_id, section.centre_yx, section.slide.mpp[0]
        prediction = peka.predict(slide, model, config=PredictConfig(stride_px=112))
        image, shape = slide.thumbnail(1600), slide.shape
        counts, totals = section.counts, np.asarray(section.counts.sum(1)).ravel()
        columns = {gene: i for i, gene in enumerate(section.genes)}
    distance, nearest = cKDTree(prediction.tiles.centre_yx).query(centre)
    on_map = distance < 100 / mpp  # half the pitch: spots off the tissue mask have no tile
    print(f"{name}: {on_map.sum()} of {len(centre)} spots lie on the map")
    genes = [prediction.genes[prediction.head.index(g)] for g in args.genes.split(",")]
    measured = expression(counts[:, [columns[g] for g in genes]], totals, prediction.unit)
    figure, axes = plt.subplots(len(genes), 3, figsize=(12, 3.6 * len(genes)), layout="constrained", squeeze=False)
    low, high = centre.min(0) - 300, centre.max(0) + 300
    for row, gene in enumerate(genes):
        raster = prediction.raster(gene)
        values = prediction.values(gene)[nearest]
        pcc = np.corrcoef(values[on_map], measured[on_map, row])[0, 1]
        print(f"{gene}: PCC of the map with {on_map.sum()} measured spots {pcc:.3f}")
        (y0, x0), (sy, sx), (h, w) = raster.origin_yx, raster.scale_yx, raster.data.shape
        left, middle, right = axes[row]
        for axis in (left, middle, right):
            axis.imshow(image, extent=(0, shape[1], shape[0], 0), alpha=1.0 if axis is left else 0.35)
            axis.set(xlim=(low[1], high[1]), ylim=(high[0], low[0]), xticks=[], yticks=[])
        heat = middle.imshow(
            np.ma.masked_invalid(raster.data), extent=(x0, x0 + w * sx, y0 + h * sy, y0), cmap=COLORMAP,
            clim=contrast_limits(raster.data), interpolation="nearest",
        )  # fmt: skip
        middle.set(xlim=(low[1], high[1]), ylim=(high[0], low[0]))
        seen = right.scatter(
            centre[:, 1], centre[:, 0], c=measured[:, row], s=28, cmap=COLORMAP,
            clim=contrast_limits(measured[:, row]),
        )  # fmt: skip
        left.set_title(f"section {name}, left out of training", fontsize=10)
        middle.set_title(f"{gene}, predicted; PCC {pcc:.2f} with the spots", fontsize=10)
        right.set_title(f"{gene}, measured", fontsize=10)
        for axis, mappable in ((middle, heat), (right, seen)):
            figure.colorbar(mappable, ax=axis, fraction=0.046).set_label(prediction.unit, fontsize=8)
    args.output.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(args.output, dpi=85)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("section", type=Path)
    parser.add_argument("--genes", default="ERBB2,CD24")
    parser.add_argument("-o", "--output", type=Path, default=Path("docs/img/held_out.png"))
    return parser.parse_args()


if __name__ == "__main__":
    main()
