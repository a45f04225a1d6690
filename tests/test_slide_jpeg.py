"""JPEG tiles: every dialect gives the colours that a full decode gives, at their own size and decoded smaller."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from napari_peka.core.errors import Undecodable
from napari_peka.core.geometry import Rect
from napari_peka.io.readers.tiff import TiffReader
from napari_peka.io.slide import Slide, open_slide
from slide_files import damage, picture

QUARTER_UM = {"resolution": (40_000, 40_000), "resolutionunit": "CENTIMETER"}


@pytest.fixture(scope="module")
def tissue(sample: Path) -> np.ndarray:
    """Real tissue whose sides no tile divides."""
    with open_slide(sample) as slide:
        h, w = (n // 2 for n in slide.shape)
        return slide.read_level(0, h - 700, w - 700, 1201, 1277)


@pytest.fixture(scope="module")
def flat(tissue: np.ndarray, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A slide of 40x without a second level."""
    path = tmp_path_factory.mktemp("flat") / "flat.tif"
    write(path, tissue)
    return path


def write(path: Path, image: np.ndarray, **options: object) -> None:
    options = {"photometric": "rgb", "tile": (256, 256), "compressionargs": {"level": 85}, **options}
    tifffile.imwrite(path, image, compression="jpeg", metadata=None, **QUARTER_UM, **options)


def by_tifffile(path: Path) -> Slide:
    slide = open_slide(path)
    slide._pixels = next(r for r in slide._readers if r.name == "tifffile")
    return slide


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[tuple]:
    """The tiles that are decoded: level, row, column and what their sides are divided by."""
    seen: list[tuple] = []
    decode = TiffReader.decode

    def counted(self: TiffReader, level: int, row: int, col: int, shrink: int = 1, data: bytes | None = None) -> object:
        seen.append((level, row, col, shrink))
        return decode(self, level, row, col, shrink, data)

    monkeypatch.setattr(TiffReader, "decode", counted)
    return seen


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"photometric": "ycbcr"},
        {"compressionargs": {"level": 85, "outcolorspace": "RGB"}},  # as Aperio: RGB, and nothing says so
        {"photometric": "minisblack"},
        {"planarconfig": "separate"},
    ],
    ids=["default", "ycbcr", "rgb", "grey", "planes"],
)
def test_dialects(tmp_path: Path, tissue: np.ndarray, options: dict) -> None:
    """Taken for YCbCr, RGB comes out green and pink."""
    image = tissue[..., 1] if options.get("photometric") == "minisblack" else tissue
    write(
        tmp_path / "a.tif", image.transpose(2, 0, 1) if "planarconfig" in options else image, **options,
    )  # fmt: skip
    with by_tifffile(tmp_path / "a.tif") as slide:
        got = slide.read_level(0, 0, 0, *slide.shape)
        assert slide._reader().surest, "the quick decoder knows it"
    want = tifffile.imread(tmp_path / "a.tif")
    want = want.transpose(1, 2, 0) if "planarconfig" in options else want
    assert np.abs(got.astype(int) - (want if want.ndim == 3 else want[..., None])).mean() < 0.5


def test_tables_beside_the_tiles(shared_data: Path) -> None:
    """A real SVS: RGB without a word about it, tables in a tag."""
    path = shared_data / "wsi" / "cmu_small_region.svs"
    with by_tifffile(path) as slide:
        assert slide._reader().surest
        np.testing.assert_allclose(slide.read_level(0, 0, 0, *slide.shape), tifffile.imread(path), atol=2)


@pytest.mark.parametrize(("n", "least"), [(500, 0.75), (64, 0.45), (16, 0.35)])
def test_holes_anywhere(flat: Path, tmp_path: Path, n: int, least: float) -> None:
    """Zeros decode to something in most places, and libjpeg goes on: no decoder notices all of them."""
    rng = np.random.default_rng(0)
    with tifffile.TiffFile(flat) as tif:
        parts = list(zip(tif.pages[0].dataoffsets, tif.pages[0].databytecounts))
    noticed = []
    for _ in range(3):
        data = bytearray(flat.read_bytes())
        for i, (at, size) in enumerate(parts):
            if i % 5:  # the first column is sound: some must show what healthy tiles look like
                start = data.index(b"\xff\xda", at) + 14
                hole = int(rng.integers(start, at + size - n - 2))
                data[hole : hole + n] = bytes(n)
        (tmp_path / "d.tif").write_bytes(data)
        with by_tifffile(tmp_path / "d.tif") as slide:
            for i in range(len(parts)):
                try:
                    slide.read_level(0, i // 5 * 256, i % 5 * 256, 10, 10)
                    noticed += [False] * (i % 5 > 0)
                except Undecodable:
                    assert i % 5, "no false alarm"
                    noticed.append(True)
    assert np.mean(noticed) >= least


def test_a_tile_that_claims_all_memory(flat: Path, tmp_path: Path) -> None:
    """Its header is damaged: 60,000 × 60,000 px would be decoded, in grey."""
    with tifffile.TiffFile(flat) as tif:
        at = tif.pages[0].dataoffsets[6]
    data = bytearray(flat.read_bytes())
    frame = data.index(b"\xff\xc0", at)
    data[frame + 5 : frame + 9] = (60_000).to_bytes(2, "big") * 2
    (tmp_path / "d.tif").write_bytes(data)
    with by_tifffile(tmp_path / "d.tif") as slide, pytest.raises(Undecodable, match="claim 60,000 × 60,000 px"):
        slide.read_level(0, 256, 256, 10, 10)


# -- decoded smaller ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mpp", [0.5, 1.0, 1.1, 2.0, 3.3, 5.0])
def test_near_to_a_full_decode(flat: Path, decoded: list[tuple], monkeypatch: pytest.MonkeyPatch, mpp: float) -> None:
    rect = Rect(96, 160, 960, 1040)
    with by_tifffile(flat) as slide:
        got = slide.read_block(rect, mpp).astype(int)
        assert {shrink for *_, shrink in decoded} - {1}, "tiles are decoded smaller"
        monkeypatch.setattr(TiffReader, "shrinks", lambda *_: ())
        off = np.abs(got - slide.read_block(rect, mpp))
    assert off.mean() <= 1.6
    assert np.percentile(off, 99) <= 10


@pytest.mark.parametrize("mpp", [0.25, 0.3, 0.495, 0.505, 0.55, 0.9])
def test_what_would_be_blurred_unevenly_is_decoded_in_full(flat: Path, decoded: list[tuple], mpp: float) -> None:
    with by_tifffile(flat) as slide:
        slide.read_block(Rect(96, 160, 960, 1040), mpp)
    assert {shrink for *_, shrink in decoded} == {1}


@pytest.mark.parametrize("shrink", [2, 4, 8])
@pytest.mark.parametrize("tile", [(256, 256), (64, 128)])
def test_edges_of_tiles_and_slide(tmp_path: Path, shrink: int, tile: tuple[int, int]) -> None:
    """A smooth picture has nothing to lose: what differs is out of its place."""
    write(tmp_path / "a.tif", picture(603, 701), tile=tile)
    with by_tifffile(tmp_path / "a.tif") as slide:
        reader = slide._reader()
        h, w = -(-603 // shrink), -(-701 // shrink)
        got = reader.read_shrunk(0, 0, 0, h, w, shrink).astype(int)
        full = reader.read(0, 0, 0, 603, 701)
        pieces = [reader.read_shrunk(0, y, 0, 1, w, shrink) for y in range(h)]
    np.testing.assert_array_equal(np.concatenate(pieces), got)
    want = np.asarray(Image.fromarray(full).reduce(shrink))
    assert np.abs(got - want).max() <= 4


def test_sizes_do_not_mix(flat: Path) -> None:
    """A tile is kept at each size it was decoded at."""
    rect = Rect(256, 256, 512, 512)
    with by_tifffile(flat) as first, by_tifffile(flat) as second:
        full, half = first.read_block(rect, 0.25), second.read_block(rect, 0.5)
        np.testing.assert_array_equal(first.read_block(rect, 0.5), half)
        np.testing.assert_array_equal(second.read_block(rect, 0.25), full)


@pytest.mark.parametrize("how", ["hole", "noise", "all"])
def test_damage_is_noticed_at_a_smaller_size(flat: Path, tmp_path: Path, how: str) -> None:
    path = tmp_path / "d.tif"
    path.write_bytes(flat.read_bytes())
    damage(path, 0, 5 + 1, how)  # row 1, column 1
    with by_tifffile(path) as slide:
        with pytest.raises(Undecodable):
            slide.read_block(Rect(256, 256, 64, 64), 0.5)
        assert slide.read_block(Rect(600, 600, 256, 256), 0.5).std() > 1


# -- fetched together ---------------------------------------------------------------------------------------------


@pytest.fixture
def fetched(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """Where and how much is read from the file."""
    seen: list[tuple[int, int]] = []
    read: Callable[..., bytes] = TiffReader._bytes
    monkeypatch.setattr(TiffReader, "_bytes", lambda self, at, n: (seen.append((at, n)), read(self, at, n))[1])
    return seen


def test_a_row_of_tiles_is_one_read(flat: Path, fetched: list[tuple[int, int]]) -> None:
    with by_tifffile(flat) as slide:
        slide.read_level(0, 0, 0, 10, 10)  # looks at samples
        fetched.clear()
        slide.read_level(0, 256, 256, 512, 768)
    assert len(fetched) == 2
    with tifffile.TiffFile(flat) as tif:
        sizes = tif.pages[0].databytecounts
    assert sum(n for _, n in fetched) <= sum(sizes[i] for i in (6, 7, 8, 11, 12, 13)) + 4 * 16


def test_no_read_is_large(tmp_path: Path, fetched: list[tuple[int, int]], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("napari_peka.io.readers.tiff._RUN", 100_000)
    noise = np.random.default_rng(0).integers(0, 256, (512, 2048, 3), np.uint8)
    tifffile.imwrite(tmp_path / "a.tif", noise, photometric="rgb", tile=(128, 128))
    with by_tifffile(tmp_path / "a.tif") as slide:
        np.testing.assert_array_equal(slide.read_level(0, 0, 0, 512, 2048), noise)
    assert max(n for _, n in fetched) <= 100_000
    assert len(fetched) == 4 * 8, "two tiles of 49 kB at a time"
