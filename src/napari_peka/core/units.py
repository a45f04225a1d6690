"""Units of expression, and their values without the logarithm."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

Float32 = npt.NDArray[np.float32]


def _exp2m1(values: Float32) -> Float32:
    return np.asarray(np.expm1(values * np.log(2)), np.float32)


#: unit with a logarithm: the unit without it, and how to get there
_LINEAR: dict[str, tuple[str, Callable[[Float32], Float32]]] = {
    "log1p CP10K": ("CP10K", np.expm1),
    "log2(1+CP10K)": ("CP10K", _exp2m1),
    "log1p counts": ("counts", np.expm1),
}


def least_value(unit: str) -> float | None:
    """Return the least value that can be measured in a unit: 0 where it counts something, None: not known."""
    return 0.0 if unit in _LINEAR or unit in ("counts", "CP10K") else None


def linear_unit(unit: str) -> str | None:
    """Return the unit of the same values without their logarithm; None when that is not known."""
    found = _LINEAR.get(unit)
    return None if found is None else found[0]


def linear(values: Float32, unit: str) -> Float32:
    """Return values without their logarithm, in :func:`linear_unit`; what is below nothing becomes nothing.

    The exponent of a predicted mean of logarithms is a geometric mean: lower than a mean of counts.

    Raises
    ------
    KeyError
        If the unit has no logarithm that is known.
    """
    return np.asarray(_LINEAR[unit][1](np.maximum(values, 0)), np.float32)
