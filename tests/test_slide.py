"""Slides are made here, one for each kind of file; what each guards is said beside it."""

from __future__ import annotations

import pickle
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import tifffile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from napari_peka.core.errors import MissingResolution, SettingError, SlideError, Undecodable
from napari_peka.core.geometry import Rect
from napari_peka.io.slide import Slide, open_slide

HALF_UM = {"resolution": (20_000, 20_000), "resolutionunit": "CENTIMETER"}


def picture(h: int = 600, w: int = 700) -> np.ndarray:
    """Smooth enough for JPEG, different in y, x and colour, so that a swap shows."""
    y, x = np.mgrid[:h, :w]
    r = 128 + 100 * np.sin(y / 37) * np.cos(x / 53)
    return np.stack([r, 255 * y / h, 255 * x / w], -1).astype(np.uint8)


def halved(image: np.ndarray) -> np.ndarray:
    h, w = image.shape[0] // 2 * 2, image.shape[1] // 2 * 2
    return image[:h, :w].reshape(h // 2, 2, w // 2, 2, 3).mean((1, 3)).round().astype(np.uint8)


def write_pyramid(path: Path, image: np.ndarray, *, subifds: bool, levels: int = 3, **options: object) -> None:
    with tifffile.TiffWriter(path, bigtiff=True) as tif:
        options = {"photometric": "rgb", "tile": (128, 128), **options}
        tif.write(image, subifds=levels - 1 if subifds else None, **options)
        options.pop("resolution", None)
        options.pop("resolutionunit", None)
        for _ in range(levels - 1):
            image = halved(image)
            tif.write(image, subfiletype=1, **options)


def reference(image: np.ndarray, rect: Rect, shape: tuple[int, int], background: int = 255) -> np.ndarray:
    """Antialiased bilinear resampling, written plainly: a triangle around each output pixel's centre."""

    def weights(start: float, length: float, n: int, size: int, pad: int) -> np.ndarray:
        step = length / n
        centres = start + (np.arange(n) + 0.5) * step
        pixels = np.arange(-pad, size + pad) + 0.5
        k = np.maximum(0, 1 - np.abs(pixels - centres[:, None]) / max(1.0, step))
        return k / k.sum(1, keepdims=True)

    pad = 200
    wide = np.pad(image.astype(float), ((pad, pad), (pad, pad), (0, 0)), constant_values=background)
    wy = weights(rect.y, rect.h, shape[0], image.shape[0], pad)
    wx = weights(rect.x, rect.w, shape[1], image.shape[1], pad)
    return np.einsum("ij,jkc,lk->ilc", wy, wide, wx, optimize=True)


@pytest.fixture(scope="module")
def exact(tmp_path_factory: pytest.TempPathFactory) -> Slide:
    path = tmp_path_factory.mktemp("exact") / "exact.tif"
    rng = np.random.default_rng(0)
    tifffile.imwrite(
        path, rng.integers(0, 256, (151, 173, 3), np.uint8), photometric="rgb", tile=(64, 64),
        compression="deflate", **HALF_UM,
    )  # fmt: skip
    return open_slide(path)


# -- every kind of file ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", ["tiles", "strips", "one piece"])
@pytest.mark.parametrize("compression", [None, "lzw", "deflate", "jpeg", "jpeg2000"])
def test_tiff(tmp_path: Path, layout: str, compression: str | None) -> None:
    image = picture()
    extra = {"tiles": {"tile": (128, 128)}, "strips": {"rowsperstrip": 64}, "one piece": {}}[layout]
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, image, photometric="rgb", compression=compression, **extra, **HALF_UM)
    with open_slide(path) as slide:
        assert slide.shape == (600, 700)
        assert slide.mpp == pytest.approx((0.5, 0.5))
        got = slide.read_level(0, 100, 300, 333, 222)
        assert np.abs(got.astype(int) - image[100:433, 300:522]).mean() < (2 if compression == "jpeg" else 0.5)


@pytest.mark.parametrize("subifds", [True, False])
@pytest.mark.parametrize("compression", ["jpeg", "deflate"])
def test_pyramid(tmp_path: Path, subifds: bool, compression: str) -> None:
    write_pyramid(tmp_path / "p.tif", picture(), subifds=subifds, compression=compression, **HALF_UM)
    with open_slide(tmp_path / "p.tif") as slide:
        assert slide.level_shapes == [(600, 700), (300, 350), (150, 175)]
        assert slide.downsamples == [1, 2, 4]
        low = slide.read_level(2, 0, 0, 150, 175)
        assert np.abs(low.astype(int) - halved(halved(picture()))).mean() < 2


def test_ome_tiff_units_and_subifds(tmp_path: Path) -> None:
    with tifffile.TiffWriter(tmp_path / "o.ome.tif", ome=True) as tif:
        meta = {"axes": "YXS", "PhysicalSizeX": 250, "PhysicalSizeXUnit": "nm",
                "PhysicalSizeY": 0.25e-3, "PhysicalSizeYUnit": "mm"}  # fmt: skip
        tif.write(picture(), subifds=1, photometric="rgb", tile=(128, 128), metadata=meta)
        tif.write(halved(picture()), subfiletype=1, photometric="rgb", tile=(128, 128))
    with open_slide(tmp_path / "o.ome.tif") as slide:
        assert slide.name == "o"
        assert slide.mpp == pytest.approx((0.25, 0.25))
        assert slide.resolution is not None
        assert slide.resolution.source == "ome-xml"
        assert len(slide.level_shapes) == 2


@pytest.mark.parametrize(("zarr_format", "version"), [(2, "0.4"), (3, "0.5")])
@pytest.mark.parametrize("axes", ["tczyx", "cyx", "yxc"])
def test_ome_zarr(tmp_path: Path, zarr_format: int, version: str, axes: str) -> None:
    zarr = pytest.importorskip("zarr", minversion="3")
    image = picture(300, 400)
    path = tmp_path / "z.ome.zarr"
    group = zarr.open_group(str(path), mode="w", zarr_format=zarr_format)
    datasets = []
    for i, level in enumerate([image, halved(image)]):
        data = level if axes == "yxc" else level.transpose(2, 0, 1)
        data = data[None, :, None] if axes == "tczyx" else data
        chunks = tuple(64 if a in "yx" else 1 for a in axes)
        array = group.create_array(str(i), shape=data.shape, chunks=chunks, dtype="u1")
        array[:] = data
        scale = [0.5 * 2**i if a in "yx" else 1.0 for a in axes]
        datasets.append({"path": str(i), "coordinateTransformations": [{"type": "scale", "scale": scale}]})
    kinds = {"t": "time", "c": "channel"}
    multi = [{"version": version, "datasets": datasets, "axes": [
        {"name": a, "type": kinds.get(a, "space"), **({"unit": "micrometer"} if a in "zyx" else {})} for a in axes
    ]}]  # fmt: skip
    group.attrs.update({"multiscales": multi} if version == "0.4" else {"ome": {"multiscales": multi}})
    with open_slide(path) as slide:
        assert (slide.name, slide.vendor, slide.reader) == ("z", "ome-zarr", "zarr")
        assert slide.mpp == (0.5, 0.5)
        np.testing.assert_array_equal(slide.read_level(0, 10, 20, 200, 300), image[10:210, 20:320])
        np.testing.assert_array_equal(slide.read_level(1, 0, 0, 150, 200), halved(image))
        first = slide.fingerprint
    (path / ("zarr.json" if zarr_format == 3 else ".zattrs")).write_text("{}")
    with pytest.raises(SlideError, match=r"zarr: .*(multiscales|metadata)"):
        open_slide(path)
    assert len(first) == 64


@pytest.mark.parametrize("ending", ["png", "jpg"])
def test_plain_image_has_no_resolution(tmp_path: Path, ending: str) -> None:
    Image.fromarray(picture()).save(tmp_path / f"a.{ending}", dpi=(50_800, 50_800), quality=95)
    with open_slide(tmp_path / f"a.{ending}") as slide:
        assert slide.resolution is None
        with pytest.raises(MissingResolution, match=r"says nothing .* --mpp or mpp="):
            _ = slide.mpp
        assert np.abs(slide.read_block(Rect(5, 9, 50, 60)).astype(int) - picture()[5:55, 9:69]).mean() < 2
        assert slide.thumbnail(100).shape == (86, 100, 3)


def test_extension_does_not_matter(tmp_path: Path) -> None:
    Image.fromarray(picture()).save(tmp_path / "a.png")
    (tmp_path / "a.png").rename(tmp_path / "a.svs")
    with open_slide(tmp_path / "a.svs") as slide:
        assert slide.vendor == "png"


# -- colours -----------------------------------------------------------------------------------------------------


def _colours() -> dict[str, tuple[np.ndarray, dict[str, object], np.ndarray]]:
    image = picture(200, 256)
    alpha = np.zeros((200, 256), np.uint8)
    alpha[:, 128:] = 255
    over = np.where(alpha[..., None] == 255, image, 255)
    grey = image[..., 0]
    cmyk = np.concatenate([255 - image, np.zeros((200, 256, 1), np.uint8)], 2)
    return {
        "grey": (grey, {"photometric": "minisblack"}, np.repeat(grey[..., None], 3, 2)),
        "white is zero": (grey, {"photometric": "miniswhite"}, np.repeat(255 - grey[..., None], 3, 2)),
        "16 bit": (image.astype(np.uint16) * 257, {"photometric": "rgb"}, image),
        "rgba": (np.dstack([image, alpha]), {"photometric": "rgb", "extrasamples": ["unassalpha"]}, over),
        "planar": (image.transpose(2, 0, 1), {"photometric": "rgb", "planarconfig": "separate"}, image),
        "cmyk": (cmyk, {"photometric": "separated"}, image),
        "palette": (grey, {"photometric": "palette", "colormap": np.stack([np.arange(256) * 257] * 3).astype("u2")},
                    np.repeat(grey[..., None], 3, 2)),
    }  # fmt: skip


@pytest.mark.parametrize("kind", list(_colours()))
@pytest.mark.parametrize("tiled", [True, False])
def test_colours(tmp_path: Path, kind: str, tiled: bool) -> None:
    data, options, expected = _colours()[kind]
    extra = {"tile": (64, 64), "compression": "deflate"} if tiled else {}
    tifffile.imwrite(tmp_path / "c.tif", data, **options, **extra)
    with open_slide(tmp_path / "c.tif") as slide:
        got = slide.read_level(0, 0, 0, 200, 256)
        assert np.abs(got.astype(int) - expected).max() <= 1
        text = " ".join(slide.warnings)
        assert ("grey" in text) == (kind in ("grey", "white is zero"))
        assert ("16-bit" in text) == (kind == "16 bit")


@pytest.mark.parametrize("mode", ["RGBA", "CMYK", "L", "LA", "P", "I;16"])
def test_image_modes(tmp_path: Path, mode: str) -> None:
    rgb = Image.fromarray(picture(64, 64))
    if mode == "I;16":
        image = Image.fromarray(np.asarray(rgb.convert("L")).astype(np.uint16) * 257)
    else:
        image = rgb.convert(mode)
    path = tmp_path / ("a.jpg" if mode == "CMYK" else "a.png")
    image.save(path)
    with open_slide(path) as slide:
        grey = mode in ("L", "LA", "I;16")
        source = image if mode == "P" else rgb.convert("L") if grey else rgb
        expected = np.asarray(source.convert("RGB")).astype(int)
        got = slide.read_level(0, 0, 0, 64, 64)
        assert np.abs(got - expected).mean() < 6
        assert bool(slide.warnings) == grey


def test_fluorescence_is_refused(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "f.ome.tif", np.zeros((5, 64, 64), np.uint16), metadata={"axes": "CYX"})
    with pytest.raises(SlideError, match=r"5 separate channels.*fluorescence"):
        open_slide(tmp_path / "f.ome.tif")
    tifffile.imwrite(tmp_path / "f.tif", np.zeros((64, 64, 3), np.float32), photometric="rgb")
    with pytest.raises(SlideError, match="float32"):
        open_slide(tmp_path / "f.tif")


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
    for bad in (0, -1, 0.001, 500, float("nan"), (1, 2, 3), "x"):
        with pytest.raises(SettingError, match="mpp must"):
            open_slide(tmp_path / "p.tif", mpp=bad)  # type: ignore[arg-type]


# -- what is wrong with a file -----------------------------------------------------------------------------------


def test_files_that_are_no_slides(tmp_path: Path) -> None:
    (tmp_path / "empty.svs").touch()
    (tmp_path / "text.svs").write_text("hello " * 100)
    (tmp_path / "folder").mkdir()
    (tmp_path / "short.tif").write_bytes(b"II*\0\x08")
    sentences = {
        "gone.svs": "there is no file", "empty.svs": "empty",
        "text.svs": r"openslide: .*tifffile: not a TIFF; pillow: neither JPEG nor PNG", "folder": "holds no zarr",
        "short.tif": "tifffile: ",
    }  # fmt: skip
    for name, sentence in sentences.items():
        with pytest.raises(SlideError, match=sentence) as e:
            open_slide(tmp_path / name)
        assert "\n" not in str(e.value)


@pytest.mark.parametrize("name", ["a.tif", "a.jpg", "a.png"])
def test_truncated(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    if name == "a.tif":
        tifffile.imwrite(path, picture(), photometric="rgb", tile=(128, 128), compression="jpeg")
    else:
        Image.fromarray(picture()).save(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(SlideError, match="truncated"):
        open_slide(path)


def test_jpeg_with_its_middle_cut_out(tmp_path: Path) -> None:
    """The end marker is there, the data are not: must not come out with a grey lower half."""
    Image.fromarray(picture()).save(tmp_path / "a.jpg", quality=95)
    data = (tmp_path / "a.jpg").read_bytes()
    (tmp_path / "a.jpg").write_bytes(data[: len(data) // 2] + b"\xff\xd9")
    with open_slide(tmp_path / "a.jpg") as slide, pytest.raises(Undecodable):
        slide.thumbnail()


def test_too_many_pixels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.fromarray(picture()).save(tmp_path / "a.png")
    monkeypatch.setattr("napari_peka.io.readers.image.MAX_PIXELS", 1000)
    with pytest.raises(SlideError, match="pyramidal TIFF"):
        open_slide(tmp_path / "a.png")


def damage(path: Path, page: int, tile: int, how: str) -> None:
    with tifffile.TiffFile(path) as tif:
        offset, n = tif.pages[page].dataoffsets[tile], tif.pages[page].databytecounts[tile]
    data = bytearray(path.read_bytes())
    if how == "hole":
        data[offset + n // 2 : offset + n // 2 + n // 3] = bytes(n // 3)
    elif how == "noise":
        noise = np.random.default_rng(1).integers(0, 256, n - n // 3, np.uint8).tobytes()
        data[offset + n // 3 : offset + n] = noise
    else:
        data[offset : offset + n] = bytes(n)
    path.write_bytes(data)


@pytest.mark.parametrize("compression", ["jpeg", "deflate", "lzw", "jpeg2000"])
@pytest.mark.parametrize("how", ["hole", "noise", "all"])
@pytest.mark.parametrize("reader", ["openslide", "tifffile"])
def test_a_damaged_tile_raises(tmp_path: Path, compression: str, how: str, reader: str) -> None:
    """OpenSlide notices; libjpeg behind imagecodecs only warns, hence the strict parser."""
    if compression in ("lzw", "jpeg2000") and how != "all":
        pytest.skip("has no checksum: other bytes are another picture")
    if reader == "openslide" and (compression == "deflate" or (compression, how) == ("jpeg", "hole")):
        pytest.skip("OpenSlide does not notice; see its reader's docstring")
    rng = np.random.default_rng(0)
    image = picture() // 2 + rng.integers(0, 60, (600, 700, 3), np.uint8)
    path = tmp_path / "d.tif"
    tifffile.imwrite(path, image, photometric="rgb", tile=(256, 256), compression=compression)
    damage(path, 0, 4, how)
    with open_slide(path) as slide:
        picked = [r for r in slide._readers if r.name == reader]
        if not picked:
            pytest.skip(f"{reader} does not open it")
        slide._pixels = picked[0]
        with pytest.raises(Undecodable, match=r"d\.tif: level 0, rows .* cannot be decoded"):
            slide.read_level(0, 300, 300, 50, 50)
        assert slide.read_level(0, 0, 0, 200, 200).std() > 1  # the rest goes on


def test_the_surer_reader_is_preferred(exact: Slide) -> None:
    assert {r.name for r in exact._readers} == {"openslide", "tifffile"}
    assert exact.reader == "tifffile"


def test_one_retry_with_a_fresh_handle(exact: Slide, monkeypatch: pytest.MonkeyPatch) -> None:
    reader = exact._reader()
    calls = []
    read = reader.read

    def flaky(*block: int) -> np.ndarray:
        calls.append(block)
        if len(calls) == 1:
            raise OSError("the network drive hiccuped")
        return read(*block)

    monkeypatch.setattr(reader, "read", flaky)
    assert exact.read_level(0, 0, 0, 10, 10).shape == (10, 10, 3)
    assert len(calls) == 2


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
