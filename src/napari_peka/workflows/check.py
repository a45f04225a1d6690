"""A predicted map against the spots measured on the same slide: scores, and where the map is wrong."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from napari_peka.core.errors import SectionError, UnknownName, near_names
from napari_peka.core.hotspots import hotspots, moran
from napari_peka.core.neighbours import Neighbours, neighbour_mean
from napari_peka.core.progress import NULL, Progress
from napari_peka.io.prediction import Prediction
from napari_peka.training.ceiling import attainable_pcc
from napari_peka.training.metrics import gene_scores, nan_mean
from napari_peka.training.panel import GeneNames
from napari_peka.training.report_words import TRAINED_ON
from napari_peka.training.scoring import MIN_ATTAINABLE
from napari_peka.training.splits import pitch_um
from napari_peka.training.targets import expression
from napari_peka.workflows.check_input import features_at, mpp_warning, relation_of, same_slide
from napari_peka.workflows.spots import known_unit, misplaced, shared_genes

if TYPE_CHECKING:
    import pandas as pd

    from napari_peka.io.section import Section
    from napari_peka.training.evaluate import EvaluationReport

Float32 = npt.NDArray[np.float32]
Rows = npt.NDArray[np.bool_]
#: least share of a section's spots on tissue; with fewer its image is not believed, and a warning says so
LEAST_ON_TISSUE = 0.5
#: spots are neighbours up to this many pitches: 8 around one on a square grid, 6 on a hexagonal one
_NEAR = 1.5
#: spots of one sign side by side that are a place
LEAST_SPOTS = 3
#: pitches around a spot that a place's outline holds; then it is drawn in by the second, so that it hugs the spots
_OUT, _IN = 0.85, 0.3
#: genes worked on at once
_AT_ONCE = 512
#: genes whose counts are split at once: at 5,000 spots some 3 s, after which a job can be stopped
_SPLIT_AT_ONCE = 2048
#: false discovery rate of the places of one gene
FDR = 0.05
HIGH, LOW = "more than predicted", "less than predicted"
#: what an outline means, for who sees one
OUTLINES = (
    "Outlined are places of at least 3 spots side by side where measured less predicted is higher (purple) or lower "
    "(orange) than on the rest of this section, beyond chance: Getis–Ord Gi* over each spot and those around it, "
    "against 100,000 random neighbourhoods, at a false discovery rate of 5 % over the spots of this gene. Where errors "
    "lie at random, up to 1 gene in 20 has an outline all the same, so in a search through many genes some are chance. "
    "An error that is the same everywhere is not outlined. It may be the measurement that is wrong: look at the tissue "
    "and at how much was counted there."
)


@dataclass(frozen=True, eq=False)
class Place:
    """Spots side by side where the map is wrong in one direction.

    Parameters
    ----------
    sign
        1: more was measured than predicted; -1: less.
    rows
        Its spots, ascending.
    polygon
        Around them, a shapely geometry in level-0 pixels, x first.
    residual
        Mean of measured less predicted over them.
    q
        False discovery rate at which the least certain of them is found.
    """

    sign: int
    rows: npt.NDArray[np.intp]
    polygon: Any
    residual: float
    q: float

    @property
    def kind(self) -> str:
        """The direction in words."""
        return HIGH if self.sign > 0 else LOW


@dataclass(eq=False, repr=False)
class Check:
    """Measured spots and what a map says at them; made by :func:`check`.

    No matrix of spots by genes is held: values are made gene by gene, a table of scores 512 genes at a time (16 bytes
    a value), beside the counts of the shared genes (8 bytes each that is not 0) and the map's features at the spots.

    Parameters
    ----------
    prediction, section
        What is compared.
    genes, gene_ids
        Those in both, as the model names them; ids are empty when none is known.
    unit
        Unit of all values.
    centre_yx
        Centres of the spots in level-0 pixels, float64 ``(n, 2)``.
    spot_ids
        Their barcodes.
    split
        In words: how the model's training data relate to this section.
    seen
        Whether the model was trained on this section.
    warnings
        What must be known of the numbers, a sentence each; the loudest first.
    """

    prediction: Prediction
    section: Section
    genes: tuple[str, ...]
    gene_ids: tuple[str, ...]
    unit: str
    centre_yx: npt.NDArray[np.float64]
    spot_ids: tuple[str, ...]
    split: str
    seen: bool
    warnings: tuple[str, ...]
    _features: Float32 = field(default_factory=lambda: np.empty((0, 0), np.float32))
    _in_model: npt.NDArray[np.intp] = field(default_factory=lambda: np.empty(0, np.intp))
    _in_counts: npt.NDArray[np.intp] = field(default_factory=lambda: np.empty(0, np.intp))
    _rows: npt.NDArray[np.intp] = field(default_factory=lambda: np.empty(0, np.intp))
    _ceilings: dict[str, npt.NDArray[np.float64]] = field(default_factory=dict)
    _places: dict[str, list[Place]] = field(default_factory=dict)

    def __repr__(self) -> str:
        return f"<Check of {len(self.genes)} genes at {int(self.inside.sum())} of {len(self)} spots>"

    def __len__(self) -> int:
        return len(self.centre_yx)

    @cached_property
    def inside(self) -> Rows:
        """Spots where the map has a value."""
        return np.asarray(np.isfinite(self._features[:, 0]))

    @property
    def centre_um(self) -> npt.NDArray[np.float64]:
        """Centres (y, x) in µm from the slide's upper left corner."""
        return np.asarray(self.centre_yx * np.array(self.section.slide.mpp))

    def index(self, gene: str) -> int:
        """Return the number of a gene among :attr:`genes`, by symbol (any case) or Ensembl id.

        Raises
        ------
        UnknownName
            If it is not both predicted and measured.
        """
        at = self._position.get(self.prediction.head.index(gene))
        if at is None:
            raise UnknownName(f"{gene} is predicted, but was not measured here{near_names(gene, self.genes)}")
        return at

    def measured(self, gene: str) -> Float32:
        """Return the measured expression of a gene, ``(n,)``, in :attr:`unit`."""
        return self._truth(np.array([self.index(gene)]))[:, 0]

    def predicted(self, gene: str) -> Float32:
        """Return what the map says of a gene at the spots, ``(n,)``; NaN outside it."""
        return self._map(np.array([self.index(gene)]))[:, 0]

    def residual(self, gene: str) -> Float32:
        """Return measured less predicted, ``(n,)``."""
        return np.asarray(self.measured(gene) - self.predicted(gene))

    def rows_in(self, region: Any) -> Rows:
        """Return the spots whose centre lies in a shapely geometry in level-0 pixels, x first."""
        import shapely

        return np.asarray(shapely.contains_xy(region, self.centre_yx[:, 1], self.centre_yx[:, 0]))

    def score(self, gene: str, rows: Rows | None = None) -> dict[str, float]:
        """Return ``spots, pcc, spearman, rmse, residual`` (mean) of a gene over some spots; NaN: not known."""
        table = self._scores(np.array([self.index(gene)]), rows, spearman=True)
        return {"spots": float(self._with(rows).sum()), **{name: float(v[0]) for name, v in table.items()}}

    def scores(self, rows: Rows | None = None, *, progress: Progress = NULL) -> pd.DataFrame:
        """Return a row a gene: its name as index, ``pcc, rmse, residual, moran``.

        Parameters
        ----------
        rows
            Spots that count, bool ``(n,)``; None: all.
        progress
            Told of every 512 genes.

        Notes
        -----
        ``rmse`` is the root mean square of measured less predicted, ``residual`` its mean, both in the unit; ``moran``
        is Moran's I of it: whether errors lie together.
        """
        import pandas as pd

        progress.stage("scoring genes", len(self.genes))
        parts = []
        for at in range(0, len(self.genes), _AT_ONCE):
            columns = np.arange(at, min(at + _AT_ONCE, len(self.genes)))
            parts.append(self._scores(columns, rows, clustered=True))
            progress.advance(len(columns))
        return pd.DataFrame({k: np.concatenate([p[k] for p in parts]) for k in parts[0]}, index=pd.Index(self.genes))

    def attainable(
        self, rows: Rows | None = None, genes: Sequence[str] | None = None, *, progress: Progress = NULL
    ) -> npt.NDArray[np.float64]:
        """Return the PCC that measurement noise lets any model reach over some spots, a number a gene; kept.

        Parameters
        ----------
        rows
            Spots that count, bool ``(n,)``; None: all.
        genes
            Which; None: all.
        progress
            Told of every 2,048 genes.
        """
        some = self._with(rows)
        columns = np.arange(len(self.genes)) if genes is None else np.array([self.index(g) for g in genes], np.intp)
        digest = hashlib.sha256(np.packbits(some).tobytes() + columns.tobytes())
        key = digest.hexdigest()
        if key not in self._ceilings:
            counts = self.section.counts[self._rows[some]]
            out = np.full(len(columns), np.nan)
            progress.stage("measuring the noise ceiling", len(columns))
            for at in range(0, len(columns) if some.sum() > 1 else 0, _SPLIT_AT_ONCE):
                part = columns[at : at + _SPLIT_AT_ONCE]
                out[at : at + len(part)] = attainable_pcc(counts, self.unit, columns=self._in_counts[part])
                progress.advance(len(part))
            self._ceilings[key] = out
        return self._ceilings[key]

    def places(self, gene: str) -> list[Place]:
        """Return where errors of a gene lie together, the largest place first, and keep them: see :data:`OUTLINES`."""
        name = self.genes[self.index(gene)]
        if name not in self._places:
            self._places[name] = self._find_places(name)
        return self._places[name]

    def _find_places(self, gene: str) -> list[Place]:
        import shapely
        from scipy.sparse.csgraph import connected_components

        rows, near = self._near
        if near is None:
            return []
        residual = np.asarray(self.residual(gene), np.float64)
        found = hotspots(residual[rows], near, fdr=FDR)
        radius = pitch_um(self.centre_um[rows]) / float(np.mean(self.section.slide.mpp))
        places = []
        for sign in (1, -1):
            some = np.flatnonzero(found.sign == sign)
            if not len(some):
                continue
            n, part = connected_components(near.among(some).links, directed=False)
            for k in range(n):
                own = some[part == k]
                if len(own) < LEAST_SPOTS:
                    continue
                discs = shapely.buffer(shapely.points(self.centre_yx[rows[own]][:, ::-1]), _OUT * radius)
                outline = shapely.union_all(discs).buffer(-_IN * radius)
                mean = float(residual[rows[own]].mean())
                places.append(Place(sign, rows[own], outline, mean, float(found.q[own].max())))
        return sorted(places, key=lambda p: -len(p.rows))

    def report(self, *, progress: Progress = NULL) -> EvaluationReport:
        """Return the scores of all genes as :func:`napari_peka.evaluate` gives them.

        It holds measured and predicted values of all spots and genes: 8 bytes each.
        """
        from napari_peka.workflows.check_report import report

        return report(self, progress=progress)

    def write(
        self, folder: Path | str, *, gene: str | None = None, regions: Mapping[str, Any] | None = None,
        progress: Progress = NULL,
    ) -> Path:  # fmt: skip
        """Write ``report.html`` (which needs nothing but itself), ``genes.csv`` and ``report.json``.

        Parameters
        ----------
        folder
            Made if needed.
        gene
            One to show first: map, outlines, regions.
        regions
            shapely polygons in level-0 pixels, x first, by name.
        progress
            Where to report.

        Returns
        -------
        Path of ``report.html``.

        Raises
        ------
        StoreError
            If it cannot be written.
        """
        from napari_peka.workflows.check_report import write

        return write(self, Path(folder).expanduser(), gene, regions or {}, progress=progress)

    # -- values of some genes ------------------------------------------------------------------------------------

    @cached_property
    def _position(self) -> dict[int, int]:
        return {int(k): i for i, k in enumerate(self._in_model)}

    @cached_property
    def _counts(self) -> Any:
        return self.section.counts[self._rows][:, self._in_counts].tocsc()

    @cached_property
    def _totals(self) -> npt.NDArray[np.float64]:
        return np.asarray(self.section.counts[self._rows].sum(1), np.float64).ravel()

    @cached_property
    def _near(self) -> tuple[npt.NDArray[np.intp], Neighbours | None]:
        """Spots on the map, and their neighbours among each other."""
        rows = np.flatnonzero(self.inside)
        pitch = pitch_um(self.centre_um[rows])
        return rows, neighbour_mean(self.centre_um[rows], _NEAR * pitch) if pitch > 0 else None

    def _truth(self, columns: npt.NDArray[np.intp]) -> Float32:
        return expression(self._counts[:, columns].toarray(), self._totals, self.unit)

    def _map(self, columns: npt.NDArray[np.intp]) -> Float32:
        head, at = self.prediction.head, self._in_model[columns]
        return np.asarray(self._features @ head.weights[:, at] + head.bias[at], np.float32)

    def _with(self, rows: Rows | None) -> Rows:
        return self.inside if rows is None else self.inside & rows

    def _scores(
        self, columns: npt.NDArray[np.intp], rows: Rows | None, *, spearman: bool = False, clustered: bool = False
    ) -> dict[str, npt.NDArray[np.float64]]:
        some = self._with(rows)
        truth, predicted = self._truth(columns)[some], self._map(columns)[some]
        metrics = ("pcc", "spearman", "mse") if spearman else ("pcc", "mse")
        found = gene_scores(truth, predicted, metrics)
        found["rmse"] = np.sqrt(found.pop("mse"))
        found["residual"] = nan_mean(truth - predicted, 0)
        if clustered:
            _, near = self._near
            own = None if near is None else near.among(np.flatnonzero(some[self.inside]))
            found["moran"] = np.full(len(columns), np.nan) if own is None else moran(truth - predicted, own)
        return found


def share_of_attainable(pcc: npt.NDArray[np.float64], attainable: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Return PCC by noise ceiling; NaN where that is below 0.2, which is mostly chance."""
    enough = np.nan_to_num(attainable) >= MIN_ATTAINABLE
    return np.asarray(np.divide(pcc, attainable, out=np.full(len(pcc), np.nan), where=enough))


def check(prediction: Prediction, section: Section) -> Check:
    """Compare a predicted map with the spots that were measured on the same slide.

    The map's tiles are not centred on spots, so its value at a spot is interpolated (bilinear) between the four tiles
    around it: what a person sees who looks at the map there. Neither encoder nor torch is needed.
    :func:`napari_peka.evaluate` cuts a tile at every spot instead, and judges the model rather than the map.

    Parameters
    ----------
    prediction
        From :func:`predict` or :func:`read_prediction`.
    section
        From :func:`read_section`, its image the very file that the map was predicted on, told by its content.

    Raises
    ------
    SectionError
        If the section is of another slide, shares no gene with the model, or has no spot on the map.
    SettingError
        If counts cannot be brought to the map's unit.
    """
    record = prediction.record
    same_slide(prediction, section)
    model = str(record.get("model", {}).get("name", "the model"))
    unit = known_unit(prediction.unit, model)
    in_model, in_counts, genes = shared_genes(prediction.head, model, GeneNames.of(section))
    totals = np.asarray(section.counts.sum(1), np.float64).ravel()
    rows = np.flatnonzero(totals > 0)
    centre = section.centre_yx[rows]
    split, loud = relation_of(prediction, section)
    ids = prediction.head.gene_ids
    made = Check(
        prediction=prediction, section=section, genes=genes, gene_ids=tuple(ids[k] for k in in_model) if ids else (),
        unit=unit, centre_yx=centre, spot_ids=tuple(str(i) for i in section.adata.obs_names[rows]), split=split,
        seen=split.startswith(TRAINED_ON),
        warnings=(*loud, *misplaced([section], LEAST_ON_TISSUE), *mpp_warning(prediction, section)),
        _features=features_at(prediction, centre), _in_model=in_model, _in_counts=in_counts, _rows=rows,
    )  # fmt: skip
    n = int(made.inside.sum())
    if not n:
        raise SectionError(
            f"none of the {len(made)} spots of {section.section_id} lies where this map has values; predict the whole "
            "slide, or the region where the spots are"
        )
    if n < len(made):
        made.warnings += (f"{len(made) - n} of {len(made)} spots lie where the map has no value, and are left out",)
    if lost := len(prediction.genes) - len(genes):
        made.warnings += (f"{lost} of the map's {len(prediction.genes)} genes were not measured here",)
    return made
