"""How sure a mean over sections and genes is: the hierarchical bootstrap."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

#: enough for the second digit of a 95 % interval's ends
REPEATS = 2000
#: resamples weighed at once: bounds the memory at 18,000 genes to a few tens of MB
_AT_ONCE = 100


def resampled_means(
    values: npt.NDArray[np.float64], patients: Sequence[str], *, repeats: int = REPEATS, seed: int = 0
) -> npt.NDArray[np.float64]:
    """Return means over resampled patients, sections and genes.

    Patients are drawn with replacement, then sections within each drawn patient, then genes, the same genes for every
    section. Several tables are resampled alike, so that differences between them are paired.

    Parameters
    ----------
    values
        Tables of scores, shape ``(n_tables, n_sections, n_genes)``; NaN where a gene has no score.
    patients
        Patient of each section, ``n_sections``.
    repeats
        Number of resamples.
    seed
        Of the drawing.

    Returns
    -------
    array
        Mean over sections of the mean over genes, shape ``(repeats, n_tables)``; NaN where nothing was drawn that has a
        score.

    Notes
    -----
    Saravanan, Berman and Sober, "Application of the hierarchical bootstrap to multi-level data in neuroscience",
    Neurons, Behavior, Data Analysis and Theory 2020. Genes are crossed with sections, not nested: one draw of them
    serves all sections.
    """
    rng = np.random.default_rng(seed)
    n_tables, n_sections, n_genes = values.shape
    flat = values.reshape(-1, n_genes)
    finite = np.isfinite(flat)
    known, scores = finite.astype(np.float64).T, np.where(finite, flat, 0.0).T
    own = {p: np.flatnonzero(np.asarray(patients, dtype=object) == p) for p in dict.fromkeys(patients)}
    groups = list(own.values())
    out = np.empty((repeats, n_tables))
    for at in range(0, repeats, _AT_ONCE):
        n = min(_AT_ONCE, repeats - at)
        genes = _counts(rng.integers(n_genes, size=(n, n_genes)), n_genes)
        section = np.stack([_draw_sections(rng, groups, n_sections) for _ in range(n)])[:, None, :]
        weight = genes @ known
        with np.errstate(invalid="ignore", divide="ignore"):
            mean = (genes @ scores / weight).reshape(n, n_tables, n_sections)
            there = np.where(np.isfinite(mean), section, 0.0)
            out[at : at + n] = (np.nan_to_num(mean) * there).sum(2) / there.sum(2)
    return out


def interval(means: npt.NDArray[np.float64], level: float = 0.95) -> tuple[float, float]:
    """Return the percentile interval of resampled means; NaN where there are none."""
    finite = means[np.isfinite(means)]
    if not len(finite):
        return float("nan"), float("nan")
    low, high = np.quantile(finite, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def _counts(drawn: npt.NDArray[np.intp], n: int) -> npt.NDArray[np.float64]:
    """Return how often each of `n` things was drawn in each row."""
    shift = drawn + np.arange(len(drawn))[:, None] * n
    return np.bincount(shift.ravel(), minlength=len(drawn) * n).reshape(len(drawn), n).astype(np.float64)


def _draw_sections(
    rng: np.random.Generator, groups: list[npt.NDArray[np.intp]], n_sections: int
) -> npt.NDArray[np.float64]:
    weight = np.zeros(n_sections)
    for p in rng.integers(len(groups), size=len(groups)):
        own = groups[p]
        np.add.at(weight, own[rng.integers(len(own), size=len(own))], 1.0)
    return weight
