"""What a bundle may ask of prediction: neighbours, turned images, wider crops. Each against numbers made otherwise."""

from __future__ import annotations

import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st

import napari_peka as peka
from bundles import GENES, made
from napari_peka.core import neighbours as neighbours_module
from napari_peka.core.errors import SettingError, Undecodable
from napari_peka.core.geometry import TileSpec, TileTable
from napari_peka.core.head import GeneHead
from napari_peka.core.neighbours import neighbour_mean
from napari_peka.core.progress import Cancelled, JobProgress
from napari_peka.io.prediction import Prediction
from napari_peka.models.registry import AdapterSpec

torch = pytest.importorskip("torch")
CONFIG = peka.PredictConfig(device="cpu", precision="fp32", batch_size=8, find_tissue=False)
RADIUS = 100.0  # µm: with tiles of 64 µm the eight around a tile


def by_hand(centre_um, radius, x):
    """Mean over the known others within the radius, a row at a time."""
    x = np.asarray(x, np.float64)
    flat = x.reshape(len(x), x[:1].size or 1)
    known = np.isfinite(flat).all(1)
    out = flat.copy()
    for i, at in enumerate(centre_um):
        near = (np.linalg.norm(centre_um - at, axis=1) <= radius * (1 + 1e-7)) & known
        near[i] = False
        if near.any():
            out[i] = flat[near].mean(0)
    return out.reshape(x.shape)


# -- the mean of neighbours --------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 60), st.floats(1, 400), st.integers(0, 2**32 - 1), st.booleans(), st.floats(0, 0.5))
def test_the_mean_is_over_the_known_others_within_the_radius(n, radius, seed, grid, missing):
    rng = np.random.default_rng(seed)
    centre = rng.integers(0, 8, (n, 2)) * 50.0 if grid else rng.uniform(0, 400, (n, 2))  # places may coincide
    x = rng.normal(size=(n, 3)).astype(np.float16)
    x[rng.random(n) < missing] = np.nan
    near = neighbour_mean(centre, radius)
    assert len(near) == n
    np.testing.assert_allclose(near.mean(x), by_hand(centre, radius, x), atol=1e-5)
    np.testing.assert_allclose(near.mean(x[:, 0]), by_hand(centre, radius, x[:, 0]), atol=1e-5)
    assert near.mean(x).dtype == np.float32
    assert near.mean(x.astype(np.float64)).dtype == np.float64
    rows = np.flatnonzero(rng.random(n) < 0.3)
    around = near.touched(rows)
    assert set(rows.tolist()) <= set(around.tolist())
    some = slice(n // 3, 2 * n // 3)
    read, part_of = near.within(some)
    np.testing.assert_allclose(part_of.mean(x[read]), near.mean(x)[some], atol=1e-5)
    np.testing.assert_array_equal(x[read][part_of.own], x[some])
    part = near.among(around).mean(x[around])[np.searchsorted(around, rows)]
    np.testing.assert_allclose(part, near.mean(x)[rows], atol=1e-6)


def test_a_place_alone_has_its_own_and_the_radius_is_inclusive_whatever_rounding():
    centre = np.array([[0.0, 0.0], [0.0, 0.3], [0.0, 0.1 + 0.2 + 0.3], [900.0, 0.0]])
    near = neighbour_mean(centre, 0.3)
    assert near.counts.tolist() == [1, 2, 1, 0]
    assert near.mean(np.array([1.0, 2.0, 4.0, 8.0])).tolist() == [2, 2.5, 2, 8]
    near = neighbour_mean(centre, 1e-3)
    assert near.mean(np.array([1.0, np.nan, 4.0, 8.0])).tolist()[::2] == [1, 4]
    assert np.isnan(near.mean(np.array([1.0, np.nan, 4.0, 8.0]))[1])


def test_what_cannot_be_a_context_is_refused(monkeypatch):
    at = np.zeros((30, 2))
    for radius in (0, -1, np.nan, np.inf):
        with pytest.raises(SettingError, match="positive number of µm"):
            neighbour_mean(at, radius)
    with pytest.raises(ValueError, match="30 places need as many rows"):
        neighbour_mean(at, 1).mean(np.zeros(29))
    monkeypatch.setattr(neighbours_module, "MAX_PAIRS", 869)
    with pytest.raises(SettingError, match="870 neighbours within 5 µm"):
        neighbour_mean(at, 5)


# -- a head that reads them --------------------------------------------------------------------------------------


def context_head(d=5):
    rng = np.random.default_rng(1)
    return GeneHead(rng.normal(size=(2 * d, 3)).astype(np.float32), np.arange(3, dtype=np.float32), GENES, "u",
                    context_um=RADIUS)  # fmt: skip


@pytest.mark.parametrize("genes", [["C"], ["B", "A"], None])
def test_a_head_reads_own_and_neighbours_in_one_gene_or_in_all(genes):
    head, rng = context_head(2), np.random.default_rng(0)  # fewer dimensions than genes, too
    assert (head.n_dims, head.embedding_dims) == (4, 2)
    centre, x = rng.uniform(0, 400, (40, 2)), rng.normal(size=(40, 2)).astype(np.float16)
    x[5] = np.nan
    near = neighbour_mean(centre, RADIUS)
    both = np.concatenate([x.astype(np.float64), by_hand(centre, RADIUS, x)], 1)
    want = both @ head.weights + head.bias
    cols = [GENES.index(g) for g in genes or GENES]
    got = head.matrix(x, genes, near)
    np.testing.assert_allclose(got, want[:, cols], atol=1e-4)
    for i, gene in zip(cols, genes or GENES):
        values = head.values(x, gene, near)
        assert values.dtype == np.float32
        np.testing.assert_allclose(values, want[:, i], atol=1e-4)
    assert np.isnan(got).all(1).tolist() == [i == 5 for i in range(40)]


def test_a_head_with_context_never_guesses_it():
    with pytest.raises(ValueError, match="neighbours within 100"):
        context_head().values(np.zeros((4, 5)), "A")
    with pytest.raises(ValueError, match="neighbours within 100"):
        context_head().matrix(np.zeros((4, 5)))
    for d, um in ((5, 100.0), (4, 0.0), (4, float("nan"))):
        with pytest.raises(ValueError, match="even number of rows and a positive radius"):
            GeneHead(np.zeros((d, 3), np.float32), np.zeros(3, np.float32), GENES, "u", context_um=um)


# -- slides ------------------------------------------------------------------------------------------------------


def write_slide(path, image):
    tifffile.imwrite(path, np.ascontiguousarray(image), tile=(128, 128), photometric="rgb", compression="zlib",
                     resolution=(10000, 10000), resolutionunit="CENTIMETER", metadata=None)  # fmt: skip
    return path


@pytest.fixture(scope="module")
def picture():
    """10 x 12 tiles of 64 px, each with a pattern of its own that no rotation or mirror leaves as it is."""
    y, x = np.mgrid[: 64 * 10, : 64 * 12]
    waves = [np.sin(x / 37 + y / 91) * np.cos(y / 23 - x / 71), np.sin(x * y / 9000.0), np.cos((x + 2 * y) / 41)]
    return np.clip(128 + 110 * np.stack(waves, -1), 0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def slide(picture, tmp_path_factory):
    with peka.open_slide(write_slide(tmp_path_factory.mktemp("slides") / "waves.tif", picture)) as opened:
        yield opened


@pytest.fixture(scope="module")
def context_model(tmp_path_factory):
    """A bundle that reads neighbours, but not so many that a value is all context."""
    return made(tmp_path_factory.mktemp("bundles"), context_um=RADIUS)[0]


@pytest.fixture(scope="module")
def whole(slide, context_model, tmp_path_factory):
    return peka.predict(slide, context_model, output=tmp_path_factory.mktemp("out") / "a.peka.zarr", config=CONFIG)


def values_by_hand(prediction, gene):
    head, x = prediction.head, prediction.embeddings.astype(np.float64)
    mean = by_hand(prediction.tiles.centre_yx * prediction.tiles.slide_mpp, head.context_um, x)
    i = head.index(gene)
    return np.concatenate([x, mean], 1) @ head.weights[:, i] + head.bias[i]


def test_a_map_with_context_is_what_numpy_computes_from_embeddings_and_places(whole):
    assert whole.embeddings.shape == (120, 48)  # only the own are stored
    assert whole.head.n_dims == 96
    assert whole.neighbours.counts.max() == 8
    for gene in GENES:
        np.testing.assert_allclose(whole.values(gene), values_by_hand(whole, gene), atol=2e-3)
        own = whole.embeddings.astype(np.float32) @ whole.head.weights[:48, whole.head.index(gene)]
        assert np.abs(whole.values(gene) - own).max() > 0.5, "the context counts"
    raster = whole.raster("B")
    np.testing.assert_array_equal(raster.data[tuple(whole.tiles.grid_yx.T)], whole.values("B"))
    adata = whole.to_anndata(["C", "A"])
    np.testing.assert_allclose(adata.X, np.stack([whole.values("C"), whole.values("A")], 1), atol=1e-4)


def test_read_back_it_is_the_same_and_an_older_version_does_not_misread_it(whole):
    import anndata

    back = peka.read_prediction(whole.path)
    assert back.head.context_um == RADIUS
    for gene in GENES:
        np.testing.assert_array_equal(back.values(gene), whole.values(gene))
    stored = anndata.read_zarr(whole.path)
    # to multiply these, as one did before there was a context, is an error and not another map
    assert (stored.obsm["X_peka"].shape[1], stored.varm["peka_weights"].shape[1]) == (48, 96)
    assert back.record["format"] == 2
    assert back.record["context_um"] == RADIUS


class StopAfter(JobProgress):
    def __init__(self, n):
        super().__init__()
        self.left = n

    def changed(self):
        if self.snapshot().stage == "predicting" and self.snapshot().done >= self.left:
            self.cancel()


def test_a_resumed_run_gives_the_same_context(whole, slide, context_model, tmp_path):
    out = tmp_path / "a.peka.zarr"
    with pytest.raises(Cancelled):
        peka.predict(slide, context_model, output=out, config=CONFIG, progress=StopAfter(40))
    again = peka.predict(slide, context_model, output=out, config=CONFIG)
    assert again.record["run"]["resumed_tiles"] >= 40
    for gene in GENES:
        np.testing.assert_array_equal(again.values(gene), whole.values(gene))


class Scratched:
    """A slide of which a rectangle cannot be decoded."""

    def __init__(self, slide, y, x, h, w):
        self._slide, self._bad = slide, (y, x, y + h, x + w)

    def __getattr__(self, name):
        return getattr(self._slide, name)

    def read_block(self, rect, mpp=None):
        y0, x0, y1, x1 = self._bad
        if rect.y < y1 and y0 < rect.y1 and rect.x < x1 and x0 < rect.x1:
            raise Undecodable("scratched")
        return self._slide.read_block(rect, mpp)


def test_unreadable_neighbours_are_left_out_of_the_mean(slide, context_model):
    bad = peka.predict(Scratched(slide, 200, 200, 60, 60), context_model, config=CONFIG)
    assert bad.n_unreadable == 4
    assert np.isnan(bad.values("A")).sum() == 4
    np.testing.assert_allclose(bad.values("A"), values_by_hand(bad, "A"), atol=2e-3)


def test_a_growing_map_changes_where_its_blocks_and_their_neighbours_are(whole):
    """What a viewer does: after each block only what changed is computed, and the end is the whole map."""
    live = Prediction(whole.tiles, np.full_like(whole.embeddings, np.nan), whole.head, whole.read_ok, whole.record)
    shown = live.values("B").copy()
    assert np.isnan(shown).all()
    blocks = whole.tiles.blocks()
    assert len(blocks) == 4
    for block in blocks:
        live.embeddings[block.start : block.stop] = whole.embeddings[block.start : block.stop]
        rows = live.changed_by([block])
        shown[rows] = live.values("B", rows)
        np.testing.assert_allclose(shown, live.values("B"), atol=1e-5)
    np.testing.assert_allclose(shown, whole.values("B"), atol=1e-5)
    assert len(live.changed_by(blocks[:1])) > len(blocks[0])
    assert live.changed_by([]).size == 0


def test_a_layer_that_fills_in_ends_as_the_whole_map(whole):
    napari = pytest.importorskip("napari")
    from napari_peka.gui import map_layers

    live = Prediction(whole.tiles, np.full_like(whole.embeddings, np.nan), whole.head, whole.read_ok, whole.record)
    data, options, _ = map_layers.heatmap_layer(live, "B")
    layer = napari.layers.Image(data, **options)
    for block in whole.tiles.blocks()[::-1]:
        live.embeddings[block.start : block.stop] = whole.embeddings[block.start : block.stop]
        map_layers.fill_blocks(layer, [block])
    np.testing.assert_allclose(layer.data, whole.raster("B").data, atol=1e-5)


def test_without_context_rows_are_those_of_the_whole(whole):
    head = GeneHead(whole.head.weights[:48], whole.head.bias, GENES, "u")
    plain = Prediction(whole.tiles, whole.embeddings, head, whole.read_ok)
    rows = plain.changed_by(whole.tiles.blocks()[1:2])
    block = whole.tiles.blocks()[1]
    assert rows.tolist() == list(range(block.start, block.stop))
    np.testing.assert_allclose(plain.values("A", rows), plain.values("A")[rows], rtol=1e-5)
    assert plain.neighbours is None


def test_spots_and_tiles_share_one_mean():
    """A head is fitted on spots in any order and read on tiles sorted by block: the same places, the same means."""
    rng = np.random.default_rng(2)
    centre, x = rng.uniform(0, 3000, (200, 2)), rng.normal(size=(200, 4))
    table, order = TileTable.spots(centre, (0.5, 0.25), TileSpec(64, 0.5))
    np.testing.assert_allclose(table.centre_um, centre[order] * (0.5, 0.25))
    np.testing.assert_allclose(
        neighbour_mean(table.centre_um, 90).mean(x[order]), neighbour_mean(centre * (0.5, 0.25), 90).mean(x)[order]
    )


# -- turned images -----------------------------------------------------------------------------------------------


def turned(image, k, mirror):
    return np.rot90(image[:, ::-1] if mirror else image, k)


def map_of(image, model, tmp_path):
    with peka.open_slide(write_slide(tmp_path / "turned.tif", image)) as slide:
        return peka.predict(slide, model, config=CONFIG).raster("B").data


@pytest.mark.parametrize(
    ("rotations", "views", "context_um", "k", "mirror", "same"),
    [
        (4, (1.0, 2.0), None, 1, False, True),
        (8, (1.0,), RADIUS, 3, True, True),
        (4, (1.0,), None, 0, True, False),  # quarter turns do not make up for a mirror
        (1, (1.0,), None, 2, False, False),
    ],
)
def test_a_turned_slide_gives_the_turned_map(rotations, views, context_um, k, mirror, same, picture, tmp_path):
    model, _ = made(tmp_path, rotations=rotations, views=views, context_um=context_um)
    part = picture[: 64 * 4, : 64 * 5]
    straight = map_of(part, model, tmp_path)
    assert straight.shape == (4, 5)
    apart = np.abs(map_of(turned(part, k, mirror), model, tmp_path) - turned(straight, k, mirror)).max()
    assert apart < 5e-3 if same else apart > 0.1


def test_images_are_embedded_one_after_another_and_averaged(tmp_path):
    model, student = made(tmp_path, rotations=8)
    tiles = torch.from_numpy(np.random.default_rng(5).integers(0, 256, (3, 64, 64, 3), np.uint8))
    sizes = []
    student.encoder.register_forward_pre_hook(lambda _m, args: sizes.append(len(args[0])))
    with torch.inference_mode():
        got = student(tiles)
        assert sizes == [3] * 8, "eight passes, none larger than the batch"
        one = [
            student.encoder(student.normalise(torch.from_numpy(np.stack([turned(t, k, m) for t in tiles.numpy()]))))
            for m in (False, True) for k in range(4)
        ]  # fmt: skip
    torch.testing.assert_close(got, torch.stack(one).mean(0), atol=1e-5, rtol=1e-5)
    assert model.passes == 8


def test_half_precision_averages_in_float32_and_still_translates(tmp_path):
    _, student = made(tmp_path, rotations=4, translate=(48, 16, 10), features="image+peka")
    tiles = torch.from_numpy(np.random.default_rng(5).integers(0, 256, (3, 64, 64, 3), np.uint8))
    with torch.inference_mode():
        full = student(tiles)
        half = student.to(torch.bfloat16)(tiles)
    assert half.shape == full.shape == (3, 58)
    assert half[:, :48].dtype == torch.float32
    assert torch.nn.functional.cosine_similarity(half.float(), full).min() > 0.999


# -- wider crops -------------------------------------------------------------------------------------------------


def halved(image):
    """Half the size by a triangle two pixels wide to each side, cut off at the edges: antialiasing, by hand."""
    n = image.shape[0] // 2
    at = 2 * np.arange(n)[:, None] + 1
    weights = np.maximum(0, 1 - np.abs(np.arange(2 * n)[None] + 0.5 - at) / 2)
    weights /= weights.sum(1, keepdims=True)
    return np.einsum("ij,jkc,lk->ilc", weights, image.astype(float), weights)


def test_views_are_the_middle_of_what_is_read_each_at_its_width(tmp_path):
    model, student = made(tmp_path, views=(2.0, 1.0))
    tiles = np.random.default_rng(5).integers(0, 256, (2, 128, 128, 3), np.uint8)
    wide = torch.from_numpy(np.stack([halved(t) for t in tiles])).float()
    with torch.inference_mode():
        got = student(torch.from_numpy(tiles))
        want = [student.encoder(student.normalise(x)) for x in (wide, torch.from_numpy(tiles[:, 32:96, 32:96]))]
    assert got.shape == (2, 96)
    torch.testing.assert_close(got[:, :48], want[0], atol=2e-4, rtol=1e-4)
    torch.testing.assert_close(got[:, 48:], want[1], atol=1e-6, rtol=1e-6)
    assert model.passes == 2
    assert model.tile_spec() == TileSpec(128, 1.0, None, 64)


def test_a_map_keeps_its_tiles_whatever_is_seen_around_them(slide, tmp_path):
    narrow, wide = made(tmp_path, "narrow")[0], made(tmp_path, "wide", views=(1.0, 4.0))[0]
    a, b = (peka.predict(slide, m, config=CONFIG) for m in (narrow, wide))
    np.testing.assert_array_equal(a.tiles.centre_yx, b.tiles.centre_yx)
    np.testing.assert_array_equal(a.tiles.grid_yx, b.tiles.grid_yx)
    assert (b.tiles.spec.size_px, b.tiles.spec.stride, b.tiles.spec.footprint) == (256, 64, 64)
    raster = [p.raster("A") for p in (a, b)]
    assert raster[0].origin_yx == raster[1].origin_yx == (0, 0)
    assert raster[0].scale_yx == raster[1].scale_yx
    # the first view is the narrow model's own: the same tile, so the same numbers
    np.testing.assert_allclose(b.embeddings[:, :48], a.embeddings, atol=4e-3)
    finer = peka.plan_tiles(slide, wide, CONFIG.model_copy(update={"stride_px": 32}))
    assert finer.spec.footprint == 64
    assert len(finer) > 3.5 * len(a.tiles)


def test_a_wide_map_read_back_lies_in_the_same_place(slide, tmp_path):
    model, _ = made(tmp_path, views=(2.0,))
    done = peka.predict(slide, model, output=tmp_path / "a.peka.zarr", config=CONFIG)
    back = peka.read_prediction(tmp_path / "a.peka.zarr")
    assert back.tiles.spec == done.tiles.spec
    assert back.raster("A").origin_yx == done.raster("A").origin_yx
    assert back.record["format"] == 2
    assert back.record["model"]["passes_per_tile"] == 1
    import anndata

    scale = anndata.read_zarr(tmp_path / "a.peka.zarr").uns["spatial"]["waves"]["scalefactors"]
    assert scale["spot_diameter_fullres"] == 64  # what a value stands for, not what was looked at


def test_tissue_is_looked_for_under_the_tile_and_not_around_it(tmp_path):
    image = np.full((1280, 1280, 3), 244, np.uint8)
    rng = np.random.default_rng(0)
    image[320:960, 320:960] = (np.array([205, 140, 185]) + rng.integers(-40, 40, (640, 640, 1))).astype(np.uint8)
    config = CONFIG.model_copy(update={"find_tissue": True})
    with peka.open_slide(write_slide(tmp_path / "square.tif", image)) as slide:
        plans = [peka.plan_tiles(slide, made(tmp_path, f"m{len(v)}", views=v)[0], config) for v in ((1.0,), (1.0, 4.0))]
    assert 0 < len(plans[0]) < 144
    np.testing.assert_array_equal(plans[0].grid_yx, plans[1].grid_yx)


def test_wide_tiles_are_cut_by_the_batch_and_give_the_same(slide, tmp_path, monkeypatch):
    from napari_peka.infer import read_ahead

    model, _ = made(tmp_path, views=(1.0, 4.0))
    bad = Scratched(slide, 300, 300, 10, 10)  # one block of four is read tile by tile
    ahead = peka.predict(bad, model, config=CONFIG)
    assert 0 < ahead.n_unreadable < 120
    cut = []
    real = read_ahead.Uncut.__getitem__
    monkeypatch.setattr(read_ahead.Uncut, "__getitem__", lambda self, rows: cut.append(rows) or real(self, rows))
    monkeypatch.setattr(read_ahead, "CUT_AHEAD", 0)
    by_batch = peka.predict(bad, model, config=CONFIG)
    assert cut
    np.testing.assert_array_equal(ahead.embeddings, by_batch.embeddings)
    np.testing.assert_array_equal(ahead.read_ok, by_batch.read_ok)


def test_a_resumed_run_with_every_option_gives_the_same(slide, tmp_path):
    model, _ = made(
        tmp_path, adapter=AdapterSpec("bone", 4), rotations=4, views=(1.0, 2.0), context_um=RADIUS,
        translate=(96, 16, 10), activation="relu", features="image+peka",
    )  # fmt: skip
    out = tmp_path / "b.peka.zarr"
    once = peka.predict(slide, model, output=tmp_path / "a.peka.zarr", config=CONFIG)
    with pytest.raises(Cancelled):
        peka.predict(slide, model, output=out, config=CONFIG, progress=StopAfter(30))
    again = peka.predict(slide, model, output=out, config=CONFIG)
    assert again.record["run"]["resumed_tiles"] >= 30
    np.testing.assert_array_equal(once.embeddings, again.embeddings)
    np.testing.assert_array_equal(once.values("C"), peka.read_prediction(out).values("C"))
    assert once.embeddings.shape[1] == 106
    assert (once.embeddings[:, 96:] >= 0).all()
    assert once.record["model"]["passes_per_tile"] == 8
    assert once.record["model"]["rotations"] == 4
    assert once.record["model"]["views"] == [1.0, 2.0]
