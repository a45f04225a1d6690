"""Correcting by hand where a section's spots lie: move, turn, scale, flip, or point pairs; the score follows."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
from qtpy.QtCore import QTimer, Signal
from qtpy.QtWidgets import QComboBox, QDoubleSpinBox, QFormLayout, QHBoxLayout, QPushButton, QVBoxLayout, QWidget

from napari_peka.core.errors import PekaError
from napari_peka.gui import section_layers
from napari_peka.gui.aside import Aside
from napari_peka.gui.choosers import LayerChooser, Snug, slim
from napari_peka.gui.run_panel import sentence
from napari_peka.gui.section_files import corrected
from napari_peka.gui.session import OpenSection, Session
from napari_peka.io.nudge import IDENTITY, MAX_MOVE_UM, MAX_SCALE, ORIENTATIONS, Nudge, apply, compose
from napari_peka.io.registration import Registration, TissueFit, fit_affine

#: ms after the last change of a number until the score is asked for
PAUSE_MS = 120


class NudgePanel(QWidget):
    """Moves the spots of one section; training uses them as they are after *Apply*.

    Attributes
    ----------
    moved
        Emitted with (section, (x, y) in level-0 px) whenever the spots are to be drawn elsewhere.
    applied
        Emitted with the section as it was read again.
    """

    moved = Signal(object, object)
    applied = Signal(object)

    def __init__(self, viewer: Any, session: Session) -> None:
        super().__init__()
        self.viewer, self.session = viewer, session
        self._item: OpenSection | None = None
        self._pairs = IDENTITY
        self._fits: dict[str, TissueFit] = {}
        self._scoring, self._reading = Aside(self), Aside(self)
        self._later = QTimer(self)
        self._later.setSingleShot(True)
        self._later.setInterval(PAUSE_MS)
        self._build()
        self.choose(None)

    def _build(self) -> None:
        self.down = _number(-MAX_MOVE_UM, MAX_MOVE_UM, 10.0, " µm", "Move all spots down, in µm; less than 0: up")
        self.right = _number(-MAX_MOVE_UM, MAX_MOVE_UM, 10.0, " µm", "Move all spots right, in µm; less than 0: left")
        self.degrees = _number(-180.0, 180.0, 1.0, "°", "Turn the spots clockwise about their centre, in degrees")
        self.scale = _number(1 / MAX_SCALE, MAX_SCALE, 0.01, "", "Spread the spots from their centre by this factor", 3)
        self.scale.setValue(1.0)
        self.orientation = slim(QComboBox())
        self.orientation.addItems(ORIENTATIONS)
        self.orientation.setToolTip("Flips and swaps of the image's frame, for an image that was saved turned over")
        self.picked = LayerChooser(self.viewer, _is_points, none="no layer")
        self.picked.setToolTip("A Points layer with three or more places as the spots show them now")
        self.targets = LayerChooser(self.viewer, _is_points, none="no layer")
        self.targets.setToolTip("A Points layer with the same places, in the same order, where they are in the image")
        self.pairs_button = QPushButton("Use point pairs")
        self.pairs_button.setToolTip("Move the spots so that the first layer's points come to lie on the second one's")
        self.best_button = QPushButton("")
        self.best_button.setToolTip("The orientation in which clearly more spots lie on tissue")
        self.score = Snug()
        self.score.setToolTip(
            "Share of spots on tissue, and how well their counts follow the tissue's density (Spearman's r): "
            "higher is better"
        )
        self.apply_button = QPushButton("Apply")
        self.apply_button.setToolTip("Read the section again with its spots here; training uses them so")
        self.reset_button = QPushButton("Reset")
        self.reset_button.setToolTip("Back to where the section's files put the spots")
        self.error = Snug("color: #d9534f;")
        self.error.hide()
        form = QFormLayout()
        rows = {"Down": self.down, "Right": self.right, "Turn": self.degrees, "Scale": self.scale,
                "Frame": self.orientation, "Spots at": self.picked, "belong at": self.targets}  # fmt: skip
        for name, widget in rows.items():
            form.addRow(name, widget)
        line = QHBoxLayout()
        line.addWidget(self.apply_button)
        line.addWidget(self.reset_button)
        column = QVBoxLayout(self)
        column.setContentsMargins(0, 0, 0, 0)
        column.addLayout(form)
        column.addWidget(self.pairs_button)
        column.addWidget(self.score)
        column.addWidget(self.best_button)
        column.addLayout(line)
        column.addWidget(self.error)
        for spin in self._spins:
            spin.valueChanged.connect(self._changed)
        self.orientation.currentIndexChanged.connect(self._changed)
        self.pairs_button.clicked.connect(self._use_pairs)
        self.best_button.clicked.connect(self._take_best)
        self.apply_button.clicked.connect(self.apply)
        self.reset_button.clicked.connect(self.reset)
        self._later.timeout.connect(self._ask)
        self._scoring.done.connect(self._scored)
        self._scoring.failed.connect(self._fail)
        self._reading.done.connect(self._read)
        self._reading.failed.connect(self._fail)

    @property
    def _spins(self) -> tuple[QDoubleSpinBox, ...]:
        return self.down, self.right, self.degrees, self.scale

    @property
    def busy(self) -> bool:
        """Whether a score is computed or a section is read."""
        return self._scoring.busy or self._reading.busy or self._later.isActive()

    def choose(self, item: OpenSection | None) -> None:
        """Work on another section."""
        if item is self._item and item is not None:
            return
        if self._item is not None and not self._unchanged:
            self.moved.emit(self._item, _xy(self._item))
        self._item = item
        self.setEnabled(item is not None)
        self._clear()
        self._fail(None)
        self.best_button.hide()
        registration = item.section.registration if item is not None else None
        if registration is not None:
            self._tell(registration)
        else:
            self.score.setText("Select a section in the table.")

    def affine(self) -> Any:
        """Return where the form puts the spots: an affine ``(2, 3)`` on their (x, y) in level-0 px."""
        assert self._item is not None
        s = self._item.section
        nudge = Nudge((self.down.value(), self.right.value()), self.degrees.value(), self.scale.value(),
                      self.orientation.currentText())  # fmt: skip
        moved = apply(self._pairs, _xy(self._item))
        return compose(nudge.affine(moved, s.slide.shape, s.slide.mpp), self._pairs)

    def apply(self) -> None:
        """Read the section again with its spots where they are drawn."""
        if self._item is not None and not self._unchanged:
            self._fail(None)
            self.score.setText("reading the section again")
            self._reading.ask(partial(corrected, self._item, self.affine()))

    def reset(self) -> None:
        """Put the spots back where the files put them."""
        if self._item is None:
            return
        self._fail(None)
        applied = self._item.given is not None
        self._clear()
        self._changed()
        if applied:
            self._reading.ask(partial(corrected, self._item, None))

    @property
    def _unchanged(self) -> bool:
        still = all(s.value() == (1.0 if s is self.scale else 0.0) for s in self._spins)
        return still and self.orientation.currentIndex() == 0 and bool((self._pairs == IDENTITY).all())

    def _clear(self) -> None:
        for widget in (*self._spins, self.orientation):
            widget.blockSignals(True)
        for spin in self._spins:
            spin.setValue(1.0 if spin is self.scale else 0.0)
        self.orientation.setCurrentIndex(0)
        for widget in (*self._spins, self.orientation):
            widget.blockSignals(False)
        self._pairs = IDENTITY
        self.apply_button.setEnabled(False)

    def _changed(self) -> None:
        if self._item is None:
            return
        self.apply_button.setEnabled(not self._unchanged)
        self.moved.emit(self._item, apply(self.affine(), _xy(self._item)))
        self._later.start()

    def _use_pairs(self) -> None:
        here, there = self.picked.layer(), self.targets.layer()
        if self._item is None or here is None or there is None or here is there:
            self._fail("choose two Points layers: where spots show a place, and where the image has it")
            return
        mpp = self._item.section.slide.mpp
        try:
            fit = fit_affine(section_layers.points_xy(here, mpp), section_layers.points_xy(there, mpp))
        except PekaError as e:
            self._fail(e)
            return
        self._fail(None if fit.exact else fit.said(float(np.mean(mpp))))
        before = self.affine()
        self._clear()
        self._pairs = compose(fit.affine, before)
        self._changed()

    def _ask(self) -> None:
        if self._item is not None:
            self._scoring.ask(partial(_score, self._item, apply(self.affine(), _xy(self._item)), self._fits))

    def _scored(self, found: tuple[OpenSection, Registration]) -> None:
        if found[0] is self._item:
            self._tell(found[1])

    def _tell(self, registration: Registration) -> None:
        given, best = registration.given, registration.best
        r = "" if np.isnan(given.correlation) else f", counts follow its density with r = {given.correlation:.2f}"
        self.score.setText(f"{given.on_tissue:.0%} of the spots on tissue{r}")
        better = best is not given
        self.best_button.setVisible(better)
        if better:
            self.best_button.setText(f"Better: {best.name} ({best.on_tissue:.0%})")
            self.best_button.setProperty("orientation", best.name)

    def _take_best(self) -> None:
        from napari_peka.io.nudge import frame_affine

        if self._item is not None:
            name, shape = self.best_button.property("orientation"), self._item.section.slide.shape
            before = self.affine()  # the suggestion is one of what is drawn now
            self._clear()
            self._pairs = compose(frame_affine(name, shape), before)
            self._changed()

    def _read(self, item: OpenSection) -> None:
        self._item = None
        self.session.add_sections([item])
        self.choose(item)
        self.applied.emit(item)

    def _fail(self, error: BaseException | str | None) -> None:
        self.error.setVisible(error is not None)
        self.error.setText("" if error is None else error if isinstance(error, str) else sentence(error))


def _number(low: float, high: float, step: float, unit: str, tip: str, decimals: int = 1) -> QDoubleSpinBox:
    spin = QDoubleSpinBox()
    spin.setRange(low, high)
    spin.setDecimals(decimals)
    spin.setSingleStep(step)
    spin.setSuffix(unit)
    spin.setToolTip(tip)
    return spin


def _xy(item: OpenSection) -> Any:
    return np.asarray(item.section.adata.obsm["spatial"], np.float64)


def _is_points(layer: Any) -> bool:
    return hasattr(layer, "face_contrast_limits") and section_layers.spots_of(layer) is None


def _score(item: OpenSection, xy: Any, fits: dict[str, TissueFit]) -> tuple[OpenSection, Registration]:
    section = item.section
    key = section.slide.fingerprint
    if key not in fits:
        fits.clear()
        fits[key] = TissueFit(section.slide)
    totals = np.asarray(section.counts.sum(1), np.float64).ravel()
    spot_px = section.spot_diameter_um / float(np.mean(section.slide.mpp))
    return item, fits[key].check(xy[:, ::-1].copy(), totals, spot_px)
