"""What is open in a viewer and what belongs to what: slides, maps, sections, the chosen model and gene.

There is no Qt in here. Slides, maps and regions live in the viewer's layers, which say themselves what they are, so
that nothing can drift apart; sections, model and gene live here. Docks show this and edit it; they hear of changes by
signals.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from napari.utils.notifications import show_warning
from psygnal import Signal

from napari_peka.gui import layers, preferences
from napari_peka.gui.placing import agree

if TYPE_CHECKING:
    from napari_peka.io.prediction import Prediction
    from napari_peka.io.section import Section
    from napari_peka.io.slide import Slide

DEMO = "demo"


@dataclass(eq=False)
class OpenSection:
    """A section that is open, and how it was asked for.

    Parameters
    ----------
    section
        The section.
    request
        Arguments of :func:`napari_peka.read_section` besides the path, as they were given: to read it again.
    given
        The same before its spots were moved by hand; None: they were not.
    """

    section: Section
    request: dict[str, Any] = field(default_factory=dict)
    given: dict[str, Any] | None = None

    def name_patient(self, patient: str) -> None:
        """Say whose the section is; an empty name: nobody says."""
        s = self.section
        s.patient_id, s.patient_named = patient or s.section_id, bool(patient)
        s.warnings = [w for w in s.warnings if not w.startswith("nobody says whose")]
        if patient:
            self.request["patient"] = patient
        else:
            self.request.pop("patient", None)
            s.warnings.append(
                "nobody says whose this section is: taken for a patient of its own; write it in the table"
            )


class Session:
    """What is open in a viewer.

    Parameters
    ----------
    viewer
        A napari viewer, or its model without a window.

    Attributes
    ----------
    layers_changed, sections_changed, slide_changed, model_changed, gene_changed
        Signals: slides, maps or regions came or went, or a slide got another resolution; sections came or went; another
        slide is chosen (its fingerprint); another model is (its name or path); another gene is shown (its symbol, or
        None).
    """

    layers_changed = Signal()
    sections_changed = Signal()
    slide_changed = Signal(object)
    model_changed = Signal(str)
    gene_changed = Signal(object)

    def __init__(self, viewer: Any) -> None:
        self.viewer = viewer
        self._sections: dict[str, OpenSection] = {}
        self._model, self._gene = DEMO, None  # type: tuple[str, str | None]
        self._slide: str | None = None
        for event in (viewer.layers.events.inserted, viewer.layers.events.removed):
            event.connect(self._layers_changed)

    # -- what is open --------------------------------------------------------------------------------------------

    def slides(self) -> list[Slide]:
        """Return the slides that are open, in the order of their layers."""
        return [s for s in map(layers.slide_of, self.viewer.layers) if s is not None]

    def maps(self) -> list[Prediction]:
        """Return the predictions that are shown, in the order of their layers."""
        return [p for p in map(layers.prediction_of, self.viewer.layers) if p is not None]

    def sections(self) -> list[OpenSection]:
        """Return the sections that are open, in the order in which they came."""
        return list(self._sections.values())

    # -- what belongs to what ------------------------------------------------------------------------------------

    def layer_of(self, item: Slide | Prediction) -> Any:
        """Return the layer that shows a slide or a prediction, or None."""
        return next(
            (x for x in self.viewer.layers if item is layers.slide_of(x) or item is layers.prediction_of(x)), None
        )

    def maps_of(self, slide: Slide) -> list[Any]:
        """Return the layers of maps that were predicted on a slide."""
        return [x for x in self.viewer.layers if layers.is_map_of(x, slide)]

    def regions_of(self, slide: Slide) -> Any:
        """Return the layer of a slide's regions, or None."""
        return next((x for x in self.viewer.layers if layers.is_part_of(x, "regions", slide)), None)

    def sections_of(self, slide: Slide) -> list[OpenSection]:
        """Return the sections that were measured on a slide, told by its fingerprint."""
        return [s for s in self._sections.values() if s.section.slide.fingerprint == slide.fingerprint]

    # -- sections ------------------------------------------------------------------------------------------------

    def add_sections(self, added: list[OpenSection]) -> None:
        """Take sections that were read; one that is open replaces itself, and the old one is closed.

        One of another file that is called the same is given a name of its own, and says so.
        """
        for item in added:
            name = self.name_apart(item)
            old = self._sections.get(name)
            self._sections[name] = item
            if old is not None and old.section.patient_named and not item.section.patient_named:
                item.name_patient(old.section.patient_id)  # who said it meant this file
            if old is not None and old.section is not item.section:
                old.section.close()
        self.sections_changed.emit()

    def name_apart(self, item: OpenSection) -> str:
        """Give a section another name where one of another file has it, and return its name."""
        from napari_peka.io.section import name_apart

        section = item.section
        known = self._sections.get(section.section_id)
        if known is not None and known.section.path.resolve() != section.path.resolve():
            name_apart(section, self._sections)
        return section.section_id

    def remove_section(self, name: str) -> None:
        """Close a section; an unknown name is none."""
        if (old := self._sections.pop(name, None)) is not None:
            old.section.close()
            self.sections_changed.emit()

    # -- slide, model and gene -----------------------------------------------------------------------------------

    @property
    def slide(self) -> str | None:
        """The fingerprint of the slide that is worked on."""
        return self._slide

    @slide.setter
    def slide(self, fingerprint: str | None) -> None:
        if fingerprint != self._slide:
            self._slide = fingerprint
            self.slide_changed.emit(fingerprint)

    @property
    def model(self) -> str:
        """The chosen model, as :func:`napari_peka.load_model` takes it."""
        return self._model

    @model.setter
    def model(self, name: str) -> None:
        if name != self._model:
            self._model = name
            self.model_changed.emit(name)

    @property
    def gene(self) -> str | None:
        """The gene that is looked at."""
        return self._gene

    @gene.setter
    def gene(self, name: str | None) -> None:
        if name != self._gene:
            self._gene = name
            self.gene_changed.emit(name)

    # -- the end -------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Close all sections: for a viewer that is gone."""
        for item in self._sections.values():
            item.section.close()
        self._sections.clear()

    def _layers_changed(self, event: Any = None) -> None:
        if getattr(event, "type", "") == "inserted" and (why := agree(self.viewer, event.value)):
            show_warning(why)
        self.layers_changed.emit()

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """Say of many layers only once, at the end, that they came or went."""
        with self.layers_changed.blocked():
            yield
        self.layers_changed.emit()


_SESSIONS: dict[int, Session] = {}


def session_of(viewer: Any) -> Session:
    """Return the one session of a viewer; made at the first call, dropped with the viewer."""
    own = getattr(viewer, "__wrapped__", viewer)  # napari hands plugins a proxy
    key = id(own)
    if key not in _SESSIONS:
        preferences.apply()
        _SESSIONS[key] = Session(_Weak(own))
        weakref.finalize(own, _drop, key)
    return _SESSIONS[key]


def _drop(key: int) -> None:
    if (session := _SESSIONS.pop(key, None)) is not None:
        session.close()


class _Weak:
    """A viewer that is not kept alive by being looked at."""

    def __init__(self, viewer: Any) -> None:
        self._viewer = weakref.ref(viewer)

    @property
    def layers(self) -> Any:
        """Its layers; none when it is gone."""
        return getattr(self._viewer(), "layers", [])

    def __getattr__(self, name: str) -> Any:
        return getattr(self._viewer(), name)
