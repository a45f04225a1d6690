#!/usr/bin/env python3
"""Whether the doubt of a model is right, on sections that it never saw.

    python benchmarks/trust.py SECTION ... [--patient NAME] [--set NAME=VALUE ...] [--work FOLDER] [--json]

Each section is left out in turn: a model is trained on the others by the package's own training, with the demo's recipe
or other settings, and then judged on the one that it has not seen. Printed are

- ``coverage``: the share of measured values within the intervals of 50, 80, 90 and 95 %, over all genes and over the 50
  most variable ones; the intervals come from the sections that trained, each left out in turn there;
- ``recalibrated``: the same at 90 % on half of the section's spots after the intervals were fitted to 20, 50 or all of
  the other half (halves of the section, split by a line, not spots at random);
- ``auroc``: how well the unlikeness of a tile tells the section's tiles from the same tiles spoilt: out of focus, under
  a pen, folded, in the colours of another stain, squeezed by JPEG, and read at a wrong scale. ``outside`` is the share
  of tiles beyond the 99th percentile: of the clean ones few should be;
- ``spoilt``: what becomes of the map and of its intervals where all of a section is spoilt so: the PCC of the 50 most
  variable genes, and the share of their measured values within the intervals of 90 %.

With ``--cost`` the time of an encoder with the distance beside the same without is printed for each model.

    python benchmarks/trust.py --pen IMAGE [--mpp F]

A pen mark that is real, not drawn: the statistics are those of the left half of a slide that has ink on its right half
alone, and the AUROC is that of the inked tiles there against the clean ones.
"""

from __future__ import annotations

import argparse
import dataclasses
import io
import json
from collections.abc import Callable
from pathlib import Path
from time import perf_counter

import numpy as np
import yaml
from PIL import Image
from scipy import ndimage
from scipy.stats import rankdata

import napari_peka as peka
from napari_peka.config import TrainConfig
from napari_peka.console import console_progress
from napari_peka.core.doubt import OUTSIDE
from napari_peka.core.geometry import TileSpec, TileTable
from napari_peka.io.prediction import Prediction
from napari_peka.io.tiles import read_tiles
from napari_peka.models.reference import IMAGE, MEAN, PERCENTILES
from napari_peka.trust.conformal import recalibrated
from napari_peka.workflows.evaluate import intervals_of
from napari_peka.workflows.train import train

LEVELS = (0.5, 0.8, 0.9, 0.95)
RECIPE = {
    "encoder": "dinov2-vits14-demo", "adapter": "none", "blocks": [3, 6], "pooling": "mean+std", "rotations": 4,
    "context_um": 300, "n_components": None, "depth_power": 0.5, "target_rank": 20, "min_detected": 0.2,
    "hold_out": "section",
}  # fmt: skip
#: optical density of haematoxylin, eosin and DAB (Ruifrok & Johnston, Anal. Quant. Cytol. Histol. 2001)
HAEMATOXYLIN, EOSIN, DAB = (0.65, 0.70, 0.29), (0.07, 0.99, 0.11), (0.27, 0.57, 0.78)
PENS = ((30, 40, 150), (20, 110, 60), (30, 30, 35))
Spoil = Callable[[np.ndarray, np.random.Generator, float], np.ndarray]


def density(tile: np.ndarray) -> np.ndarray:
    return -np.log((tile.astype(np.float32) + 1) / 256)


def light(density: np.ndarray) -> np.ndarray:
    return np.clip(256 * np.exp(-density) - 1, 0, 255).round().astype(np.uint8)


def stroke(side: int, rng: np.random.Generator, wide: float) -> np.ndarray:
    """Return a band across a tile, 0 to 1, that is `wide` of it."""
    y, x = np.mgrid[:side, :side] / side - 0.5
    turned, shift = rng.uniform(0, np.pi), rng.uniform(-0.15, 0.15)
    away = np.abs(np.cos(turned) * x + np.sin(turned) * y - shift)
    return np.clip((wide / 2 - away) / 0.03 + 0.5, 0, 1)[..., None]


def blur(tile: np.ndarray, rng: np.random.Generator, mpp: float) -> np.ndarray:
    """Out of focus: a Gaussian of 2 µm."""
    return ndimage.gaussian_filter(tile.astype(np.float32), (2 / mpp, 2 / mpp, 0)).round().astype(np.uint8)


def pen(tile: np.ndarray, rng: np.random.Generator, mpp: float) -> np.ndarray:
    """A marker over 0.4 to 0.9 of the tile's width, 70 to 90 % opaque."""
    opaque = stroke(len(tile), rng, rng.uniform(0.4, 0.9)) * rng.uniform(0.7, 0.9)
    return (tile * (1 - opaque) + np.array(PENS[rng.integers(3)]) * opaque).round().astype(np.uint8)


def fold(tile: np.ndarray, rng: np.random.Generator, mpp: float) -> np.ndarray:
    """Tissue upon tissue in a band of 0.4 to 0.8 of the width: densities add up."""
    own = density(tile)
    other = np.roll(own, (len(tile) // 3, len(tile) // 4), (0, 1))[:, ::-1]
    return light(own + other * stroke(len(tile), rng, rng.uniform(0.4, 0.8)))


def ihc(tile: np.ndarray, rng: np.random.Generator, mpp: float) -> np.ndarray:
    """Brown (DAB) in place of eosin."""
    h, e, d = (np.array(v) / np.linalg.norm(v) for v in (HAEMATOXYLIN, EOSIN, DAB))
    amounts = np.maximum(density(tile).reshape(-1, 3) @ np.linalg.pinv(np.stack([h, e])), 0)
    return light((amounts @ np.stack([h, d])).reshape(tile.shape))


def other_laboratory(tile: np.ndarray, rng: np.random.Generator, mpp: float) -> np.ndarray:
    """H&E of another hand: half as much eosin again, a third less haematoxylin, and a warmer lamp."""
    stains = np.stack([np.array(v) / np.linalg.norm(v) for v in (HAEMATOXYLIN, EOSIN)])
    flat = density(tile).reshape(-1, 3)
    amounts = flat @ np.linalg.pinv(stains)
    changed = flat + (amounts * (-0.33, 0.5)) @ stains + (0.0, 0.03, 0.08)
    return light(changed.reshape(tile.shape))


def jpeg10(tile: np.ndarray, rng: np.random.Generator, mpp: float) -> np.ndarray:
    """JPEG of quality 10."""
    file = io.BytesIO()
    Image.fromarray(tile).save(file, "JPEG", quality=10)
    return np.asarray(Image.open(file))


def twice_as_large(tile: np.ndarray, rng: np.random.Generator, mpp: float) -> np.ndarray:
    """Read at half the µm per pixel: cells look twice as large."""
    side = len(tile)
    middle = tile[side // 4 : side // 4 + side // 2, side // 4 : side // 4 + side // 2]
    return np.asarray(Image.fromarray(middle).resize((side, side), Image.Resampling.BICUBIC))


SPOILT: dict[str, Spoil] = {
    "blur 2 µm": blur, "pen": pen, "fold": fold, "IHC colours": ihc, "JPEG 10": jpeg10, "mpp × 0.5": twice_as_large,
    "other H&E": other_laboratory,
}  # fmt: skip


def main() -> None:
    args = arguments()
    if args.pen:
        print(json.dumps(real_pen(args.pen, args.mpp)))
        return
    config = TrainConfig(**(RECIPE | {k: yaml.safe_load(v) for k, v in (s.split("=", 1) for s in args.set)}))
    sections = peka.read_sections(args.sections, patient=args.patient)
    told: dict = {}
    for left in sections:
        others = [s for s in sections if s is not left]
        with console_progress(f"without {left.section_id}") as progress:
            model = trained(others, config, args.work / f"without-{left.section_id}", progress)
            told[left.section_id] = {"cost": cost_of_distance(model, left)} if args.cost else (
                judged(model, left, progress))  # fmt: skip
    told["mean"] = mean_of(list(told.values()))
    print(json.dumps(told, indent=1) if args.json else table(told))


def trained(sections, config: TrainConfig, folder: Path, progress):
    """Train a model, or take the one that was trained so before."""
    if folder.exists() and (known := peka.load_model(folder)).spec.training["settings"] == json.loads(
        config.model_dump_json()
    ):
        return known
    return train(sections, config, output=folder, resume=True, progress=progress)


def judged(model, section, progress) -> dict:
    """Judge a model on a section that it has not seen."""
    report = peka.evaluate(model, section, progress=progress)
    (measured,) = report.measured
    at = [model.head.index(g) for g in report.genes.gene]
    intervals = intervals_of(model, np.zeros((0, model.head.embedding_dims)))[0].only(at)
    hvg = report.genes.hvg50.to_numpy()
    held = {f"{level:.0%}": inside(measured, intervals, level, slice(None), hvg) for level in LEVELS}
    out = {"pcc_hvg50": report.summary["pcc_hvg50"]["mean"], "coverage": held}
    out["recalibrated"] = after_recalibration(measured, intervals, hvg)
    spoilt = seen_spoilt(model, section)
    return out | unlikeness(model, spoilt) | {"spoilt": when_spoilt(model, section, report, intervals, spoilt)}


def inside(measured, intervals, level: float, rows, hvg) -> list[float]:
    """Return the share of values within their intervals: of all genes, of the most variable ones, of the worst gene."""
    low, high = intervals.around(measured.predicted[rows], measured.spread[rows], level)
    held = ((measured.truth[rows] >= low) & (measured.truth[rows] <= high)).mean(0)
    return [round(float(v), 3) for v in (held.mean(), held[hvg].mean(), held.min())]


def after_recalibration(measured, intervals, hvg) -> dict:
    """Return the coverage at 90 % of the right half of a section, by spots of the left half."""
    x = measured.centre_um[:, 1]
    left, right = np.flatnonzero(x < np.median(x)), np.flatnonzero(x >= np.median(x))
    rng = np.random.default_rng(0)
    out = {}
    for n in (0, 20, 50, len(left)):
        some = rng.permutation(left)[:n]
        used = intervals
        if n:
            used = recalibrated(intervals, (measured.truth - measured.predicted)[some], measured.spread[some])
        out[n] = inside(measured, used, 0.9, right, hvg)
    return out


def seen_spoilt(model, section) -> dict[str, np.ndarray]:
    """Return what the encoder gives each spot's tile as it is, and spoilt in each way, ``(n, seen_dims)``."""
    forward, spec = peka.load_forward(model), model.tile_spec()
    tiles = tiles_of(section, spec)
    images = {name: np.stack([f(t, np.random.default_rng(i), spec.mpp) for i, t in enumerate(tiles)])
              for name, f in SPOILT.items()}  # fmt: skip
    images["mpp × 2"] = tiles_of(section, TileSpec(spec.size_px, spec.mpp * 2, spec.stride_px, spec.footprint_px))
    return {name: forward(each) for name, each in {"clean": tiles, **images}.items()}


def unlikeness(model, seen: dict[str, np.ndarray]) -> dict:
    """Return AUROC of each way to spoil tiles, and the share of tiles beyond the last percentile."""
    clean = distance(model, seen["clean"])
    auroc = {name: round(area(clean, distance(model, x)), 3) for name, x in seen.items() if name != "clean"}
    return {"auroc": auroc, "outside": {name: share(model.ood(x)) for name, x in seen.items()}}


def when_spoilt(model, section, report, intervals, seen: dict[str, np.ndarray]) -> dict:
    """Return PCC and coverage at 90 % of the most variable genes where all of the section's tiles are spoilt."""
    (measured,) = report.measured
    table, _ = section.spots(model.tile_spec())
    row_of = {name: i for i, name in enumerate(table.names)}
    rows = [row_of[name] for name in measured.spot_ids]
    columns = np.flatnonzero(report.genes.hvg50.to_numpy())
    genes = [report.genes.gene.iloc[i] for i in columns]
    of_them, truth = intervals.only(columns), measured.truth[:, columns]
    out = {}
    for name, x in seen.items():
        own = x[:, : model.head.embedding_dims]
        ok = np.ones(len(own), bool)
        made = Prediction(table, own.astype(np.float16), model.head, ok, spread=model.spread(own))
        predicted = np.stack([made.values(gene) for gene in genes], 1)[rows]
        low, high = of_them.around(predicted, made.spread[rows], 0.9)
        pcc = [np.corrcoef(a, b)[0, 1] for a, b in zip(truth.T, predicted.T)]
        held = float(((truth >= low) & (truth <= high)).mean())
        wider = float(np.median(made.spread[rows]) / np.median(model.spread(seen["clean"][:, : own.shape[1]])[rows]))
        out[name] = {"pcc": round(float(np.nanmean(pcc)), 3), "held": round(held, 3), "wider": round(wider, 2)}
    return out


def cost_of_distance(model, section, rounds: int = 5) -> dict:
    """Return seconds a tile with the distance over those without, by turns, and those of the distance alone over both.

    The first two scatter by more than the distance takes; ``alone`` does not.
    """
    import torch

    from napari_peka.models.student import build_student

    without = {k: v for k, v in model.carried.items() if not k.startswith(IMAGE)}
    bare = dataclasses.replace(model, carried=without)
    assert model.image_reference
    assert not bare.image_reference
    tiles = tiles_of(section, model.tile_spec())
    both = [peka.load_forward(m) for m in (model, bare)]
    for forward in both:
        forward(tiles)
    took = np.array([[timed(forward, tiles) for forward in both[:: 1 - 2 * (i % 2)]][:: 1 - 2 * (i % 2)]
                     for i in range(rounds)])  # fmt: skip
    student = build_student(model)
    image = torch.randn(len(tiles), len(model.image_reference[MEAN]))
    with torch.inference_mode():
        alone = min(timed(student._distance, image) for _ in range(20))
    return {
        "best": round(float(took[:, 0].min() / took[:, 1].min()), 4),
        "median": round(float(np.median(took[:, 0] / took[:, 1])), 4),
        "alone": round(alone / float(took[:, 0].min()), 6),
    }


def real_pen(image: Path, mpp: float) -> dict:
    """Tell inked tiles of a slide's right half from clean ones by the demo's encoder and the slide's left half."""
    import torch

    from napari_peka.models.reference import distances, reference_of
    from napari_peka.models.student import build_student

    model = peka.load_model("demo")
    student, px = build_student(model).eval(), model.tile_spec().size_px
    with peka.open_slide(image, mpp=mpp) as slide:
        tissue = peka.find_tissue(slide)
        table = TileTable.grid(slide.shape, slide.mpp, TileSpec(px, mpp / 2, px // 2))
        share_of_tissue = tissue.mask.fraction(table.rects())
        tiles = np.concatenate([read_tiles(slide, table, block)[0] for block in table.blocks()])
    small = tiles[:, ::4, ::4].astype(int)
    ink = ((small[..., 2] - small[..., 0] > 40) & (small[..., 0] < 140)).mean((1, 2))
    left = table.centre_yx[:, 1] < slide.shape[1] / 2
    known, clean = left & (share_of_tissue > 0.5), ~left & (share_of_tissue > 0.5) & (ink < 0.01)
    inked = ~left & (ink > 0.2)
    with torch.inference_mode():
        seen = {name: np.concatenate([student.embed(torch.from_numpy(tiles[at])).numpy()
                for at in np.array_split(np.flatnonzero(rows), 1 + rows.sum() // 32)])
                for name, rows in {"known": known, "clean": clean, "inked": inked}.items()}  # fmt: skip
    reference = reference_of(seen["known"])
    far = {name: distances(seen[name], reference) for name in ("clean", "inked")}
    last = reference[PERCENTILES][int(OUTSIDE)]
    return {
        "tiles": {name: int(rows.sum()) for name, rows in {"known": known, "clean": clean, "inked": inked}.items()},
        "auroc": round(area(far["clean"], far["inked"]), 3),
        "outside": {name: round(float((d >= last).mean()), 3) for name, d in far.items()},
        "inked_tiles_that_are_tissue": round(float((share_of_tissue[inked] >= 0.25).mean()), 3),
    }


def timed(forward, tiles) -> float:
    began = perf_counter()
    forward(tiles)
    return perf_counter() - began


def distance(model, seen: np.ndarray) -> np.ndarray:
    """Return what the percentile is taken of: it alone would be 100 for all that lies beyond the training spots."""
    from napari_peka.models.reference import distances

    return seen[:, -1].astype(float) if model.image_reference else distances(seen, model.reference)


def share(ood: np.ndarray) -> float:
    return round(float((ood >= OUTSIDE).mean()), 3)


def area(negative: np.ndarray, positive: np.ndarray) -> float:
    ranks = rankdata(np.concatenate([negative, positive]))[len(negative) :]
    return float((ranks.sum() - len(positive) * (len(positive) + 1) / 2) / len(negative) / len(positive))


def tiles_of(section, spec: TileSpec) -> np.ndarray:
    table, _ = section.spots(spec)
    return np.concatenate([read_tiles(section.slide, table, block)[0] for block in table.blocks()])


def mean_of(values: list):
    """Return the mean of dictionaries, lists and numbers of one shape."""
    first = values[0]
    if isinstance(first, dict):
        keys = [k for k in first if all(k in v for v in values)]
        return {k: mean_of([v[k] for v in values]) for k in keys}
    if isinstance(first, list):
        return [mean_of(list(part)) for part in zip(*values)]
    return round(float(np.mean(values)), 3)


def table(told: dict) -> str:
    lines = []
    for name, values in told.items():
        lines.append(name)
        lines += [f"  {key}: {json.dumps(value, ensure_ascii=False)}" for key, value in values.items()]
    return "\n".join(lines)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("sections", nargs="*", type=Path)
    parser.add_argument("--pen", type=Path, metavar="IMAGE", help="a slide with ink on its right half")
    parser.add_argument("--mpp", type=float, default=2.0, help="of that slide")
    parser.add_argument("--patient")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="other than the demo's recipe")
    parser.add_argument("--work", type=Path, default=Path("napari-peka-trust"), help="for the models")
    parser.add_argument("--cost", action="store_true", help="time the distance, and nothing else")
    parser.add_argument("--json", action="store_true")
    return parser.parse_args()


if __name__ == "__main__":
    main()
