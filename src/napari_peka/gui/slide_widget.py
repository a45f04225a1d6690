"""The dock *Slide*: what a slide is, where its tissue is, and the regions drawn on it, which are kept beside it."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from napari.settings import get_settings
from qtpy.compat import isalive
from qtpy.QtCore import QTimer
from qtpy.QtWidgets import (
    QCheckBox,
    QDoubleSpinBox,
    QFileDialog,
    QFormLayout,
    QHBoxLayout,
    QPushButton,
    QWidget,
)

from napari_peka.core import files
from napari_peka.core.errors import PekaError
from napari_peka.gui import layers, region_layers
from napari_peka.gui.aside import Aside
from napari_peka.gui.choosers import LayerChooser, Text, fold, notice, scrolled, with_button
from napari_peka.gui.dock import Dock
from napari_peka.gui.opening import Opener
from napari_peka.gui.places import regions_path
from napari_peka.gui.placing import give_resolution
from napari_peka.gui.region_list import RegionList
from napari_peka.gui.run_panel import sentence
from napari_peka.gui.session import session_of
from napari_peka.gui.session_panel import SessionPanel
from napari_peka.gui.tissue_panel import TissuePanel
from napari_peka.io.regions import regions_by_name, write_regions
from napari_peka.io.slide import ALLOWED_MPP

#: ms after the last change of a region before all of them are written
AUTOSAVE_MS = 700
#: µm per pixel that scanners give at two magnifications, for slides that do not say it
USUAL = {"20×": 0.5, "40×": 0.25}
_GEOJSON = "GeoJSON (*.geojson *.json)"


class SlideWidget(Dock):
    """Open a slide, see what it is, and draw regions on it.

    Parameters
    ----------
    napari_viewer
        The viewer; napari passes it.
    """

    def __init__(self, napari_viewer: Any) -> None:
        super().__init__()
        self.viewer = napari_viewer
        self.session = session_of(napari_viewer)
        self._greeted: list[Any] = []
        self._followed: Any = None
        self._writing, self._opening = Aside(self), Opener(self.viewer, self)
        self._autosave = QTimer(self)
        self._autosave.setSingleShot(True)
        self._autosave.setInterval(AUTOSAVE_MS)
        self._build()
        self._slide_changed()

    def _build(self) -> None:
        self.slide = LayerChooser(self.viewer, lambda x: layers.slide_of(x) is not None)
        self.slide.setToolTip("A slide that is open")
        self.open_button = QPushButton("Open…")
        self.open_button.setToolTip("Open a slide of any format: SVS, NDPI, MRXS, TIFF, OME-Zarr, JPEG, …")
        self.about = Text()
        self.mpp = QDoubleSpinBox()
        self.mpp.setDecimals(4)
        self.mpp.setRange(0, ALLOWED_MPP[1])
        self.mpp.setSingleStep(0.05)
        self.mpp.setSpecialValueText("not known")
        self.mpp.setToolTip("µm per pixel at full resolution; change it where the file says nothing or something wrong")
        self.set_button = QPushButton("Set")
        self.set_button.setToolTip("Take this number in place of the file's")
        self.usual = {text: QPushButton(f"{text} ≈ {mpp}") for text, mpp in USUAL.items()}
        for text, button in self.usual.items():
            button.setToolTip(f"What most scanners have at {text}, in µm per pixel")
            button.clicked.connect(partial(self.mpp.setValue, USUAL[text]))
        self.spots_button = QPushButton("from spots")
        self.spots_button.setToolTip("What the distance of the measured spots on this slide says, in µm per pixel")
        self.background = QCheckBox("load in the background")
        self.background.setToolTip(
            "napari's own setting for asynchronous layers, for all of them: the window stays smooth while a slide is "
            "read, and the picture sharpens a moment later"
        )
        self.background.setChecked(bool(get_settings().experimental.async_))
        self.beside = QCheckBox()
        self.beside.setToolTip("In a row above the slide. A label may show a name: mind who looks on")
        self.tissue = TissuePanel(self.viewer)
        self.new_button = QPushButton("Draw…")
        self.new_button.setToolTip("A layer for regions: draw polygons in it; they are saved by themselves")
        self.import_button = QPushButton("Import…")
        self.import_button.setToolTip("Regions from GeoJSON, as QuPath exports them")
        self.export_button = QPushButton("Export…")
        self.export_button.setToolTip("Regions as GeoJSON, which QuPath imports")
        self.regions = Text()
        self.names = RegionList()
        self.sessions = SessionPanel(self.viewer)
        self.error = Text("color: #d9534f;")
        self.error.hide()
        self._lay_out()
        self.slide.changed.connect(self._slide_changed)
        self.slide.activated.connect(self._show_only)
        self.open_button.clicked.connect(self.ask_open)
        self._opening.opened.connect(self.slide.choose)
        self._opening.opened.connect(self._nothing_failed)
        self._opening.failed.connect(self._not_opened)
        self.set_button.clicked.connect(self._set_mpp)
        self.spots_button.clicked.connect(self._offer_spots)
        self.session.sections_changed.connect(self._sections_changed)
        self.session.slide_changed.connect(self._slide_chosen)
        self.background.toggled.connect(_load_in_background)
        self.beside.clicked.connect(self._show_beside)
        self.new_button.clicked.connect(self.draw)
        self.import_button.clicked.connect(self._import)
        self.export_button.clicked.connect(self._export)
        self.names.renamed.connect(self._rename)
        self.names.chosen.connect(self._find)
        self._autosave.timeout.connect(self._save)
        self._writing.done.connect(self._saved)
        self._writing.failed.connect(self._fail)
        self.viewer.layers.events.removed.connect(self._layer_removed)

    def _lay_out(self) -> None:
        form = QFormLayout()
        form.addRow("Slide", with_button(self.slide, self.open_button))
        form.addRow("", self.about)
        form.addRow("µm per pixel", with_button(self.mpp, self.set_button))
        offers = QWidget()
        line = QHBoxLayout(offers)
        line.setContentsMargins(0, 0, 0, 0)
        for button in (*self.usual.values(), self.spots_button):
            line.addWidget(button)
        form.addRow(offers)
        form.addRow("", self.background)
        form.addRow("", self.beside)
        form.addRow(self.tissue)
        drawn = QWidget()
        line = QHBoxLayout(drawn)
        line.setContentsMargins(0, 0, 0, 0)
        for button in (self.new_button, self.import_button, self.export_button):
            line.addWidget(button)
        form.addRow("Regions", self.regions)
        form.addRow(self.names)
        form.addRow(drawn)
        column = scrolled(self, notice("workbench/#slide"))
        column.addLayout(form)
        column.addWidget(self.error)
        self.session_fold = fold("Session", self.sessions)
        column.addWidget(self.session_fold)
        column.addStretch(1)

    # -- which slide ---------------------------------------------------------------------------------------------

    def _slide_changed(self) -> None:
        layer = self.slide.layer()
        slide = layers.slide_of(layer)
        for widget in (
            self.mpp,
            self.set_button,
            self.new_button,
            self.import_button,
            *self.usual.values(),
        ):
            widget.setEnabled(slide is not None)
        self.about.setText("Open a slide to begin." if slide is None else layers.slide_words(slide))
        if slide is not None:
            self.session.slide = slide.fingerprint
        self.mpp.setValue(0.0 if slide is None or slide.resolution is None else float(np.mean(slide.resolution.mpp)))
        self.tissue.follow(layer)
        self._tell_beside()
        self._sections_changed()
        if slide is not None and layer not in self._greeted:
            self._greeted.append(layer)
            self._bring_regions_back(slide)
        self._follow()

    def _slide_chosen(self, fingerprint: str | None) -> None:
        """Take the slide that another dock chose."""
        if isalive(self):
            self.slide.choose(layers.layer_of_slide(self.viewer, fingerprint))

    def _show_only(self, *_: object) -> None:
        """Show the slide that a person chose, and hide others: they lie at the same place."""
        if (slide := layers.slide_of(self.slide.layer())) is not None:
            layers.show_only(self.viewer, slide)
            self.viewer.reset_view(layers=[self.slide.layer()])

    def _bring_regions_back(self, slide: Any) -> None:
        path = regions_path(slide.path)
        if slide.resolution is not None and path.exists() and self._of("regions") is None:
            self._fail(None)
            try:
                self._add_regions(slide, regions_by_name(path))
            except PekaError as e:
                self._fail(e)

    def ask_open(self) -> None:
        """Ask for a slide, and open it."""
        chosen, _ = QFileDialog.getOpenFileName(self, "Open a slide")
        if chosen:
            self.open_slide(Path(chosen))

    def open_slide(self, path: Path) -> None:
        """Open a slide as a layer and choose it; what is wrong with it is said in the error line."""
        self._fail(None)
        self.about.setText(f"opening {path.name}")
        self._opening.open(path)

    def _not_opened(self, error: BaseException) -> None:
        self._slide_changed()
        self._fail(error)

    def _sections_changed(self) -> None:
        """Offer what spots say of the pixel's size, where spots of this slide are open."""
        if isalive(self):
            slide = layers.slide_of(self.slide.layer())
            self.spots_button.setEnabled(slide is not None and bool(self.session.sections_of(slide)))

    def _offer_spots(self) -> None:
        slide = layers.slide_of(self.slide.layer())
        if slide is not None and (found := self.session.sections_of(slide)):
            self.mpp.setValue(float(np.mean(found[0].section.slide.mpp)))

    def _set_mpp(self) -> None:
        """Open the slide again with the number of the form; regions stay where they were drawn."""
        layer = self.slide.layer()
        slide = layers.slide_of(layer)
        if slide is None:
            return
        self._fail(None)
        if not self.mpp.value():
            self._fail("give the µm per pixel: 20× is about 0.5, 40× about 0.25")
            return
        try:
            give_resolution(self.viewer, layer, self.mpp.value())
        except PekaError as e:
            self._fail(e)
            return
        self._slide_changed()
        self.session.layers_changed.emit()
        if any(layers.is_map_of(x, slide) for x in self.viewer.layers):
            self._fail("maps made with the former µm per pixel no longer lie on the slide: predict them again")

    # -- label and macro -----------------------------------------------------------------------------------------

    def _show_beside(self, on: bool) -> None:
        """Show the small images that lie in a slide's file, or take them away."""
        slide = layers.slide_of(self.slide.layer())
        for old in [x for x in self.viewer.layers if slide is not None and layers.is_part_of(x, "associated", slide)]:
            self.viewer.layers.remove(old)
        if not on or slide is None:
            return
        self._fail(None)
        active = self.viewer.layers.selection.active
        try:
            for data, settings, _ in layers.associated_layers(slide):
                self.viewer.add_image(data, **settings)
        except PekaError as e:
            self._fail(e)
        self.viewer.layers.selection.active = active
        self._tell_beside()
        self.viewer.reset_view()

    def _tell_beside(self) -> None:
        slide = layers.slide_of(self.slide.layer())
        names = [] if slide is None else layers.small_images(slide)
        self.beside.setVisible(bool(names))
        self.beside.setText(f"show {', '.join(names)}")
        self.beside.setChecked(self._of("associated") is not None)

    # -- regions -------------------------------------------------------------------------------------------------

    def draw(self) -> None:
        """Make the layer for regions, or select the one that is there, and begin a polygon."""
        slide = layers.slide_of(self.slide.layer())
        if slide is None:
            return
        self._fail(None)
        if slide.resolution is None:
            self._fail(f"{slide.path.name} does not say how large a pixel is; set its µm per pixel first")
            return
        layer = self._of("regions") or self._add_regions(slide, {})
        self.viewer.layers.selection.active = layer
        layer.mode = "add_polygon"

    def bring(self, path: Path) -> None:
        """Add the regions of a GeoJSON file to those that are drawn."""
        slide = layers.slide_of(self.slide.layer())
        if slide is None or slide.resolution is None:
            self._fail("open a slide, and set its µm per pixel, before regions are brought onto it")
            return
        self._fail(None)
        try:
            regions = regions_by_name(path)
        except PekaError as e:
            self._fail(e)
            return
        old = self._of("regions")
        before = {} if old is None else region_layers.regions_of(old, slide.mpp)
        if old is not None:
            self.viewer.layers.remove(old)
        self._add_regions(slide, before | regions)
        self._autosave.start()

    def write(self, path: Path) -> None:
        """Write the regions as GeoJSON that QuPath imports."""
        slide, layer = layers.slide_of(self.slide.layer()), self._of("regions")
        regions = {} if slide is None or layer is None else region_layers.regions_of(layer, slide.mpp)
        if not regions:
            self._fail("no region is drawn yet")
            return
        self._fail(None)
        self._writing.ask(partial(_write, path, regions))

    def _import(self) -> None:
        chosen, _ = QFileDialog.getOpenFileName(self, "Regions from GeoJSON", filter=_GEOJSON)
        if chosen:
            self.bring(Path(chosen))

    def _export(self) -> None:
        slide = layers.slide_of(self.slide.layer())
        start = "regions.geojson" if slide is None else str(slide.path.with_name(f"{slide.name}.geojson"))
        chosen, _ = QFileDialog.getSaveFileName(self, "Regions as GeoJSON", start, _GEOJSON)
        if chosen:
            self.write(Path(chosen))

    def _add_regions(self, slide: Any, regions: dict[str, Any]) -> Any:
        data, settings, _ = region_layers.regions_layer(slide, regions)
        layer = self.viewer.add_shapes(data, **settings)
        self._follow()
        return layer

    def _follow(self) -> None:
        """Listen to the regions of the chosen slide."""
        layer = self._of("regions")
        if layer is not None and layer is not self._followed:
            layer.events.set_data.connect(self._drawn)
            layer.events.features.connect(self._drawn)
        self._followed = layer
        self._tell_regions()

    def _drawn(self, event: Any = None) -> None:
        if isalive(self):
            self._autosave.start()
            self._tell_regions()

    def _tell_regions(self, saved: str = "") -> None:
        slide, layer = layers.slide_of(self.slide.layer()), self._of("regions")
        n = (
            0
            if slide is None or layer is None or slide.resolution is None
            else len(region_layers.regions_of(layer, slide.mpp))
        )
        self.export_button.setEnabled(n > 0)
        self.names.show_names([] if layer is None else region_layers.names_of(layer))
        told = f"{n} region{'s' * (n != 1)}" if n else "none yet"
        self.regions.setText(f"{told}<br>{saved}" if saved else told)

    def _rename(self, row: int, name: str) -> None:
        if (layer := self._of("regions")) is not None and row < len(layer.data):
            region_layers.rename(layer, row, name)
            self._tell_regions()

    def _find(self, row: int) -> None:
        """Select a region and bring it into the middle of the view."""
        layer = self._of("regions")
        if layer is not None and row < len(layer.data):
            self.viewer.layers.selection.active = layer
            layer.mode = "select"
            layer.selected_data = {row}
            centre = layer.data_to_world(np.mean(layer.data[row], axis=0))
            self.viewer.camera.center = tuple(centre)

    def _save(self) -> None:
        slide, layer = layers.slide_of(self.slide.layer()), self._of("regions")
        if slide is None or layer is None or slide.resolution is None:
            return
        region_layers.name_new(layer)
        regions, path = region_layers.regions_of(layer, slide.mpp), regions_path(slide.path)
        if regions or path.exists():
            self._writing.ask(partial(_write, path, regions))

    def _saved(self, path: Path) -> None:
        self._tell_regions(f"saved: {path.name}")

    # -- others --------------------------------------------------------------------------------------------------

    def _of(self, kind: str, slide: Any = None) -> Any:
        """Return the layer of the chosen slide's tissue or regions, or None."""
        slide = slide or layers.slide_of(self.slide.layer())
        return next((x for x in self.viewer.layers if slide is not None and layers.is_part_of(x, kind, slide)), None)

    def _layer_removed(self, event: Any = None) -> None:
        if isalive(self):
            self._greeted = [x for x in self._greeted if x in self.viewer.layers]
            self._follow()
            self._tell_beside()

    def _nothing_failed(self, *_: object) -> None:
        self._fail(None)

    def _fail(self, error: BaseException | str | None) -> None:
        text = "" if error is None else error if isinstance(error, str) else sentence(error)
        self.error.setText(text)
        self.error.setVisible(bool(text))


def _load_in_background(on: bool) -> None:
    get_settings().experimental.async_ = on


def _write(path: Path, regions: dict[str, Any]) -> Path:
    files.make_folder(path.parent)
    write_regions(path, regions)
    return path
