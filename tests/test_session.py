"""What is open and what belongs to what: no window is needed."""

from __future__ import annotations

import gc
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import shapely

pytest.importorskip("napari", reason="napari is not installed (pip install 'napari-peka[gui]')")

from napari.components import ViewerModel

import napari_peka as peka
from napari_peka.core.errors import StoreError
from napari_peka.gui import layers, map_layers, region_layers
from napari_peka.gui.look import Look
from napari_peka.gui.session import OpenSection, session_of
from napari_peka.gui.session_file import read_session, save_session, show_session
from napari_peka.io.slide import open_slide


@pytest.fixture
def viewer() -> ViewerModel:
    return ViewerModel()


class Closes:
    """A section as far as a session knows one."""

    patient_named = False

    def __init__(self, name: str, slide: object = None) -> None:
        self.section_id, self.slide, self.closed = name, slide, False
        self.path = Path(f"{name}.tsv.gz")

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


def test_sections_of_two_files_that_are_called_the_same_are_both_kept(viewer, shared_data, tmp_path):
    session, st_section = session_of(viewer), shared_data / "st" / "C5.tsv.gz"
    session.add_sections([OpenSection(peka.read_section(st_section))])
    name = session.sections()[0].section.section_id
    for file in st_section.parent.glob(f"{name}*"):
        shutil.copy(file, tmp_path / file.name)
    session.add_sections([OpenSection(peka.read_section(tmp_path / st_section.name))])
    first, second = (x.section for x in session.sections())
    assert (first.section_id, second.section_id) == (name, f"{name}-2")
    assert list(second.adata.uns["spatial"]) == [f"{name}-2"]
    assert f"another section is named {name} too" in second.warnings[-1]


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


class TestFile:
    @pytest.fixture
    def folder(self, tmp_path, sample, tiny_model):
        """A folder with a slide and its map."""
        shutil.copy(sample, tmp_path / "case.svs")
        with peka.open_slide(tmp_path / "case.svs") as slide:
            peka.predict(slide, tiny_model, output=tmp_path / "case.peka.zarr")
        return tmp_path

    def opened(self, folder) -> ViewerModel:
        viewer = ViewerModel()
        slide = open_slide(folder / "case.svs")
        for data, settings, _ in [layers.slide_layer(slide)]:
            viewer.add_image(data, **settings)
        look = Look("viridis", False, (5.0, 95.0), locked=True, smooth=True, linear=True)
        data, settings, _ = map_layers.heatmap_layer(peka.read_prediction(folder / "case.peka.zarr"), "KRT8", look)
        layer = viewer.add_image(data, **settings)
        layer.opacity, layer.contrast_limits = 0.25, (0.5, 1.5)
        data, settings, _ = region_layers.regions_layer(slide, {"tumour": shapely.box(100, 200, 900, 800)})
        viewer.add_shapes(data, **settings)
        viewer.camera.center, viewer.camera.zoom = (0.0, 123.0, 45.0), 3.5
        session_of(viewer).model = str(folder / "case.svs")  # a path, as of a bundle
        session_of(viewer).gene = "KRT8"
        return viewer

    def test_all_comes_back_from_another_place(self, folder, tmp_path_factory):
        viewer = self.opened(folder)
        assert save_session(session_of(viewer), folder / "case") == []
        text = (folder / "case.peka.json").read_text()
        assert str(folder) not in text.replace(json.loads(text)["model"], "")
        moved = tmp_path_factory.mktemp("moved") / "all"
        shutil.move(folder, moved)
        again = ViewerModel()
        opened = read_session(moved / "case.peka.json")
        assert opened.problems == []
        show_session(session_of(again), opened)
        [slide], [prediction] = session_of(again).slides(), session_of(again).maps()
        assert slide.path == moved / "case.svs"
        heat = session_of(again).layer_of(prediction)
        before = next(x for x in viewer.layers if layers.gene_of(x))
        assert layers.gene_of(heat) == "KRT8"
        assert map_layers.look_of(heat) == map_layers.look_of(before)
        np.testing.assert_array_equal(heat.data, before.data)
        assert (heat.opacity, heat.contrast_limits, heat.name) == (0.25, [0.5, 1.5], before.name)
        assert heat.interpolation2d == "linear"
        shapes = session_of(again).regions_of(slide)
        drawn = region_layers.regions_of(shapes, slide.mpp)["tumour"]
        assert drawn.hausdorff_distance(shapely.box(100, 200, 900, 800)) < 0.5
        assert again.camera.zoom == 3.5
        assert again.camera.center == (0.0, 123.0, 45.0)
        assert session_of(again).gene == "KRT8"

    def test_what_is_gone_is_said_and_the_rest_comes_back(self, folder):
        viewer = self.opened(folder)
        save_session(session_of(viewer), folder / "case.peka.json")
        shutil.rmtree(folder / "case.peka.zarr")
        (folder / "case.regions.geojson").write_text("{")
        opened = read_session(folder / "case.peka.json")
        assert any("there is no result at" in p for p in opened.problems)
        assert len(opened.problems) == 2
        show_session(session_of(again := ViewerModel()), opened)
        assert len(session_of(again).slides()) == 1

    def test_a_resolution_that_was_given_comes_back(self, folder):
        viewer = ViewerModel()
        data, settings, _ = layers.slide_layer(open_slide(folder / "case.svs", mpp=0.7))
        viewer.add_image(data, **settings)
        save_session(session_of(viewer), folder / "s.peka.json")
        opened = read_session(folder / "s.peka.json")
        assert opened.slides[0][1].mpp == (0.7, 0.7)

    @pytest.mark.parametrize("text", ["", "{", "[]", '{"schema": 1}', '{"napari_peka_session": "x"}'])
    def test_no_session_is_one_sentence(self, tmp_path, text):
        (tmp_path / "a.peka.json").write_text(text)
        with pytest.raises(StoreError, match="is no session of napari-peka"):
            read_session(tmp_path / "a.peka.json")
        with pytest.raises(StoreError, match="cannot be read"):
            read_session(tmp_path / "none.peka.json")

    def test_a_score_comes_back_as_it_was_seen(self, folder, tiny_model):
        viewer = ViewerModel()
        with peka.open_slide(folder / "case.svs") as slide:
            prediction = peka.predict(slide, tiny_model, output=folder / "set.peka.zarr")
        data, settings, _ = map_layers.heatmap_layer(prediction, "KRT8")
        layer = viewer.add_image(data, **settings)
        score = peka.gene_set_score(prediction, ["ERBB2", "CD3E"])
        map_layers.show_score(layer, prediction, "mine", ["ERBB2", "CD3E"], score)
        layer.contrast_limits = (-0.5, 0.75)
        assert save_session(session_of(viewer), folder / "s.peka.json") == []
        again = ViewerModel()
        show_session(session_of(again), read_session(folder / "s.peka.json"))
        [back] = again.layers
        np.testing.assert_allclose(back.data, layer.data)
        assert (back.name, back.contrast_limits) == ("mine (mean z)", [-0.5, 0.75])
        assert layers.gene_of(back) is None

    def test_a_map_that_was_never_written_is_said(self, sample, tiny_model, tmp_path):
        viewer = ViewerModel()
        with peka.open_slide(sample) as slide:
            data, settings, _ = map_layers.heatmap_layer(peka.predict(slide, tiny_model), "KRT8")
        viewer.add_image(data, **settings)
        [said] = save_session(session_of(viewer), tmp_path / "a")
        assert "cannot be brought back" in said
        assert read_session(tmp_path / "a.peka.json").maps == []

    def test_patients_that_were_named_in_the_window_come_back(self, shared_data, tmp_path):
        path = next((shared_data / "st").rglob("C2.tsv.gz"))
        viewer, later = ViewerModel(), ViewerModel()  # held, or they are gone
        session = session_of(viewer)
        session.add_sections([OpenSection(peka.read_section(path))])
        [item] = session.sections()
        item.name_patient("C")
        save_session(session, tmp_path / "a")
        again = session_of(later)
        show_session(again, read_session(tmp_path / "a.peka.json"))
        [back] = again.sections()
        assert (back.section.patient_id, back.section.patient_named) == ("C", True)
        again.add_sections([OpenSection(peka.read_section(path))])  # opened once more, as by another dock
        [once_more] = again.sections()
        assert once_more is not back
        assert (once_more.section.patient_id, once_more.section.patient_named) == ("C", True)
        once_more.name_patient("")
        assert not once_more.section.patient_named
        assert any("nobody says whose" in w for w in once_more.section.warnings)
        save_session(again, tmp_path / "b")
        assert json.loads((tmp_path / "b.peka.json").read_text())["sections"][0]["request"] == {}

    def test_what_is_open_already_is_not_opened_twice(self, folder, tiny_model):
        viewer = ViewerModel()
        session = session_of(viewer)
        with peka.open_slide(folder / "case.svs") as slide:
            data, settings, _ = layers.slide_layer(slide)
            viewer.add_image(data, **settings)
            prediction = peka.predict(slide, tiny_model, output=folder / "twice.peka.zarr")
            data, settings, _ = map_layers.heatmap_layer(prediction, "KRT8")
            viewer.add_image(data, **settings)
            save_session(session, folder / "s.peka.json")
            map_layers.update_heatmap(viewer.layers[1], prediction, "CD3E")
            show_session(session, read_session(folder / "s.peka.json"))
            assert [layers.gene_of(x) for x in viewer.layers] == [None, "KRT8"]  # as it was when it was saved

    def test_sections_come_back_as_they_were_asked_for(self, shared_data, tmp_path):
        path = next((shared_data / "st").rglob("C2.tsv.gz"))
        viewer, request = ViewerModel(), {"section": "mine", "patient": "P"}
        session_of(viewer).add_sections([OpenSection(peka.read_section(path, **request), request)])
        save_session(session_of(viewer), tmp_path / "a")
        show_session(session_of(again := ViewerModel()), read_session(tmp_path / "a.peka.json"))
        [item] = session_of(again).sections()
        assert (item.section.section_id, item.section.patient_id, item.request) == ("mine", "P", request)
