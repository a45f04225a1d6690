"""The dock *Check against spots*: a predicted map beside what was measured on the same slide."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from qtpy.compat import isalive
from qtpy.QtCore import Qt, QTimer, QUrl
from qtpy.QtGui import QDesktopServices
from qtpy.QtWidgets import QAbstractItemView, QFileDialog

from napari_peka.core.errors import PekaError
from napari_peka.core.progress import JobProgress
from napari_peka.gui import check_jobs, layers, region_layers, section_layers
from napari_peka.gui.aside import Aside
from napari_peka.gui.check_form import WHOLE, CheckForm
from napari_peka.gui.check_genes import GENE, SHARE, VALUE
from napari_peka.gui.dock import Dock
from napari_peka.gui.run_panel import sentence
from napari_peka.gui.session import OpenSection, session_of
from napari_peka.gui.spot_view import SpotView

#: ms to wait for the next key, for the next change of a drawn shape, and for tiles of a map that still grows
SETTLE_MS, SHAPE_MS, AGAIN_MS = 60, 150, 5000


class CheckWidget(Dock):
    """Compare a predicted map with measured spots.

    Parameters
    ----------
    napari_viewer
        The viewer; napari passes it.
    """

    def __init__(self, napari_viewer: Any) -> None:
        super().__init__()
        self.session = session_of(napari_viewer)
        self.viewer = self.session.viewer
        self.spots = SpotView(self.viewer)
        self.check: Any = None
        self.error: str = ""
        self._gene: str | None = None
        self._followed: list[Any] = []
        self._report: Path | None = None
        self._opening, self._checking = Aside(self), Aside(self)
        self._looking, self._doubting = Aside(self), Aside(self)
        self._scoring, self._holding = Aside(self), Aside(self)
        self._settle, self._shape, self._again, self._tidy = (
            self._timer(ms) for ms in (SETTLE_MS, SHAPE_MS, AGAIN_MS, 0)
        )
        self.form = CheckForm(self, napari_viewer)
        self._connect()
        self._theme()
        self._map_changed()

    def _timer(self, ms: int) -> QTimer:
        timer = QTimer(self)
        timer.setSingleShot(True)
        timer.setInterval(ms)
        return timer

    def _connect(self) -> None:
        form, session = self.form, self.session
        for aside, done, failed in (
            (self._opening, self._opened, self._fail), (self._checking, self._checked, self._not_checked),
            (self._looking, self._looked, self._fail), (self._doubting, self._doubted, self._fail),
            (self._scoring, self._scored, self._fail), (self._holding, self._held, self._fail),
        ):  # fmt: skip
            aside.done.connect(done)
            aside.failed.connect(failed)
        form.map.changed.connect(self._map_changed)
        form.section.currentIndexChanged.connect(self._compare)
        form.file_action.triggered.connect(self._browse_file)
        form.folder_action.triggered.connect(self._browse_folder)
        form.order.currentTextChanged.connect(self._order_changed)
        form.search.textChanged.connect(self._search)
        form.search.returnPressed.connect(self._first)
        form.table.selectionModel().currentRowChanged.connect(self._row_changed)
        form.mode_chosen.connect(self.spots.choose)
        form.limits_chosen.connect(self._set_limits)
        form.shapes.changed.connect(self._follow)
        form.within.currentIndexChanged.connect(self._rescore)
        form.outline.toggled.connect(self._outline)
        form.scatter.chosen.connect(self.spots.mark)
        form.panel.asked.connect(self._write)
        form.panel.succeeded.connect(self._written)
        form.open_report.clicked.connect(self._open_report)
        form.calibration.fit.asked.connect(self._fit)
        form.calibration.fit.succeeded.connect(self._fitted)
        self._settle.timeout.connect(self._row_settled)
        self._shape.timeout.connect(self._list_regions)
        self._again.timeout.connect(self._compare)
        self._tidy.timeout.connect(self.spots.close)
        self.spots.limits_changed.connect(self._limits_changed)
        self.spots.marked.connect(self._marked)
        session.sections_changed.connect(self._list_sections)
        session.gene_changed.connect(self._gene_changed)
        self.viewer.events.theme.connect(self._theme)

    # -- what is compared ----------------------------------------------------------------------------------------

    def _map_changed(self) -> None:
        self._list_sections()
        self._follow()

    def _list_sections(self) -> None:
        """Offer the sections that were measured on the map's slide; the newest is chosen when none was."""
        if not isalive(self):
            return
        prediction = layers.prediction_of(self.form.map.layer())
        mine = [] if prediction is None else check_jobs.measured_on(self.session, prediction)
        self.form.offer([s.section.section_id for s in mine])
        self._compare()

    def _compare(self, *_: Any) -> None:
        """Compare the chosen map with the chosen section, beside the window."""
        prediction = layers.prediction_of(self.form.map.layer())
        name = self.form.section.currentData()
        found = next((s for s in self.session.sections() if s.section.section_id == name), None)
        if prediction is None or found is None:
            self._checking.forget()
            self._drop(prediction is not None)
            return
        if self.check is not None and not (self.check.prediction is prediction and self.check.section is found.section):
            self._drop(True)
        self._checking.ask(partial(check_jobs.compare, prediction, found.section))

    def _drop(self, has_map: bool) -> None:
        for aside in (self._looking, self._doubting, self._scoring, self._holding):
            aside.forget()
        self.check = self._gene = None
        self.form.genes.of(None)
        self.form.invite(has_map)
        self._tidy.start()  # not now: a layer may be on its way out

    def _checked(self, check: Any) -> None:
        prediction = layers.prediction_of(self.form.map.layer())
        if prediction is None or check.prediction is not prediction:
            return
        self._tidy.stop()
        self._fail(None)
        self.check = check
        for layer in self.viewer.layers:  # spots of a training, of another gene maybe, would lie among these
            if section_layers.kind_of(layer) is not None or section_layers.spots_of(layer) is not None:
                layer.visible = False
        self.form.genes.of(check)
        self.form.ready(check)
        self._list_regions()
        wished = (self._gene, self.session.gene, layers.gene_of(self.form.map.layer()))
        self._show(next((g for g in wished if g is not None and g in check.genes), check.genes[0]))
        self._score_all()
        if check_jobs.grows(prediction):
            self._again.start()

    def _not_checked(self, error: Any) -> None:
        """Say why there is nothing to compare; a map that still grows is looked at again."""
        prediction = layers.prediction_of(self.form.map.layer())
        if prediction is not None and check_jobs.grows(prediction):
            self._fail(None)
            self.form.about.setText("the map has not reached the spots yet; they are compared as soon as it has")
            self._again.start()
        else:
            self._fail(error)

    def _browse_file(self, *_: Any) -> None:
        chosen, _ = QFileDialog.getOpenFileName(
            self, "Measured spots", filter="Sections (*.h5ad *.tsv.gz *.tsv);;All files (*)"
        )
        if chosen:
            self.open_section(Path(chosen))

    def _browse_folder(self, *_: Any) -> None:
        if chosen := QFileDialog.getExistingDirectory(self, "Space Ranger outs folder, or SpatialData .zarr"):
            self.open_section(Path(chosen))

    def open_section(self, path: Path) -> None:
        """Read a section beside the window and choose it; what is wrong with it is said in the error line."""
        prediction = layers.prediction_of(self.form.map.layer())
        if prediction is None:
            self._fail("choose a map first: a section is compared with the map of its own slide")
            return
        self._fail(None)
        slide = layers.slide_under(self.viewer, prediction)
        self.form.about.setText(f"reading {path.name}")
        self._opening.ask(partial(check_jobs.read, path, prediction, None if slide is None else slide.path))

    def _opened(self, opened: OpenSection) -> None:
        self.form.wish(self.session.name_apart(opened))
        self.session.add_sections([opened])

    # -- which gene ----------------------------------------------------------------------------------------------

    def gene(self) -> str | None:
        """Return the gene that is shown."""
        return self._gene

    def pick(self, gene: str) -> None:
        """Show a gene, as if its row had been picked; an unknown one is said in the error line."""
        self._fail(None)
        try:
            if self.check is not None:
                self._show(self.check.genes[self.check.index(gene)])
        except PekaError as e:
            self._fail(e)

    def _gene_changed(self, gene: str | None) -> None:
        if isalive(self) and gene and self.check is not None and gene != self._gene and gene in self.check.genes:
            self._show(gene)

    def _row_changed(self, *_: Any) -> None:
        self._settle.start()

    def _row_settled(self) -> None:
        at = self.form.genes.gene_at(self.form.table.currentIndex().row())
        if self.check is not None and at is not None and self.check.genes[at] != self._gene:
            self._show(self.check.genes[at])

    def _show(self, gene: str) -> None:
        self._gene = gene
        with self._keeping():
            pass
        self.session.gene = gene
        self._look()

    def _look(self) -> None:
        if self.check is not None and self._gene is not None:
            self._looking.ask(partial(check_jobs.look, self.check, self._gene, self.region()))

    def _looked(self, look: check_jobs.Look) -> None:
        if look.values.check is not self.check or look.values.gene != self._gene:
            return
        self.spots.show(look.values)
        self.form.scatter.show_values(look.values.measured, look.values.predicted, look.rows, self.check.unit)
        self.form.scatter.mark(self.spots.rows)
        self.form.tell(look, None)
        self._doubting.ask(partial(check_jobs.doubt, look))

    def _doubted(self, doubt: check_jobs.Doubt) -> None:
        if doubt.look.values.check is self.check and doubt.look.values.gene == self._gene:
            self.form.tell(doubt.look, doubt)
            self._outline()

    def _outline(self, *_: Any) -> None:
        check, gene = self.check, self._gene
        if check is not None and gene is not None:
            places = self.form.places if self.form.outline.isChecked() else []
            self.spots.outline(check, gene, places)

    # -- the table -----------------------------------------------------------------------------------------------

    @contextmanager
    def _keeping(self) -> Iterator[None]:
        """Keep the gene that is picked, wherever its row goes."""
        selection = self.form.table.selectionModel()
        selection.blockSignals(True)
        yield
        if self.check is not None and self._gene is not None:
            row = self.form.genes.row_of(self.check.index(self._gene))
            if row is not None:
                index = self.form.genes.index(row, GENE)
                self.form.table.setCurrentIndex(index)
                self.form.table.scrollTo(index, QAbstractItemView.ScrollHint.EnsureVisible)
        selection.blockSignals(False)
        self.form.table.viewport().update()

    def _search(self, text: str) -> None:
        with self._keeping():
            self.form.genes.search(text)
        self._fail(None)
        if self.check is not None and not self.form.genes.rowCount():
            try:
                self.check.index(text.strip())
            except PekaError as e:  # it says what is near
                self._fail(e)
        if text:
            self.form.table.scrollToTop()
        else:
            self.form.table.scrollTo(self.form.table.currentIndex(), QAbstractItemView.ScrollHint.PositionAtCenter)

    def _first(self) -> None:
        if self.form.genes.rowCount():
            self.form.table.setCurrentIndex(self.form.genes.index(0, GENE))

    def _order_changed(self, name: str) -> None:
        with self._keeping():
            self.form.genes.measure(name)
            self.form.table.sortByColumn(VALUE, Qt.SortOrder.DescendingOrder)
        self._score_all()

    def _score_all(self) -> None:
        if self.check is not None:
            shared = self.form.order.currentText() == SHARE
            self._scoring.ask(partial(check_jobs.score_all, self.check, self.region(), shared))

    def _scored(self, found: Any) -> None:
        check, table = found
        if check is self.check:
            with self._keeping():
                self.form.genes.tell(table)
            if check.intervals is not None:
                self._holding.ask(partial(check_jobs.hold_all, check, self.region()))

    def _held(self, found: Any) -> None:
        check, calibration = found
        if check is self.check:
            self.form.calibration.show_all(calibration)

    # -- where ---------------------------------------------------------------------------------------------------

    def regions(self) -> dict[str, Any]:
        """Return the regions drawn in the chosen layer, by name, in level-0 pixels."""
        shapes, check = self.form.shapes.layer(), self.check
        return {} if shapes is None or check is None else region_layers.regions_of(
            shapes, check.prediction.tiles.slide_mpp)  # fmt: skip

    def region(self) -> Any:
        """Return the region within which scores are taken; None: the whole section."""
        name = self.form.within.currentText()
        return None if name == WHOLE else self.regions().get(name)

    def _follow(self) -> None:
        """Listen to the chosen layer of shapes."""
        shapes = self.form.shapes.layer()
        if shapes is not None and shapes not in self._followed:
            self._followed = [x for x in self._followed if x in self.viewer.layers] + [shapes]
            for event in (shapes.events.set_data, shapes.events.features):
                event.connect(self._shapes_changed)
        self._list_regions()

    def _shapes_changed(self, event: Any = None) -> None:
        if isalive(self):
            self._shape.start()

    def _list_regions(self) -> None:
        self.form.list_regions(list(self.regions()))
        self._rescore()

    def _rescore(self, *_: Any) -> None:
        self._look()
        self._score_all()

    # -- how it looks --------------------------------------------------------------------------------------------

    def _set_limits(self, limits: tuple[float, float]) -> None:
        self.spots.set_limits(limits)

    def _limits_changed(self, limits: Any) -> None:
        if isalive(self):
            self.form.show_limits(limits)

    def _marked(self, rows: set[int]) -> None:
        if isalive(self):
            self.form.scatter.mark(rows)

    def _theme(self, event: Any = None) -> None:
        if isalive(self):
            from napari.utils.theme import get_theme

            theme = get_theme(self.viewer.theme)
            for panel in (self.form.scatter, self.form.calibration):
                panel.paint(theme.background.as_hex(), theme.text.as_hex())

    # -- the intervals -------------------------------------------------------------------------------------------

    def _fit(self) -> None:
        check = self.check
        if check is None:
            self.form.calibration.fit.fail("choose a map and measured spots first")
            return

        def job(progress: JobProgress) -> Any:
            return check_jobs.fit(check, progress)

        self.form.calibration.fit.start(job)

    def _fitted(self, both: Any) -> None:
        prediction, fitted = both
        check_jobs.take_intervals(prediction, fitted)
        self.form.calibration.fit.status.setText(check_jobs.told_of_fit(fitted))
        self._compare()

    # -- the report ----------------------------------------------------------------------------------------------

    def _write(self) -> None:
        check, gene, regions = self.check, self._gene, self.regions()
        if check is None:
            self.form.panel.fail("choose a map and measured spots first")
            return
        folder = check_jobs.report_folder(check)

        def job(progress: JobProgress) -> Path:
            return Path(check.write(folder, gene=gene, regions=regions, progress=progress))

        self.form.panel.start(job)

    def _written(self, path: Path) -> None:
        self._report = path
        self.form.open_report.setEnabled(True)
        self.form.panel.status.setText(f"written: {path}")

    def _open_report(self) -> None:
        if self._report is not None:
            QDesktopServices.openUrl(QUrl.fromLocalFile(str(self._report)))

    def _fail(self, error: BaseException | str | None) -> None:
        self.error = "" if error is None else error if isinstance(error, str) else sentence(error)
        self.form.fail(self.error)
        if self.error and self.check is None:
            self.form.invite(self.form.map.layer() is not None)
