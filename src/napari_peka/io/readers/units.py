"""Units of length as files write them."""

from __future__ import annotations

_UM = {
    "m": 1e6, "meter": 1e6, "metre": 1e6, "dm": 1e5, "cm": 1e4, "centimeter": 1e4, "mm": 1e3, "millimeter": 1e3,
    "µm": 1.0, "um": 1.0, "micron": 1.0, "micrometer": 1.0, "micrometre": 1.0, "nm": 1e-3, "nanometer": 1e-3,
    "å": 1e-4, "angstrom": 1e-4, "in": 25_400.0, "inch": 25_400.0,
}  # fmt: skip


def unit_um(unit: str | None) -> float | None:
    """Return µm in one `unit`, or None for a unit that is unknown, missing or no length."""
    return _UM.get((unit or "").strip().replace("\u03bc", "µ").casefold().replace("\u03bc", "µ"))
