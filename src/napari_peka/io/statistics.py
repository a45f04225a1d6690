"""What a predicted map tells of its genes: a table of all of them, sets of genes as one score, regions compared."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from napari_peka.core.errors import RegionError, SettingError, UnknownName, near_names
from napari_peka.core.neighbours import Neighbours, neighbour_mean
from napari_peka.core.statistics import Moments, moments

if TYPE_CHECKING:
    import pandas as pd

    from napari_peka.io.prediction import Prediction

ASSETS = Path(__file__).parent.parent / "assets"
#: neighbours for Moran's I: the eight around a tile of a grid, in strides
_RING = 1.5
#: of a set's score: a mean of standardised values
SCORE_UNIT = "mean z"
#: tiles of a region below which its spread tells nothing
MIN_TILES = 3
#: ceilings below this are noise themselves: a share of them says nothing
MIN_ATTAINABLE = 0.2


def features_of(prediction: Prediction) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.bool_]]:
    """Return what the head reads of each tile, float32 ``(n, d)``, and which tiles are known, bool ``(n,)``."""
    own = np.asarray(prediction.embeddings, np.float32)
    known = np.asarray(np.isfinite(own).all(1))
    near = prediction.neighbours
    return (own if near is None else np.concatenate([own, near.mean(own)], 1).astype(np.float32)), known


def gene_table(prediction: Prediction) -> pd.DataFrame:
    """Return a row a gene: what it does on this map, and how far to believe it.

    Returns
    -------
    DataFrame
        Index: gene. ``gene_id``; ``pcc``, the held-out correlation, and ``attainable_pcc``, its noise ceiling (NaN
        where not measured); ``share_of_attainable``; ``mean`` and ``sd`` over the tiles in the map's unit; ``moran``,
        Moran's I over the eight tiles around each (-1 to 1, about 0 without spatial structure).

    Raises
    ------
    SettingError
        If no tile of the map is known.
    """
    import pandas as pd

    head = prediction.head
    features, known = features_of(prediction)
    if not known.any():
        raise SettingError("no tile of the map could be read, so nothing is known of its genes")
    m = moments(features[known], _ring(prediction).among(np.flatnonzero(known)))
    nothing = np.full(len(head.genes), np.nan, np.float32)
    pcc = nothing if head.pcc is None else head.pcc
    ceiling = nothing if head.attainable_pcc is None else head.attainable_pcc
    moran = nothing if m.lag is None else m.moran(head.weights)
    return pd.DataFrame(
        {
            "gene_id": list(head.gene_ids) or [""] * len(head.genes),
            "pcc": pcc,
            "attainable_pcc": ceiling,
            "share_of_attainable": np.divide(pcc, ceiling, out=nothing.copy(), where=ceiling >= MIN_ATTAINABLE),
            "mean": m.gene_mean(head.weights, head.bias),
            "sd": np.sqrt(np.maximum(m.gene_variance(head.weights), 0)),
            "moran": moran,
        },
        index=pd.Index(head.genes, name="gene"),
    )


def gene_set_score(prediction: Prediction, genes: Sequence[str]) -> npt.NDArray[np.float32]:
    """Return one score a tile for a set of genes: the mean of their standardised values, ``(n,)``; NaN if unreadable.

    Each gene is standardised over the map's own tiles, so that strongly expressed ones do not rule. A score says where
    the set is high or low on this slide, and cannot be compared between slides.

    Parameters
    ----------
    prediction
        The map.
    genes
        Symbols (any case) or Ensembl ids; those that the model does not know are left out; :func:`known_genes` tells.

    Raises
    ------
    UnknownName
        If the model knows none of them, or none that varies.
    """
    head = prediction.head
    at = [head.index(g) for g in known_genes(prediction, genes)[0]]
    if not at:
        shown = ", ".join(list(genes)[:3])
        raise UnknownName(f"the model knows none of the {len(genes)} genes of the set ({shown})")
    features, known = features_of(prediction)
    weights = np.asarray(head.weights[:, at], np.float64)
    m = moments(features[known])
    sd = np.sqrt(np.maximum(m.gene_variance(weights), 0))
    varies = sd > 1e-9
    if not varies.any():
        raise UnknownName(f"none of the {len(at)} genes of the set varies on this map")
    w = (weights[:, varies] / sd[varies]).mean(1)
    out = np.full(len(features), np.nan, np.float32)
    out[known] = (np.asarray(features[known], np.float64) - m.mean) @ w
    return out


def known_genes(prediction: Prediction, genes: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return which of some genes the model knows, by its own names, each once, and which it does not."""
    found, missing = [], []
    for gene in genes:
        at = prediction.head.find(gene)
        if at is None:
            missing.append(gene)
        else:
            found.append(prediction.genes[at])
    return list(dict.fromkeys(found)), missing


def own_gene_sets() -> dict[str, list[str]]:
    """Return the sets that come with this package: published signatures, with their sources in the file."""
    return read_gene_sets(ASSETS / "signatures.gmt")


def gene_sets_of(names: Sequence[str]) -> dict[str, list[str]]:
    """Return sets by what a person named: GMT files, with all of their sets, and sets that come with this package.

    Parameters
    ----------
    names
        Each is a path that ends in ``.gmt`` (or ``.txt``), or a name of :func:`own_gene_sets`, in any case.

    Raises
    ------
    SettingError
        If a file cannot be read or holds no set.
    UnknownName
        If there is no such set; near names are offered.
    """
    out: dict[str, list[str]] = {}
    own = own_gene_sets()
    for name in names:
        if name.lower().endswith((".gmt", ".txt")):
            out |= read_gene_sets(Path(name).expanduser())
        elif (found := next((n for n in own if n.casefold() == name.casefold()), None)) is not None:
            out[found] = own[found]
        else:
            raise UnknownName(
                f"there is no gene set {name!r}: name a GMT file (FILE.gmt) or one of {', '.join(own)}"
                f"{near_names(name, own)}"
            )
    return out


def read_gene_sets(path: Path | str) -> dict[str, list[str]]:
    """Read sets of genes from a GMT file: a line a set, its name, a description, and the genes, parted by tabs.

    Raises
    ------
    SettingError
        If the file cannot be read or holds no set.
    """
    path = Path(path)
    try:
        lines = path.read_text("utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as e:
        raise SettingError(f"the gene sets {path} cannot be read ({e})") from e
    sets: dict[str, list[str]] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        name, *rest = line.rstrip().split("\t")
        genes = [g.strip() for g in rest[1:] if g.strip()]
        if not name.strip() or not genes:
            raise SettingError(f"{path}, line {number}: a set is NAME, DESCRIPTION and genes, parted by tabs (GMT)")
        sets[name.strip()] = genes
    if not sets:
        raise SettingError(f"{path} holds no gene set")
    return sets


def compare_regions(prediction: Prediction, a: Any, b: Any = None) -> pd.DataFrame:
    """Rank genes by how much they differ between two regions of a map.

    Parameters
    ----------
    prediction
        The map.
    a, b
        shapely polygons in level-0 pixels, x first, or bool arrays ``(n,)`` of tiles. None for `b`: all other tiles.

    Returns
    -------
    DataFrame
        Index: gene, greatest effect first. ``mean_a``, ``mean_b`` and ``difference`` in the map's unit; ``cohens_d``,
        the difference in pooled standard deviations; ``pcc``. No p-values: neighbouring tiles are no independent
        samples, and predictions no measurements.

    Raises
    ------
    RegionError
        If a region has fewer than three tiles, or the two share tiles.
    """
    import pandas as pd

    head, tiles = prediction.head, prediction.tiles
    features, known = features_of(prediction)
    in_a = _rows(tiles.centre_yx, a)
    in_b = ~in_a if b is None else _rows(tiles.centre_yx, b)
    if shared := int((in_a & in_b & known).sum()):
        raise RegionError(f"the two regions share {shared} tiles; compare regions that lie apart")
    found: list[Moments] = []
    for name, rows in (("first", in_a & known), ("second", in_b & known)):
        if rows.sum() < MIN_TILES:
            raise RegionError(
                f"the {name} region has {int(rows.sum())} tiles; draw it larger, {MIN_TILES} at the least"
            )
        found.append(moments(features[rows]))
    mean = [m.gene_mean(head.weights, head.bias) for m in found]
    variance = [np.maximum(m.gene_variance(head.weights), 0) * m.n for m in found]
    pooled = np.sqrt(sum(variance) / max(sum(m.n for m in found) - 2, 1))
    difference = mean[0] - mean[1]
    effect = np.divide(difference, pooled, out=np.zeros_like(difference), where=pooled > 1e-9)
    table = pd.DataFrame(
        {
            "mean_a": mean[0], "mean_b": mean[1], "difference": difference, "cohens_d": effect,
            "pcc": np.full(len(effect), np.nan, np.float32) if head.pcc is None else head.pcc,
        },
        index=pd.Index(head.genes, name="gene"),
    )  # fmt: skip
    return table.iloc[np.argsort(-np.abs(effect), kind="stable")]


def region_table(prediction: Prediction, regions: Mapping[str, Any], genes: Sequence[str]) -> pd.DataFrame:
    """Return a row a region and gene: tiles, mean, standard deviation, median and quartiles of the values.

    Parameters
    ----------
    prediction
        The map.
    regions
        shapely polygons in level-0 pixels, x first, by name.
    genes
        Symbols or Ensembl ids.

    Raises
    ------
    UnknownName
        If the model does not know a gene.
    """
    import pandas as pd

    rows = []
    for gene in genes:
        values = prediction.values(gene)
        for name, region in regions.items():
            inside = values[_rows(prediction.tiles.centre_yx, region) & np.isfinite(values)]
            quartiles = np.percentile(inside, (25, 50, 75)) if len(inside) else np.full(3, np.nan)
            mean, sd = (inside.mean(), inside.std()) if len(inside) else (np.nan, np.nan)
            rows.append((name, gene, len(inside), mean, sd, quartiles[1], quartiles[0], quartiles[2]))
    names = ("region", "gene", "tiles", "mean", "sd", "median", "q25", "q75")
    return pd.DataFrame(rows, columns=list(names))


def region_values(prediction: Prediction, regions: Mapping[str, Any], gene: str) -> dict[str, npt.NDArray[np.float32]]:
    """Return the known values of a gene on the tiles of each region, in the map's unit."""
    values = prediction.values(gene)
    finite = np.isfinite(values)
    return {name: values[_rows(prediction.tiles.centre_yx, r) & finite] for name, r in regions.items()}


def cohens_d(a: npt.NDArray[np.floating], b: npt.NDArray[np.floating]) -> float:
    """Return the difference of two means in pooled standard deviations (Cohen 1988); NaN for fewer than three each."""
    if min(len(a), len(b)) < MIN_TILES:
        return float("nan")
    pooled = np.sqrt((a.var() * len(a) + b.var() * len(b)) / (len(a) + len(b) - 2))
    return float((a.mean() - b.mean()) / pooled) if pooled > 1e-9 else float("nan")


def effect_word(d: float) -> str:
    """Return an effect size in words: small from 0.2, medium from 0.5, large from 0.8 (Cohen 1988)."""
    size = abs(d)
    return "large" if size >= 0.8 else "medium" if size >= 0.5 else "small" if size >= 0.2 else "negligible"


def _ring(prediction: Prediction) -> Neighbours:
    tiles = prediction.tiles
    return neighbour_mean(tiles.centre_um, _RING * tiles.spec.stride * tiles.spec.mpp)


def _rows(centre_yx: npt.NDArray[np.float64], region: Any) -> npt.NDArray[np.bool_]:
    import shapely

    if isinstance(region, shapely.Geometry):
        return np.asarray(shapely.contains_xy(region, centre_yx[:, 1], centre_yx[:, 0]))
    mask = np.asarray(region)
    if mask.dtype != bool or mask.shape != (len(centre_yx),):
        raise RegionError(
            f"a region is a shapely polygon or {len(centre_yx)} bools, one a tile, got {type(region).__name__} of "
            f"shape {mask.shape} and {mask.dtype}"
        )
    return mask
