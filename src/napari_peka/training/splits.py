"""Which spots train and which are held out.

Neighbouring spots share cells, stain and expression, and sections of one tumour are alike, so held-out spots must be of
another patient, another section, or another part of a section with a gap between. Spots at random are offered as the
protocol of the PEKA paper alone, marked optimistic.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.spatial import cKDTree

from napari_peka.core.errors import SettingError, UnknownName, near_names

BoolArray = npt.NDArray[np.bool_]
FloatArray = npt.NDArray[np.float64]
#: default gap between train and test spots, in distances from a spot to its nearest one: a tile of 112 µm on a Visium
#: array (100 µm) reaches no further than its neighbours, which stay out of both parts
_GAP_PITCHES = 2.0


@dataclass(frozen=True, eq=False)
class Fold:
    """One division of all spots.

    Parameters
    ----------
    name
        What is held out, in words.
    train, test
        bool, shape ``(n,)``; disjoint, neither empty. A spot in neither lies too near to both.
    optimistic
        Test spots have neighbours in the training part: scores are flattered.

    Raises
    ------
    SettingError
        If a part is empty or they overlap.
    """

    name: str
    train: BoolArray
    test: BoolArray
    optimistic: bool = False

    def __post_init__(self) -> None:
        if self.train.shape != self.test.shape or (self.train & self.test).any():
            raise SettingError(f"fold {self.name}: a spot cannot be in the training and the test part at once")
        if not self.test.any():
            raise SettingError(f"fold {self.name} holds out no spot; hold out a section or patient that has some")
        if not self.train.any():
            raise SettingError(f"fold {self.name} leaves nothing to train on; hold out less, or give more sections")


def by_patient(patients: Sequence[str]) -> list[Fold]:
    """Hold out each patient in turn.

    Parameters
    ----------
    patients
        Patient of each spot, ``n``.

    Raises
    ------
    SettingError
        If there is one patient only.
    """
    if len(set(patients)) < 2:
        raise SettingError(
            f"all spots are of one patient ({_only(patients)}), so none can be held out; hold out section or block,"
            " or name the patient of each section in a manifest"
        )
    return _each_in_turn(patients)


def by_section(sections: Sequence[str]) -> list[Fold]:
    """Hold out each section in turn. Sections of a patient whose others train test within that patient alone.

    Parameters
    ----------
    sections
        Section of each spot, ``n``.

    Raises
    ------
    SettingError
        If there is one section only.
    """
    if len(set(sections)) < 2:
        raise SettingError(f"there is one section ({_only(sections)}), so none can be held out; take --hold-out block")
    return _each_in_turn(sections)


def by_block(
    sections: Sequence[str], centre_um: FloatArray, n_blocks: int = 5, gap_um: float | None = None
) -> list[Fold]:
    """Hold out one contiguous part of every section in turn.

    A section is halved across the longer side of its spots' bounding box, and the halves again, until there are
    `n_blocks` parts of (nearly) equal numbers of spots. Fold *k* tests part *k* of every section.

    Parameters
    ----------
    sections
        Section of each spot, ``n``.
    centre_um
        Spot centres (y, x) in µm, shape ``(n, 2)``.
    n_blocks
        Parts a section, at least 2.
    gap_um
        Spots nearer than this to a test spot of their section are in neither part. Default: twice the median distance
        from a spot to the nearest other one.

    Raises
    ------
    SettingError
        If a section has fewer spots than parts, or the gap leaves nothing to train on.
    """
    if n_blocks < 2:
        raise SettingError(f"a split needs at least 2 blocks a section, got {n_blocks}")
    block = np.zeros(len(sections), int)
    for name, rows in _rows_of(sections):
        if len(rows) < n_blocks:
            raise SettingError(f"section {name} has {len(rows)} spots, too few for {n_blocks} blocks; ask for fewer")
        block[rows] = _halved(centre_um[rows], n_blocks)
    everything = np.ones(len(sections), bool)
    return [
        Fold(f"block {k + 1}", *_apart(sections, centre_um, everything, block == k, gap_um)) for k in range(n_blocks)
    ]


def paper(n: int, seed: int, folds: int = 5) -> list[Fold]:
    """Hold out spots at random, as the PEKA authors' evaluation does (arXiv 2504.07061): marked optimistic.

    Parameters
    ----------
    n
        Number of spots, at least `folds`.
    seed
        Of the shuffling.
    folds
        Parts, at least 2.
    """
    if not 2 <= folds <= n:
        raise SettingError(f"{n} spots cannot be shuffled into {folds} parts; ask for 2 to {n}")
    part = np.empty(n, int)
    part[np.random.default_rng(seed).permutation(n)] = np.arange(n) % folds
    return [Fold(f"random {k + 1}", part != k, part == k, optimistic=True) for k in range(folds)]


def named(names: Sequence[str], sections: Sequence[str], patients: Sequence[str]) -> Fold:
    """Hold out the sections and patients of these names.

    Parameters
    ----------
    names
        Section or patient names.
    sections, patients
        Section and patient of each spot, ``n``.

    Raises
    ------
    UnknownName
        If no section or patient has such a name; near names are offered.
    SettingError
        If nothing is left to train on.
    """
    known = dict.fromkeys([*sections, *patients])
    for name in names:
        if name not in known:
            raise UnknownName(
                f"there is no section or patient {name!r} to hold out{near_names(name, known)}; there are "
                + ", ".join(known)
            )
    test = np.isin(sections, list(names)) | np.isin(patients, list(names))
    return Fold(", ".join(names), ~test, test)


def validation(
    sections: Sequence[str],
    centre_um: FloatArray,
    rows: BoolArray,
    share: float = 0.2,
    *,
    seed: int = 0,
    gap_um: float | None = None,
) -> Fold:
    """Divide training spots again: a contiguous part of each section stays out for early stopping.

    Parameters
    ----------
    sections
        Section of each spot, ``n``.
    centre_um
        Spot centres (y, x) in µm, shape ``(n, 2)``.
    rows
        The training spots, bool, shape ``(n,)``; no other is in either part.
    share
        About this share of each section stays out: 1 / `share`, rounded, is the number of its blocks, of which `seed`
        chooses one. Above 0, at most 0.5.
    seed
        Chooses the blocks.
    gap_um
        As in :func:`by_block`.

    Returns
    -------
    Fold
        ``test`` is the validation part.

    Raises
    ------
    SettingError
        If `share` is out of range, no section has spots enough, or the gap leaves nothing to train on.
    """
    if not 0 < share <= 0.5:
        raise SettingError(f"a validation share of {share} cannot be used: it must be above 0 and at most 0.5")
    rng, n_blocks = np.random.default_rng(seed), round(1 / share)
    test = np.zeros(len(sections), bool)
    for _, in_section in _rows_of(sections):
        own = in_section[rows[in_section]]
        # a section with fewer spots than blocks trains: its few spots would be no contiguous part
        if len(own) >= n_blocks:
            test[own] = _halved(centre_um[own], n_blocks) == rng.integers(n_blocks)
    if not test.any():
        raise SettingError(
            f"no section has the {n_blocks} training spots that a validation share of {share:g} needs; raise the share"
        )
    return Fold("validation", *_apart(sections, centre_um, rows, test, gap_um))


def _only(names: Sequence[str]) -> str:
    return next(iter(names), "none")


def _each_in_turn(names: Sequence[str]) -> list[Fold]:
    own = np.asarray(names, dtype=object)
    return [Fold(str(name), own != name, own == name) for name in dict.fromkeys(names)]


def _rows_of(sections: Sequence[str]) -> list[tuple[str, npt.NDArray[np.intp]]]:
    own = np.asarray(sections, dtype=object)
    return [(name, np.flatnonzero(own == name)) for name in dict.fromkeys(sections)]


def _halved(centre: FloatArray, parts: int) -> npt.NDArray[np.intp]:
    """Return the part (0 to ``parts - 1``) of each spot; parts of nearly equal size, cut across the longer side."""
    label = np.zeros(len(centre), np.intp)
    if parts == 1:
        return label
    long = int(np.argmax(np.ptp(centre, axis=0)))
    order = np.lexsort((centre[:, 1 - long], centre[:, long]))
    first = parts // 2
    cut = round(len(centre) * first / parts)
    low, high = order[:cut], order[cut:]
    label[low] = _halved(centre[low], first)
    label[high] = first + _halved(centre[high], parts - first)
    return label


def _apart(
    sections: Sequence[str], centre_um: FloatArray, rows: BoolArray, test: BoolArray, gap_um: float | None
) -> tuple[BoolArray, BoolArray]:
    """Return train and test: train is the rest of `rows` that keeps the gap to the test spots of its section."""
    train = rows & ~test
    for _, own in _rows_of(sections):
        if not test[own].any():
            continue
        gap = _GAP_PITCHES * pitch_um(centre_um[own]) if gap_um is None else gap_um
        near = cKDTree(centre_um[own][test[own]]).query(centre_um[own])[0] < gap
        train[own[near]] = False
    if not train.any():
        how = "two spot distances" if gap_um is None else f"{gap_um:g} µm"
        raise SettingError(
            f"a gap of {how} around the held-out spots leaves nothing to train on; narrow the gap, or hold out less"
        )
    return train, test


def pitch_um(centre_um: FloatArray) -> float:
    """Return the median distance from a spot to the nearest other one, in µm; 0 for a single spot."""
    if len(centre_um) < 2:
        return 0.0
    return float(np.median(cKDTree(centre_um).query(centre_um, k=2)[0][:, 1]))
