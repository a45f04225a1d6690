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

from napari_peka.core.doubt import LEVEL, Intervals
from napari_peka.core.errors import SectionError, UnknownName, near_names
from napari_peka.core.hotspots import moran
from napari_peka.core.progress import NULL, Progress
from napari_peka.io.prediction import Prediction
from napari_peka.training.ceiling import attainable_pcc
from napari_peka.training.metrics import gene_scores, nan_mean
from napari_peka.training.panel import GeneNames
from napari_peka.training.report_words import TRAINED_ON
from napari_peka.training.scoring import MIN_ATTAINABLE
from napari_peka.training.targets import expression
from napari_peka.workflows.calibration import Calibration, calibrations, fitted_words
from napari_peka.workflows.check_input import at_spots, mpp_warning, relation_of, same_slide
from napari_peka.workflows.check_places import Lattice, Place, find_places
from napari_peka.workflows.spots import known_unit, misplaced, shared_genes

if TYPE_CHECKING:
    import pandas as pd

    from napari_peka.io.section import Section
    from napari_peka.training.evaluate import EvaluationReport

Float32 = npt.NDArray[np.float32]
Rows = npt.NDArray[np.bool_]
#: least share of a section's spots on tissue; with fewer its image is not believed, and a warning says so
LEAST_ON_TISSUE = 0.5
#: genes worked on at once
_AT_ONCE = 512
#: genes whose counts are split at once: at 5,000 spots some 3 s, after which a job can be stopped
_SPLIT_AT_ONCE = 2048


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
    spread
        By how much intervals are wider at each spot, float32 ``(n,)``, interpolated as the values are; NaN outside.
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
    spread: Float32
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

    @property
    def in_model(self) -> npt.NDArray[np.intp]:
        """Numbers of :attr:`genes` among the map's."""
        return self._in_model

    @cached_property
    def intervals(self) -> Intervals | None:
        """Around what is predicted of :attr:`genes`; None where the map has none."""
        of = self.prediction.intervals
        return None if of is None else of.only(self._in_model)

    def interval(self, gene: str, level: float = LEVEL) -> tuple[Float32, Float32]:
        """Return both ends of the interval of a gene at the spots, ``(n,)`` each; NaN outside the map.

        Raises
        ------
        SettingError
            If the map has no intervals, or none of that level.
        """
        at = self._in_model[self.index(gene)]
        return self.prediction.needed_intervals().around(self.predicted(gene), self.spread, level, int(at))

    def rows_in(self, region: Any) -> Rows:
        """Return the spots whose centre lies in a shapely geometry in level-0 pixels, x first."""
        import shapely

        return np.asarray(shapely.contains_xy(region, self.centre_yx[:, 1], self.centre_yx[:, 0]))

    def score(self, gene: str, rows: Rows | None = None) -> dict[str, float]:
        """Return what :meth:`scores` does of one gene over some spots, and ``spots, spearman``; NaN: not known."""
        table = self._scores(np.array([self.index(gene)]), rows, spearman=True)
        return {"spots": float(self._with(rows).sum()), **{name: float(v[0]) for name, v in table.items()}}

    def scores(self, rows: Rows | None = None, *, progress: Progress = NULL) -> pd.DataFrame:
        """Return a row a gene: its name as index, ``pcc, rmse, residual, coverage_90, moran``.

        Parameters
        ----------
        rows
            Spots that count, bool ``(n,)``; None: all.
        progress
            Told of every 512 genes.

        Notes
        -----
        ``rmse`` is the root mean square of measured less predicted, ``residual`` its mean, both in the unit; ``moran``
        is Moran's I of it: whether errors lie together. ``coverage_90`` is the share of spots within the map's 90 %
        interval; NaN where it has none.
        """
        import pandas as pd

        progress.stage("scoring genes", len(self.genes))
        parts = []
        for at in range(0, len(self.genes), _AT_ONCE):
            columns = np.arange(at, min(at + _AT_ONCE, len(self.genes)))
            parts.append(self._scores(columns, rows))
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
        """Return where errors of a gene lie together, the largest place first, and keep them: see
        :data:`napari_peka.workflows.check_places.OUTLINES`."""
        name = self.genes[self.index(gene)]
        if name not in self._places:
            self._places[name] = find_places(self.residual(name), self._lattice)
        return self._places[name]

    def calibration(
        self, rows: Rows | None = None, genes: Sequence[str] | None = None, *, progress: Progress = NULL
    ) -> Calibration:
        """Return the share of measured spots within the map's intervals of 50, 80, 90 and 95 %, gene by gene.

        Parameters
        ----------
        rows
            Spots that count, bool ``(n,)``; None: all.
        genes
            Which; None: all.
        progress
            Told of every 512 genes.
        """
        return calibrations(self, {"": rows}, genes, progress=progress)[""]

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
    def _lattice(self) -> Lattice:
        return Lattice.of(self.centre_yx, self.inside, self.section.slide.mpp)

    def values_of(self, columns: npt.NDArray[np.intp]) -> tuple[Float32, Float32]:
        """Return measured and predicted values of some of :attr:`genes` by their numbers, ``(n, g)`` each."""
        return self._truth(columns), self._map(columns)

    def _truth(self, columns: npt.NDArray[np.intp]) -> Float32:
        return expression(self._counts[:, columns].toarray(), self._totals, self.unit)

    def _map(self, columns: npt.NDArray[np.intp]) -> Float32:
        head, at = self.prediction.head, self._in_model[columns]
        return np.asarray(self._features @ head.weights[:, at] + head.bias[at], np.float32)

    def _with(self, rows: Rows | None) -> Rows:
        return self.inside if rows is None else self.inside & rows

    def _scores(
        self, columns: npt.NDArray[np.intp], rows: Rows | None, *, spearman: bool = False
    ) -> dict[str, npt.NDArray[np.float64]]:
        some = self._with(rows)
        truth, predicted = self._truth(columns)[some], self._map(columns)[some]
        metrics = ("pcc", "spearman", "mse") if spearman else ("pcc", "mse")
        found = gene_scores(truth, predicted, metrics)
        found["rmse"] = np.sqrt(found.pop("mse"))
        found["residual"] = nan_mean(truth - predicted, 0)
        found["coverage_90"] = np.full(len(columns), np.nan)
        if self.intervals is not None:
            found["coverage_90"] = self.intervals.only(columns).shares_held(truth, predicted, self.spread[some])[0]
        near = self._lattice.near
        links = None if near is None else near.among(np.flatnonzero(some[self.inside]))
        found["moran"] = np.full(len(columns), np.nan) if links is None else moran(truth - predicted, links)
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
    features, spread = at_spots(prediction, centre)
    made = Check(
        prediction=prediction, section=section, genes=genes, gene_ids=tuple(ids[k] for k in in_model) if ids else (),
        unit=unit, centre_yx=centre, spot_ids=tuple(str(i) for i in section.adata.obs_names[rows]), split=split,
        seen=split.startswith(TRAINED_ON),
        warnings=(*loud, *misplaced([section], LEAST_ON_TISSUE), *mpp_warning(prediction, section)),
        spread=spread, _features=features, _in_model=in_model, _in_counts=in_counts, _rows=rows,
    )  # fmt: skip
    n = int(made.inside.sum())
    if not n:
        raise SectionError(
            f"none of the {len(made)} spots of {section.section_id} lies where this map has values; predict the whole "
            "slide, or the region where the spots are"
        )
    if fitted := fitted_words(prediction, section):
        made.warnings += (fitted,)
    if n < len(made):
        made.warnings += (f"{len(made) - n} of {len(made)} spots lie where the map has no value, and are left out",)
    if lost := len(prediction.genes) - len(genes):
        made.warnings += (f"{lost} of the map's {len(prediction.genes)} genes were not measured here",)
    return made
