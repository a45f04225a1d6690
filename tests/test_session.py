"""What is open and what belongs to what: no window is needed."""

from __future__ import annotations

import gc

import pytest

pytest.importorskip("napari", reason="napari is not installed (pip install 'napari-peka[gui]')")

from napari.components import ViewerModel

from napari_peka.gui import layers
from napari_peka.gui.session import OpenSection, session_of
from napari_peka.io.slide import open_slide


@pytest.fixture
def viewer() -> ViewerModel:
    return ViewerModel()


class Closes:
    """A section as far as a session knows one."""

    def __init__(self, name: str, slide: object = None) -> None:
        self.section_id, self.slide, self.closed = name, slide, False

    def close(self) -> None:
        self.closed = True


def test_one_session_a_viewer(viewer):
    assert session_of(viewer) is session_of(viewer)
    assert session_of(viewer) is not session_of(ViewerModel())


def test_slides_are_what_the_layers_say(viewer, sample):
    session, said = session_of(viewer), []
    session.layers_changed.connect(lambda: said.append(len(session.slides())))
    data, settings, _ = layers.slide_layer(open_slide(sample))
    layer = viewer.add_image(data, **settings)
    [slide] = session.slides()
    assert session.layer_of(slide) is layer
    assert session.maps_of(slide) == []
    viewer.layers.remove(layer)
    assert session.slides() == []
    assert said == [1, 0]


def test_sections_belong_to_slides_and_are_closed(viewer, sample):
    session, slide = session_of(viewer), open_slide(sample)
    first, again = Closes("A", slide), Closes("A", slide)
    session.add_sections([OpenSection(first)])
    assert [s.section for s in session.sections_of(slide)] == [first]
    session.add_sections([OpenSection(again)])
    assert first.closed
    assert [s.section for s in session.sections()] == [again]
    session.remove_section("A")
    session.remove_section("never there")
    assert again.closed
    assert session.sections() == []


def test_a_session_ends_with_its_viewer():
    viewer = ViewerModel()
    section = Closes("A")
    session_of(viewer).add_sections([OpenSection(section)])
    del viewer
    gc.collect()
    assert section.closed


def test_signals_are_sent_for_changes_only(viewer):
    session, said = session_of(viewer), []
    session.model_changed.connect(said.append)
    session.gene_changed.connect(said.append)
    session.model = "demo"
    session.model = "other"
    session.gene = "ERBB2"
    session.gene = "ERBB2"
    assert said == ["other", "ERBB2"]
