"""What to train: encoder, adapter, teacher, what is left out, how long, where to; everything else in a fold."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from qtpy.QtCore import Qt, Signal
from qtpy.QtWidgets import QComboBox, QFormLayout, QLineEdit, QSpinBox, QVBoxLayout, QWidget

from napari_peka.config import TrainConfig
from napari_peka.core.errors import SettingError
from napari_peka.gui.choosers import FolderField, fold, slim
from napari_peka.gui.session import Session
from napari_peka.gui.settings_form import SettingsForm
from napari_peka.models.folder import models_folder
from napari_peka.models.registry import ENCODERS

#: how long an adapter learns by default
EPOCHS = 10
ADVANCED = (
    "lr", "batch_size", "rank", "last_blocks", "alpha", "seed", "rotations", "context_um", "features", "unit",
    "validation_share", "patience", "patch_dropout", "min_detected", "n_top_genes", "min_on_tissue", "terms", "mpp",
    "organ", "precision", "device",
)  # fmt: skip
#: written as text by a person, as names with values
_NAMED = ("terms",)
_ADAPTERS = {
    "bone": "bone (the paper's)", "lora": "LoRA", "adalora": "AdaLoRA", "dora": "DoRA", "hra": "HRA",
    "none": "none: only the gene head learns", "full": "full: all weights",
}  # fmt: skip
_TEACHERS = {"pca": "PCA of expression", "scvi": "scVI", "pathways": "pathway activities"}


class TrainForm(QWidget):
    """The settings of a training.

    Attributes
    ----------
    changed
        Emitted when a setting that decides how long it takes is changed.
    """

    changed = Signal()

    def __init__(self, session: Session) -> None:
        super().__init__()
        self.session = session
        self._picked = ""
        self.encoder = slim(QComboBox())
        for name, card in ENCODERS.items():
            self.encoder.addItem(f"{name} (gated)" if card.gated else name, name)
            tip = f"{card.licence}; {card.dim} numbers a tile; {card.note}".rstrip("; ")
            self.encoder.setItemData(self.encoder.count() - 1, tip, Qt.ItemDataRole.ToolTipRole)
        self.encoder.setCurrentIndex(self.encoder.findData(TrainConfig.model_fields["encoder"].default))
        self.adapter = _choice(_ADAPTERS)
        self.teacher = _choice(_TEACHERS)
        self.teacher.setEditable(True)
        self.hold_out = slim(QComboBox())
        self.epochs = QSpinBox()
        self.epochs.setRange(1, 10_000)
        self.epochs.setValue(EPOCHS)
        for name, widget in (("encoder", self.encoder), ("adapter", self.adapter), ("teacher", self.teacher),
                             ("epochs", self.epochs)):  # fmt: skip
            tip = TrainConfig.model_fields[name].description or ""
            widget.setToolTip(tip[:1].upper() + tip[1:])
        self.hold_out.setToolTip(
            "On what the model is judged. In turn: as many trainings as there are parts, and one more on everything. "
            "One left out for good: a single training, the fastest"
        )
        self.name = QLineEdit("my-model")
        self.name.setToolTip("Name of the model, and of its folder")
        self.folder = FolderField(
            "Folder in which the model's folder is made; models in the usual one are in all lists"
        )
        self.folder.edit.setText(str(models_folder()))
        self.advanced = SettingsForm(TrainConfig, ADVANCED)
        self.fold = fold("Advanced", self.advanced)
        form = QFormLayout()
        for label, widget in (("Encoder", self.encoder), ("Adapter", self.adapter), ("Teacher", self.teacher),
                              ("Leave out", self.hold_out), ("Epochs", self.epochs), ("Name", self.name),
                              ("Folder", self.folder)):  # fmt: skip
            form.addRow(label, widget)
        column = QVBoxLayout(self)
        column.setContentsMargins(0, 0, 0, 0)
        column.addLayout(form)
        column.addWidget(self.fold)
        for box in (self.encoder, self.adapter, self.hold_out):
            box.currentIndexChanged.connect(self._tell)
        self.epochs.valueChanged.connect(self._tell)
        self.hold_out.activated.connect(self._pick)
        self.refresh()

    def refresh(self) -> None:
        """Offer what can be left out of the sections that are open."""
        sections = [x.section for x in self.session.sections()]
        patients = sorted({s.patient_id for s in sections if s.patient_named})
        tests = [s.section_id for s in sections if s.split.casefold() == "test"]
        choices: list[tuple[str, str | None]] = []
        if tests:
            choices.append((f"{', '.join(tests)} (as the manifest says)", None))
        if len(patients) > 1 and all(s.patient_named for s in sections):
            choices.append(("each patient in turn", "patient"))
        if len(sections) > 1:
            choices.append(("each section in turn", "section"))
            choices += [(f"{p} for good", p) for p in patients if len(patients) > 1]
            choices += [(f"{s.section_id} for good", s.section_id) for s in sections]
        choices.append(("a block of each section in turn", "block"))
        before = self._picked
        self.hold_out.blockSignals(True)
        self.hold_out.clear()
        for text, value in choices:
            self.hold_out.addItem(text, value)
        self.hold_out.setCurrentIndex(max(0, self.hold_out.findText(before)))
        self.hold_out.blockSignals(False)
        self.changed.emit()

    def leave_out(self) -> str | None:
        """Return what is left out, as :class:`TrainConfig` has it."""
        value: str | None = self.hold_out.currentData()
        return value

    def config(self) -> TrainConfig:
        """Return the settings.

        Raises
        ------
        SettingError
            If one of them cannot be used.
        """
        more = self.advanced.values()
        for name in _NAMED:
            if name in more:
                more[name] = named_numbers(name, more[name])
        teacher = self.teacher.currentText().strip()
        return TrainConfig(
            encoder=self.encoder.currentData(), adapter=self.adapter.currentData(),
            teacher=next((k for k, v in _TEACHERS.items() if v == teacher), teacher), hold_out=self.leave_out(),
            epochs=self.epochs.value(), **more,
        )  # fmt: skip

    def output(self) -> Path:
        """Return the folder of the model.

        Raises
        ------
        SettingError
            If there is no name or folder.
        """
        folder, name = self.folder.folder(), self.name.text().strip()
        if folder is None:
            raise SettingError("choose a folder for the model")
        if not name or Path(name).name != name or name in (".", ".."):
            raise SettingError(f"{name!r} cannot be the name of a model; use letters, digits and dashes")
        return folder / name

    def _pick(self, index: int) -> None:
        self._picked = self.hold_out.itemText(index)

    def _tell(self, _: Any) -> None:
        self.changed.emit()


def named_numbers(name: str, text: str | None) -> dict[str, float]:
    """Return ``"cosine=1, genes=0.5"`` as names with numbers.

    Raises
    ------
    SettingError
        If it is written otherwise.
    """
    found = {}
    for part in filter(None, (p.strip() for p in (text or "").strip("{}").split(","))):
        key, _, value = part.replace(":", "=").partition("=")
        try:
            found[key.strip()] = float(value)
        except ValueError as e:
            raise SettingError(f"{name} is written as cosine=1, genes=0.5; got {text!r}") from e
    return found


def _choice(choices: dict[str, str]) -> QComboBox:
    box = slim(QComboBox())
    for value, text in choices.items():
        box.addItem(text, value)
    return box
