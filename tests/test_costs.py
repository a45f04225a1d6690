"""What a prediction does for a slide, counted: nothing is read, decoded, cut or computed twice."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import tifffile

import napari_peka as peka
from napari_peka.core.geometry import Block
from napari_peka.infer.forward import Forward
from napari_peka.io.readers.tiff import TiffReader
from napari_peka.io.slide import Slide

#: a tile of the slide's file; a block of 8 x 8 tiles of 64 px at 1 µm/px is 4 x 4 of these on a slide of 1 µm/px
STORED_PX = 128
#: bytes that a writer may leave between two tiles
PADDING = 16


@pytest.fixture(params=[1.0, 0.5], ids=["as stored", "decoded at half its size"])
def slide(request: pytest.FixtureRequest, sample: Path, tmp_path: Path) -> Iterator[Slide]:
    """Real tissue, 3 x 2 blocks of the tiny model; one of twice the resolution has no second level."""
    with peka.open_slide(sample) as source:
        tissue = source.read_level(0, 0, 0, 1024, 1024)
    times = round(1 / request.param)
    image = np.tile(tissue, (2, 1, 1))[:1536].repeat(times, 0).repeat(times, 1)
    tifffile.imwrite(
        tmp_path / "a.tif", image, photometric="rgb", tile=(STORED_PX, STORED_PX), compression="jpeg", metadata=None,
        resolution=(1e4 / request.param,) * 2, resolutionunit="CENTIMETER",
    )  # fmt: skip
    with peka.open_slide(tmp_path / "a.tif") as opened:
        yield opened


@pytest.fixture
def counts(monkeypatch: pytest.MonkeyPatch) -> Counter:
    """How often each door was passed, and bytes read."""
    found: Counter = Counter()

    def count(owner: type, name: str, note: str) -> None:
        function = getattr(owner, name)

        def call(*args, **kwargs):
            found[note] += 1
            if note == "file reads":
                found["bytes"] += args[2]
            if note == "segments":
                found[args[1:4]] += 1
            return function(*args, **kwargs)

        monkeypatch.setattr(owner, name, call)

    for owner, name, note in (
        (TiffReader, "_bytes", "file reads"), (TiffReader, "decode", "segments"), (Slide, "read_block", "blocks read"),
        (Block, "cut", "blocks cut"), (Forward, "_pass", "forward passes"),
    ):  # fmt: skip
        count(owner, name, note)
    return found


def test_each_part_is_read_decoded_cut_and_computed_once(
    slide: Slide, tiny_model: peka.Model, tmp_path: Path, counts: Counter
) -> None:
    config = peka.PredictConfig(device="cpu", precision="fp32", batch_size=64, find_tissue=False)
    tiles = peka.plan_tiles(slide, tiny_model, config)
    slide.read_block(tiles.blocks()[0].rect, 1.0)  # chooses the reader and looks at samples of its tiles
    slide.close()
    counts.clear()
    peka.predict(slide, tiny_model, output=tmp_path / "a.peka.zarr", config=config)
    with tifffile.TiffFile(slide.path) as tif:
        stored = tif.pages[0].databytecounts
    assert slide.reader == "tifffile"
    assert counts["blocks read"] == counts["blocks cut"] == counts["forward passes"] == len(tiles.blocks()) == 6
    assert counts["segments"] == len(stored), "each tile of the file once"
    assert max(n for key, n in counts.items() if isinstance(key, tuple)) == 1
    assert counts["file reads"] == 6 * 4 * round(1 / slide.mpp[0]), "a row of tiles is one read"
    assert sum(stored) <= counts["bytes"] <= sum(stored) + len(stored) * PADDING
