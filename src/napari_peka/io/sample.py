"""Data to start with: the embedded slide, and paired sections with a known answer."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt

from napari_peka.core import files
from napari_peka.io.sections.matrix import Matrix, write_h5

if TYPE_CHECKING:
    from PIL.Image import Image

ASSETS = Path(__file__).parent.parent / "assets"

FloatImage = npt.NDArray[np.float32]

#: what the sample sections' genes follow: nuclei per area, strength of eosin, pale lakes of mucin; or nothing
SAMPLE_PROGRAMS = ("NUCLEI", "EOSIN", "MUCIN")
#: genes that follow each pattern, half of them rising and half falling with it; and genes that follow none
_GENES, _FLAT = 20, 40
_PITCH_UM, _SPOT_UM, _MARGIN_UM = 100.0, 55.0, 100.0
#: µm over which a pattern changes: wider than a tile, so that it is seen, and many times within a section
_PATTERN_UM = 300.0
#: µm from nucleus to nucleus, and from lake to lake, where they are densest; their radii
_NUCLEUS_UM, _NUCLEUS_RADIUS_UM = 9.0, 3.6
_LAKE_UM, _LAKE_RADIUS_UM = 16.0, 6.8
#: counts of a spot, and how far expression moves (natural log) between the least and the most of a pattern
_DEPTH, _EFFECT = 40_000, 2.5
#: optical density per colour of pure haematoxylin and eosin (Ruifrok and Johnston 2001)
_STAINS = np.array([(0.65, 0.70, 0.29), (0.07, 0.99, 0.11)], np.float32)
#: that of mucin: pale blue, unlike glass, nuclei and eosin
_MUCIN = np.array((0.40, 0.17, 0.06), np.float32)
#: rows that are painted at once
_BAND = 512


def sample_slide() -> Path:
    """Return the path of the embedded H&E slide.

    A real Aperio SVS, 2220 × 2967 px at 0.499 µm/px: CMU-1-Small-Region of the OpenSlide test data (CC0).
    """
    return ASSETS / "cmu_small_region.svs"


def sample_section(
    folder: str | Path,
    *,
    name: str = "sample",
    seed: int = 0,
    patient: int = 0,
    spots: tuple[int, int] = (16, 16),
    mpp: float = 0.5,
    image: str = "tif",
    shuffle: bool = False,
) -> Path:
    """Write a paired section whose expression follows what its image shows, as Space Ranger lays out files.

    Sixty genes follow one of three patterns that the eye sees (``NUCLEI1`` … , ``EOSIN1`` …, ``MUCIN1`` …), forty
    (``FLAT1`` …) follow none. Patterns lie elsewhere in each section, so that position alone predicts nothing on
    another one. Everything is drawn from the seed.

    Parameters
    ----------
    folder
        Where ``NAME/outs`` (counts, positions, hires image) and the scan ``NAME/NAME.tif`` are written.
    name
        Name of the section.
    seed
        Of patterns and counts.
    patient
        Whose it is: decides the stain; 0 is an even one, others differ in strength and hue.
    spots
        Rows and columns of the array; those inside an oval of tissue, about two thirds, are under tissue.
    mpp
        µm per pixel of the scan.
    image
        "tif" (says its µm per pixel) or "png" (does not).
    shuffle
        Give each spot the counts of another: then nothing can be learnt, and what scores well has leaked.

    Returns
    -------
    Path
        The ``outs`` folder, fit for :func:`napari_peka.io.section.read_section`.
    """
    rng = np.random.default_rng((seed, 1))
    array = _array(spots)
    size_um = array.xy_um.max(0) + _MARGIN_UM
    patterns = [_pattern(size_um, rng) for _ in SAMPLE_PROGRAMS]
    picture = _paint(patterns, size_um, mpp, _stain(patient), rng)
    counts = _expression(np.stack([p.at(array.xy_um) for p in patterns], axis=1), rng)
    order = rng.permutation(int(array.under.sum())) if shuffle else np.arange(int(array.under.sum()))
    outs = Path(folder) / name / "outs"
    files.make_folder(outs / "spatial")
    _write_image(outs.parent / f"{name}.{image}", picture, mpp)
    _write_spatial(outs / "spatial", picture, array, mpp)
    _write_counts(outs / "filtered_feature_bc_matrix.h5", counts[array.under][order], array.barcodes[array.under])
    return outs


def sample_sections(
    folder: str | Path, *, patients: int = 2, sections: int = 2, seed: int = 0, shuffle: bool = False, **options: object
) -> Path:
    """Write several sections of several patients with :func:`sample_section`, and return their manifest.

    Parameters
    ----------
    folder
        Where they and ``manifest.csv`` are written.
    patients, sections
        How many patients, and sections of each.
    seed
        Of the first section; each one has its own.
    shuffle, options
        As :func:`sample_section` takes them.
    """
    manifest = files.make_folder(Path(folder)) / "manifest.csv"
    rows = []
    for patient in range(patients):
        for k in range(sections):
            name = f"P{patient + 1}S{k + 1}"
            number = seed + patient * sections + k
            sample_section(folder, name=name, seed=number, patient=patient, shuffle=shuffle, **options)  # type: ignore[arg-type]
            rows.append((f"{name}/outs", name, f"P{patient + 1}", "", ""))
    with manifest.open("w", newline="", encoding="utf-8") as f:
        csv.writer(f).writerows([("path", "section", "patient", "image", "split"), *rows])
    return manifest


class _Array(NamedTuple):
    """Spots of a Visium-like array: barcodes, row and column, (x, y) in µm, and which lie under tissue."""

    barcodes: npt.NDArray[np.object_]
    row_col: npt.NDArray[np.int64]
    xy_um: npt.NDArray[np.float64]
    under: npt.NDArray[np.bool_]


class _Pattern(NamedTuple):
    """A smooth field, 0 to 1, on a coarse grid that spans ``size_um`` (x, y)."""

    grid: FloatImage
    size_um: npt.NDArray[np.float64]

    def rows(self, top: int, stop: int, shape: tuple[int, int]) -> FloatImage:
        """Return rows `top` to `stop` of the field drawn with `shape` (h, w)."""
        from PIL import Image as Pil

        h, w = self.grid.shape
        box = (0, top * h / shape[0], w, stop * h / shape[0])
        return np.asarray(Pil.fromarray(self.grid).resize((shape[1], stop - top), Pil.Resampling.BILINEAR, box=box))

    def at(self, xy_um: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """Return the field at positions (x, y) in µm."""
        h, w = self.grid.shape
        col, row = ((xy_um / self.size_um) * (w, h) - 0.5).T
        c, r = np.clip(col, 0, w - 1.001), np.clip(row, 0, h - 1.001)
        c0, r0 = c.astype(int), r.astype(int)
        fc, fr = c - c0, r - r0
        g = self.grid
        top = g[r0, c0] * (1 - fc) + g[r0, c0 + 1] * fc
        low = g[r0 + 1, c0] * (1 - fc) + g[r0 + 1, c0 + 1] * fc
        return np.asarray(top * (1 - fr) + low * fr, np.float64)


def _array(spots: tuple[int, int]) -> _Array:
    rows, cols = spots
    row, k = (a.ravel() for a in np.indices((rows, cols)))
    col = 2 * k + row % 2
    xy = np.column_stack([col * _PITCH_UM / 2, row * _PITCH_UM * np.sqrt(3) / 2]) + _MARGIN_UM
    letters = np.array(list("ACGT"))
    # two letters apart, as real barcodes are; any fixed multiplier that is odd makes each number another one
    code = (np.arange(len(row), dtype=np.uint64) + 1) * np.uint64(2_654_435_761) % np.uint64(4**16)
    digits = code[:, None] // np.uint64(4) ** np.arange(16, dtype=np.uint64) % np.uint64(4)
    barcodes = np.array(["".join(letters[d]) + "-1" for d in digits.astype(int)], object)
    return _Array(barcodes, np.column_stack([row, col]), xy, _in_tissue(xy[:, 0], xy[:, 1], xy.max(0) + _MARGIN_UM))


def _in_tissue(
    x_um: npt.NDArray[np.floating], y_um: npt.NDArray[np.floating], size_um: npt.NDArray[np.float64]
) -> npt.NDArray[np.bool_]:
    """Return which positions lie in the tissue: an oval with a bay on one side, unlike itself under every flip."""
    u, v = x_um / size_um[0] * 2 - 1, y_um / size_um[1] * 2 - 1
    oval = (u / 0.93) ** 2 + (v / 0.93) ** 2 < 1
    bay = (u - 0.75) ** 2 + (v + 0.35) ** 2 < 0.35**2
    return np.asarray(oval & ~bay)


def _pattern(size_um: npt.NDArray[np.float64], rng: np.random.Generator) -> _Pattern:
    from PIL import Image as Pil

    w, h = (int(np.ceil(s / _PATTERN_UM)) + 2 for s in size_um)
    noise = rng.normal(size=(h, w)).astype(np.float32)
    fine = np.asarray(Pil.fromarray(noise).resize((w * 8, h * 8), Pil.Resampling.BICUBIC))
    z = (fine - fine.mean()) / fine.std()
    return _Pattern((1 / (1 + np.exp(-1.6 * z))).astype(np.float32), size_um)


def _stain(patient: int) -> FloatImage:
    """Return optical density per colour of haematoxylin and eosin, ``(2, 3)``."""
    if patient == 0:
        return _STAINS
    rng = np.random.default_rng((patient, 2))
    strength = rng.uniform(0.7, 1.4, (2, 1))
    return (_STAINS * strength * rng.uniform(0.85, 1.15, (2, 3))).astype(np.float32)


def _paint(
    patterns: list[_Pattern], size_um: npt.NDArray[np.float64], mpp: float, stain: FloatImage, rng: np.random.Generator
) -> npt.NDArray[np.uint8]:
    """Return the scan, uint8 ``(h, w, 3)``."""
    shape = round(size_um[1] / mpp), round(size_um[0] / mpp)
    nuclei, lakes = _Dots(size_um, _NUCLEUS_UM, _NUCLEUS_RADIUS_UM, rng), _Dots(size_um, _LAKE_UM, _LAKE_RADIUS_UM, rng)
    out = np.empty((*shape, 3), np.uint8)
    for top in range(0, shape[0], _BAND):
        stop = min(top + _BAND, shape[0])
        dense, pink, pale = (p.rows(top, stop, shape) for p in patterns)
        x, y = (np.arange(shape[1]) + 0.5) * mpp, (np.arange(top, stop) + 0.5) * mpp
        blue = np.where(nuclei.cover(x, y, dense), np.float32(0.9), np.float32(0.06))
        density = blue[..., None] * stain[0] + (0.2 + 0.7 * pink)[..., None] * stain[1]
        density[lakes.cover(x, y, 0.7 * pale)] = _MUCIN
        density[~_in_tissue(x, y[:, None], size_um)] = 0
        out[top:stop] = np.round(244 * 10 ** (-density))
    return out


class _Dots:
    """Discs on a jittered lattice, each there with a chance that is asked for where it lies."""

    def __init__(
        self, size_um: npt.NDArray[np.float64], step_um: float, radius_um: float, rng: np.random.Generator
    ) -> None:
        blocks = tuple(int(np.ceil(s / step_um / 4)) + 1 for s in size_um[::-1])
        room = step_um / 2 - radius_um
        self._step, self._radius = step_um, radius_um
        self._centre = (step_um / 2 + rng.uniform(-room, room, (2, blocks[0] * 4, blocks[1] * 4))).astype(np.float32)
        # of sixteen neighbours a chance of a half takes eight: a tile shows its share without the noise of a draw
        ranks = rng.permuted(np.broadcast_to(np.arange(16), (*blocks, 16)), axis=-1).reshape(*blocks, 4, 4)
        self._chance = ((ranks.swapaxes(1, 2).reshape(blocks[0] * 4, -1) + 0.5) / 16).astype(np.float32)

    def cover(
        self, x_um: npt.NDArray[np.float64], y_um: npt.NDArray[np.float64], chance: FloatImage
    ) -> npt.NDArray[np.bool_]:
        """Return which points of a raster with these columns and rows lie in a disc, bool ``(len(y), len(x))``."""
        col, row = (x_um // self._step).astype(int), (y_um // self._step).astype(int)
        cells = np.ix_(row, col)
        dx = (x_um - col * self._step).astype(np.float32) - self._centre[0][cells]
        dy = (y_um - row * self._step).astype(np.float32)[:, None] - self._centre[1][cells]
        return np.asarray((dx**2 + dy**2 < self._radius**2) & (self._chance[cells] < chance))


def sample_genes() -> tuple[str, ...]:
    """Return the genes of :func:`sample_section`, in order; the first sixty follow the pattern in their name."""
    follow = [f"{p}{i + 1}" for p in SAMPLE_PROGRAMS for i in range(_GENES)]
    return tuple(follow + [f"FLAT{i + 1}" for i in range(_FLAT)])


def _expression(fields: npt.NDArray[np.float64], rng: np.random.Generator) -> npt.NDArray[np.int32]:
    """Return counts ``(n, genes)`` of spots with these patterns ``(n, 3)``, 0 to 1."""
    fixed = np.random.default_rng(3)  # a gene behaves alike in all sections
    n_follow = _GENES * len(SAMPLE_PROGRAMS)
    level = fixed.uniform(0.3, 1.0, n_follow + _FLAT)
    level[n_follow:] *= 8  # so many that the patterns hardly move the total by which spots are scaled
    effect = np.zeros((len(SAMPLE_PROGRAMS), n_follow + _FLAT))
    for k in range(len(SAMPLE_PROGRAMS)):
        signs = np.where(np.arange(_GENES) % 2 == 0, 1.0, -1.0)
        effect[k, k * _GENES : (k + 1) * _GENES] = signs * fixed.uniform(0.6, 1.0, _GENES) * _EFFECT
    rate = level * np.exp((fields - 0.5) @ effect)
    # where more cells are more is measured
    depth = _DEPTH * (0.4 + 1.2 * fields[:, :1]) * np.exp(rng.normal(0, 0.25, (len(fields), 1)))
    return np.asarray(rng.poisson(rate / level.sum() * depth), np.int32)


def _write_image(path: Path, picture: npt.NDArray[np.uint8], mpp: float) -> None:
    from PIL import Image as Pil

    image = Pil.fromarray(picture)
    if path.suffix == ".png":
        files.write_beside(path, lambda p: image.save(p, compress_level=1))
        return
    per_cm = 1e4 / mpp
    centimetre = 3
    files.write_beside(
        path,
        lambda p: image.save(
            p, compression="tiff_deflate", resolution_unit=centimetre, x_resolution=per_cm, y_resolution=per_cm
        ),
    )


def _reduced(image: Image, side: int) -> tuple[Image, float]:
    from PIL import Image as Pil

    scale = side / max(image.size)
    size = max(1, round(image.width * scale)), max(1, round(image.height * scale))
    return image.resize(size, Pil.Resampling.BILINEAR, reducing_gap=2.0), scale


def _write_spatial(spatial: Path, picture: npt.NDArray[np.uint8], array: _Array, mpp: float) -> None:
    from PIL import Image as Pil

    scales = {"spot_diameter_fullres": _SPOT_UM / mpp, "fiducial_diameter_fullres": 1.6 * _SPOT_UM / mpp}
    for kind, share, most in (("hires", 0.5, 2000), ("lowres", 0.15, 600)):
        side = min(most, round(max(picture.shape) * share))
        image, scales[f"tissue_{kind}_scalef"] = _reduced(Pil.fromarray(picture), side)
        image.save(spatial / f"tissue_{kind}_image.png")
    (spatial / "scalefactors_json.json").write_text(json.dumps(scales), "utf-8")
    with (spatial / "tissue_positions.csv").open("w", newline="", encoding="utf-8") as f:
        writer = csv.writer(f)
        writer.writerow(("barcode", "in_tissue", "array_row", "array_col", "pxl_row_in_fullres", "pxl_col_in_fullres"))
        xy = array.xy_um / mpp
        for i, barcode in enumerate(array.barcodes):
            row, col = array.row_col[i].tolist()
            writer.writerow((barcode, int(array.under[i]), row, col, f"{xy[i, 1]:.3f}", f"{xy[i, 0]:.3f}"))


def _write_counts(path: Path, counts: npt.NDArray[np.int32], barcodes: npt.NDArray[np.object_]) -> None:
    from scipy import sparse

    genes = np.array(sample_genes(), object)
    ids = np.array([f"SAMPLE{i:05d}" for i in range(len(genes))], object)
    write_h5(path, Matrix(sparse.csr_matrix(counts), barcodes, genes, ids, 0))
