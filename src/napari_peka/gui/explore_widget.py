"""The dock *Explore expression*: search a gene, see its map and how far to believe it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from qtpy.compat import isalive
from qtpy.QtCore import QSignalBlocker, Qt, QTimer
from qtpy.QtWidgets import QCheckBox, QFileDialog, QFormLayout, QPushButton, QSlider

from napari_peka.core.errors import PekaError
from napari_peka.gui import doubt_layers, doubt_view, layers, map_layers, region_layers
from napari_peka.gui.aside import Aside
from napari_peka.gui.choosers import LayerChooser, Text, fold, notice, scrolled, with_button
from napari_peka.gui.compare_panel import ComparePanel
from napari_peka.gui.compare_view import show_beside, show_blend, show_single
from napari_peka.gui.dock import Dock
from napari_peka.gui.doubt_layers import Doubts
from napari_peka.gui.export_panel import ExportPanel
from napari_peka.gui.gene_panel import GenePanel
from napari_peka.gui.here import Here
from napari_peka.gui.look import Look
from napari_peka.gui.look_panel import LookPanel
from napari_peka.gui.preferences import remember
from napari_peka.gui.region_panel import RegionPanel
from napari_peka.gui.run_panel import sentence
from napari_peka.gui.session import session_of
from napari_peka.gui.set_panel import SetPanel
from napari_peka.gui.trust_panel import TrustPanel
from napari_peka.gui.verdict_line import VerdictLine, of_map
from napari_peka.io.figure import set_trust_text
from napari_peka.io.statistics import gene_table
from napari_peka.io.trust import legend, ood_sentence

#: ms to wait for the next key before a gene is computed: held arrow keys move the row, not the map
SETTLE_MS = 60
_WORDS = (
    "log1p CP10K: the logarithm of a gene's counts among 10,000 counts of its place. PCC: how well predicted and "
    "measured values went together on data that the model had not seen; 0 is not at all, 1 is wholly"
)
#: ms after which the numbers of a map that still grows are taken again
AGAIN_MS = 5000


class ExploreWidget(Dock):
    """Look at the genes of a predicted map.

    Parameters
    ----------
    napari_viewer
        The viewer; napari passes it.
    """

    def __init__(self, napari_viewer: Any) -> None:
        super().__init__()
        self.viewer = napari_viewer
        self.session = session_of(napari_viewer)
        self._head: Any = None
        self._told: Any = None
        self._settle = QTimer(self)
        self._settle.setSingleShot(True)
        self._settle.setInterval(SETTLE_MS)
        self._numbers = Aside(self)
        self._numbers.done.connect(self._tell)
        self._numbers.failed.connect(self._fail)
        self._again = QTimer(self)
        self._again.setSingleShot(True)
        self._again.setInterval(AGAIN_MS)
        self._again.timeout.connect(self._ask_numbers)
        # later, not at once: a layer that is added while another one comes or goes would confuse the list of layers
        self._doubt = QTimer(self)
        self._doubt.setSingleShot(True)
        self._doubt.setInterval(0)
        self._doubt.timeout.connect(self._show_doubt)
        self._build()
        self._map_changed()

    def _build(self) -> None:
        self.map = LayerChooser(self.viewer, lambda x: layers.prediction_of(x) is not None, label=layers.map_label)
        self.map.setToolTip("A predicted map")
        self.open_button = QPushButton("Open…")
        self.open_button.setToolTip("Open a result, a folder named *.peka.zarr")
        self.list = GenePanel()
        self.list.form.insertRow(0, "Map", with_button(self.map, self.open_button))
        self.search, self.order, self.trust = self.list.search, self.list.order, self.list.trust
        self.genes, self.table = self.list.genes, self.list.table
        self.about = Text()
        self.about.setToolTip(_WORDS)
        self.verdict = VerdictLine()
        self.here = Here(self.viewer)
        self.error = Text("color: #d9534f;")
        self.error.hide()
        self.opacity = QSlider(Qt.Orientation.Horizontal)
        self.opacity.setRange(0, 100)
        self.opacity.setToolTip("Opacity of the map, 0 to 100 %")
        self.bar = QCheckBox("colour bar")
        self.bar.setToolTip("On the canvas: colours with their values, gene and unit")
        self.doubts = TrustPanel()
        self.unreadable = QCheckBox()
        self.unreadable.setToolTip("Where the slide could not be decoded: no value there, not even a wrong one")
        self.look = LookPanel()
        self.compare = ComparePanel()
        self.exports = ExportPanel()
        self.regions = RegionPanel(self.viewer)
        self.sets = SetPanel()
        self._lay_out()
        self.map.changed.connect(self._map_changed)
        self.open_button.clicked.connect(self._browse)
        self.list.picked.connect(self._settle.start)
        self.list.reordered.connect(self._ask_numbers)
        self._settle.timeout.connect(self._show_gene)
        self.opacity.valueChanged.connect(self._set_opacity)
        self.bar.toggled.connect(self._set_bar)
        self.unreadable.toggled.connect(self._set_unreadable)
        self.doubts.changed.connect(self._set_doubts)
        self.look.changed.connect(self._set_look)
        self.compare.wished.connect(self._name_picked)
        self.compare.blend_asked.connect(self._blend)
        self.compare.beside_asked.connect(self._beside)
        self.exports.asked.connect(self._export)
        self.regions.ranked.connect(self._ranked)
        self.sets.scored.connect(self._scored)
        self.sets.known.connect(self.genes.know_sets)
        self.session.gene_changed.connect(self._gene_changed)
        self.viewer.layers.events.removed.connect(self._layer_removed)

    def _lay_out(self) -> None:
        low = QFormLayout()
        low.addRow("Opacity", self.opacity)
        low.addRow("", self.bar)
        low.addRow("", self.unreadable)
        column = scrolled(self, notice("workbench/#explore-expression"))
        column.addWidget(self.list, 1)
        column.addWidget(self.about)
        column.addWidget(self.verdict)
        column.addWidget(self.here)
        column.addWidget(self.error)
        column.addWidget(self.doubts)
        column.addLayout(low)
        self.look_fold = fold("Colours and scale", self.look)
        self.compare_fold = fold("Compare genes", self.compare)
        self.set_fold = fold("Gene sets", self.sets)
        self.region_fold = fold("Regions", self.regions)
        self.fold = fold("Export", self.exports)
        for each in (self.look_fold, self.compare_fold, self.set_fold, self.region_fold, self.fold):
            column.addWidget(each)

    # -- which map -----------------------------------------------------------------------------------------------

    def _map_changed(self) -> None:
        layer = self.map.layer()
        prediction = layers.prediction_of(layer)
        for widget in (
            self.exports,
            self.look,
            self.compare,
            self.regions,
            self.sets,
            self.order,
            self.trust,
            self.search,
            self.table,
            self.opacity,
            self.bar,
        ):
            widget.setEnabled(prediction is not None)
        bad = 0 if prediction is None else prediction.n_unreadable
        self.unreadable.setVisible(bad > 0)
        self.unreadable.setText(f"show {bad} unreadable tiles")
        with QSignalBlocker(self.unreadable):
            self.unreadable.setChecked(any(map_layers.shows_unreadable(x, prediction) for x in self.viewer.layers))
        self._doubt.start()
        if prediction is None:
            self._head = self._told = None
            self.doubts.show_doubts(Doubts(), None)
            self.regions.show_gene(None, None)
            self.sets.of(None)
            self._numbers.forget()
            self.list.show_head(None)
            self.here.follow(None)
            self.verdict.show_check(None)
            self.about.setText("Predict a map or open a result to begin.")
            return
        if self._told is not prediction:
            self._fail(None)  # what was wrong with another one
            self._told, self._head = prediction, prediction.head
            self.list.show_head(prediction.head)
            self.sets.of(prediction)
            self.compare.know(list(prediction.genes))
            self._ask_numbers()
        layer.events.contrast_limits.connect(self._colours_changed)  # a second connection is the first one
        with QSignalBlocker(self.opacity):
            self.opacity.setValue(round(doubt_layers.opacity_of(layer) * 100))
        self.doubts.show_doubts(doubt_layers.doubts_of(layer), prediction)
        self.look.show_look(map_layers.look_of(layer), prediction.unit)
        self.here.follow(layer)
        map_layers.show_colour_bar(layer)
        self.bar.setChecked(True)
        if map_layers.set_of(layer) is not None:
            self._describe_set(layer)
        else:
            if (gene := layers.gene_of(layer)) is not None:
                self.list.reveal(gene)  # it is on the map: somebody asked for it
            self._select(gene or map_layers.best_gene(prediction))

    def _ask_numbers(self) -> None:
        """Have the map's numbers taken, where some are shown; again after a while if the map still grows."""
        prediction = layers.prediction_of(self.map.layer())
        if prediction is None or not self.list.needs_numbers:
            return
        known = np.isfinite(prediction.embeddings[:, 0])
        if known.any():
            self._numbers.ask(lambda: (prediction, gene_table(prediction)))
        if not known[prediction.read_ok].all():
            self._again.start()

    def _tell(self, found: Any) -> None:
        prediction, table = found
        if prediction is layers.prediction_of(self.map.layer()):
            self.list.keep(layers.gene_of(self.map.layer()))
            self.list.tell(table)

    def _browse(self) -> None:
        chosen = QFileDialog.getExistingDirectory(self, "Open a result (*.peka.zarr)")
        if chosen:
            self.open_result(Path(chosen))

    def open_result(self, path: Path) -> None:
        """Open a stored result as a map; what is wrong with it is said in the error line."""
        from napari_peka.io.prediction import read_prediction

        self._fail(None)
        try:
            prediction = read_prediction(path)
            data, settings, _ = map_layers.heatmap_layer(prediction, map_layers.best_gene(prediction))
        except Exception as e:  # noqa: BLE001 - a person gets a sentence, never a traceback
            self._fail(e)
            return
        layer = self.viewer.add_image(data, **settings)
        layers.below_shapes(self.viewer, layer)
        self.map.choose(layer)

    # -- which gene ----------------------------------------------------------------------------------------------

    def gene(self) -> str | None:
        """Return the gene of the current row, or None."""
        return self.list.gene()

    def pick(self, gene: str) -> None:
        """Show a gene, as if its row had been picked; an unknown one is said in the error line."""
        self._fail(None)
        try:
            if self._head is not None:
                self.list.reveal(gene)
                self.search.clear()
                self._select(gene)
                self._show_gene()
        except PekaError as e:
            self._fail(e)

    def _select(self, gene: str) -> None:
        self.list.keep(layers.gene_of(self.map.layer()))
        self.list.point_at(gene)
        self._describe(self._head.index(gene))

    def _show_gene(self) -> None:
        layer, gene = self.map.layer(), self.gene()
        prediction = layers.prediction_of(layer)
        if prediction is None or gene is None:
            return
        if gene != layers.gene_of(layer):
            try:
                map_layers.update_heatmap(layer, prediction, gene)
            except Exception as e:  # noqa: BLE001 - a person gets a sentence, never a traceback
                self._fail(e)
        self.list.keep(gene)
        show_single(self.viewer, layer)
        self._describe(prediction.head.index(gene))
        self.here.read()
        self.session.gene = gene

    def _gene_changed(self, gene: str | None) -> None:
        """Show the gene that another dock picked, where this map has it."""
        known = isalive(self) and gene is not None and self._head is not None and self._head.find(gene) is not None
        if known and gene != self.gene():
            self.pick(str(gene))

    def _colours_changed(self, event: Any = None) -> None:
        if isalive(self) and self._head is not None and (gene := self.gene()) is not None:
            self._describe(self._head.index(gene))

    def _describe(self, row: int) -> None:
        head = self._head
        self.regions.show_gene(self._told, head.genes[row])
        self.verdict.show_check(of_map(self._told))
        gene_id = f" · {head.gene_ids[row]}" if head.gene_ids and head.gene_ids[row] else ""
        layer = self.map.layer()
        low, high = map_layers.colours_of(layer)
        same = not map_layers.look_of(layer).shows_linear(head.unit)
        told = legend(self._told, head.genes[row], reach=high - low if same else None, hatched=self._hatched(layer))
        mark = "⚠ " if self.genes.not_shown(row) else ""
        below = "; below 0 is none at all: the model's numbers go on where counts end" if low < 0 else ""
        self.about.setText(
            f"<b>{head.genes[row]}</b>{gene_id}<br>{layers.unit_of(layer)}, predicted; "
            f"colours from {low:.3g} to {high:.3g}{below}<br>{mark}{'<br>'.join(told)}"
        )

    def _hatched(self, layer: Any) -> bool:
        return doubt_layers.HATCHED in doubt_layers.wanted(layer)

    def _fail(self, error: BaseException | None) -> None:
        self.error.setText("" if error is None else sentence(error))
        self.error.setVisible(error is not None)

    def _ranked(self, table: Any, words: str) -> None:
        if self._head is not None and len(table) == len(self._head.genes):
            self.list.rank(table.loc[list(self._head.genes)])

    def _scored(self, prediction: Any, name: str, values: Any, genes: Any) -> None:
        layer = self.map.layer()
        shown = layers.prediction_of(layer)
        if shown is not None and shown is prediction:
            map_layers.show_score(layer, shown, name, genes, values)
            show_single(self.viewer, layer)
            self.session.gene = None  # what the others show is no gene of this map
            self._describe_set(layer)

    def _describe_set(self, layer: Any) -> None:
        """Say what the score in a map's layer is; no gene is then picked."""
        score, prediction = map_layers.set_of(layer), layers.prediction_of(layer)
        assert score is not None
        assert prediction is not None
        self.regions.show_gene(prediction, None)  # its numbers are of genes
        self.verdict.show_check(of_map(prediction))
        self.list.keep(None)
        self.list.point_at_none()
        self.about.setText(
            f"<b>{score['name']}</b><br>mean of the genes' values, each standardised over this map; "
            f"{set_trust_text(prediction, score['genes'])}<br>{ood_sentence(prediction, self._hatched(layer))}"
        )
        self.here.read()

    def _export(self) -> None:
        prediction = layers.prediction_of(self.map.layer())
        score = map_layers.set_of(self.map.layer())
        slide = None if prediction is None else layers.slide_under(self.viewer, prediction)
        regions = self.regions.regions()
        if not regions and slide is not None and (drawn := self.session.regions_of(slide)) is not None:
            regions = region_layers.regions_of(drawn, slide.mpp)
        shown = None if prediction is None else map_layers.figure_look(self.map.layer())
        named = None if score is None else (str(score["name"]), list(score["genes"]))
        self.exports.choose(prediction, slide, self.gene(), self.genes.listed(), regions, shown, named)

    # -- how it looks --------------------------------------------------------------------------------------------

    def _set_opacity(self, percent: int) -> None:
        if (layer := self.map.layer()) is not None:
            doubt_layers.set_opacity(layer, percent / 100)

    def _set_doubts(self, doubts: Doubts) -> None:
        if (layer := self.map.layer()) is not None:
            doubt_view.show_doubts(self.viewer, layer, doubts)
            self._doubts_changed(layer)

    def _show_doubt(self) -> None:
        """Show the doubt of the map that is looked at, and take away that of maps that are gone."""
        for old in doubt_view.left_alone(self.viewer):
            self.viewer.layers.remove(old)
        if (layer := self.map.layer()) is not None:
            doubt_view.show_doubts(self.viewer, layer)

    def _doubts_changed(self, layer: Any) -> None:
        """Say again what is to be seen."""
        self.doubts.show_doubts(doubt_layers.doubts_of(layer), layers.prediction_of(layer))
        if map_layers.set_of(layer) is not None:
            self._describe_set(layer)
        else:
            self._colours_changed()

    def _set_look(self, look: Look) -> None:
        if (layer := self.map.layer()) is not None:
            map_layers.set_look(layer, look)
            remember("maps", "colormap", look.colormap)
            remember("maps", "fade", look.fade)
            self._colours_changed()
            self.here.read()

    def _name_picked(self, number: int) -> None:
        if (gene := self.gene()) is not None:
            self.compare.put(number, gene)

    def _blend(self, genes: list[str], palette: str) -> None:
        try:
            said = show_blend(self.viewer, self.map.layer(), genes, palette)
        except PekaError as e:
            said = sentence(e)
        self.compare.said.setText(said)

    def _beside(self, genes: list[str]) -> None:
        try:
            said = show_beside(self.viewer, self.map.layer(), genes)
        except PekaError as e:
            said = sentence(e)
        self.compare.beside_button.setChecked(self.viewer.grid.enabled)
        self.compare.said.setText(said)

    def _layer_removed(self, event: Any) -> None:
        """Show the map again where the blend that hid it, or its doubt, was taken away."""
        layer = self.map.layer() if isalive(self) else None
        prediction = layers.prediction_of(layer)
        if layer is not None and doubt_view.taken_away(layer, event.value):
            self._doubts_changed(layer)
        if layer is not None and prediction is not None and map_layers.is_blend_of(event.value, prediction):
            layer.visible = True

    def _set_bar(self, on: bool) -> None:
        if (layer := self.map.layer()) is not None:
            for shown in (layer, doubt_layers.own_layers(layer).get(doubt_layers.NUMBER, layer)):
                shown.colorbar.visible = shown.name_overlay.visible = on

    def _set_unreadable(self, on: bool) -> None:
        prediction = layers.prediction_of(self.map.layer())
        for old in [x for x in self.viewer.layers if map_layers.shows_unreadable(x, prediction)]:
            self.viewer.layers.remove(old)
        if on and prediction is not None:
            data, settings, _ = map_layers.unreadable_layer(prediction)
            self.viewer.add_image(data, **settings)
