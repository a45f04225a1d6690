"""Writing a map in another program's format, from within a dock."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from qtpy.QtCore import Qt, Signal
from qtpy.QtWidgets import QCheckBox, QComboBox, QFileDialog, QFormLayout, QVBoxLayout, QWidget

from napari_peka.core.progress import JobProgress
from napari_peka.gui.choosers import slim
from napari_peka.gui.run_panel import RunPanel
from napari_peka.io.export import FORMATS, MOST_WITH_INTERVALS, export
from napari_peka.io.statistics import known_genes

if TYPE_CHECKING:
    from napari_peka.io.prediction import Prediction
    from napari_peka.io.slide import Slide

THIS, LISTED, USUAL = "what is shown", "the genes listed above", "the usual ones for the format"
_LABELS = {
    "h5ad": "AnnData (scanpy)", "spatialdata": "SpatialData", "ome-zarr": "OME-Zarr heatmap",
    "ome-tiff": "OME-TIFF heatmap", "geojson": "GeoJSON (QuPath)", "csv": "CSV table", "png": "PNG figure",
    "svg": "SVG figure",
}  # fmt: skip


class ExportPanel(QWidget):
    """Format, genes, and where to.

    It holds nothing of the dock that it is in: that answers :attr:`asked` with :meth:`choose`.

    Attributes
    ----------
    asked
        Emitted when a person presses the button.
    """

    asked = Signal()

    def __init__(self) -> None:
        super().__init__()
        self.format = slim(QComboBox())
        for name, kind in FORMATS.items():
            self.format.addItem(_LABELS.get(name, name), name)
            self.format.setItemData(self.format.count() - 1, kind.what.capitalize(), Qt.ItemDataRole.ToolTipRole)
        self.format.setToolTip("The program that is to read it")
        self.genes = slim(QComboBox())
        self.genes.addItems([THIS, LISTED, USUAL])
        self.genes.setToolTip(
            "What is shown is a gene, or a set's score. The usual ones are all genes in tables, the 20 best "
            "predicted in images and GeoJSON"
        )
        self.intervals = QCheckBox("with intervals")
        self.intervals.setToolTip(
            "Both ends of each value's 90 % interval beside it, where the model has them; in tables of up to "
            f"{MOST_WITH_INTERVALS:,} genes"
        )
        self.panel = RunPanel("Export…")
        form = QFormLayout()
        form.addRow("Format", self.format)
        form.addRow("Genes", self.genes)
        form.addRow("", self.intervals)
        column = QVBoxLayout(self)
        column.setContentsMargins(0, 0, 0, 0)
        column.addLayout(form)
        column.addWidget(self.panel)
        self.panel.asked.connect(self.asked)
        self.panel.succeeded.connect(self._told)
        self.format.currentIndexChanged.connect(self._format_changed)
        self._format_changed()

    def _format_changed(self, *_: Any) -> None:
        """Tick intervals where the format has them by itself; a figure has none."""
        kind = FORMATS[self.format.currentData()]
        self.intervals.setEnabled(not kind.a_gene)
        self.intervals.setChecked(kind.intervals)

    def choose(
        self,
        prediction: Prediction | None,
        slide: Slide | None,
        gene: str | None,
        listed: list[str],
        regions: dict[str, Any] | None = None,
        figure: dict[str, Any] | None = None,
        score: tuple[str, list[str]] | None = None,
    ) -> None:
        """Ask for a file, and export to it.

        Parameters
        ----------
        prediction
            The map; None: there is none, which is said.
        slide
            Its slide, where that is open: figures show it.
        gene, listed
            The gene that is picked, and those that the table lists.
        regions
            shapely polygons in level-0 pixels, x first, by name: each tile is told in which it lies.
        figure
            Colours and limits of what is shown, for a figure of it.
        score
            Name and genes of the set whose score is shown instead of a gene.
        """
        if prediction is None:
            self.panel.fail("there is no map; predict one or open a result first")
            return
        kind = FORMATS[self.format.currentData()]
        name = str(prediction.record.get("slide", {}).get("name") or "map")
        folder = prediction.path.parent if prediction.path is not None else Path.home()
        chosen, _ = QFileDialog.getSaveFileName(
            self, "Export the map", str(folder / f"{name}{kind.endings[0]}"),
            f"{kind.what} ({' '.join(f'*{e}' for e in kind.endings)})",
        )  # fmt: skip
        if not chosen:
            return
        path = Path(chosen)
        if not path.name.lower().endswith(kind.endings):
            path = path.with_name(path.name + kind.endings[0])
        wanted = self.genes.currentText()
        genes = listed if wanted == LISTED else [gene] if wanted == THIS and gene is not None else None
        sets = {}
        if score is not None and (wanted == THIS or kind.best is None):  # tables have room for it beside all genes
            sets = dict([score])
            if wanted == THIS:  # a table goes on from the genes
                genes = known_genes(prediction, score[1])[0] if kind.best is None else []
        shown = figure if wanted == THIS else None
        ticked = self.intervals.isChecked() and prediction.intervals is not None
        intervals = None if ticked and kind.intervals else ticked  # of many genes they are left out

        def job(progress: JobProgress) -> list[Path]:
            # one that is there was asked about
            return export(
                prediction, kind.name, path, genes=genes, sets=sets, slide=slide, regions=regions, figure=shown,
                intervals=intervals, overwrite=True, progress=progress,
            )  # fmt: skip

        self.panel.start(job)

    def _told(self, written: list[Path]) -> None:
        more = f" and {len(written) - 1} more" if written[1:] else ""
        self.panel.status.setText(f"written: {written[0]}{more}")
