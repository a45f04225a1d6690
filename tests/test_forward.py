"""Passes of the encoder: parts of a block are there before it is whole, and what is queued ahead changes nothing."""

from __future__ import annotations

import threading

import numpy as np
import pytest
import shapely
import torch

import napari_peka as peka
from napari_peka.core.progress import Cancelled, JobProgress
from napari_peka.infer.forward import Forward

CONFIG = peka.PredictConfig(device="cpu", precision="fp32", batch_size=8)
PART = shapely.box(900, 900, 2200, 2200)


@pytest.fixture
def slide(tissue_tiff):
    with peka.open_slide(tissue_tiff) as opened:
        yield opened


def test_a_part_of_a_block_is_there_before_the_block(slide, tiny_model):
    told, live = [], []

    def on_part(block, embeddings):
        done = ~np.isnan(embeddings[:, 0])
        told.append(("part", block.index, int(done.sum())))
        rows = live[0].embeddings[block.start : block.stop]
        np.testing.assert_array_equal(rows[done], embeddings[done])
        assert np.isnan(live[0].values("ERBB2")[block.start : block.stop][~done]).all()

    done = peka.predict(
        slide, tiny_model, config=CONFIG, region=PART, on_start=lambda prediction, _: live.append(prediction),
        on_part=on_part, on_block=lambda block, *_: told.append(("block", block.index, len(block))),
    )  # fmt: skip
    for block in done.tiles.blocks():
        parts = [t for t in told if t[1] == block.index]
        assert parts == [("part", block.index, n) for n in range(8, len(block), 8)] + [
            ("block", block.index, len(block))
        ]


@pytest.mark.parametrize("ahead", [1, 3])
def test_what_is_queued_ahead_comes_out_in_order_and_the_same(slide, tiny_model, ahead):
    forward = peka.load_forward(tiny_model, CONFIG)
    alone = peka.predict(slide, tiny_model, config=CONFIG, region=PART, forward=forward)
    forward.ahead = ahead  # as on a GPU
    order = []
    queued = peka.predict(
        slide, tiny_model, config=CONFIG, region=PART, forward=forward, on_block=lambda b, *_: order.append(b.index)
    )
    np.testing.assert_array_equal(queued.embeddings, alone.embeddings)
    assert len(order) == len(set(order)) == len(alone.tiles.blocks())


def test_groups_keep_their_names_and_the_next_is_asked_for_while_one_is_queued():
    forward = Forward(lambda: torch.nn.Flatten(), torch.device("cpu"), torch.float32, batch_size=2)
    forward.ahead = 1
    asked = []

    def groups():
        for name, n in (("a", 3), ("b", 1)):
            asked.append(name)
            yield name, np.full((n, 1, 1, 3), ord(name), np.uint8)

    got = []
    for name, rows, values in forward.stream(groups()):
        got.append((name, rows, float(values[0, 0]), list(asked)))
    assert got == [
        ("a", slice(0, 2), 97.0, ["a"]),
        ("a", slice(2, 3), 97.0, ["a", "b"]),
        ("b", slice(0, 1), 98.0, ["a", "b"]),
    ]


def test_memory_that_runs_out_halves_the_pass_and_loses_no_tile():
    class Small(torch.nn.Module):
        def forward(self, tiles):
            if len(tiles) > 3:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return tiles.flatten(1).float()

    forward = Forward(Small, torch.device("cpu"), torch.float32, batch_size=16)
    tiles = np.arange(30, dtype=np.uint8).reshape(10, 1, 1, 3)
    parts = list(forward.stream([("a", tiles)]))
    np.testing.assert_array_equal(np.concatenate([v for _, _, v in parts]), tiles.reshape(10, 3))
    assert forward.batch_size <= 3


def test_an_engines_passes_overlap_come_out_in_order_and_are_halved_too():
    """Two passes meet: neither waits for the other to end."""
    together = threading.Barrier(2, timeout=30)

    class Engine(torch.nn.Module):
        def forward(self, tiles):
            if len(tiles) > 4:
                raise RuntimeError("not enough memory")
            if len(tiles) == 4:
                together.wait()
            return tiles.flatten(1).float()

    forward = Forward(Engine, torch.device("cpu"), torch.float32, batch_size=4, backend="openvino")
    tiles = np.arange(54, dtype=np.uint8).reshape(18, 1, 1, 3)
    parts = list(forward.stream([("a", tiles)]))
    assert [rows.start for _, rows, _ in parts] == [0, 4, 8, 12, 16]
    np.testing.assert_array_equal(np.concatenate([v for _, _, v in parts]), tiles.reshape(18, 3))
    larger = Forward(Engine, torch.device("cpu"), torch.float32, batch_size=6, backend="openvino")
    np.testing.assert_array_equal(larger(tiles), tiles.reshape(18, 3))
    assert larger.batch_size == 3


def test_a_stop_reaches_an_engines_passes():
    class Engine(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = torch.nn.Flatten()

        def forward(self, tiles):
            return self.layer(tiles).float()

    forward = Forward(Engine, torch.device("cpu"), torch.float32, batch_size=2, backend="openvino")
    progress = JobProgress()
    with forward.brake.heeding(progress):
        passes = forward.stream([("a", np.zeros((8, 1, 1, 3), np.uint8))])
        next(passes)
        progress.cancel()
        with pytest.raises(Cancelled):
            list(passes)
