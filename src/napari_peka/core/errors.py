"""What can go wrong, in words a person can act on.

Every error of this package is a :class:`PekaError` and a builtin as well, so that callers who know nothing of
this package still catch what they expect. A message says what is wrong, where, and what to do.
"""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


class PekaError(Exception):
    """Base of all errors that a person can mend. Its text is one sentence or two, fit to show."""


class SlideError(PekaError, OSError):
    """A slide cannot be opened or read."""


class Undecodable(SlideError):
    """A part of a slide cannot be decoded, not even with a fresh handle. The rest of the slide may be fine."""


class MissingResolution(PekaError, ValueError):
    """The µm per pixel of a slide are unknown or absurd and nobody has said them."""


class NoTissue(PekaError, ValueError):
    """Nothing to predict on: no tissue found, or none inside the region."""


class RegionError(PekaError, ValueError):
    """A region of interest cannot be read, or lies outside the slide."""


class SectionError(PekaError, ValueError):
    """A paired section cannot be read: counts, positions or image missing, or not belonging together."""


class BundleError(PekaError, ValueError):
    """A model bundle is not what it says: schema, tensors, shapes or hashes."""


class UnknownName(PekaError, KeyError):
    """A model, encoder or gene of that name does not exist."""

    def __str__(self) -> str:  # KeyError would show the repr
        return str(self.args[0]) if self.args else ""


class EncoderUnavailable(PekaError, RuntimeError):
    """An encoder's weights cannot be had: gated, offline, or an own file missing."""


class StoreError(PekaError, OSError):
    """A result cannot be written, read or resumed."""


class NoResult(StoreError):
    """What is named as a result is none, is not there, or is not finished."""


class OutputMismatch(StoreError):
    """The output belongs to another slide, model or setting."""


class DeviceError(PekaError, RuntimeError):
    """A device is not there, or out of memory even at the smallest batch."""


class CrewError(PekaError, RuntimeError):
    """Workers on other machines cannot be had, or are lost."""


class TrainingError(PekaError, RuntimeError):
    """Training cannot start, or went astray."""


class SettingError(PekaError, ValueError):
    """A setting has a value that cannot be used."""


def near_names(name: str, known: Iterable[str], n: int = 3) -> str:
    """Return ``"; did you mean A, B?"`` for the names in `known` nearest to `name`, or an empty string."""
    folded = {k.casefold(): k for k in known}
    hits = get_close_matches(name.casefold(), folded, n=n, cutoff=0.6)
    return f"; did you mean {', '.join(folded[h] for h in hits)}?" if hits else ""
