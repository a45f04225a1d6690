"""The picture of a map: what it says is right, and nothing is clipped or overlaps at any shape of slide."""

from __future__ import annotations

import errno
import itertools
import os

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from PIL import Image

from napari_peka.core.errors import StoreError, Undecodable, UnknownName
from napari_peka.core.geometry import Rect, TileSpec, TileTable
from napari_peka.core.head import GeneHead
from napari_peka.io import figure as figure_module
from napari_peka.io.figure import contrast_limits, trust_text, write_map
from napari_peka.io.prediction import RESEARCH_USE, Prediction
from napari_peka.io.trust import percent

GENES = ("ERBB2", "HLA-A/B $x^2$")


class FakeSlide:
    mpp = (0.5, 0.5)

    def __init__(self, shape, name="case", readable=True):
        self.shape, self.name, self.readable = shape, name, readable

    def read_block(self, rect, mpp):
        if not self.readable:
            raise Undecodable("scratched")
        return np.full((round(rect.h * 0.5 / mpp), round(rect.w * 0.5 / mpp), 3), 200, np.uint8)

    def thumbnail(self, max_px=1024):
        scale = max(1, max(self.shape) / min(max_px, 200))
        h, w = (max(1, round(n / scale)) for n in self.shape)
        image = np.full((h, w, 3), 240, np.uint8)
        image[h // 4 : -h // 4, w // 4 : -w // 4] = (200, 120, 170)
        return image


def prediction(shape, *, mpp=(0.5, 0.5), values=None, stride=None, bad=0, pcc=(0.62, np.nan)):
    tiles = TileTable.grid(shape, mpp, TileSpec(64, 1.0, stride))
    x = np.random.default_rng(0).normal(size=(len(tiles), 1)) if values is None else values(len(tiles))
    ok = np.ones(len(tiles), bool)
    ok[:bad] = False
    x[:bad] = np.nan
    pcc = None if pcc is None else np.array(pcc, np.float32)
    head = GeneHead(np.ones((1, 2), np.float32), np.zeros(2, np.float32), GENES, "log1p CP10K", ("ENSG1", ""), pcc)
    return Prediction(tiles, x.astype(np.float16), head, ok, {"model": {"name": "tiny"}})


def drawn(shape, *, gene="ERBB2", name="case", **kwargs):
    """Return a laid out figure, as :func:`write_map` saves it."""
    import matplotlib

    with matplotlib.rc_context({"text.parse_math": False}):
        made = prediction(shape, **kwargs)
        figure = figure_module.draw_map(made, FakeSlide(shape, name), figure_module.gene_shown(made, gene), 400)
        figure.canvas.draw()
    return figure


def texts(figure):
    """Return every text that is drawn with its box in pixels."""
    from matplotlib.text import Text

    hidden = set()
    for axes in figure.axes:
        for axis in (axes.xaxis, axes.yaxis):
            seen = {axis.label, *(label for t in axis._update_ticks() for label in (t.label1, t.label2))}
            hidden |= {t for t in axis.findobj(Text) if not axes.axison or t not in seen}
    renderer = figure.canvas.get_renderer()
    return {
        t.get_text(): t.get_window_extent(renderer)
        for t in figure.findobj(Text)
        if t.get_visible() and t.get_text().strip() and t not in hidden
    }


def opened(path):
    with Image.open(path) as image:
        image.load()
        return image.format


SHAPES = {
    "square": (3000, 3000), "high": (6000, 2000), "a needle": (40000, 1200), "wide": (2000, 6000),
    "a ribbon": (1200, 40000), "just side by side": (1400, 3000), "just above": (1300, 3000), "small": (200, 260),
}  # fmt: skip


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("name", ["case", "TCGA-A1-A0SB-01Z-00-DX1.B34C267B-CAFE-4F2E-BABE-0123456789AB" * 2])
def test_nothing_is_clipped_and_no_words_overlap(shape, name):
    figure = drawn(shape, name=name, pcc=(0.01, np.nan))
    found = texts(figure)
    size = figure.bbox
    for text, box in found.items():
        assert box.x0 >= -1, text
        assert box.y0 >= -1, text
        assert box.x1 <= size.x1 + 1, text
        assert box.y1 <= size.y1 + 1, text
    for (a, box_a), (b, box_b) in itertools.combinations(found.items(), 2):
        assert not box_a.overlaps(box_b), f"{a!r} lies over {b!r}"
    assert figure.get_figwidth() <= 16
    assert figure.get_figheight() <= 16


def test_a_map_that_is_not_complete_says_so():
    made = prediction((3000, 4000))
    made.record["partial"] = "5 of 80 tiles"
    figure = figure_module.draw_map(made, FakeSlide((3000, 4000)), figure_module.gene_shown(made, made.genes[0]), 400)
    assert "Partial: 5 of 80 tiles." in figure.get_supxlabel()


def test_it_says_gene_unit_trust_and_that_it_is_for_research():
    found = texts(drawn((3000, 4000), stride=16, bad=3))
    words = " | ".join(found)
    assert "ERBB2 (log1p CP10K)" in words
    assert "ERBB2, predicted\nheld-out PCC 0.62 (good)" in words
    assert RESEARCH_USE in words
    assert "Model tiny, tiles of 64 µm every 16 µm." in words
    assert "3 of " in words
    assert "tiles could not be read" in words
    assert "case" in found


def test_the_scale_bar_is_as_long_as_it_says():
    for shape, mpp in (((3000, 4000), 0.5), ((1500, 900), 0.25), ((90000, 120000), 0.25), ((5000, 40000), 2.0)):
        _, (axis, _), _ = figure_module._figure(shape[0] / shape[1])
        figure_module._scale_bar(axis, Rect(0, 0, *shape), mpp)
        (x0, x1), said = axis.lines[-1].get_xdata(), axis.texts[0].get_text()
        number, unit = said.split()
        assert (x1 - x0) * mpp == pytest.approx(float(number) * {"µm": 1, "mm": 1000}[unit])
        assert 0.05 < (x1 - x0) / shape[1] <= 0.25


def test_the_map_lies_where_its_tiles_are():
    figure = drawn((3000, 4000), mpp=(0.5, 0.25))
    heat = figure.axes[1].images[1]
    side_y, side_x = 64 / 0.5, 64 / 0.25
    rows, cols = heat.get_array().shape
    assert heat.get_extent() == pytest.approx([0, cols * side_x, rows * side_y, 0])
    for axis in figure.axes[:2]:
        assert axis.get_xlim() == (0, 4000)
        assert axis.get_ylim() == (3000, 0)


@pytest.mark.parametrize("readable", [True, False])
def test_of_a_small_region_the_picture_shows_the_region(readable):
    import shapely

    shape, box = (30000, 40000), (5000, 9000, 6000, 9600)
    tiles = TileTable.grid(shape, (0.5, 0.5), TileSpec(64, 1.0), region=shapely.box(*box))
    made = prediction((600, 900))
    x = np.zeros((len(tiles), 1), np.float16)
    made = Prediction(tiles, x, made.head, np.ones(len(tiles), bool), made.record)
    shown = figure_module.gene_shown(made, made.genes[0])
    figure = figure_module.draw_map(made, FakeSlide(shape, readable=readable), shown, 400)
    for axis in figure.axes[:2]:
        (x0, x1), (y1, y0) = axis.get_xlim(), axis.get_ylim()
        assert 4000 < x0 < box[0]
        assert box[2] < x1 < 7000
        assert 8000 < y0 < box[1]
        assert box[3] < y1 < 11000
        assert axis.images[0].get_extent() == pytest.approx([x0, x1, y1, y0] if readable else [0, 40000, 30000, 0])
    assert figure.axes[0].get_title() == "case, region"
    said, bar = figure.axes[0].texts[0].get_text(), figure.axes[0].lines[-1].get_xdata()
    assert said == f"{(bar[1] - bar[0]) * 0.5:.0f} µm"


@pytest.mark.parametrize(
    "values",
    [lambda n: np.full((n, 1), np.nan), lambda n: np.full((n, 1), 4.2), lambda n: np.zeros((n, 1)),
     lambda n: np.full((n, 1), -60000.0)],
    ids=["all unreadable", "all alike", "all zero", "all far below"],
)  # fmt: skip
def test_maps_without_contrast_are_drawn(values, tmp_path):
    shape = (600, 900)
    write_map(prediction(shape, values=values), FakeSlide(shape), "ERBB2", tmp_path / "a.png")
    assert opened(tmp_path / "a.png") == "PNG"


@pytest.mark.parametrize("name", ["$a_b$", "患者 12", "a\\b{c}%", "Łódź µ β", "__", "a" * 400])
def test_any_name_of_slide_and_gene_is_plain_text(name, tmp_path):
    shape = (600, 900)
    path = write_map(prediction(shape), FakeSlide(shape, name), GENES[1], tmp_path / "a.png")
    assert opened(path) == "PNG"
    assert "HLA-A/B $x^2$ (log1p CP10K)" in texts(drawn(shape, gene=GENES[1]))


def test_own_settings_of_matplotlib_do_not_change_it(tmp_path):
    import matplotlib

    shape = (600, 900)
    with matplotlib.rc_context({"text.usetex": True, "font.family": ["no such font"], "savefig.format": "pdf"}):
        path = write_map(prediction(shape), FakeSlide(shape), "ERBB2", tmp_path / "a.png")
        assert matplotlib.rcParams["text.usetex"], "and it leaves them as they were"
    assert opened(path) == "PNG"


def test_a_gene_by_its_id_is_drawn_under_its_symbol(tmp_path):
    shape = (600, 900)
    made = prediction(shape)
    assert write_map(made, FakeSlide(shape), "ENSG1", tmp_path / "a.png").exists()
    with pytest.raises(UnknownName, match="did you mean ERBB2"):
        write_map(made, FakeSlide(shape), "ERB2", tmp_path / "b.png")
    assert not (tmp_path / "b.png").exists()


def test_a_full_disk_leaves_no_half_picture(tmp_path, monkeypatch):
    def full(_fd):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StoreError, match="disk is full"):
        write_map(prediction((600, 900)), FakeSlide((600, 900)), "ERBB2", tmp_path / "a.png")
    assert not list(tmp_path.iterdir())


def test_the_colour_bar_says_where_values_go_beyond_it():
    beyond = figure_module._beyond
    values = np.array([0.0, 1.0, 2.0, np.nan])
    assert [beyond(values, *limits) for limits in ((0, 2), (0.5, 2), (0, 1), (0.5, 1))] == [
        "neither", "min", "max", "both",
    ]  # fmt: skip


@given(
    arrays(np.float32, array_shapes(max_dims=2, max_side=8), elements=st.floats(-1e4, 1e4, width=32) | st.just(np.nan))
)
def test_contrast_limits_are_always_a_range_that_can_be_drawn(values):
    low, high = contrast_limits(values)
    assert np.isfinite([low, high]).all()
    assert low < high
    finite = values[np.isfinite(values)]
    if len(finite) and np.ptp(finite) > 1:
        assert finite.min() - 0.51 <= low
        assert high <= finite.max() + 0.51


def test_small_values_keep_their_contrast():
    assert contrast_limits(np.array([1e-7, 2e-7])) == pytest.approx((1.02e-7, 1.98e-7))


@pytest.mark.parametrize(
    ("pcc", "text"),
    [(0.5, "held-out PCC 0.50 (good)"), (0.31, "held-out PCC 0.31 (fair)"), (0.2, "held-out PCC 0.20 (weak)"),
     (-0.1, "held-out PCC -0.10 (not predicted)"), (None, "held-out PCC not measured"),
     (float("nan"), "held-out PCC not measured")],
)  # fmt: skip
def test_trust_is_said_in_words(pcc, text):
    assert trust_text(pcc) == text


def hatched_area(figure):
    """Return the area that is hatched, in level-0 pixels."""
    from matplotlib.contour import ContourSet

    sets = [c for axes in figure.axes for c in axes.findobj(ContourSet)]
    return [sum(abs(polygon_area(p)) for p in c.get_paths()[0].to_polygons()) for c in sets]


def polygon_area(points):
    x, y = np.asarray(points).T
    return 0.5 * float(np.dot(x, np.roll(y, 1)) - np.dot(y, np.roll(x, 1)))


def test_the_title_says_where_a_genes_trust_is_not_that_of_this_slide():
    """A correlation that was measured elsewhere praises a map of tissue that the model has never seen."""
    shape = (1280, 1280)
    made = prediction(shape)
    for share, said in ((0.4, ""), (0.6, "but 60 % of this map is unlike the training data")):
        made.ood = np.where(np.arange(len(made.tiles)) < share * len(made.tiles), 99.5, 50).astype(np.float32)
        _, _, title = figure_module.gene_shown(made, "ERBB2").trust.partition("\n")
        assert title == said


@pytest.mark.parametrize("unlike", [0, 1, 7])
def test_tiles_unlike_the_training_data_are_hatched_and_said(unlike):
    shape = (1280, 1280)
    made = prediction(shape)
    made.ood = np.full(len(made.tiles), 50, np.float32)
    made.ood[:unlike] = 99.5
    figure = figure_module.draw_map(made, FakeSlide(shape), figure_module.gene_shown(made, "ERBB2"), 400)
    figure.canvas.draw()
    said = [t for t in texts(figure) if "Hatched" in t]
    if not unlike:
        assert not said
        assert not hatched_area(figure)
        return
    assert f"{percent(unlike / len(made.tiles))} of the tiles" in " ".join(said[0].split())
    tile = 128.0**2  # 64 px at 1 µm on a slide of 0.5
    assert hatched_area(figure) == pytest.approx([unlike * tile] * 2, rel=0.1)
