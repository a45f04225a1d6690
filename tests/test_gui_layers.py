"""Slides and maps as napari layers: where they lie, and what the hooks of the manifest claim."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

import numpy as np
import pytest

napari = pytest.importorskip("napari", reason="napari is not installed (pip install 'napari-peka[gui]')")
shapely = pytest.importorskip("shapely")

from napari.components import ViewerModel
from napari.layers import Image, Shapes

from napari_peka.core.errors import RegionError, UnknownName
from napari_peka.core.geometry import TileSpec, TileTable
from napari_peka.core.head import GeneHead
from napari_peka.gui import layers, map_layers, reader, region_layers
from napari_peka.io.prediction import Prediction
from napari_peka.io.slide import open_slide
from napari_peka.io.slide_list import ENDINGS

MPP = (0.4, 0.5)
GENES = ("ERBB2", "KRT8", "COL1A1")


@pytest.fixture
def prediction() -> Prediction:
    """A map on part of a slide of 2000 x 3000 px at 0.4 x 0.5 µm/px, with overlapping tiles."""
    spec = TileSpec(64, 1.0, 32)
    region = shapely.box(500, 300, 2500, 1500)
    tiles = TileTable.grid((2000, 3000), MPP, spec, region=region)
    rng = np.random.default_rng(0)
    head = GeneHead(rng.normal(size=(8, 3)).astype(np.float32), np.zeros(3, np.float32), GENES, "log1p CP10K")
    embeddings = rng.normal(size=(len(tiles), 8)).astype(np.float16)
    return Prediction(tiles, embeddings, head, np.ones(len(tiles), bool), {})


def add(layer_tuple) -> Image:
    data, settings, _ = layer_tuple
    return Image(data, **settings)


class TestSlide:
    def test_lies_in_um(self, sample):
        with open_slide(sample) as slide:
            layer = add(layers.slide_layer(slide))
            assert layer.multiscale
            assert layer.rgb
            assert tuple(layer.scale) == pytest.approx(slide.mpp)
            assert [str(u) for u in layer.units] == ["micrometer", "micrometer"]
            assert layers.slide_of(layer) is slide
            assert layers.image_path(layer) == slide.path

    def test_unknown_resolution_lies_in_pixels_until_it_is_said(self, tmp_path):
        from PIL import Image as Pil

        Pil.fromarray(np.full((300, 400, 3), 200, np.uint8)).save(tmp_path / "a.png")
        with open_slide(tmp_path / "a.png") as slide:
            layer = add(layers.slide_layer(slide))
            assert tuple(layer.scale) == (1, 1)
            assert [str(u) for u in layer.units] == ["pixel", "pixel"]
        with open_slide(tmp_path / "a.png", mpp=0.5) as slide:
            layers.set_resolution(layer, slide)
            assert tuple(layer.scale) == (0.5, 0.5)
            assert [str(u) for u in layer.units] == ["micrometer", "micrometer"]

    def test_what_cannot_be_decoded_is_painted_not_an_error(self, tmp_path):
        import tifffile

        from napari_peka.io.lazy import UNREADABLE

        path = tmp_path / "a.tif"
        image = np.random.default_rng(0).integers(0, 255, (512, 512, 3)).astype(np.uint8)
        tifffile.imwrite(path, image, tile=(256, 256), photometric="rgb", compression="zlib")
        with tifffile.TiffFile(path) as tif:
            at = tif.pages[0].dataoffsets[3]
        with path.open("rb+") as file:
            file.seek(at)
            file.write(bytes(2000))
        with open_slide(path, mpp=0.5) as slide:
            data, _, _ = layers.slide_layer(slide)
            assert data[250:260, 250:260].shape == (10, 10, 3)
            whole = np.asarray(data)
        np.testing.assert_array_equal(whole[:256], image[:256])
        assert (whole[256:, 256:] == UNREADABLE).all()


class TestMap:
    def test_every_tile_lies_exactly_on_its_pixels(self, prediction):
        """Guards the half pixel of both layers: napari's positions are centres, ours are edges."""
        slide = Image(np.zeros((2000, 3000, 3), np.uint8), rgb=True, scale=MPP)
        heat = add(map_layers.heatmap_layer(prediction, "ERBB2"))
        first = prediction.tiles.grid_yx.min(0)
        for k in (0, len(prediction.tiles) // 2, len(prediction.tiles) - 1):
            pixel = prediction.tiles.grid_yx[k] - first
            world = heat.data_to_world(pixel)  # centre of the tile
            level0 = np.array(slide.world_to_data(world)) + 0.5
            assert level0 == pytest.approx(prediction.tiles.centre_yx[k], abs=1e-6)
            assert heat.data[tuple(pixel)] == pytest.approx(prediction.values("ERBB2")[k])

    def test_one_layer_with_gene_and_unit(self, prediction):
        heat = add(map_layers.heatmap_layer(prediction, "erbb2"))
        assert heat.name == "ERBB2 (log1p CP10K)"
        assert heat.colormap.name == "magma, low values fade"
        assert not heat.rgb
        assert layers.gene_of(heat) == "ERBB2"
        with pytest.raises(UnknownName, match="KRT8"):
            map_layers.heatmap_layer(prediction, "KRT9")

    def test_another_gene_in_place(self, prediction):
        heat = add(map_layers.heatmap_layer(prediction, "ERBB2"))
        place = heat.translate.copy()
        map_layers.update_heatmap(heat, prediction, "KRT8")
        assert heat.name == "KRT8 (log1p CP10K)"
        np.testing.assert_array_equal(heat.data, prediction.raster("KRT8").data)
        assert tuple(heat.translate) == tuple(place)
        low, high = heat.contrast_limits
        assert low < high

    def test_fills_block_by_block(self, prediction):
        whole, part = prediction.embeddings.copy(), prediction.embeddings
        part[:] = np.nan
        heat = add(map_layers.heatmap_layer(prediction, "ERBB2"))
        assert np.isnan(heat.data).all()
        map_layers.fill_blocks(heat, [])
        for block in prediction.tiles.blocks():
            part[block.start : block.stop] = whole[block.start : block.stop]
            map_layers.fill_blocks(heat, [block])
        np.testing.assert_allclose(heat.data, prediction.raster("ERBB2").data, rtol=1e-5)

    def test_partial_maps_of_one_name_say_so_until_they_show_a_whole_one(self, prediction):
        """Guards a recursion: napari numbers layers of one name, which is another change of the name."""
        from napari.components import ViewerModel

        from napari_peka.gui.partial import say_partial

        viewer = ViewerModel()
        whole = dataclasses.replace(prediction, record=dict(prediction.record))
        half = len(prediction.tiles) // 2
        prediction.embeddings[half:] = np.nan
        prediction.record["partial"] = prediction.done_in_words
        share = f"(partial, {100 * half // len(prediction.tiles)} %)"
        for _ in range(2):
            data, settings, _ = map_layers.heatmap_layer(prediction, "ERBB2")
            say_partial(viewer.add_image(data, **settings))
        assert [x.name for x in viewer.layers] == [f"ERBB2 (log1p CP10K) {share}", f"ERBB2 (log1p CP10K) {share} [1]"]
        map_layers.update_heatmap(viewer.layers[1], prediction, "KRT8")
        assert viewer.layers[1].name == f"KRT8 (log1p CP10K) {share}"
        map_layers.update_heatmap(viewer.layers[1], whole, "KRT8")
        assert viewer.layers[1].name == "KRT8 (log1p CP10K)"

    def test_without_held_out_scores_the_first_gene_is_shown(self, prediction):
        assert map_layers.best_gene(prediction, wish=["nothing"]) == "ERBB2"


class TestRegion:
    @pytest.fixture
    def slide(self) -> Image:
        return Image(np.zeros((2000, 3000, 3), np.uint8), rgb=True, scale=MPP, units=layers.UM)

    def test_rectangle_in_level0_pixels(self, slide):
        corners = [slide.data_to_world((y - 0.5, x - 0.5)) for y, x in [(10, 20), (10, 220), (110, 220), (110, 20)]]
        for scale in ((1, 1), (0.25, 0.25)):  # in µm, or as drawn on a layer of another scale
            shapes = Shapes(np.array(corners) / scale, shape_type="rectangle", scale=scale)
            assert region_layers.region_of(shapes, slide).bounds == pytest.approx((20, 10, 220, 110), abs=1e-3)

    def test_ellipse_and_polygon_are_joined(self, slide):
        box = np.array([[100, 100], [100, 200], [200, 200], [200, 100]])
        shapes = Shapes(ndim=2)
        shapes.add(box, shape_type="ellipse")
        shapes.add(box + 500, shape_type="polygon")
        area = region_layers.region_of(shapes, slide).area * MPP[0] * MPP[1]
        assert area == pytest.approx(np.pi * 50**2 + 100**2, rel=0.005)

    def test_nothing_drawn_is_a_sentence(self, slide):
        shapes = Shapes([[0, 0], [9, 9]], shape_type="line", name="mine")
        with pytest.raises(RegionError, match="no area in the layer 'mine'"):
            region_layers.region_of(shapes, slide)

    def test_a_region_stays_where_it_was_drawn_when_the_slide_is_scaled(self, slide):
        slide.scale = (1, 1)
        shapes = Shapes([[10, 10], [10, 50], [90, 50]], shape_type="polygon")
        before = region_layers.region_of(shapes, slide)
        slide.scale = MPP
        layers.rescale(shapes, np.array(MPP))
        assert region_layers.region_of(shapes, slide).bounds == pytest.approx(before.bounds, abs=1e-3)


def test_the_view_in_level0_pixels():
    viewer = ViewerModel()
    slide = viewer.add_image(np.zeros((2000, 3000, 3), np.uint8), rgb=True, scale=MPP, units=layers.UM)
    viewer.canvas.size = (400, 600)
    viewer.camera.center, viewer.camera.zoom = (0, 400, 750), 4.0  # µm; 4 screen px a µm
    rect = layers.visible_rect(viewer, slide)
    assert (rect.h, rect.w) == pytest.approx((100 / MPP[0], 150 / MPP[1]))
    assert rect.y + rect.h / 2 == pytest.approx(400 / MPP[0] + 0.5)
    viewer.camera.zoom = 0.01
    assert layers.visible_rect(viewer, slide) is None


class TestReader:
    @pytest.mark.parametrize("name", ["a.svs", "A.NDPI", "b.mrxs", "c.ome.tiff", "d.ome.zarr", "e.peka.zarr"])
    def test_claims_slides_by_name(self, name):
        assert reader.get_reader(name) is reader.read_layers
        assert reader.get_reader([name]) is reader.read_layers

    @pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.csv", "plain.zarr", "missing.tif", "folder"])
    def test_leaves_other_files_alone(self, name):
        assert reader.get_reader(name) is None

    def test_a_tif_only_when_it_looks_like_a_slide(self, tmp_path, tissue_tiff):
        import tifffile

        tifffile.imwrite(tmp_path / "cells.tif", np.zeros((64, 64), np.uint16))
        tifffile.imwrite(tmp_path / "photo.tif", np.zeros((64, 64, 3), np.uint8), photometric="rgb")
        (tmp_path / "empty.tif").touch()
        for name in ("cells", "photo", "empty"):
            assert reader.get_reader(str(tmp_path / f"{name}.tif")) is None
        assert reader.get_reader(str(tissue_tiff)) is reader.read_layers

    def test_reads_the_sample(self):
        [(levels, settings, kind)] = reader.sample_slide_data()
        assert kind == "image"
        assert levels[0].shape == (2967, 2220, 3)
        settings["metadata"][layers.KEY]["slide"].close()

    def test_an_error_is_one_sentence(self, tmp_path):
        from napari.utils.notifications import notification_manager

        (tmp_path / "bad.svs").write_bytes(b"nothing")
        notification_manager.records.clear()
        assert reader.read_layers(str(tmp_path / "bad.svs")) == [(None,)]
        (record,) = notification_manager.records
        assert "bad.svs" in record.message
        assert "Traceback" not in record.message


class TestManifest:
    def manifest(self):
        from npe2 import PluginManifest

        return PluginManifest.from_file(Path(layers.__file__).parent.parent / "napari.yaml")

    def test_every_command_can_be_imported(self):
        from importlib import import_module

        for command in self.manifest().contributions.commands:
            module, _, name = command.python_name.partition(":")
            assert callable(getattr(import_module(module), name))

    def test_docks_have_their_names_and_order(self):
        names = [w.display_name for w in self.manifest().contributions.widgets]
        assert names == [
            "Slide",
            "Predict expression",
            "Explore expression",
            "Train on paired sections",
            "Check against spots",
        ]

    def test_patterns_are_those_of_the_reader(self):
        (entry,) = self.manifest().contributions.readers
        claimed = {p.removeprefix("*") for p in entry.filename_patterns}
        assert claimed == {*ENDINGS, reader.RESULT_ENDING, reader.SESSION_ENDING}
        assert not claimed & {".tif", ".tiff", ".jpg", ".png"}


def test_docks_never_import_torch():
    import subprocess

    code = "import sys, napari_peka.gui.reader, napari_peka.gui.predict_widget, napari_peka.gui.explore_widget"
    check = f"{code}; sys.exit(any(m in sys.modules for m in ('torch', 'timm', 'anndata')))"
    assert subprocess.run([sys.executable, "-c", check], check=False).returncode == 0
