"""The noise ceiling: the correlation that a perfect prediction would have with a noisy measurement."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy import sparse

from napari_peka.core.errors import SettingError

#: units of expression, and whether counts are divided by the spot's total. The base of the logarithm scales a gene's
#: values and leaves correlations as they are. The last is HEST-bench's
UNITS = {"log1p CP10K": True, "log2(1+CP10K)": True, "log1p counts": False}

_Pair = tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]


def attainable_pcc(
    counts: sparse.csr_matrix,
    unit: str = "log1p CP10K",
    *,
    columns: npt.NDArray[np.integer] | None = None,
    repeats: int = 10,
    seed: int = 0,
) -> npt.NDArray[np.float64]:
    """Return the PCC that nothing but measurement noise keeps a prediction from exceeding, for each gene.

    Each count is split by a fair coin a molecule into two halves, each half is normalised by its own totals, and the
    halves are correlated over spots. Spearman and Brown's formula gives the reliability of the whole from that of its
    halves, and its square root is the correlation of the measurement with what it measures.

    Parameters
    ----------
    counts
        Raw counts of the spots over which the score is taken, shape ``(n, g)``, **all** genes (the totals need them).
    unit
        One of :data:`UNITS`.
    columns
        The genes wanted, ``(k,)``; None for all. The fewer, the faster.
    repeats
        Splits over which the correlation of halves is averaged.
    seed
        Of the splitting.

    Returns
    -------
    array
        float64, shape ``(k,)``, 0 to 1. 0: the halves do not agree at all. NaN: no split left both halves variable, as
        for a gene that was hardly seen. With 200 spots a gene without any signal gets 0 to 0.25 by chance.

    Raises
    ------
    SettingError
        If the counts are not raw (negative, not whole, or not finite), or the unit is not known.

    Notes
    -----
    Splitting: Neufeld et al., "Inference after latent variable estimation for single-cell RNA sequencing data",
    Biostatistics 25 (2024), doi:10.1093/biostatistics/kxac047. From half to whole: Spearman, and Brown, British
    Journal of Psychology 3 (1910). The square root: noise ceilings of neuroscience, such as Lage-Castellanos et al.,
    PLoS Computational Biology 15 (2019), doi:10.1371/journal.pcbi.1006397; without it the figure bounds explained
    variance, not correlation.

    The halves are independent given the expression if counts are Poisson. What varies from spot to spot beyond that is
    taken as signal even if no image shows it (permeabilisation, capture), so that the true ceiling is rather lower. The
    formula holds for additive noise, after the logarithm only nearly.
    """
    if unit not in UNITS:
        raise SettingError(f"there is no noise ceiling for the unit {unit!r}; it is known for {', '.join(UNITS)}")
    counts = sparse.csr_matrix(counts)
    whole = sparse.csr_matrix((_whole(counts.data), counts.indices, counts.indptr), counts.shape)
    wanted = whole[:, np.arange(whole.shape[1]) if columns is None else columns]
    wanted.sum_duplicates()
    # halves of a sum are the sum of halves: the genes that nobody asked for are split as one
    rest = np.asarray(whole.sum(1) - wanted.sum(1)).ravel()
    rng = np.random.default_rng(seed)
    total, found = np.zeros(wanted.shape[1]), np.zeros(wanted.shape[1])
    for _ in range(repeats):
        half, half_rest = rng.binomial(wanted.data, 0.5), rng.binomial(rest, 0.5)
        r = _halves_pcc(wanted, (half, wanted.data - half), (half_rest, rest - half_rest), UNITS[unit])
        known = np.isfinite(r)
        total[known] += r[known]
        found += known
    with np.errstate(invalid="ignore", divide="ignore"):
        r = np.maximum(total / found, 0.0)
    return np.asarray(np.sqrt(2 * r / (1 + r)))


def _whole(data: npt.NDArray[np.floating]) -> npt.NDArray[np.int64]:
    whole = np.nan_to_num(data, nan=-1.0, posinf=-1.0, neginf=-1.0).astype(np.int64)
    if (whole < 0).any() or (whole != data).any():
        raise SettingError(
            "the noise ceiling needs raw counts (whole, not negative), but these are not; give the section's"
            " unnormalised matrix"
        )
    return whole


def _halves_pcc(counts: sparse.csr_matrix, halves: _Pair, rests: _Pair, per_total: bool) -> npt.NDArray[np.float64]:
    """Correlate two halves that share the sparse pattern of `counts`; NaN where one is constant.

    `rests` are the halves of each spot's other counts.
    """
    n_spots, n_genes = counts.shape
    spot = np.repeat(np.arange(n_spots), np.diff(counts.indptr))
    scale = np.ones((2, n_spots))
    there = np.full(n_spots, True)
    if per_total:
        totals = np.stack([np.bincount(spot, half, n_spots) + rest for half, rest in zip(halves, rests)])
        there &= (totals > 0).all(0)  # a spot with an empty half has no normalised value
        scale = np.where(there, 1e4 / np.maximum(totals, 1), 0.0)
    va, vb = (np.log1p(half * s[spot]) for half, s in zip(halves, scale))

    def mean(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        return np.bincount(counts.indices, weights=values, minlength=n_genes) / max(int(there.sum()), 1)

    ma, mb, aa, bb = mean(va), mean(vb), mean(va * va), mean(vb * vb)
    variance_a, variance_b = aa - ma**2, bb - mb**2
    # less than this is rounding, not variance
    varies = (variance_a > 1e-12 * aa) & (variance_b > 1e-12 * bb)
    return np.divide(
        mean(va * vb) - ma * mb,
        np.sqrt(np.abs(variance_a * variance_b)),
        out=np.full(n_genes, np.nan),
        where=varies,
    )
