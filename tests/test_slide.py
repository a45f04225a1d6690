"""What a slide promises of its pixels, its resolution and its life, whatever the file."""

from __future__ import annotations

import pickle
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import tifffile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from napari_peka.core.errors import MissingResolution, SettingError, Undecodable
from napari_peka.core.geometry import Rect
from napari_peka.io.resample import Source, resample
from napari_peka.io.slide import Slide, open_slide
from slide_files import HALF_UM, damage, exact_slide, picture, reference, write_pyramid


@pytest.fixture(scope="module")
def exact(tmp_path_factory: pytest.TempPathFactory) -> Slide:
    return exact_slide(tmp_path_factory.mktemp("exact"))


# -- exactness ---------------------------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    y=st.floats(-60, 140), x=st.floats(-60, 160), h=st.floats(3, 120), w=st.floats(3, 120),
    mpp=st.floats(0.3, 4.0),
)  # fmt: skip
def test_read_block_is_exact(exact: Slide, y: float, x: float, h: float, w: float, mpp: float) -> None:
    rect = Rect(y, x, h, w)
    got = exact.read_block(rect, mpp)
    shape = max(1, round(h * 0.5 / mpp)), max(1, round(w * 0.5 / mpp))
    assert got.shape == (*shape, 3)
    want = reference(exact.read_level(0, 0, 0, *exact.shape), rect, shape)
    # two passes, each rounded to 8 bits
    assert np.abs(got - want).max() <= 1.6


@given(y=st.integers(-40, 160), x=st.integers(-40, 180), h=st.integers(1, 60), w=st.integers(1, 60))
@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_whole_pixels_are_copied(exact: Slide, y: int, x: int, h: int, w: int) -> None:
    image = np.pad(exact.read_level(0, 0, 0, *exact.shape), ((50, 100), (50, 100), (0, 0)), constant_values=255)
    np.testing.assert_array_equal(exact.read_block(Rect(y, x, h, w)), image[y + 50 : y + h + 50, x + 50 : x + w + 50])


def test_blocks_meet_without_a_seam(exact: Slide) -> None:
    whole = exact.read_block(Rect(0, 0, 96, 150), 1.5)
    parts = [exact.read_block(Rect(y, 0, 48, 150), 1.5) for y in (0, 48)]
    np.testing.assert_array_equal(whole, np.concatenate(parts))


def test_bands_change_nothing(exact: Slide, monkeypatch: pytest.MonkeyPatch) -> None:
    """A large flat image is resampled in bands of bounded memory."""
    whole = exact.read_block(Rect(-3.3, 2.2, 150, 160), 1.3)
    monkeypatch.setattr("napari_peka.io.resample.BAND_PX", 4000)
    banded = exact.read_block(Rect(-3.3, 2.2, 150, 160), 1.3)
    assert np.abs(whole.astype(int) - banded).max() <= 1


@pytest.mark.parametrize("full_width", [True, False])
def test_reads_of_a_large_level_are_bounded(monkeypatch: pytest.MonkeyPatch, full_width: bool) -> None:
    """Squares across tiles, bands across strips: each part is decoded about once."""
    monkeypatch.setattr("napari_peka.io.resample.BAND_PX", 400_000)
    reads: list[tuple[int, int]] = []

    def read(level: int, y: int, x: int, h: int, w: int) -> np.ndarray:
        reads.append((h, w))
        return np.zeros((h, w, 3), np.uint8)

    source = Source(read, 0, (8000, 10_000), (8000, 10_000), full_width)
    assert resample(source, (0, 0, 8000, 10_000), (400, 500), rim=False).shape == (400, 500, 3)
    assert max(h * w for h, w in reads) < 2 * 400_000
    assert sum(h * w for h, w in reads) < (4 if full_width else 1.6) * 80_000_000
    assert all((w == 10_000) == full_width for _, w in reads)


@pytest.mark.parametrize("factor", [3, 8])
def test_levels_that_miss_openslides_grid(tmp_path: Path, factor: int) -> None:
    """A level of 312 px below 2500: OpenSlide's factor is 8.01, and it interpolates where ours meets no pixel."""
    h, w = 2500 // factor, 1900 // factor
    y, x = np.mgrid[:h, :w]
    level = np.stack([128 + 100 * np.sin(y / 6), 128 + 100 * np.sin(x / 6), 0 * x], -1).astype(np.uint8)
    with tifffile.TiffWriter(tmp_path / "g.tif") as tif:
        for i, image in enumerate([np.zeros((2500, 1900, 3), np.uint8), level]):
            tif.write(image, tile=(128, 128), photometric="rgb", compression="lzw", subfiletype=i, metadata=None)
    with open_slide(tmp_path / "g.tif") as slide:
        reader = next(r for r in slide._readers if r.name == "openslide")
        for at in ((37, 51), (100, 60), (130, 129), (150, 180)):
            got = reader.read(1, *at, 50, 50).astype(float)
            want = level[at[0] : at[0] + 50, at[1] : at[1] + 50].astype(float)
            for axis in (0, 1):
                slope = np.gradient(want[..., axis], axis=axis)
                shift = ((got - want)[..., axis] * slope).sum() / (slope**2).sum()
                assert abs(shift) < 0.55 / factor


def test_coarsest_level_that_suffices(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_pyramid(tmp_path / "p.tif", picture(), subifds=True, compression="deflate", **HALF_UM)
    with open_slide(tmp_path / "p.tif") as slide:
        used: list[int] = []
        read = slide._read
        monkeypatch.setattr(slide, "_read", lambda level, *a: used.append(level) or read(level, *a))
        for mpp, level in [(0.25, 0), (0.5, 0), (0.99, 0), (1.0, 1), (1.9, 1), (2.0, 2), (9.0, 2)]:
            used.clear()
            slide.read_block(Rect(0, 0, 300, 300), mpp)
            assert set(used) == {level}, mpp


def test_levels_cut_short_have_whole_factors(tmp_path: Path) -> None:
    """1003 px halved twice are 250: factor 4, not 4.012, or the far edge shifts by 3 px and shows a white rim."""
    image = np.full((1003, 1003, 3), 90, np.uint8)
    write_pyramid(tmp_path / "p.tif", image, subifds=False, compression="deflate", **HALF_UM)
    with open_slide(tmp_path / "p.tif") as slide:
        assert slide.downsamples == [1, 2, 4]
        assert (slide.read_block(Rect(903, 903, 100, 100), 2.0)[:-1, :-1] == 90).all()
        assert (slide.thumbnail(200) == 90).all()


def test_pyramid_slices_like_an_array(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "flat.tif", picture(900, 4500), photometric="rgb", tile=(256, 256))
    with open_slide(tmp_path / "flat.tif") as slide:
        level = slide.pyramid[0]
        image = picture(900, 4500)
        keys = [np.s_[10:20, 30:50], np.s_[5], np.s_[..., 1], np.s_[::100, ::-50], np.s_[-3:, 4, :], np.s_[3:3]]
        for key in keys:
            np.testing.assert_array_equal(level[key], image[key])
        small = slide.pyramid[-1]
        assert small.shape == (225, 1125, 3)
        want = image.reshape(225, 4, 1125, 4, 3).mean((1, 3))
        assert np.abs(np.asarray(small) - want).mean() < 3
        np.testing.assert_array_equal(small[10:20, 5:9], np.asarray(small)[10:20, 5:9])


# -- µm per pixel ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("per_cm", "unit", "mpp"),
    [((20_000, 20_000), 3, 0.5), ((50_800, 50_800), 2, 0.5), ((20_000, 20_000), 1, None), ((72, 72), 2, None),
     ((20_000, 18_000), 3, None), ((20_000, 19_500), 3, 0.5)],
)  # fmt: skip
def test_resolution_tag(tmp_path: Path, per_cm: tuple[int, int], unit: int, mpp: float | None) -> None:
    tifffile.imwrite(tmp_path / "a.tif", picture(64, 64), photometric="rgb", resolution=per_cm, resolutionunit=unit)
    with open_slide(tmp_path / "a.tif") as slide:
        if mpp is None:
            assert slide.resolution is None
            assert bool(slide.warnings) == (unit != 1)
            with pytest.raises(MissingResolution, match="give it with"):
                slide.read_block(Rect(0, 0, 10, 10), 0.5)
        else:
            assert slide.mpp[1] == pytest.approx(mpp)


def test_override(tmp_path: Path) -> None:
    write_pyramid(tmp_path / "p.tif", picture(), subifds=True, compression="deflate", **HALF_UM)
    with open_slide(tmp_path / "p.tif", mpp=(0.3, 0.25)) as slide:
        assert slide.mpp == (0.3, 0.25)
        assert slide.info()["mpp_source"] == "given"
        assert slide.read_block(Rect(0, 0, 100, 100), 0.5).shape == (60, 50, 3)
    for bad in (0, -1, 0.001, 10, 20, 40, 500, float("nan"), (1, 2, 3), "x"):
        with pytest.raises(SettingError, match="mpp must"):
            open_slide(tmp_path / "p.tif", mpp=bad)  # type: ignore[arg-type]


def test_a_resolution_given_against_the_file_or_all_sense_is_warned_of(tmp_path: Path) -> None:
    write_pyramid(tmp_path / "p.tif", picture(), subifds=True, compression="deflate", **HALF_UM)
    for mpp, words in ((0.25, "the file says 0.5"), ((0.5, 0.6), "the file says 0.5"), (3.0, "which no scan")):
        with open_slide(tmp_path / "p.tif", mpp=mpp) as slide:
            assert any(words in w for w in slide.info()["warnings"]), mpp
    for mpp in (None, 0.5, 0.51):
        with open_slide(tmp_path / "p.tif", mpp=mpp) as slide:
            assert not slide.info()["warnings"]


# -- life --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("compression", ["jpeg", "deflate", None])
def test_threads(tmp_path: Path, compression: str | None) -> None:
    write_pyramid(tmp_path / "p.tif", picture(), subifds=False, compression=compression, **HALF_UM)
    rects = [Rect(y + 0.3, x, 150, 150) for y in range(0, 600, 100) for x in range(0, 700, 100)]
    with open_slide(tmp_path / "p.tif") as slide, ThreadPoolExecutor(8) as pool:
        together = list(pool.map(lambda r: slide.read_block(r, 0.7), rects * 2))
        for rect, got in zip(rects * 2, together):
            np.testing.assert_array_equal(got, slide.read_block(rect, 0.7))


def test_pickle_and_close(exact: Slide) -> None:
    again = pickle.loads(pickle.dumps(open_slide(exact.path, mpp=0.4)))
    assert again.mpp == (0.4, 0.4)
    again.close()
    assert again.fingerprint == exact.fingerprint


def test_one_thread_decodes_for_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A slide in one strip is a gigabyte: eight threads would hold eight of them."""
    tifffile.imwrite(tmp_path / "s.tif", picture(), photometric="rgb", compression="deflate", rowsperstrip=600)
    with open_slide(tmp_path / "s.tif") as slide, ThreadPoolExecutor(8) as pool:
        reader = slide._reader()
        decode, calls = reader.decode, []

        def slow(*key: int) -> np.ndarray:
            calls.append(key)
            time.sleep(0.2)
            return decode(*key)

        monkeypatch.setattr(reader, "decode", slow)
        parts = list(pool.map(lambda y: slide.read_level(0, y, 0, 50, 700), range(0, 600, 50)))
        np.testing.assert_array_equal(np.concatenate(parts), picture())
        assert len(calls) == 1


def test_fingerprint_is_of_the_content(tmp_path: Path) -> None:
    paths = [tmp_path / f"{i}.tif" for i in range(3)]
    tifffile.imwrite(paths[0], picture(), photometric="rgb")
    paths[1].write_bytes(paths[0].read_bytes())
    tifffile.imwrite(paths[2], picture() + 1, photometric="rgb")
    a, b, c = (open_slide(p).fingerprint for p in paths)
    assert a == b != c


def test_import_is_cheap() -> None:
    code = ("import sys, napari_peka.io.slide; heavy = {'openslide', 'tifffile', 'zarr', 'PIL', 'dask', 'torch'};"
            "assert not heavy & set(sys.modules), heavy & set(sys.modules)")  # fmt: skip
    subprocess.run([sys.executable, "-c", code], check=True)


_PEAK = r"""
import re, sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
import numpy, openslide, PIL.Image, psutil, tifffile
from napari_peka.core.geometry import Rect
from napari_peka.io.slide import open_slide

before = psutil.Process().memory_info().rss
with open_slide(sys.argv[1]) as slide, ThreadPoolExecutor(8) as pool:
    assert (slide.thumbnail() == (200, 140, 180)).all()
    rects = [Rect(y, 9 * y, 1800, 1800) for y in range(0, 4000, 100)]
    assert all((b == (200, 140, 180)).all() for b in pool.map(lambda r: slide.read_block(r, 0.5), rects))
peak = int(re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())[1])
print((peak * 1024 - before) >> 20)
"""


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["tiles", "strips"])
def test_a_large_slide_in_bounded_memory(tmp_path: Path, layout: str) -> None:
    """1.2 gigapixels without smaller levels: 3.6 GB once decoded."""
    # getrusage's maximum would do elsewhere too, but a child begins with its parent's
    if not Path("/proc/self/status").exists():
        pytest.skip("only Linux says how much memory a process had at most")
    tile = np.broadcast_to(np.array([200, 140, 180], np.uint8), (512, 512, 3))
    extra: dict[str, object] = {"data": np.broadcast_to(tile[0, 0], (30_000, 40_000, 3)), "rowsperstrip": 8}
    if layout == "tiles":
        many = (tile for _ in range(59 * 79))
        extra = {"data": many, "shape": (30_000, 40_000, 3), "dtype": "u1", "tile": (512, 512)}
    tifffile.imwrite(tmp_path / "l.tif", **extra, photometric="rgb", compression="deflate", metadata=None, **HALF_UM)
    out = subprocess.run([sys.executable, "-c", _PEAK, tmp_path / "l.tif"], check=True, capture_output=True, text=True)
    assert int(out.stdout) < 900


# -- real files --------------------------------------------------------------------------------------------------


def test_real_svs(shared_data: Path, tmp_path: Path) -> None:
    with open_slide(shared_data / "wsi" / "cmu_small_region.svs") as slide:
        assert slide.shape == (2967, 2220)
        assert slide.mpp == (0.499, 0.499)
        assert set(slide.associated) == {"label", "macro", "thumbnail"}
        assert slide.associated_image("macro").shape == (431, 1280, 3)
        blocks = [r.read(0, 1000, 1000, 300, 300).astype(int) for r in slide._readers]
        assert len(blocks) == 2
        assert np.abs(blocks[0] - blocks[1]).mean() < 1
    copy = tmp_path / "broken.svs"
    copy.write_bytes((shared_data / "wsi" / "cmu_small_region.svs").read_bytes())
    damage(copy, 0, 45, "hole")  # 10 tiles of 240 px a row: tile row 4, column 5
    with open_slide(copy) as slide:
        for reader in slide._readers:
            slide._pixels = reader
            with pytest.raises(Undecodable):
                slide.read_level(0, 1000, 1210, 100, 100)
            assert slide.read_level(0, 0, 0, 200, 200).shape == (200, 200, 3)


def test_real_tiff_with_an_absurd_resolution(shared_data: Path) -> None:
    with open_slide(shared_data / "wsi" / "slide.tiff") as slide:
        assert slide.downsamples == [1, 2, 4, 8, 16, 32]
        with pytest.raises(MissingResolution, match=r"claims 896.1 µm/px, outside 0.1-2.0"):
            _ = slide.mpp
        assert "896" in slide.warnings[0]


def test_real_jpeg_thumbnail(shared_data: Path) -> None:
    with open_slide(shared_data / "st" / "C2.jpg") as slide:
        small = slide.thumbnail(512)
        assert slide._readers[0]._pixels is None, "draft mode: the picture itself is not decoded"
        whole = np.asarray(Image.fromarray(slide.read_level(0, 0, 0, *slide.shape)).resize(small.shape[1::-1]))
        assert np.abs(small.astype(int) - whole).mean() < 4
