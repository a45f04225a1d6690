"""What the pictures are of: what a clone has, or the sections of Andersson et al. where their folder is given."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import shapely
from train_demo import RECIPE

import napari_peka as peka
from napari_peka.console import console_progress
from napari_peka.io.regions import write_regions

if TYPE_CHECKING:
    from napari_peka.models.bundle import Model

Corners = tuple[tuple[float, float], ...]
#: tiles side by side where without overlap there would be one
FINER = 2


@dataclass(frozen=True)
class Map:
    """A slide, and a model that has not seen it.

    Parameters
    ----------
    slide
        Its file.
    mpp
        µm per pixel, where the file does not say it.
    model
        Returns its name or path; trains it if that was not done before.
    gene
        To look at.
    view
        Two corners (x, y), in parts of the slide's width and height, of what is looked at.
    tissue
        The same of the tissue alone.
    """

    slide: Path
    mpp: float | None
    model: Callable[[], str]
    gene: str
    view: Corners = ((0.0, 0.0), (1.0, 1.0))
    tissue: Corners = ((0.0, 0.0), (1.0, 1.0))

    def open(self) -> peka.Slide:
        """Open the slide."""
        return peka.open_slide(self.slide, mpp=self.mpp)

    def stored(self, folder: Path) -> Path:
        """Return its map, predicted if that was not done before."""
        path = folder / f"{self.slide.stem}.peka.zarr"
        if not path.exists():
            model = peka.load_model(self.model())
            config = peka.PredictConfig(stride_px=model.tile_spec().stride // FINER)
            with self.open() as slide, console_progress("predict") as progress:
                refuse_seen(slide, model)
                peka.predict(slide, model, output=path, config=config, progress=progress)
        return path


@dataclass(frozen=True)
class Case:
    """All that the stories need.

    Parameters
    ----------
    map
        Slide and model to look at.
    checked
        Slide and model to check, and `measured`, the spots on that slide.
    sections
        Paired sections to learn from; `left_out` is the name of the one that judges, `aside` are those that are closed
        before the training is shown, which is quicker with fewer.
    genes
        To compare; `gene_set` the name of a set; `doubted` a gene whose errors lie together.
    regions
        Two polygons by name, (x, y) in parts of the slide's width and height.
    training
        What is chosen in the training's form, by label; numbers of the fold *Advanced* are `advanced`.
    """

    map: Map
    checked: Map
    measured: Path
    sections: tuple[Path, ...]
    left_out: str
    genes: tuple[str, ...]
    gene_set: str
    doubted: str
    regions: Mapping[str, Corners]
    training: Mapping[str, str]
    advanced: Mapping[str, str] = field(default_factory=dict)
    aside: tuple[str, ...] = ()

    def corners(self, name: str, slide: peka.Slide) -> list[tuple[float, float]]:
        """Return a region's corners, (y, x) in µm."""
        (h, w), (my, mx) = slide.shape, slide.mpp
        return [(y * h * my, x * w * mx) for x, y in self.regions[name]]

    def write_regions(self, path: Path) -> Path:
        """Write the regions as GeoJSON."""
        with self.map.open() as slide:
            h, w = slide.shape
        shapes = {n: shapely.Polygon([(x * w, y * h) for x, y in c]) for n, c in self.regions.items()}
        write_regions(path, shapes)
        return path


def refuse_seen(slide: peka.Slide, model: Model) -> None:
    """Show no prediction on what a model was fitted on."""
    if slide.fingerprint in {s["slide"] for s in model.trained_on if s.get("part", "train") == "train"}:
        raise SystemExit(f"{slide.name} was used to fit the model {model.name}")


def embedded(work: Path) -> Case:
    """Return what a clone has: the sample slide with the demo model, and synthetic sections."""
    slide = _copy(peka.sample_slide(), work / "slides" / "case.svs")
    manifest = work / "sections" / "manifest.csv"
    if not manifest.exists():
        peka.sample_sections(manifest.parent, patients=2, sections=2)
    outs = sorted(manifest.parent.glob("*/outs"))
    recipe = {"adapter": "none", "encoder": RECIPE["encoder"]}
    model = partial(_trained, work / "models" / "synthetic", outs[:3], recipe)
    last = outs[3].parent
    return Case(
        map=Map(slide, None, lambda: "demo", "ERBB2"),
        checked=Map(last / f"{last.name}.tif", None, model, "EOSIN1"),
        measured=outs[3],
        sections=(manifest,),
        left_out=last.name,
        genes=("ERBB2", "COL1A1", "CD74"),
        gene_set="T cell-inflamed",
        doubted="EOSIN1",
        regions={
            "middle": ((0.52, 0.39), (0.79, 0.34), (0.81, 0.54), (0.58, 0.64)),
            "left": ((0.41, 0.34), (0.51, 0.32), (0.51, 0.78), (0.36, 0.81)),
        },
        training={"Encoder": RECIPE["encoder"], "Adapter": "bone"},
        advanced={"last blocks": "2", "rank": "16"},
    )


def her2st(folder: Path, work: Path) -> Case:
    """Return sections of patient C, of which the model has seen all but C5 (CC BY 4.0)."""
    counts = {name: folder / f"{name}.tsv.gz" for name in ("C2", "C3", "C4", "C5")}
    seen = [counts[n] for n in ("C2", "C3", "C4")]
    model = partial(_trained, work / "models" / "her2st-C2-C4", seen, RECIPE, patient="C")
    slide = _copy(folder / "C5.jpg", work / "slides" / "C5.jpg")
    with peka.read_section(counts["C5"]) as section:
        mpp = round(float(section.slide.mpp[0]), 4)
    shown = Map(slide, mpp, model, "ERBB2", ((0.02, 0.12), (0.74, 0.762)), ((0.03, 0.12), (0.72, 0.62)))
    return Case(
        map=shown,
        checked=shown,
        measured=counts["C5"],
        sections=tuple(counts.values()),
        left_out="C5",
        genes=("ERBB2", "COL1A1", "CD74"),
        gene_set="T cell-inflamed",
        doubted="SCGB2A2",
        regions={
            "right": ((0.52, 0.22), (0.62, 0.20), (0.66, 0.42), (0.55, 0.45), (0.50, 0.35)),
            "upper left": ((0.08, 0.40), (0.40, 0.22), (0.42, 0.27), (0.13, 0.45)),
        },
        training={"Encoder": RECIPE["encoder"], "Adapter": "bone"},
        advanced={"last blocks": "2", "rank": "16"},
        aside=("C2", "C3"),
    )


def _trained(folder: Path, sections: list[Path], recipe: Mapping[str, object], patient: str | None = None) -> str:
    """Return a model of sections, trained if that was not done before."""
    if not folder.exists():
        found = peka.read_sections(sections, patient=patient) if patient else [peka.read_section(p) for p in sections]
        with console_progress(folder.name) as progress:
            peka.train(found, peka.TrainConfig(**{"hold_out": "section", **recipe}), output=folder, progress=progress)
    return str(folder)


def _copy(source: Path, target: Path) -> Path:
    """Copy a slide: results and regions are kept beside it, and its own folder is not ours."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if not target.exists():
        shutil.copy(source, target)
    return target
