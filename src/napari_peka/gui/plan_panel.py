"""Before one presses *Predict*: how many tiles, what is there already, how long it takes, whether to believe it."""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import TYPE_CHECKING

from qtpy.QtCore import QTimer, Signal
from qtpy.QtWidgets import QHBoxLayout, QPushButton, QVBoxLayout, QWidget

from napari_peka.core.progress import human_time, rate_in_words
from napari_peka.gui import predict_job
from napari_peka.gui.aside import Aside
from napari_peka.gui.choosers import Snug
from napari_peka.gui.predict_job import Memory, Plan, Wish
from napari_peka.gui.run_panel import RunPanel, sentence
from napari_peka.gui.verdict_line import VerdictLine
from napari_peka.io.store import DIFFERS

if TYPE_CHECKING:
    from napari_peka.io.prediction import Prediction
    from napari_peka.workflows.estimate import Estimate

#: ms without a change after which the tiles are laid out
CALM_MS = 400
#: tiles of a run below which loading and planning are most of its time
ENOUGH_TILES = 32


class PlanPanel(QWidget):
    """Says what pressing *Predict* means, and times a few tiles when asked.

    Parameters
    ----------
    memory
        What the dock keeps between two wishes.

    Attributes
    ----------
    wanted
        Emitted when the form has been left alone for a moment; answer with :meth:`ask` or :meth:`clear`.
    measure_wanted, show_wanted
        Emitted when a person presses a button; answer with :meth:`measure`, :meth:`show_result`, or :meth:`say`.
    found
        Emitted with what was found out, a :class:`Plan`.
    measured
        Emitted with the :class:`napari_peka.Estimate`.
    opened
        Emitted with the result that is there, a :class:`napari_peka.Prediction`.
    """

    wanted = Signal()
    measure_wanted = Signal()
    show_wanted = Signal()
    found = Signal(object)
    measured = Signal(object)
    opened = Signal(object)

    def __init__(self, memory: Memory) -> None:
        super().__init__()
        self._memory = memory
        self._wish: Wish | None = None
        self._plan: Plan | None = None
        self._timed: tuple[tuple[str, str, str], Estimate] | None = None
        self._rate: tuple[tuple[str, str, str], float] | None = None  # of the last run; it counts more than an estimate
        self._planning, self._reading, self._checking = Aside(self), Aside(self), Aside(self)
        self._calm = QTimer(self)
        self._calm.setSingleShot(True)
        self._calm.setInterval(CALM_MS)
        self.words, self.time, self.verdict = Snug(), Snug(), VerdictLine()
        self.time_button = QPushButton("How long?")
        self.time_button.setToolTip("Read and compute a few tiles, to say how long all of them take on this machine")
        self.show_button = QPushButton("Show result")
        self.show_button.setToolTip("Open what is there of this map; nothing is computed")
        self.timing = RunPanel("How long?")
        self.timing.hide()
        row = QHBoxLayout()
        row.addWidget(self.time_button)
        row.addWidget(self.show_button)
        column = QVBoxLayout(self)
        column.setContentsMargins(0, 0, 0, 0)
        for widget in (self.words, self.verdict, self.time):
            column.addWidget(widget)
        column.addLayout(row)
        column.addWidget(self.timing)
        self._calm.timeout.connect(self.wanted)
        self._planning.done.connect(self._planned)
        self._planning.failed.connect(self._not_planned)
        self._checking.done.connect(self.verdict.show_check)
        self._checking.failed.connect(self._not_checked)
        self._reading.done.connect(self.opened)
        self._reading.failed.connect(self._not_read)
        self.time_button.clicked.connect(self._pressed)
        self.show_button.clicked.connect(self.show_wanted)
        self.timing.ticked.connect(self._tick)
        self.timing.succeeded.connect(self._measured)
        self.timing.failed.connect(self.say)
        self.timing.stopped.connect(self._told)
        self.clear("")

    @property
    def busy(self) -> bool:
        """Whether something is being found out, or about to be."""
        asides = self._planning, self._reading, self._checking
        return self._calm.isActive() or any(a.busy for a in asides) or self.timing.running

    @property
    def plan(self) -> Plan | None:
        """What was found out of the form as it is; None while it is not known."""
        return self._plan

    def later(self, *_: object) -> None:
        """Find out anew once the form has been left alone for a moment."""
        self._plan = None
        self.show_button.setEnabled(False)
        self._calm.start()

    def ask(self, wish: Wish) -> None:
        """Find out what a wish means."""
        self._calm.stop()
        self._wish, self._plan = wish, None
        self.time_button.setEnabled(True)
        if not self.words.text():
            self.words.setText("counting tiles…")
        self._planning.ask(partial(predict_job.plan, wish, self._memory))

    def clear(self, why: str) -> None:
        """Show that nothing can be said, and why."""
        self._planning.forget()
        self._checking.forget()
        self.verdict.show_check(None)
        self._wish = self._plan = None
        self.words.setText(why)
        self.time.setText("")
        self.time_button.setEnabled(False)
        self.show_button.setEnabled(False)

    def measure(self, wish: Wish) -> None:
        """Time a few tiles."""
        self._wish = wish
        self.time_button.setText("Stop")
        self.timing.start(partial(predict_job.measure, wish, self._memory))

    def learn(self, speed_key: tuple[str, str, str], tiles: int, seconds: float) -> None:
        """Take a finished run for the measure of those that follow, unless it was too short to tell."""
        if tiles >= ENOUGH_TILES and seconds > 0:
            self._rate = speed_key, tiles / seconds

    def show_result(self, wish: Wish) -> None:
        """Read what is there."""
        self._reading.ask(partial(predict_job.read, wish, self._memory))

    def say(self, text: str) -> None:
        """Say in place of the time why it cannot be said."""
        self._idle()
        self.time.setText(text)

    def leave(self) -> None:
        """Stop timing and wait for it: for a window that closes."""
        self.timing.leave()

    def _pressed(self) -> None:
        if self.timing.running:
            self.timing.cancel()
        else:
            self.measure_wanted.emit()

    def _tick(self) -> None:
        if self.timing.running:
            self.time.setText(f"{self.timing.status.text()}…")

    def _planned(self, plan: Plan) -> None:
        self._plan = plan
        passes = f", {plan.passes} passes each" if plan.passes > 1 else ""
        there = standing_in_words(plan)
        apart = f", {plan.stride_um:.0f} µm apart" if plan.stride_um < 0.99 * plan.tile_um else ""
        size = f"{plan.tiles:,} tile{'s' * (plan.tiles != 1)} of {plan.tile_um:.0f} µm{apart}{passes}"
        self.words.setText("<br>".join([size, there] if there else [size]))
        is_there = plan.there.state in ("finished", "other head")
        self.show_button.setEnabled(is_there or (plan.there.state == "begun" and plan.there.done > 0))
        self._told()
        if self._wish is not None:
            self._checking.ask(partial(predict_job.check, self._wish, self._memory))
        self.found.emit(plan)

    def _not_planned(self, error: BaseException) -> None:
        self.clear(sentence(error))

    def _not_checked(self, _error: BaseException) -> None:
        self.verdict.show_check(None)  # what cannot be read is told where it is to be predicted

    def _not_read(self, error: BaseException) -> None:
        self.words.setText(sentence(error))

    def _measured(self, estimate: Estimate) -> None:
        if self._wish is not None:
            self._timed, self._rate = (self._wish.speed_key, estimate), None
        self._told()
        self.measured.emit(estimate)

    def _idle(self) -> None:
        self.time_button.setText("How long?")

    def _told(self) -> None:
        """Say how long the wish takes, from what was timed of such tiles."""
        self._idle()
        timed, wish = self._timed, self._wish
        if (rate := self._known_rate()) and self._plan is not None:
            left = self._plan.there.left
            long = f"about {human_time(left / rate)}, at the {rate_in_words(rate)} tiles/s of the last run"
            self.time.setText(long if left else "")
            return
        if timed is None or wish is None or timed[0] != wish.speed_key:
            self.time.setText("")
            return
        self.time.setText((timed[1] if self._plan is None else of_plan(timed[1], self._plan)).text)

    def _known_rate(self) -> float:
        known = self._rate is not None and self._wish is not None and self._rate[0] == self._wish.speed_key
        return self._rate[1] if known and self._rate is not None else 0.0

    def whole_slide(self) -> str:
        """Return how long a whole slide takes, as far as it was timed; else empty."""
        if (rate := self._known_rate()) and self._plan is not None:
            return human_time(self._plan.whole / rate)
        if self._timed is None or self._plan is None or self._wish is None or self._timed[0] != self._wish.speed_key:
            return ""
        estimate = self._timed[1]
        return human_time(estimate.seconds / max(1, estimate.tiles_left) * self._plan.whole)


def of_plan(estimate: Estimate, plan: Plan) -> Estimate:
    """Return what was timed of some tiles for those that are left of a plan."""
    left = plan.there.left
    seconds = estimate.seconds / max(1, estimate.tiles_left) * left
    return dataclasses.replace(estimate, tiles=plan.tiles, tiles_left=left, seconds=seconds)


def standing_in_words(plan: Plan) -> str:
    """Return what is there already and what *Predict* makes of it; empty where nothing is there."""
    there = plan.there
    if there.state == "finished":
        return "finished already: shown at once"
    if there.state == "new" and there.done:
        return f"{there.done:,} of {there.tiles:,} tiles were seen by this model before: taken from the cache"
    if there.state == "begun":
        return f"{there.done:,} of {there.tiles:,} tiles are done: goes on from there"
    if there.state == "other head":
        return (
            "a map by the same encoder with other genes is there: no tile is computed anew. “Show result” reads it by "
            "this model; to store it so, tick “replace”"
        )
    if there.state == "other":
        differs = ("model",) if "model" in there.differs else there.differs
        what = ", ".join(DIFFERS.get(d, d) for d in differs) or "other settings"
        return f"a result of something else is there ({what}): tick “replace” or choose another folder"
    return there.why if there.state == "foreign" else ""


def result_in_words(prediction: Prediction) -> str:
    """Return what of a map was opened."""
    return f"shown: {prediction.record['partial'] if prediction.partial else f'{len(prediction.tiles):,} tiles'}"
