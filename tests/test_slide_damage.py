"""What is wrong with a file is said when it is opened, or raised where it is read; never white, never black."""

from __future__ import annotations

import os
import struct
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from napari_peka.core.errors import SlideError, Undecodable
from napari_peka.io.lazy import UNREADABLE, levels_of
from napari_peka.io.slide import Slide, open_slide
from slide_files import damage, exact_slide, patch_tag, picture


@pytest.fixture(scope="module")
def exact(tmp_path_factory: pytest.TempPathFactory) -> Slide:
    return exact_slide(tmp_path_factory.mktemp("exact"))


# -- files that are refused ---------------------------------------------------------------------------------------


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


def test_paths_that_are_no_files(tmp_path: Path) -> None:
    """A pipe would be waited for, for ever."""
    sentences = {str(tmp_path / ("x" * 300)): "cannot be opened", str(tmp_path / "a\0b"): "there is no file"}
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe")
        sentences[str(tmp_path / "pipe")] = "a pipe or a device"
    for path, sentence in sentences.items():
        with pytest.raises(SlideError, match=sentence):
            open_slide(path)


def test_a_folder_of_dicom(tmp_path: Path) -> None:
    (tmp_path / "1.dcm").touch()
    with pytest.raises(SlideError, match="of a DICOM slide open one of its files"):
        open_slide(tmp_path)


def test_a_table_of_contents_cut_short(tmp_path: Path) -> None:
    """20 of 30 tiles: OpenSlide would show the others as it pleases."""
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, picture(), photometric="rgb", tile=(128, 128), compression="deflate")
    for name in ("TileOffsets", "TileByteCounts"):
        patch_tag(path, name, struct.pack("<I", 20), at=4)
    with pytest.raises(SlideError, match="it names 20 of 30 parts"):
        open_slide(path)


def test_no_width(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    planes = picture().transpose(2, 0, 1)
    tifffile.imwrite(path, planes, photometric="rgb", planarconfig="separate", tile=(128, 128), metadata=None)
    patch_tag(path, "ImageWidth", struct.pack("<HII", 4, 1, 0))
    with pytest.raises(SlideError, match=r"a\.tif .*it holds no image"):
        open_slide(path)


def test_tiles_beyond_all_memory(tmp_path: Path) -> None:
    """OpenSlide would ask for it and, refused, end the whole process."""
    path = tmp_path / "a.svs"
    text = "Aperio Image Library v11\r\n700x600 (128x128) JPEG/RGB Q=70|AppMag = 20|MPP = 0.4990"
    tifffile.imwrite(
        path, picture(), photometric="rgb", tile=(128, 128), compression="jpeg", description=text, metadata=None
    )
    patch_tag(path, "TileLength", struct.pack("<HII", 4, 1, 1 << 30))
    with pytest.raises(SlideError, match=r"tiles of 1,073,741,824 × 128 px"):
        open_slide(path)


def test_too_many_pixels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.fromarray(picture()).save(tmp_path / "a.png")
    monkeypatch.setattr("napari_peka.io.readers.image.MAX_PIXELS", 1000)
    with pytest.raises(SlideError, match="pyramidal TIFF"):
        open_slide(tmp_path / "a.png")


# -- parts that cannot be decoded ---------------------------------------------------------------------------------


@pytest.mark.parametrize("compression", ["jpeg", "deflate", "lzw", "jpeg2000", "webp", "zstd"])
@pytest.mark.parametrize("how", ["hole", "noise", "all"])
@pytest.mark.parametrize("reader", ["openslide", "tifffile"])
def test_a_damaged_tile_raises(tmp_path: Path, compression: str, how: str, reader: str) -> None:
    """OpenSlide notices; libjpeg behind imagecodecs only warns, hence the strict parser.

    The decoders of JPEG 2000 and WebP say nothing at all.
    """
    if (compression == "lzw" and how != "all") or (compression in ("jpeg2000", "webp") and how == "noise"):
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


def test_a_jpeg_between_restart_markers(tmp_path: Path) -> None:
    """With restart markers a decoder finds its way again, and shows something in between without a word."""
    Image.fromarray(picture()).save(tmp_path / "a.jpg", quality=95, restart_marker_rows=1)
    data = bytearray((tmp_path / "a.jpg").read_bytes())
    at = data.index(b"\xff\xd3", len(data) // 3)
    data[at - 40 : at + 40] = bytes(80)
    (tmp_path / "a.jpg").write_bytes(data)
    with open_slide(tmp_path / "a.jpg") as slide, pytest.raises(Undecodable):
        slide.read_level(0, 0, 0, 10, 10)


def test_a_damaged_picture_is_decoded_twice_and_no_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is tried for each block, and each of its tiles: for a large picture that would take hours."""
    Image.fromarray(picture()).save(tmp_path / "a.png")
    damage_at = (tmp_path / "a.png").stat().st_size // 2
    data = bytearray((tmp_path / "a.png").read_bytes())
    data[damage_at : damage_at + 50] = bytes(50)
    (tmp_path / "a.png").write_bytes(data)
    with open_slide(tmp_path / "a.png") as slide:
        calls = _counted(slide._readers[0], "_rgb", monkeypatch)
        for y in range(5):
            with pytest.raises(Undecodable):
                slide.read_level(0, y, 0, 10, 10)
        assert len(calls) == 2


def test_a_damaged_tile_is_decoded_twice_and_no_more(damaged: Slide, monkeypatch: pytest.MonkeyPatch) -> None:
    reader = damaged._reader()
    damaged.close()
    calls = _counted(reader, "decode", monkeypatch)
    damaged.read_level(0, 0, 0, 10, 10)
    for y in range(5):
        with pytest.raises(Undecodable):
            damaged.read_level(0, 300 + y, 300, 10, 10)
    damaged.read_level(0, 0, 0, 10, 10)
    assert [c[:3] for c in calls] == [(0, 0, 0), (0, 2, 2), (0, 2, 2)], "what is sound stays in the cache"


def _counted(target: object, name: str, monkeypatch: pytest.MonkeyPatch) -> list[tuple]:
    calls: list[tuple] = []
    method = getattr(target, name)
    monkeypatch.setattr(target, name, lambda *a: (calls.append(a), method(*a))[1])
    return calls


@pytest.fixture(scope="module")
def damaged(tmp_path_factory: pytest.TempPathFactory) -> Slide:
    """A flat slide with one damaged tile, rows and columns 256 to 384."""
    path = tmp_path_factory.mktemp("damaged") / "d.tif"
    tifffile.imwrite(path, picture(), photometric="rgb", tile=(128, 128), compression="deflate")
    damage(path, 0, 2 * 6 + 2, "all")
    return open_slide(path)


def test_an_overview_survives_a_damaged_tile(damaged: Slide) -> None:
    """One tile must not stop the search for tissue; what is around it is shown, so that it is tried and counted."""
    small = damaged.thumbnail(350)
    want = np.asarray(Image.fromarray(picture()).resize((350, 300), Image.Resampling.BILINEAR)).astype(int)
    off = np.abs(small.astype(int) - want).max(2)
    sound = np.ones(off.shape, bool)
    sound[126 - 16 : 194 + 16, 126 - 16 : 194 + 16] = False
    assert off[sound].max() <= 2
    assert not any((small == c).all(2).any() for c in (0, 255)), "no black, no white"
    assert "its overview shows there what is around them" in damaged.warnings[-1]
    damaged.thumbnail(300)
    assert sum("overview" in w for w in damaged.warnings) == 1


def test_an_overview_of_nothing_raises(tmp_path: Path) -> None:
    path = tmp_path / "d.tif"
    tifffile.imwrite(path, picture(), photometric="rgb", tile=(128, 128), compression="deflate")
    for tile in range(30):
        damage(path, 0, tile, "all")
    with open_slide(path) as slide, pytest.raises(Undecodable):
        slide.thumbnail(350)


@pytest.mark.parametrize("level", [0, 1])
def test_a_viewer_shows_damage_in_green(damaged: Slide, monkeypatch: pytest.MonkeyPatch, level: int) -> None:
    """An error would stop it from showing anything."""
    monkeypatch.setattr("napari_peka.io.lazy.SMALL_LEVEL", 300)
    pixels = np.asarray(levels_of(damaged)[level])
    green = (pixels == UNREADABLE).all(2)
    step = 4**level
    assert green[260 // step : 380 // step, 260 // step : 380 // step].all()
    assert green.sum() * step**2 < 260**2
    want = picture().reshape(600 // step, step, 700 // step, step, 3).mean((1, 3))
    assert np.abs(pixels[~green] - want[~green]).mean() < 4


def test_threads_among_damage(damaged: Slide) -> None:
    corners = [(y, x) for y in range(0, 512, 128) for x in range(0, 640, 128)] * 8

    def read(at: tuple[int, int]) -> bool:
        try:
            np.testing.assert_array_equal(
                damaged.read_level(0, *at, 128, 128), picture()[at[0] : at[0] + 128, at[1] : at[1] + 128]
            )
        except Undecodable:
            return False
        return True

    for reader in damaged._readers:
        damaged._pixels = reader
        with ThreadPoolExecutor(8) as pool:
            running = [pool.submit(read, at) for at in corners]
            for _ in range(20):
                damaged.close()
            assert [f.result() for f in running] == [at != (256, 256) for at in corners], reader.name
    damaged._pixels = None


def test_a_file_that_was_replaced(tmp_path: Path) -> None:
    """Where its tiles lie was read from the file before; any bytes would do for an uncompressed tile."""
    for name, image in (("a.tif", picture()), ("b.tif", 255 - picture(900, 700))):
        tifffile.imwrite(tmp_path / name, image, photometric="rgb", tile=(128, 128))
    with open_slide(tmp_path / "a.tif") as slide:
        slide._pixels = next(r for r in slide._readers if r.name == "tifffile")
        (tmp_path / "b.tif").replace(tmp_path / "a.tif")
        with pytest.raises(Undecodable, match="replaced after it was opened"):
            slide.read_level(0, 0, 0, 10, 10)
