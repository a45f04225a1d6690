"""The dock *Predict expression*: slide, model and region in, a map that fills in while it runs."""

from __future__ import annotations

import os
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from qtpy.compat import isalive
from qtpy.QtWidgets import QCheckBox, QComboBox, QDoubleSpinBox, QFileDialog, QFormLayout, QLineEdit, QPushButton

from napari_peka.core.errors import PekaError
from napari_peka.gui import layers, predict_job, region_layers
from napari_peka.gui.choosers import (
    FolderField,
    LayerChooser,
    Snug,
    Text,
    fold,
    notice,
    scrolled,
    slim,
    with_button,
)
from napari_peka.gui.device_box import DeviceBox
from napari_peka.gui.dock import Dock
from napari_peka.gui.growing_map import GrowingMap, show_map
from napari_peka.gui.model_panel import ModelPanel
from napari_peka.gui.opening import Opener
from napari_peka.gui.partial import percent_done, say_partial
from napari_peka.gui.places import default_folder
from napari_peka.gui.plan_panel import PlanPanel, result_in_words
from napari_peka.gui.predict_job import ASK_MPP, Memory, Wish
from napari_peka.gui.preferences import setting
from napari_peka.gui.queue_panel import QueuePanel
from napari_peka.gui.run_panel import RunPanel, run_summary, sentence
from napari_peka.gui.session import session_of
from napari_peka.gui.view import seen_now
from napari_peka.io.slide import ALLOWED_MPP

#: how many tiles lie side by side where without overlap one would
DETAIL = {"a value a tile": 1, "twice as fine (4 × the work)": 2, "four times as fine (16 ×)": 4}
STAIN = {"as it is": "none", "as in training, by Macenko": "macenko", "as in training, by Reinhard": "reinhard"}
WHOLE, SEEN = "whole slide", "what I see now"


class PredictWidget(Dock):
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
        self.memory = Memory()
        #: the map in work, or the last one
        self.growing: GrowingMap | None = None
        #: what was last predicted
        self._asked: Wish | None = None
        #: what was seen when it was last predicted, and what that is called
        self._view: Any = None
        self._view_name, self._view_of = "", Path()
        self._drawn: Any = None
        self._seen: Any = None
        self._opening = Opener(napari_viewer, self)
        self._default = ""
        self._build()
        self._lay_out()
        self._connect()
        self._slide_chosen(self.session.slide)
        self._slide_changed()
        self._say_device()

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
        self.models = ModelPanel(self.session)
        self.model = self.models.box
        self.region = LayerChooser(self.viewer, lambda x: type(x).__name__ == "Shapes", none=WHOLE, also=[SEEN])
        self.region.setToolTip("The tissue of the whole slide, of what the window shows, or of areas that were drawn")
        self.tissue = QCheckBox("only where tissue is found")
        self.tissue.setToolTip("Off: every tile of the region counts, for tissue too pale or too odd to be found")
        self.tissue.setChecked(True)
        self.detail = slim(QComboBox())
        for text, parts in DETAIL.items():
            self.detail.addItem(text, parts)
        self.detail.setToolTip("Distance of the tiles; finer maps have overlapping tiles and take longer")
        self.stain = slim(QComboBox())
        for text, name in STAIN.items():
            self.stain.addItem(text, name)
        self.stain.setToolTip("What the model is shown: the slide's own colours, or those that it was trained on")
        self.organ = QLineEdit()
        self.organ.setPlaceholderText("not said")
        self.organ.setToolTip("Of which organ the slide is; the line below says whether the model knows it")
        self.device = DeviceBox(setting("predict", "device", "auto"))
        self.device_note = Snug()
        self.output = FolderField("Folder of the result, SLIDE.peka.zarr; an interrupted run resumes from it")
        self.note = Text()
        self.replace = QCheckBox("replace a result of other settings")
        self.replace.setToolTip("Without this, a result of another region, model or slide is never touched")
        self.plan = PlanPanel(self.memory)
        self.panel = RunPanel("Predict", self.viewer, pausable=True)
        self.queue = QueuePanel(self.viewer)
        self.queue_fold = fold("More slides", self.queue)

    def _lay_out(self) -> None:
        form = self.form = QFormLayout()
        form.setFieldGrowthPolicy(QFormLayout.FieldGrowthPolicy.ExpandingFieldsGrow)
        form.addRow("Slide", with_button(self.slide, self.open_button))
        form.addRow("", self.about)
        form.addRow("µm per pixel", self.mpp)
        form.addRow("Model", self.model)
        form.addRow(self.models)
        form.addRow("Region", self.region)
        form.addRow("", self.tissue)
        form.addRow("Detail", self.detail)
        form.addRow("Stain", self.stain)
        form.addRow("Organ", self.organ)
        form.addRow("Device", self.device)
        form.addRow("", self.device_note)
        form.addRow("Output", self.output)
        form.addRow("", self.note)
        form.addRow(self.replace)
        column = scrolled(self, notice("workbench/#predict-expression"))
        column.addLayout(form)
        column.addWidget(self.plan)
        column.addWidget(self.panel)
        column.addWidget(self.queue_fold)
        column.addStretch(1)

    def _connect(self) -> None:
        self.slide.changed.connect(self._slide_changed)
        self.region.changed.connect(self._region_changed)
        self.mpp.valueChanged.connect(self._ask_mpp)
        self.open_button.clicked.connect(self._browse_slide)
        self._opening.opened.connect(self.slide.choose)
        self._opening.failed.connect(self._not_opened)
        self.output.edit.textChanged.connect(self._folder_edited)
        for signal in (
            self.mpp.valueChanged, self.tissue.toggled, self.detail.currentIndexChanged, self.replace.toggled,
            self.device.currentIndexChanged, self.stain.currentIndexChanged, self.organ.textChanged,
        ):  # fmt: skip
            signal.connect(self.plan.later)
        self.session.model_changed.connect(self._model_changed)
        self.session.slide_changed.connect(self._slide_chosen)
        self.session.layers_changed.connect(self._layers_changed)
        for event in (self.viewer.camera.events.center, self.viewer.camera.events.zoom):
            event.connect(self._looked)
        self.device.looking.done.connect(self._say_device)
        self.plan.wanted.connect(self._plan)
        self.plan.measure_wanted.connect(self._measure)
        self.plan.show_wanted.connect(self._show_result)
        self.plan.found.connect(self._say_device)
        self.plan.measured.connect(self._say_device)
        self.plan.opened.connect(self._show)
        self.panel.asked.connect(self.run)
        self.panel.ticked.connect(self._tick)
        self.panel.succeeded.connect(self._succeeded)
        self.panel.stopped.connect(self._stopped)
        self.panel.failed.connect(self._failed)
        self.queue.asked.connect(self._run_queue)
        self.queue.opened.connect(self._show_pair)

    def _slide_chosen(self, fingerprint: str | None) -> None:
        """Take the slide that another dock chose."""
        if isalive(self) and not self.panel.running:
            self.slide.choose(layers.layer_of_slide(self.viewer, fingerprint))

    def _layers_changed(self) -> None:
        """Look again where the slide was opened anew, with another resolution."""
        if isalive(self) and not self.panel.running and layers.slide_of(self.slide.layer()) is not self._seen:
            self._slide_changed()

    def _slide_changed(self) -> None:
        layer = self.slide.layer()
        slide, path = layers.slide_of(layer), layers.image_path(layer) if layer is not None else None
        self._seen = slide
        if slide is not None:
            self.session.slide = slide.fingerprint
        unsaid = layer is not None and (slide is None or slide.resolution is None)
        self.form.setRowVisible(self.mpp, unsaid)
        self.mpp.setSpecialValueText("from the file" if slide is None else "not known")
        if slide is not None and slide.resolution is not None:
            y, x = slide.shape
            mpp = slide.resolution.mpp
            self.about.setText(f"{x:,} × {y:,} px at {mpp[1]:.3f} µm/px ({layers.who_says(slide.resolution)})")
        elif slide is not None:
            self._ask_mpp()
        else:
            self.about.setText("" if layer is not None else "Open a slide to begin.")
        if self._view_name and path != self._view_of:
            self.region.withdraw(self._view_name)
        if path is not None and self.output.edit.text() in ("", self._default):
            folder, note = default_folder(path)
            self._default = str(folder)
            self.output.edit.setText(self._default)
            self._say_folder(note)
        self.plan.later()

    def _region_changed(self) -> None:
        """Follow a layer of regions: what is drawn in it counts as it is drawn."""
        if self._drawn is not None:
            self._drawn.events.set_data.disconnect(self._redrawn)
        self._drawn = self.region.layer()
        if self._drawn is not None:
            self._drawn.events.set_data.connect(self._redrawn)
        self.plan.later()

    def _redrawn(self, *_: object) -> None:
        if isalive(self):
            self.plan.later()

    def _looked(self, *_: object) -> None:
        if isalive(self) and self.region.currentText() == SEEN and not self.panel.running:
            self.plan.later()

    def _model_changed(self, *_: object) -> None:
        if isalive(self):
            self.plan.later()

    def _folder_edited(self) -> None:
        self._say_folder("")
        self.plan.later()

    def _say_folder(self, note: str) -> None:
        folder = self.output.folder()
        if folder is not None and folder.exists() and not os.access(folder, os.W_OK):
            note = "You may not write to this folder; choose another one."
        self.note.setText(note)
        self.form.setRowVisible(self.note, bool(note))

    def _say_device(self, *_: object) -> None:
        """Say what it means that there is no GPU, with the time that was measured."""
        alone = self.device.has_gpu is False
        time = self.plan.whole_slide()
        told = f"no GPU found: the whole slide takes about {time} on this CPU" if time else (
            "no GPU found: it runs on the CPU; “How long?” tells how long that takes")  # fmt: skip
        self.device_note.setText(told if alone else "")
        self.form.setRowVisible(self.device_note, alone)

    def _browse_slide(self) -> None:
        chosen, _ = QFileDialog.getOpenFileName(self, "Open a slide")
        if chosen:
            self.open_slide(Path(chosen))

    def open_slide(self, path: Path) -> None:
        """Open a slide as a layer and choose it; what is wrong with it is said in the error line."""
        self.panel.error.hide()
        self.about.setText(f"opening {path.name}")
        self._opening.open(path)

    def _ask_mpp(self, *_: object) -> None:
        """Ask for the µm per pixel that a slide does not say, or say what was given."""
        slide = layers.slide_of(self.slide.layer())
        if slide is not None and slide.resolution is None:
            y, x = slide.shape
            told = f"{x:,} × {y:,} px at {self.mpp.value():.3f} µm/px (given by you)"
            asked = f"how large a pixel of {slide.path.name} is, is not known; {ASK_MPP}"
            self.about.setText(told if self.mpp.value() else asked)

    def _not_opened(self, error: BaseException) -> None:
        self._slide_changed()
        self.panel.fail(error)

    # -- what the form asks for ----------------------------------------------------------------------------------

    def settings(self) -> dict[str, Any]:
        """Return those settings of the form that count for any slide."""
        chosen = {"device": self.device.name(), "find_tissue": self.tissue.isChecked()}
        return chosen | {"stain": self.stain.currentData(), "organ": self.organ.text().strip() or None}

    def wish(self) -> Wish | str:
        """Return what the form asks for, or what is missing, as a sentence."""
        layer, folder = self.slide.layer(), self.output.folder()
        if layer is None:
            return "there is no slide; open one first"
        if folder is None:
            return "choose a folder for the result"
        slide, mpp = layers.slide_of(layer), self.mpp.value() if self.form.isRowVisible(self.mpp) else 0.0
        if slide is not None and slide.resolution is None and not mpp:
            return f"how large a pixel of {slide.path.name} is, is not known; {ASK_MPP}"
        try:
            if self.region.currentText() == SEEN:
                region = seen_now(self.viewer, layer)
            elif self.region.currentText() == self._view_name:
                region = self._view
            else:
                shapes = self.region.layer()
                region = None if shapes is None else region_layers.region_of(shapes, layer)
        except PekaError as e:
            return sentence(e)
        path = layers.image_path(layer)
        assert path is not None
        settings = self.settings() | {"tissue_threshold": layers.tissue_threshold_of(layer)}
        return Wish(
            path, None if mpp else slide, mpp or None, self.session.model, region, self.detail.currentData(),
            settings, folder / f"{path.stem}.peka.zarr", self.replace.isChecked(),
        )  # fmt: skip

    def _plan(self) -> None:
        if self.panel.running:
            return
        wish = self.wish()
        if isinstance(wish, str):
            self.plan.clear(wish if self.slide.layer() is not None else "")
        else:
            self.plan.ask(wish)

    def _measure(self) -> None:
        wish = self.wish()
        if isinstance(wish, str):
            self.plan.say(wish)
        elif self.panel.running or self.queue.running:
            self.plan.say("wait until the prediction in work is done")
        else:
            self.plan.measure(wish)

    def _show_result(self) -> None:
        wish = self.wish()
        if isinstance(wish, str):
            self.panel.fail(wish)
        else:
            self.plan.show_result(wish)

    # -- the job -------------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Predict with the settings of the form, or say what is missing."""
        wish = self.wish()
        if self.queue.running:
            self.panel.fail("the slides under More slides are being predicted; wait for them or cancel them")
            return
        if isinstance(wish, str):
            self.panel.fail(wish)
            return
        self.plan.leave()
        self.plan.clear("")  # it speaks of what was there before
        assert wish.output is not None
        self._asked = wish
        if self.region.currentText() == SEEN:
            self._keep_view(wish)
        growing = self.growing = GrowingMap(self.viewer, self.slide.layer(), wish.output, self.region.layer())
        self.panel.start(
            partial(
                _work, wish, self.memory,
                {"on_open": growing.on_open, "on_start": growing.on_start, "on_block": growing.on_block},
            )
        )  # fmt: skip

    def _keep_view(self, wish: Wish) -> None:
        """Let what is seen stay the region, for the view moves on and the run may be gone on with."""
        if wish.region is None:
            self.region.setCurrentText(WHOLE)
            return
        before, self._view, self._view_of = self._view_name, wish.region, wish.path
        self._view_name = f"the view of {datetime.now().astimezone():%H:%M:%S}"
        self.region.offer(self._view_name, before)

    def _tick(self) -> None:
        if self.growing is not None and self.growing.tick():
            self._slide_changed()

    def _ended(self) -> None:
        if self.growing is not None:
            self.growing.end()
        self.plan.later()

    def _succeeded(self, prediction: Any) -> None:
        assert self._asked is not None
        self.memory.learn(self._asked, prediction)
        self._ended()
        self.replace.setChecked(False)  # it was said of this one
        done = prediction.record["run"]
        self.plan.learn(self._asked.speed_key, done["tiles"] - done["resumed_tiles"], done["seconds"])
        lines = [run_summary(done["tiles"], done["seconds"], done["resumed_tiles"])]
        if bad := prediction.n_unreadable:
            lines.append(f"{bad} tiles could not be decoded; they are empty in the map")
        self.panel.status.setText("; ".join([*lines, str(prediction.path)]))

    def _stopped(self) -> None:
        self._ended()
        layer = self.growing.layer if self.growing is not None else None
        prediction = layers.prediction_of(layer)
        share = f" at {percent_done(prediction)} %" if prediction is not None else ""
        self.panel.status.setText(f"cancelled{share}; the finished part is kept, Predict goes on from there")

    def _failed(self, *_: object) -> None:
        self._ended()

    # -- results that are there ----------------------------------------------------------------------------------

    def _show(self, prediction: Any) -> None:
        wish = self.wish()
        output = prediction.path or (None if isinstance(wish, str) else wish.output)
        if output is not None:
            say_partial(show_map(self.viewer, prediction, output, self.slide.layer()))
            self.panel.status.setText(result_in_words(prediction))
            if not isinstance(wish, str):
                self.memory.learn(wish, prediction)
            self.plan.later()

    # -- more slides ---------------------------------------------------------------------------------------------

    def _run_queue(self) -> None:
        if self.panel.running:
            self.queue.panel.fail("a slide is being predicted; wait for it or cancel it")
            return
        given = {
            s.path: float(np.mean(s.resolution.mpp))
            for s in self.session.slides()
            if s.resolution is not None and s.resolution.source == "given"
        }
        self.queue.run(self.session.model, self.settings(), self.detail.currentData(), self.replace.isChecked(), given)

    def _show_pair(self, path: Path, prediction: Any) -> None:
        """Show a slide of the queue and its map."""
        if all(layers.image_path(x) != path for x in self.viewer.layers):
            self.open_slide(path)
        slide = next((x for x in self.viewer.layers if layers.image_path(x) == path), None)
        if slide is not None:
            self.slide.choose(slide)
        show_map(self.viewer, prediction, prediction.path, slide)

    def closeEvent(self, event: Any) -> None:
        """Stop what runs when the dock is closed."""
        for part in (self.models, self.plan, self.panel, self.queue):
            part.leave()
        super().closeEvent(event)


def _work(wish: Wish, memory: Memory, hooks: dict[str, Any], progress: Any) -> Any:
    return predict_job.run(wish, memory, progress, **hooks)
