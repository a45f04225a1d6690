"""The choice of a model, and what a person should know of it before believing it."""

from __future__ import annotations

from functools import partial
from typing import Any

from qtpy.compat import isalive
from qtpy.QtWidgets import QVBoxLayout, QWidget

from napari_peka.gui.aside import Aside
from napari_peka.gui.choosers import ModelChooser, Snug, fold
from napari_peka.gui.hub_panel import HubPanel, size_in_words
from napari_peka.gui.run_panel import sentence
from napari_peka.gui.session import Session
from napari_peka.io.trust import trust_word


class ModelPanel(QWidget):
    """What lies below the box of models: a model from the hub, and *About the model*.

    Parameters
    ----------
    session
        Whose model is chosen.

    Attributes
    ----------
    box
        The box; whoever holds this panel places it.
    """

    def __init__(self, session: Session) -> None:
        super().__init__()
        self.session = session
        self.box = ModelChooser(hub=True)
        self.hub = HubPanel(ask_name=True)
        self.hub.hide()
        self.words = Snug()
        self.words.setOpenExternalLinks(True)
        self.weights = HubPanel(ask_name=False)
        self.weights.hide()
        inside = QWidget()
        below = QVBoxLayout(inside)
        below.setContentsMargins(0, 0, 0, 0)
        below.addWidget(self.words)
        below.addWidget(self.weights)
        self.fold = fold("About the model", inside)
        column = QVBoxLayout(self)
        column.setContentsMargins(0, 0, 0, 0)
        column.addWidget(self.hub)
        column.addWidget(self.fold)
        self._looking = Aside(self)
        self._known = ""
        self.box.chosen.connect(self._chosen)
        self.box.hub_wanted.connect(self._show_hub)
        self.hub.fetched.connect(self._fetched)
        self.weights.fetched.connect(self._look)
        self.fold.toggled.connect(self._look)
        self._looking.done.connect(self._told)
        self._looking.failed.connect(self._not_told)
        session.model_changed.connect(self._changed)
        self._changed(session.model)

    @property
    def busy(self) -> bool:
        """Whether something is looked up or fetched."""
        return self._looking.busy or self.hub.busy or self.weights.busy

    def leave(self) -> None:
        """Stop what is fetched, for a window that closes."""
        self.hub.leave()
        self.weights.leave()

    def _chosen(self, name: str) -> None:
        self.session.model = name

    def _changed(self, name: str) -> None:
        """Take the model that is chosen, here or in another dock."""
        if isalive(self):
            if name != self.box.model():
                self.box.take(name)
            self._look()

    def _show_hub(self) -> None:
        self.hub.show()
        self.hub.name.setFocus()

    def _fetched(self, repo: str) -> None:
        self.box.add(repo)
        self.hub.hide()

    def _look(self, *_: object) -> None:
        """Read about the model, if somebody looks."""
        if self.fold.isExpanded():
            self._looking.ask(partial(_about, self.box.model()))

    def _told(self, about: dict[str, Any]) -> None:
        self.words.setText(about_in_words(about))
        fetchable = about["weights_needed"] and bool(about["hub_id"])
        self.weights.setVisible(fetchable)
        if fetchable:
            self.weights.set_target(about["hub_id"], about["files"], about["revision"])

    def _not_told(self, error: BaseException) -> None:
        self.weights.hide()
        self.words.setText(sentence(error))


def _about(name: str) -> dict[str, Any]:
    from napari_peka.models.zoo import about

    return about(name)


def about_in_words(about: dict[str, Any]) -> str:
    """Return what a person should know of a model."""
    gate = "gated: access is asked for on its page" if about["gated"] else "not gated"
    page = f', <a href="{about["page"]}">page</a>' if about["page"] else ""
    if about["weights"]:
        weights = f"{size_in_words(about['weights_bytes'])}, on this disk"
    else:
        weights = "<b>not on this disk</b>" if about["weights_needed"] else "none: random, for tests only"
    passes = f", {about['passes']} passes each" if about["passes"] > 1 else ""
    lines = [
        _sentence(about["description"] or about["data"] or "It does not say what it was trained on."),
        f"<b>Encoder</b> {about['encoder']}, {about['encoder_licence']}, {gate}{page}",
        f"<b>Weights of the encoder</b> {weights}",
        f"<b>Genes</b> {about['genes']:,}, {about['unit']}; tiles of {about['tile_um']:.0f} µm{passes}",
        f"<b>Held-out PCC</b> {_pcc(about)}",
        f"<b>Licence of the model</b> {about['licence'] or 'not stated'}",
    ]
    return "<br>".join(lines)


def _pcc(about: dict[str, Any]) -> str:
    if about["pcc"] is None:
        return "not known"
    split = f"; {about['pcc_split']}" if about["pcc_split"] else ""
    return f"{about['pcc']:.2f} ({trust_word(about['pcc'])}), mean over {about['pcc_genes']:,} genes{split}"


def _sentence(text: str) -> str:
    """Return the first two sentences of a description."""
    return ". ".join(text.split(". ")[:3]).rstrip(".") + "."
