"""Where the tissue is: on real slides, on the same slides made worse, and where there is none."""

from __future__ import annotations

import io
import time
from dataclasses import dataclass

import numpy as np
import pandas as pd
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw, ImageFilter
from scipy import ndimage

import napari_peka as peka
from napari_peka.core.raster import Raster
from napari_peka.infer.tissue import Tissue, tissue_mask

ST_MPP = 0.687
#: places (y, x) on the thumbnail of the embedded slide, looked up by eye
ON_TISSUE = [(900, 400), (620, 430), (300, 420), (130, 345), (370, 200), (715, 470), (850, 580), (1015, 300)]
ON_GLASS = [(60, 60), (60, 700), (600, 100), (500, 720), (150, 440), (960, 60), (460, 560)]


@pytest.fixture(scope="module")
def thumbnail() -> np.ndarray:
    """Thumbnail of the embedded slide, 1024 x 766 px."""
    return peka.open_slide(peka.sample_slide()).thumbnail(1024)


@pytest.fixture(scope="module")
def found(thumbnail) -> np.ndarray:
    """Mask of the embedded slide, which the tests with places looked up by eye judge."""
    return tissue_mask(thumbnail)


def iou(a: np.ndarray, b: np.ndarray) -> float:
    return float((a & b).sum() / (a | b).sum())


def at(mask: np.ndarray, places: list[tuple[int, int]]) -> list[bool]:
    return [bool(mask[place]) for place in places]


def pale(image: np.ndarray, white: float) -> np.ndarray:
    return (image * (1 - white) + 255 * white).round().astype(np.uint8)


def blurred(image: np.ndarray, radius: float) -> np.ndarray:
    return np.asarray(Image.fromarray(image).filter(ImageFilter.GaussianBlur(radius)))


def through(image: np.ndarray, colour: tuple[int, int, int] | np.ndarray) -> np.ndarray:
    """What the image looks like when the light has this colour."""
    return (image * (np.asarray(colour) / 255)).round().astype(np.uint8)


def uneven(image: np.ndarray) -> np.ndarray:
    """Lit at the left, with half of the light gone at the right and some at the corners."""
    y, x = np.mgrid[-1 : 1 : image.shape[0] * 1j, -1 : 1 : image.shape[1] * 1j]
    return through(image, 255 * (1 - 0.5 * (0.35 * (x + 1) + 0.15 * (x**2 + y**2)))[..., None])


def jpeg(image: np.ndarray, quality: int) -> np.ndarray:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=quality)
    return np.asarray(Image.open(buffer))


def painted(glass: tuple[int, int, int] = (244, 243, 245), seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Return a drawn section of 600 x 800 px with a lumen, and where its tissue is."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:600, :800]
    inside = ((y - 300) / 220) ** 2 + ((x - 400) / 300) ** 2 < 1
    inside &= ((y - 280) / 50) ** 2 + ((x - 470) / 70) ** 2 > 1
    eosin, haematoxylin = np.array([0.06, 0.42, 0.25]), np.array([0.65, 0.70, 0.29])
    nuclei = ndimage.gaussian_filter(rng.normal(size=y.shape), 3) > 0.12
    density = (0.7 + 0.3 * rng.random(y.shape))[..., None] * eosin + 0.8 * nuclei[..., None] * haematoxylin
    density = ndimage.gaussian_filter(density * inside[..., None], (1, 1, 0))
    image = np.array(glass) * 10**-density + rng.normal(0, 1, y.shape)[..., None]
    return np.clip(image, 0, 255).round().astype(np.uint8), inside


# -- a slide ---------------------------------------------------------------------------------------------------------


def test_find_tissue_gives_mask_scale_and_area(tissue_tiff):
    with peka.open_slide(tissue_tiff) as slide:
        tissue = peka.find_tissue(slide)
    y, x = np.mgrid[:3000, :4000]
    truth = ((y - 1500) / 1200) ** 2 + ((x - 2000) / 1700) ** 2 < 1
    assert tissue.mask.data.dtype == bool
    assert np.array(tissue.mask.data.shape) * tissue.mask.scale_yx == pytest.approx((3000, 4000))
    rows = np.minimum(np.arange(3000) / tissue.mask.scale_yx[0], tissue.mask.data.shape[0] - 1).astype(int)
    cols = np.minimum(np.arange(4000) / tissue.mask.scale_yx[1], tissue.mask.data.shape[1] - 1).astype(int)
    assert iou(tissue.mask.data[np.ix_(rows, cols)], truth) > 0.98
    assert tissue.share == pytest.approx(truth.mean(), rel=0.02)
    assert tissue.area_mm2 == pytest.approx(truth.sum() * 0.5**2 / 1e6, rel=0.02)
    assert tissue.polygons().area == pytest.approx(truth.sum(), rel=0.02)


@given(st.lists(st.floats(3, 90), min_size=2, max_size=2))
@settings(max_examples=5, deadline=None)
def test_a_higher_threshold_finds_less(thumbnail, thresholds):
    few, many = (tissue_mask(thumbnail, threshold=t) for t in sorted(thresholds, reverse=True))
    assert few.sum() <= many.sum()


def test_the_threshold_that_was_found_finds_the_same_again():
    with peka.open_slide(peka.sample_slide()) as slide:
        by_itself = peka.find_tissue(slide)
        again = peka.find_tissue(slide, threshold=by_itself.threshold)
    np.testing.assert_array_equal(by_itself.mask.data, again.mask.data)


def test_area_is_none_when_nobody_knows_the_mpp(tmp_path):
    Image.fromarray(painted()[0]).save(tmp_path / "no_mpp.png")
    tissue = peka.find_tissue(peka.open_slide(tmp_path / "no_mpp.png"))
    assert tissue.mpp is None
    assert tissue.area_mm2 is None
    assert tissue.share > 0.3
    given_ = peka.find_tissue(peka.open_slide(tmp_path / "no_mpp.png", mpp=0.5))
    assert given_.area_mm2 == pytest.approx(tissue.mask.data.sum() * 0.25e-6)


def test_area_with_pixels_that_are_not_square():
    data = np.zeros((4, 5), bool)
    data[1:3, 1:4] = True
    assert Tissue(Raster(data, (10.0, 20.0)), (0.25, 0.5)).area_mm2 == pytest.approx(6 * 10 * 0.25 * 20 * 0.5 / 1e6)


@dataclass
class Huge:
    """A slide of 40 gigapixels that can only give its thumbnail."""

    image: np.ndarray
    shape: tuple[int, int] = (180_000, 240_000)
    resolution: None = None

    def thumbnail(self, max_px: int = 1024) -> np.ndarray:
        assert max_px <= 1024
        return self.image


def test_only_the_thumbnail_is_read():
    tissue = peka.find_tissue(Huge(painted()[0]))
    assert tissue.mask.scale_yx == (300, 300)
    assert tissue.polygons().bounds[2] == pytest.approx(700 * 300, rel=0.02)


def test_it_takes_well_under_a_second(thumbnail):
    taken = []
    for _ in range(3):
        start = time.thread_time()  # what other processes take is not ours
        tissue_mask(thumbnail)
        taken.append(time.thread_time() - start)
    assert min(taken) < 0.8


@pytest.mark.parametrize("bad", [np.zeros((9, 9), np.uint8), np.zeros((9, 9, 4), np.uint8), np.zeros((9, 9, 3))])
def test_what_is_no_overview_is_refused(bad):
    with pytest.raises(ValueError, match="an overview is uint8"):
        tissue_mask(bad)


# -- the embedded slide, and what happens to slides -----------------------------------------------------------------


def test_the_embedded_slide(found):
    assert all(at(found, ON_TISSUE))
    assert not any(at(found, ON_GLASS))
    assert 0.36 < found.mean() < 0.41


#: what happens to a slide, and the least agreement with what was found before
WORSE = {
    "half faded": (lambda i: pale(i, 0.5), 0.94),
    "faded": (lambda i: pale(i, 0.7), 0.90),
    "out of focus": (lambda i: blurred(i, 6), 0.90),
    "far out of focus": (lambda i: blurred(i, 12), 0.87),
    "faded and out of focus": (lambda i: blurred(pale(i, 0.6), 6), 0.88),
    "yellow light": (lambda i: through(i, (255, 240, 200)), 0.96),
    "grey light": (lambda i: through(i, (190, 190, 190)), 0.96),
    "uneven light": (uneven, 0.96),
    "overexposed": (lambda i: np.clip(i.astype(int) + 25, 0, 255).astype(np.uint8), 0.95),
    "coarse JPEG": (lambda i: jpeg(i, 15), 0.93),
}


@pytest.mark.parametrize("kind", WORSE)
def test_a_worse_image_of_the_same_tissue(thumbnail, found, kind):
    change, least = WORSE[kind]
    mask = tissue_mask(change(thumbnail))
    assert iou(mask, found) > least
    assert not any(at(mask, ON_GLASS[:4]))


@pytest.mark.parametrize("fill", [0, 3, 255])
def test_what_a_scanner_fills_in_is_neither_glass_nor_tissue(thumbnail, found, fill):
    mask = tissue_mask(np.pad(thumbnail, ((120, 120), (60, 200), (0, 0)), constant_values=fill))
    inner = mask[120:-120, 60:-200]
    assert iou(inner, found) > 0.95
    assert mask.sum() - inner.sum() < (0.005 * mask.sum() if fill == 255 else 1)


@pytest.mark.parametrize("fill", [0, 255])
def test_fill_around_grey_and_tinted_glass(fill):
    for glass in ((190, 190, 192), (235, 219, 234)):
        image, truth = painted(glass)
        mask = tissue_mask(np.pad(image, ((80, 80), (80, 80), (0, 0)), constant_values=fill))
        assert iou(mask[80:-80, 80:-80], truth) > 0.9


def test_a_frozen_section_full_of_ice_holes(thumbnail, found):
    noise = ndimage.gaussian_filter(np.random.default_rng(0).normal(size=found.shape), 6)
    ice = noise > noise.std()
    image = thumbnail.copy()
    image[ice] = (245, 243, 243)
    mask = tissue_mask(blurred(pale(image, 0.45), 1.2))
    assert mask[found & ~ndimage.binary_dilation(ice, iterations=4)].mean() > 0.93
    assert not any(at(mask, ON_GLASS[:4]))
    large = ndimage.binary_erosion(ice & found, iterations=9)  # the middle of the large holes
    assert large.sum() > 500
    assert mask[large].mean() < 0.35


PENS = {"green": (20, 130, 70), "blue": (25, 45, 150), "black": (25, 25, 28), "red": (200, 25, 40)}


def marked(image: np.ndarray, colour: tuple[int, int, int], cover: float) -> tuple[np.ndarray, np.ndarray]:
    """Draw on the slide: a line over glass, one over tissue and a ring; return it, and where any ink is."""
    h, w = image.shape[:2]
    stroke = Image.new("L", (w, h), 0)
    draw = ImageDraw.Draw(stroke)
    draw.line([(w * 0.05, h * 0.25), (w * 0.25, h * 0.2), (w * 0.3, h * 0.28)], fill=255, width=22)
    draw.line([(w * 0.3, h * 0.45), (w * 0.6, h * 0.95)], fill=255, width=22)
    draw.ellipse([w * 0.8, h * 0.5, w * 0.97, h * 0.65], outline=255, width=22)
    ink = np.asarray(stroke.filter(ImageFilter.GaussianBlur(1.5)), float)[..., None] / 255 * cover
    return through(image, 255 * (1 - ink) + ink * np.array(colour)), ink[..., 0] > 0.02


@pytest.mark.parametrize("colour", PENS)
@pytest.mark.parametrize("cover", [0.85, 0.98])
def test_pen_marks_are_no_tissue_and_what_is_beside_them_is(thumbnail, found, colour, cover):
    image, ink = marked(thumbnail, PENS[colour], cover)
    mask = tissue_mask(image)
    on_glass = ink & ~ndimage.binary_dilation(found, iterations=6)
    assert on_glass.sum() > 8000
    assert mask[on_glass].mean() < 0.01
    assert mask[found & ~ndimage.binary_dilation(ink, iterations=12)].mean() > 0.96
    if colour != "red":  # red ink over eosin is as red as blood
        deep = ndimage.binary_erosion(ink, iterations=5) & found
        assert mask[deep].mean() < 0.15


def test_a_pale_blue_pen_is_no_haematoxylin(thumbnail, found):
    image, ink = marked(thumbnail, PENS["blue"], 0.5)
    assert tissue_mask(image)[ink & ~ndimage.binary_dilation(found, iterations=6)].mean() < 0.02


@pytest.mark.parametrize("glass", [(244, 243, 245), (255, 255, 255), (190, 190, 192), (235, 219, 234), (240, 226, 190)])
def test_the_colour_of_the_glass_is_measured(glass):
    image, truth = painted(glass)
    assert iou(tissue_mask(image), truth) > 0.93


def test_fiducials_dust_and_a_smear_of_eosin_are_no_tissue():
    image, truth = painted()
    picture = Image.fromarray(image)
    draw = ImageDraw.Draw(picture)
    for x in range(15, 800, 16):  # rings of grey, as around a Visium area
        draw.ellipse([x - 5, 15, x + 5, 25], outline=(150, 148, 152), width=2)
    draw.ellipse([40, 520, 70, 550], fill=(120, 121, 120))
    y, x = np.mgrid[:600, :800]
    smear = 0.06 * np.exp(-(((y - 480) / 90) ** 2 + ((x - 700) / 90) ** 2))[..., None]
    mask = tissue_mask(through(np.asarray(picture), 255 * 10 ** -(smear * np.array([0.2, 1.6, 1.0]))))
    assert not mask[~ndimage.binary_dilation(truth, iterations=16)].any()  # where a smear begins has no sharp edge
    assert mask[~ndimage.binary_dilation(truth, iterations=5)].sum() < 500
    assert mask[truth].mean() > 0.97


def test_small_pieces_are_left_out_and_how_small_can_be_said():
    image, _ = painted()
    piece = image[300:324, 250:274]
    image[560:584, 20:44] = piece
    assert tissue_mask(image)[572, 32]
    assert not tissue_mask(image, min_area=1e-2)[572, 32]
    assert tissue_mask(image, min_area=1e-2)[300, 250]


# -- nothing, or nothing else -------------------------------------------------------------------------------------


@pytest.mark.parametrize("colour", [(255, 255, 255), (244, 244, 244), (200, 200, 200), (235, 219, 234), (0, 0, 0)])
@pytest.mark.parametrize("noise", [0, 4])
def test_an_empty_slide_has_no_tissue(colour, noise):
    image = np.array(colour) + np.random.default_rng(0).normal(0, noise, (400, 600, 1))
    mask = tissue_mask(np.clip(np.broadcast_to(image, (400, 600, 3)), 0, 255).astype(np.uint8))
    assert not mask.any()
    assert Tissue(Raster(mask, (8.0, 8.0)), (0.5, 0.5)).area_mm2 == 0
    assert Tissue(Raster(mask, (8.0, 8.0))).polygons().is_empty


def test_a_slide_of_nothing_but_tissue(thumbnail):
    for y0, y1, x0, x1 in ((850, 1020, 300, 500), (560, 640, 380, 420), (700, 900, 280, 480)):
        crop = np.ascontiguousarray(thumbnail[y0:y1, x0:x1])
        assert tissue_mask(crop).mean() > 0.85
        assert tissue_mask(blurred(crop, 6)).mean() > 0.9
    assert tissue_mask(np.full((300, 300, 3), (200, 130, 180), np.uint8)).all()


@pytest.mark.parametrize("shape", [(1, 1), (1, 700), (700, 1), (2, 2), (3, 900), (50, 50), (5, 5000)])
def test_any_shape_is_taken(thumbnail, shape):
    image = np.asarray(Image.fromarray(thumbnail).resize(shape[::-1], Image.Resampling.BOX))
    assert tissue_mask(image).shape == shape
    assert not tissue_mask(np.full((*shape, 3), 245, np.uint8)).any()


def test_a_tiny_overview_is_rough_but_right(thumbnail, found):
    mask = tissue_mask(np.asarray(Image.fromarray(thumbnail).resize((100, 134), Image.Resampling.BOX)))
    full = np.asarray(Image.fromarray(mask).resize(found.shape[::-1], Image.Resampling.NEAREST))
    assert iou(full, found) > 0.85


# -- outlines --------------------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 2**32 - 1), st.integers(1, 14), st.integers(1, 14), st.floats(0.05, 1),
    st.tuples(st.floats(0.5, 300), st.floats(0.5, 300)), st.tuples(st.floats(-500, 500), st.floats(-500, 500)),
)  # fmt: skip
def test_polygons_cover_exactly_the_mask(seed, h, w, density, scale, origin):
    data = np.random.default_rng(seed).random((h, w)) < density
    outlines = Tissue(Raster(data, scale, origin)).polygons()
    assert outlines.geom_type == "MultiPolygon"
    assert outlines.is_valid
    assert outlines.area == pytest.approx(data.sum() * scale[0] * scale[1], rel=1e-9)
    y, x = np.indices(data.shape).reshape(2, -1) + 0.5
    inside = shapely.contains_xy(outlines, x * scale[1] + origin[1], y * scale[0] + origin[0])
    assert (inside == data.ravel()).all()


def test_polygons_have_holes_and_put_x_first():
    data = np.zeros((5, 9), bool)
    data[1:4, 2:8] = True
    data[2, 4] = False
    (outline,) = Tissue(Raster(data, (10.0, 100.0), (0.0, 5000.0))).polygons().geoms
    assert outline.bounds == (5200, 10, 5800, 40)
    assert [shapely.Polygon(hole).bounds for hole in outline.interiors] == [(5400, 20, 5500, 30)]


# -- real slides -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["C2", "C3", "C4", "C5"])
def test_sections_of_spatial_transcriptomics(shared_data, name):
    tissue = peka.find_tissue(peka.open_slide(shared_data / "st" / f"{name}.jpg", mpp=ST_MPP))
    spots = pd.read_csv(shared_data / "st" / f"{name}_selection.tsv", sep="\t")
    spots = spots[spots.selected == 1]
    where = (spots[["pixel_y", "pixel_x"]].to_numpy() / tissue.mask.scale_yx).astype(int)
    assert tissue.mask.data[tuple(where.T)].mean() > 0.98
    # a spot stands for 200 x 200 µm, and the mask is not much more than the spots
    assert len(spots) * 0.04 * 0.9 < tissue.area_mm2 < len(spots) * 0.04 * 1.15
    h, w = tissue.mask.data.shape
    far = np.ones((h, w), bool)
    far[tuple(where.T)] = False
    far = ndimage.distance_transform_edt(far) * tissue.mask.scale_yx[0] * ST_MPP > 500
    assert far.sum() > 0.5 * far.size
    assert tissue.mask.data[far].mean() < 0.001  # pink smears, arrayed dots and dust


def test_a_real_visium_image_with_its_fiducials(shared_data):
    folder = shared_data / "visium" / "spaceranger_v1" / "spatial"
    tissue = peka.find_tissue(peka.open_slide(folder / "tissue_lowres_image.png"))
    columns = ["barcode", "in_tissue", "row", "col", "y", "x"]
    spots = pd.read_csv(folder / "tissue_positions_list.csv", header=None, names=columns)
    where = (spots[["y", "x"]].to_numpy() * 0.045004502).astype(int)
    on = tissue.mask.data[tuple(where.T)]
    assert on[spots.in_tissue == 1].mean() > 0.99
    assert on[spots.in_tissue == 0].mean() < 0.12
    assert len(tissue.polygons().geoms) == 1  # and no fiducial
    assert tissue.area_mm2 is None


def test_a_blank_image_in_a_real_folder(shared_data):
    folder = shared_data / "visium" / "spaceranger_v1" / "spatial"
    assert peka.find_tissue(peka.open_slide(folder / "tissue_hires_image.png")).share == 0


@pytest.mark.parametrize("name", ["slide.tiff", "slide.jpeg"])
def test_glands_whose_lumina_are_holes(shared_data, name):
    tissue = peka.find_tissue(peka.open_slide(shared_data / "wsi" / name, mpp=0.5))
    mask = tissue.mask.data
    assert mask.shape == (1024, 1024)
    assert 0.68 < tissue.share < 0.80
    assert all(at(mask, [(360, 300), (950, 600), (100, 620), (700, 640), (500, 620), (460, 100)]))
    assert not any(at(mask, [(620, 220), (50, 260), (400, 960), (950, 280), (900, 850), (500, 440)]))


def test_a_real_slide_with_ink(shared_data):
    tissue = peka.find_tissue(peka.open_slide(shared_data / "wsi" / "slide_with_ink.jpeg", mpp=0.5))
    mask = tissue.mask.data
    assert all(at(mask, [(50, 60), (90, 130), (75, 300), (80, 450), (95, 620), (130, 580), (110, 750), (95, 980)]))
    assert not any(at(mask, [(165, 700), (160, 715), (155, 695), (12, 560), (150, 300), (30, 900), (68, 770)]))
    assert 0.26 < tissue.share < 0.33


def test_faded_tissue_that_fills_the_image_is_not_taken_for_the_glass(shared_data):
    image = peka.open_slide(shared_data / "wsi" / "slide.tiff", mpp=0.5).thumbnail(1024)
    faded = tissue_mask(pale(image, 0.7))  # there is six times as much of it as of the glass
    assert iou(faded, tissue_mask(image)) > 0.95


@pytest.mark.parametrize("fill", [0, 255])
def test_fill_around_a_long_real_section(shared_data, fill):
    image = peka.open_slide(shared_data / "wsi" / "slide_with_ink.jpeg", mpp=0.5).thumbnail(1024)
    filled = tissue_mask(np.pad(image, ((120, 120), (60, 120), (0, 0)), constant_values=fill))
    assert iou(filled[120:-120, 60:-120], tissue_mask(image)) > 0.9


def test_a_real_aperio_slide(shared_data):
    with peka.open_slide(shared_data / "wsi" / "cmu_small_region.svs") as slide:
        tissue = peka.find_tissue(slide)
        assert tissue.mpp == slide.mpp
    assert 0.59 < tissue.area_mm2 < 0.67
    assert all(at(tissue.mask.data, ON_TISSUE))
    assert not any(at(tissue.mask.data, ON_GLASS))
