"""The dock *Predict expression*: slide, model and region in, a map that fills in while it runs."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from qtpy.compat import isalive
from qtpy.QtWidgets import (
    QCheckBox,
    QComboBox,
    QDoubleSpinBox,
    QFileDialog,
    QFormLayout,
    QPushButton,
    QWidget,
)

from napari_peka.core.errors import MissingResolution, PekaError
from napari_peka.core.progress import JobProgress
from napari_peka.gui import layers, map_layers, region_layers
from napari_peka.gui.choosers import (
    DOCK_WIDTH,
    FolderField,
    LayerChooser,
    ModelChooser,
    Text,
    notice,
    scrolled,
    slim,
    with_button,
)
from napari_peka.gui.places import default_folder
from napari_peka.gui.preferences import setting
from napari_peka.gui.run_panel import RunPanel, run_summary
from napari_peka.gui.session import session_of
from napari_peka.io.slide import ALLOWED_MPP

#: how many tiles lie side by side where without overlap one would
DETAIL = {"a value a tile": 1, "twice as fine (4 × the work)": 2, "four times as fine (16 ×)": 4}
_ASK_MPP = "fill in the µm per pixel (20× is about 0.5, 40× about 0.25)"


class PredictWidget(QWidget):
    """Predict the expression map of a slide.

    Parameters
    ----------
    napari_viewer
        The viewer; napari passes it.
    """

    def __init__(self, napari_viewer: Any) -> None:
        super().__init__()
        self.viewer = napari_viewer
        self.session = session_of(napari_viewer)
        #: what the job tells, waiting for the GUI thread
        self._news: deque[Callable[[], None]] = deque()
        self._blocks: deque[Any] = deque()
        self._schedule: Any = None
        self._map: Any = None
        self._slide_layer: Any = None
        self._default = ""
        self._build()
        self._slide_changed()
        self._model_changed(self.session.model)

    # -- the form ------------------------------------------------------------------------------------------------

    def _build(self) -> None:
        self.slide = LayerChooser(self.viewer, lambda x: layers.image_path(x) is not None)
        self.slide.setToolTip("A layer opened from a slide file")
        self.open_button = QPushButton("Open…")
        self.open_button.setToolTip("Open a slide of any format: SVS, NDPI, MRXS, TIFF, OME-Zarr, JPEG, …")
        self.about = Text()
        self.mpp = QDoubleSpinBox()
        self.mpp.setDecimals(4)
        self.mpp.setRange(0, ALLOWED_MPP[1])
        self.mpp.setSingleStep(0.05)
        self.mpp.setToolTip("µm per pixel at full resolution; the file does not say it")
        self.model = ModelChooser()
        self.region = LayerChooser(self.viewer, lambda x: type(x).__name__ == "Shapes", none="whole slide")
        self.region.setToolTip("The tissue of the whole slide, or the areas drawn in a Shapes layer")
        self.tissue = QCheckBox("only where tissue is found")
        self.tissue.setToolTip("Off: every tile of the region counts, for tissue too pale or too odd to be found")
        self.tissue.setChecked(True)
        self.detail = slim(QComboBox())
        for text, parts in DETAIL.items():
            self.detail.addItem(text, parts)
        self.detail.setToolTip("Distance of the tiles; finer maps have overlapping tiles and take longer")
        self.device = slim(QComboBox())
        self.device.setEditable(True)
        self.device.addItems(["auto", "cpu", "cuda", "mps"])
        self.device.setCurrentText(setting("predict", "device", "auto"))
        self.device.setToolTip("auto: the GPU when there is one; cuda:1 for the second")
        self.output = FolderField("Folder of the result, SLIDE.peka.zarr; an interrupted run resumes from it")
        self.note = Text()
        self.replace = QCheckBox("replace a result of other settings")
        self.replace.setToolTip("Without this, a result of another region, model or slide is never touched")
        self.panel = RunPanel("Predict", self.viewer)
        self._lay_out()
        self.slide.changed.connect(self._slide_changed)
        self.model.activated.connect(self._model_chosen)
        self.session.model_changed.connect(self._model_changed)
        self.open_button.clicked.connect(self._browse_slide)
        self.output.edit.editingFinished.connect(self._folder_edited)
        self.panel.asked.connect(self.run)
        self.panel.ticked.connect(self._tick)
        self.panel.succeeded.connect(self._succeeded)
        self.panel.stopped.connect(self._stopped)

    def _lay_out(self) -> None:
        self.setMaximumWidth(DOCK_WIDTH)
        form = self.form = QFormLayout()
        form.setFieldGrowthPolicy(QFormLayout.FieldGrowthPolicy.ExpandingFieldsGrow)
        form.addRow("Slide", with_button(self.slide, self.open_button))
        form.addRow("", self.about)
        form.addRow("µm per pixel", self.mpp)
        form.addRow("Model", self.model)
        form.addRow("Region", self.region)
        form.addRow("", self.tissue)
        form.addRow("Detail", self.detail)
        form.addRow("Device", self.device)
        form.addRow("Output", self.output)
        form.addRow("", self.note)
        form.addRow("", self.replace)
        column = scrolled(self)
        column.addLayout(form)
        column.addWidget(self.panel)
        column.addStretch(1)
        column.addWidget(notice("workbench/#predict-expression"))

    def _slide_changed(self) -> None:
        layer = self.slide.layer()
        slide, path = layers.slide_of(layer), layers.image_path(layer) if layer is not None else None
        unsaid = layer is not None and (slide is None or slide.resolution is None)
        self.form.setRowVisible(self.mpp, unsaid)
        self.mpp.setSpecialValueText("from the file" if slide is None else "not known")
        if slide is not None and slide.resolution is not None:
            y, x = slide.shape
            mpp = slide.resolution.mpp
            self.about.setText(f"{x:,} × {y:,} px at {mpp[1]:.3f} µm/px ({slide.resolution.source})")
        elif slide is not None:
            self.about.setText(f"{slide.path.name} does not say how large a pixel is; {_ASK_MPP}")
        else:
            self.about.setText("" if layer is not None else "Open a slide to begin.")
        if path is not None and self.output.edit.text() in ("", self._default):
            folder, note = default_folder(path)
            self._default = str(folder)
            self.output.edit.setText(self._default)
            self._say_folder(note)

    def _model_chosen(self, *_: object) -> None:
        self.session.model = self.model.model()

    def _model_changed(self, name: str) -> None:
        """Take the model that another dock chose."""
        if isalive(self) and name != self.model.model():
            self.model.take(name)

    def _folder_edited(self) -> None:
        self._say_folder("")

    def _say_folder(self, note: str) -> None:
        folder = self.output.folder()
        if folder is not None and folder.exists() and not os.access(folder, os.W_OK):
            note = "You may not write to this folder; choose another one."
        self.note.setText(note)
        self.form.setRowVisible(self.note, bool(note))

    def _browse_slide(self) -> None:
        chosen, _ = QFileDialog.getOpenFileName(self, "Open a slide")
        if chosen:
            self.open_slide(Path(chosen))

    def open_slide(self, path: Path) -> None:
        """Open a slide as a layer and choose it; what is wrong with it is said in the error line."""
        from napari_peka.io.slide import open_slide

        self.panel.error.hide()
        try:
            data, settings, _ = layers.slide_layer(open_slide(path))
        except PekaError as e:
            self.panel.fail(e)
            return
        layer = self.viewer.add_image(data, **settings)
        self.viewer.layers.move(len(self.viewer.layers) - 1, 0)  # below maps that are there already
        self.slide.choose(layer)
        self.viewer.reset_view()  # napari looks at the first layer only, and this one may lie elsewhere

    # -- the job -------------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Predict with the settings of the form, or say what is missing."""
        layer, folder = self.slide.layer(), self.output.folder()
        if layer is None:
            self.panel.fail("there is no slide; open one first")
            return
        if folder is None:
            self.panel.fail("choose a folder for the result")
            return
        slide, mpp = layers.slide_of(layer), self.mpp.value() if self.form.isRowVisible(self.mpp) else 0.0
        if slide is not None and slide.resolution is None and not mpp:
            self.panel.fail(f"{slide.path.name} does not say how large a pixel is; {_ASK_MPP}")
            return
        shapes = self.region.layer()
        try:
            region = None if shapes is None else region_layers.region_of(shapes, layer)
        except PekaError as e:
            self.panel.fail(e)
            return
        path = layers.image_path(layer)
        assert path is not None
        self._slide_layer, self._map, self._schedule = layer, None, None
        self._news.clear()
        self._blocks.clear()
        output = folder / f"{path.stem}.peka.zarr"
        self.panel.start(self._job(None if mpp else slide, path, mpp or None, region, output, shapes))

    def _job(
        self, slide: Any, path: Path, mpp: float | None, region: Any, output: Path, shapes: Any
    ) -> Callable[[JobProgress], Any]:
        """Return the work for the thread; it touches nothing of Qt or napari but the two queues."""
        name, replace = self.model.model(), self.replace.isChecked()
        parts = self.detail.currentData()
        settings: dict[str, Any] = {
            "device": self.device.currentText().strip(),
            "find_tissue": self.tissue.isChecked(),
        }
        layer = self._slide_layer
        view = layers.visible_rect(self.viewer, layer)

        def begin(prediction: Any, schedule: Any) -> None:
            schedule.prefer(view)  # what is looked at comes first from the first block on
            self._news.append(lambda: self._begin(prediction, schedule, output))

        def job(progress: JobProgress) -> Any:
            progress.stage("loading the model")
            from napari_peka.config import PredictConfig
            from napari_peka.io.slide import open_slide
            from napari_peka.models.zoo import load_model
            from napari_peka.workflows.predict import predict

            model = load_model(name)
            if parts > 1:
                settings["stride_px"] = max(1, model.tile_spec().stride // parts)
            if slide is None:
                opened = open_slide(path, mpp=mpp)
                self._news.append(lambda: self._adopt(layer, opened, shapes))
            else:
                opened = slide
            try:
                return predict(
                    opened, model, output=output, region=region, config=PredictConfig(**settings),
                    overwrite=replace, progress=progress, on_start=begin,
                    on_block=lambda block, *_: self._blocks.append(block),
                )  # fmt: skip
            except MissingResolution as e:
                raise MissingResolution(f"{str(e).rpartition(';')[0]}; {_ASK_MPP}") from e

        return job

    # -- in the GUI thread ---------------------------------------------------------------------------------------

    def _tick(self) -> None:
        while self._news:
            self._news.popleft()()
        if self._map is not None and self._map in self.viewer.layers:
            map_layers.fill_blocks(self._map, [self._blocks.popleft() for _ in range(len(self._blocks))])
        if self._schedule is not None and self._slide_layer in self.viewer.layers:
            self._schedule.prefer(layers.visible_rect(self.viewer, self._slide_layer))

    def _adopt(self, layer: Any, slide: Any, shapes: Any) -> None:
        """Bring a layer to the resolution that is now known, and with it the region drawn on it."""
        before = np.array(layer.scale, float)[:2]
        layers.set_resolution(layer, slide)
        if shapes is not None:
            layers.rescale(shapes, np.array(layer.scale, float)[:2] / before)
        self.viewer.reset_view()
        self._slide_changed()

    def _begin(self, prediction: Any, schedule: Any, output: Path) -> None:
        """Show the map, empty as yet, in place of an older one of the same file."""
        wish = ["ERBB2"]
        for old in [x for x in self.viewer.layers if layers.output_of(x) == output]:
            wish = [layers.gene_of(old) or "", *wish]
            self.viewer.layers.remove(old)
        data, settings, _ = map_layers.heatmap_layer(prediction, map_layers.best_gene(prediction, wish))
        self._map = self.viewer.add_image(data, **settings)
        layers.set_output(self._map, output)
        map_layers.show_colour_bar(self._map)
        # shapes drawn next take the scale of the selected layer: the slide's, not that of the map's coarse pixels
        if self._slide_layer in self.viewer.layers:
            self.viewer.layers.selection.active = self._slide_layer
        self._schedule = schedule

    def _succeeded(self, prediction: Any) -> None:
        done = prediction.record["run"]
        lines = [run_summary(done["tiles"], done["seconds"], done["resumed_tiles"])]
        if bad := prediction.n_unreadable:
            lines.append(f"{bad} tiles could not be decoded; they are empty in the map")
        self.panel.status.setText("; ".join([*lines, str(prediction.path)]))

    def _stopped(self) -> None:
        self.panel.status.setText("cancelled; the finished part is kept, Predict goes on from there")
