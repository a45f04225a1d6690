"""The dock *Train on paired sections*: sections in, a model out, and one sees it learn."""

from __future__ import annotations

from collections import deque
from functools import partial
from pathlib import Path
from typing import Any

from qtpy.compat import isalive
from qtpy.QtWidgets import QFrame, QHBoxLayout, QLabel, QPushButton

from napari_peka.config import RefitConfig, TrainConfig
from napari_peka.core.child import RemoteProgress, run_in_child
from napari_peka.core.errors import SettingError
from napari_peka.core.progress import JobProgress, human_time
from napari_peka.gui import section_layers
from napari_peka.gui.aside import Aside
from napari_peka.gui.choosers import Snug, fold, notice, scrolled
from napari_peka.gui.dock import Dock
from napari_peka.gui.learning_view import LearningView, spots_layer_of
from napari_peka.gui.nudge_panel import NudgePanel
from napari_peka.gui.outcome_panel import OutcomePanel, outcome_words
from napari_peka.gui.refit_panel import RefitPanel, free_name
from napari_peka.gui.run_panel import RunPanel, sentence
from napari_peka.gui.section_files import asked
from napari_peka.gui.section_panel import SectionPanel
from napari_peka.gui.section_slides import SectionSlides
from napari_peka.gui.session import OpenSection, session_of
from napari_peka.gui.train_form import TrainForm
from napari_peka.workflows.lesson import Lesson, Speed, extent_of, give_lesson, measure_speed, seconds_needed

#: s that a stopped training gets to end by itself; its last whole epoch is on the disk anyway
PATIENCE_S = 4.0
#: what decides how fast a step is
_DECIDES_SPEED = ("encoder", "adapter", "rank", "last_blocks", "batch_size", "device", "precision", "patch_dropout")


class TrainWidget(Dock):
    """Train a model on paired sections.

    Parameters
    ----------
    napari_viewer
        The viewer; napari passes it.
    """

    def __init__(self, napari_viewer: Any) -> None:
        super().__init__()
        self.viewer = napari_viewer
        self.session = session_of(napari_viewer)
        self._events: deque[Any] = deque()
        self._remote: dict[str, RemoteProgress] = {}
        self._speeds: dict[str, Speed] = {}
        self._checking = Aside(self)
        self.slides = SectionSlides(napari_viewer, self)
        self._build()
        self._sections_changed()

    def _build(self) -> None:
        self.sections = SectionPanel(self.session)
        self.nudge = NudgePanel(self.viewer, self.session)
        self.nudge_fold = fold("Move spots on the image", self.nudge)
        self.form = TrainForm(self.session)
        self.time = Snug()
        self.time_button = QPushButton("Measure")
        self.time_button.setToolTip("Time a few steps on this machine, to say how long the training will take")
        self.timing = RunPanel("Measure")
        self.timing.hide()
        self.panel = RunPanel("Train", self.viewer)
        self.pause_button = QPushButton("Pause")
        self.pause_button.setCheckable(True)
        self.pause_button.setToolTip("Let the training wait; it keeps its memory, and takes no time of the processor")
        self.end_button = QPushButton("Stop, keep best")
        self.end_button.setToolTip(
            "End after this epoch with the best one so far; trainings that follow take as many epochs"
        )
        self.resume_button = QPushButton("Resume")
        self.resume_button.setToolTip("Go on with the unfinished training of this name")
        self.again_button = QPushButton("Begin anew")
        self.again_button.setToolTip("Throw away the unfinished training, or the model, of this name")
        self.view = LearningView(self.viewer, self.session)
        self.view.slide_wanted.connect(self.slides.show)
        self.slides.failed.connect(self.panel.fail)
        self.outcome = OutcomePanel(self.session)
        self.refit = RefitPanel(self.viewer, self.session)
        self._lay_out()
        self.panel.asked.connect(self.run)
        self.panel.ticked.connect(self._tick)
        self.panel.succeeded.connect(self._succeeded)
        self.panel.stopped.connect(self._stopped)
        self.panel.failed.connect(self._ended)
        self.pause_button.toggled.connect(self._pause)
        self.end_button.clicked.connect(self.end)
        self.resume_button.clicked.connect(self._go_on)
        self.again_button.clicked.connect(self._begin_anew)
        self.time_button.clicked.connect(self.measure)
        self.timing.succeeded.connect(self._measured)
        self.timing.failed.connect(self.time.setText)
        self.form.changed.connect(self._tell_time)
        self.form.name.textChanged.connect(self._offer)
        self.form.folder.edit.textChanged.connect(self._offer)
        self.sections.chosen.connect(self._chosen)
        self.sections.shown.connect(self.show_section)
        self.nudge.moved.connect(self._move)
        self.nudge.applied.connect(self._applied)
        self.refit.asked.connect(self.run_refit)
        self.refit.finished.connect(self.outcome.show_result)
        self._checking.done.connect(self._start)
        self._checking.failed.connect(self._refused)
        self.session.sections_changed.connect(self._sections_changed)
        self.session.model_changed.connect(self._model_changed)
        self._ended()

    def _lay_out(self) -> None:
        column = scrolled(self, notice("workbench/#train-on-paired-sections"))
        column.addWidget(_title("Sections"))
        column.addWidget(self.sections)
        column.addWidget(self.nudge_fold)
        column.addWidget(_line())
        column.addWidget(_title("Training"))
        column.addWidget(self.form)
        row = QHBoxLayout()
        row.addWidget(self.time, 1)
        row.addWidget(self.time_button)
        column.addLayout(row)
        column.addWidget(self.timing)
        column.addWidget(self.panel)
        for pair in ((self.pause_button, self.end_button), (self.resume_button, self.again_button)):
            row = QHBoxLayout()
            for button in pair:
                row.addWidget(button)
            column.addLayout(row)
        column.addWidget(self.view)
        column.addWidget(self.outcome)
        column.addWidget(_line())
        column.addWidget(_title("Quick refit"))
        column.addWidget(self.refit)
        column.addStretch(1)
        self.view.hide()

    # -- sections ------------------------------------------------------------------------------------------------

    def _sections_changed(self) -> None:
        if isalive(self):
            self.panel.error.hide()  # it may have been of what is there now
            self.form.refresh()
            self.refit.refresh()
            self._chosen()

    def _model_changed(self, *_: Any) -> None:
        if isalive(self):
            self.refit.refresh()

    def _chosen(self) -> None:
        self.nudge.choose(self.sections.section())

    def show_section(self, item: OpenSection) -> None:
        """Show a section's image, and its spots over it."""
        self._show_spots(item)
        self.slides.show(item)

    def _show_spots(self, item: OpenSection) -> None:
        if (old := spots_layer_of(self.viewer, item.section.section_id)) is not None:
            self.viewer.layers.remove(old)
        data, settings, _ = section_layers.spots_layer(item.section)
        self.viewer.add_points(data, **settings)

    def _move(self, item: OpenSection, xy: Any) -> None:
        if (layer := spots_layer_of(self.viewer, item.section.section_id)) is not None:
            section_layers.move_spots(layer, xy, item.section.slide.mpp)

    def _applied(self, item: OpenSection) -> None:
        if spots_layer_of(self.viewer, item.section.section_id) is not None:
            self._show_spots(item)

    # -- how long ------------------------------------------------------------------------------------------------

    def measure(self) -> None:
        """Time a few steps in a process of its own, with the settings of the form."""
        try:
            config = self.form.config()
        except SettingError as e:
            self.panel.fail(e)
            return
        self.time.setText("timing a few steps…")
        self.time_button.setEnabled(False)
        self.timing.start(partial(_measure, config))

    def _measured(self, found: tuple[str, Speed]) -> None:
        self._speeds[found[0]] = found[1]
        self._tell_time()

    def _tell_time(self) -> None:
        self.time_button.setEnabled(not self.timing.running)
        sections = [x.section for x in self.session.sections()]
        if not sections:
            self.time.setText("How long it takes is said once sections are open.")
            return
        try:
            config = self.form.config()
        except SettingError as e:
            self.time.setText(sentence(e))
            return
        listed = [(s.section_id, s.patient_id, s.adata.n_obs, s.split) for s in sections]
        extent = extent_of(config.hold_out, listed)
        n = len(extent.trainings)
        told = f"{n} training{'s' * (n > 1)}, {extent.spots:,} spots"
        if (speed := self._speeds.get(_speed_key(config))) is None:
            self.time.setText(f"{told}; not measured here yet")
            return
        low, high = seconds_needed(speed, extent, config)
        self.time.setText(f"{told}: about {human_time(low)} to {human_time(high)} here, by a few timed steps")

    # -- the job -------------------------------------------------------------------------------------------------

    def run(self, resume: bool = False, overwrite: bool = False) -> None:
        """Train with the settings of the form, or say what is missing or does not go together."""
        if self.panel.running or self._checking.busy:
            return
        items = self.session.sections()
        if not items:
            self.panel.fail("there is no section; add one first")
            return
        try:
            config, output = self.form.config(), self.form.output()
        except SettingError as e:
            self.panel.fail(e)
            return
        genes = (self.session.gene,) if self.session.gene else ()
        lesson = Lesson(tuple(map(asked, items)), config, output, resume, overwrite, genes)
        self.panel.run_button.setEnabled(False)
        self.panel.status.setText("looking at the settings")
        self._checking.ask(partial(_check, lesson))

    def _go_on(self) -> None:
        self.run(resume=True)

    def _begin_anew(self) -> None:
        self.run(overwrite=True)

    def _start(self, lesson: Lesson) -> None:
        self._events.clear()
        self._remote.clear()
        self.outcome.hide()
        self.time.setText("")  # how long it still takes is said below
        self.panel.start(partial(_train, lesson, self._events, self._remote))
        self.pause_button.setEnabled(True)
        self.end_button.setEnabled(True)
        self.resume_button.hide()
        self.again_button.hide()

    def _refused(self, error: BaseException) -> None:
        self.panel.run_button.setEnabled(True)
        self.panel.status.setText("")
        self.panel.fail(error)

    def _pause(self, on: bool) -> None:
        self.pause_button.setText("Go on" if on else "Pause")
        if (remote := self._remote.get("job")) is not None:
            (remote.paused.set if on else remote.paused.clear)()

    def end(self) -> None:
        """End the training in work after its epoch, and keep its best."""
        if (remote := self._remote.get("job")) is not None:
            self.pause_button.setChecked(False)
            remote.end_asked.set()
            self.end_button.setEnabled(False)

    def _tick(self) -> None:
        while self._events:
            event = self._events.popleft()
            if self.view.isHidden():
                self.view.show()
            self.view.hear(event)
        if not self.panel.running:
            return
        remote = self._remote.get("job")
        if self.pause_button.isChecked():
            self.panel.status.setText("paused")
            if remote is not None and not remote.paused.is_set():  # pressed before the process was there
                remote.paused.set()
        elif remote is not None:
            ending = remote.end_asked.is_set()
            self.end_button.setEnabled(not ending)
            if ending:
                self.panel.status.setText("ending after this epoch, the best one is kept")

    def _succeeded(self, result: tuple[Path, str]) -> None:
        self._ended()
        self.panel.status.setText(f"done: {result[0]}")
        self.outcome.show_result(result)

    def _stopped(self) -> None:
        self._ended()
        kept = "; what was learnt is kept, Resume goes on from there" if self.resume_button.isVisibleTo(self) else ""
        self.panel.status.setText(f"cancelled{kept}")

    def _ended(self, *_: Any) -> None:
        self._remote.clear()
        self.pause_button.setChecked(False)
        self.pause_button.setEnabled(False)
        self.end_button.setEnabled(False)
        self._offer()

    def _offer(self, *_: Any) -> None:
        """Offer to go on with what is unfinished, or to replace what is there."""
        try:
            output = self.form.output()
        except SettingError:
            begun = there = False
        else:
            begun = output.with_name(f"{output.name}.partial").is_dir()
            there = (output / "peka.json").exists()
        idle = not self.panel.running
        self.resume_button.setVisible(idle and begun)
        self.again_button.setVisible(idle and (begun or there))

    # -- refit ---------------------------------------------------------------------------------------------------

    def run_refit(self) -> None:
        """Refit the chosen model on the sections that are open."""
        try:
            config = self.form.config()
            settings = {k: getattr(config, k) for k in ("hold_out", "min_detected", "n_top_genes", "min_on_tissue",
                                                        "seed", "device", "precision")}  # fmt: skip
            folder = self.form.output().parent
            refit_config = RefitConfig(**settings)
        except SettingError as e:
            self.refit.panel.fail(e)
            return
        name = Path(self.session.model).name.removesuffix(".zip")
        self.refit.refit(free_name(folder, f"{name}-refit"), refit_config, False)

    def closeEvent(self, event: Any) -> None:
        """Stop what runs when the dock is closed."""
        for panel in (self.panel, self.timing, self.refit.panel):
            panel.leave()
        super().closeEvent(event)


def _speed_key(config: TrainConfig) -> str:
    return repr([getattr(config, name) for name in _DECIDES_SPEED])


def _check(lesson: Lesson) -> Lesson:
    from napari_peka.workflows.train import check

    check(lesson.config)
    return lesson


def _measure(config: TrainConfig, progress: JobProgress) -> tuple[str, Speed]:
    return _speed_key(config), run_in_child(measure_speed, config, progress=progress, patience_s=0.0)


def _train(
    lesson: Lesson, events: deque[Any], remote: dict[str, RemoteProgress], progress: JobProgress
) -> tuple[Path, str]:
    """Train in a process of its own: the window stays smooth, and memory comes back."""
    progress.stage("starting a process for the training")
    made = run_in_child(
        give_lesson, lesson, progress=progress, on_event=events.append, on_start=partial(_keep, remote),
        patience_s=PATIENCE_S,
    )  # fmt: skip
    return Path(made), outcome_words(Path(made))


def _keep(remote: dict[str, RemoteProgress], there: RemoteProgress) -> None:
    remote["job"] = there


def _title(text: str) -> QLabel:
    return QLabel(f"<b>{text}</b>")


def _line() -> QFrame:
    line = QFrame()
    line.setFrameShape(QFrame.Shape.HLine)
    return line
