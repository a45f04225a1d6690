"""A form of settings, made from the fields of a settings class: their descriptions are its tooltips."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel
from qtpy.QtWidgets import QCheckBox, QComboBox, QFormLayout, QLineEdit, QWidget

from napari_peka.gui.choosers import slim

#: what settings are called where their names are terse
_LABELS = {
    "lr": "learning rate", "context_um": "context, µm", "alpha": "distillation", "n_top_genes": "most variable",
    "min_detected": "detected in", "min_on_tissue": "on tissue", "terms": "more loss terms", "mpp": "µm per pixel",
    "validation_share": "checked by",
}  # fmt: skip
#: what None stands for, where the machine does not choose
_NONE = {
    "last_blocks": "all", "context_um": "none", "n_top_genes": "all", "patience": "none", "organ": "not said",
}  # fmt: skip


class SettingsForm(QWidget):
    """Some fields of a settings class, each with its default until a person changes it.

    What is written is checked by the class itself: a value that cannot be used is its sentence, not the form's.

    Parameters
    ----------
    kind
        The settings class.
    names
        Which of its fields, in order.
    defaults
        Defaults that are others here than in the class.
    """

    def __init__(self, kind: type[BaseModel], names: Iterable[str], defaults: dict[str, Any] | None = None) -> None:
        super().__init__()
        self.fields: dict[str, QWidget] = {}
        form = QFormLayout(self)
        form.setContentsMargins(0, 0, 0, 0)
        for name in names:
            field = kind.model_fields[name]
            default = (defaults or {}).get(name, field.default)
            widget = _widget(field.annotation, default, _NONE.get(name, "auto"))
            tip = field.description or ""
            widget.setToolTip(tip if tip.startswith("µ") else tip[:1].upper() + tip[1:])
            self.fields[name] = widget
            form.addRow(_LABELS.get(name, name.replace("_", " ")), widget)

    def values(self) -> dict[str, Any]:
        """Return what was changed, fit for the settings class."""
        found = {}
        for name, widget in self.fields.items():
            if isinstance(widget, QCheckBox):
                found[name] = widget.isChecked()
            elif isinstance(widget, QComboBox):
                found[name] = widget.currentData()
            elif isinstance(widget, QLineEdit) and (text := widget.text().strip()):
                found[name] = None if text.casefold() == "none" else text
        return found

    def set(self, name: str, value: Any) -> None:
        """Write a value into a field."""
        widget = self.fields[name]
        if isinstance(widget, QCheckBox):
            widget.setChecked(bool(value))
        elif isinstance(widget, QComboBox):
            widget.setCurrentIndex(widget.findData(value))
        elif isinstance(widget, QLineEdit):
            widget.setText("" if value is None else str(value))


def _widget(annotation: Any, default: Any, none: str) -> QWidget:
    if annotation is bool:
        box = QCheckBox()
        box.setChecked(bool(default))
        return box
    if get_origin(annotation) is Literal:
        choice = slim(QComboBox())
        for value in get_args(annotation):
            choice.addItem(str(value), value)
        choice.setCurrentIndex(choice.findData(default))
        return choice
    line = QLineEdit()
    if default is None or default == {}:
        line.setPlaceholderText(none if default is None else "none")
    else:
        line.setPlaceholderText(f"{default:g}" if isinstance(default, float) else str(default))
    return line
