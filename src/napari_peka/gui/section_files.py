"""Sections for a session: found, read, read again as corrected, and said in words. No Qt in here."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from napari_peka.core.errors import PekaError
from napari_peka.gui.session import OpenSection
from napari_peka.gui.words import in_the_window
from napari_peka.io.manifest import Entry, read_manifest
from napari_peka.io.nudge import IDENTITY, compose
from napari_peka.io.section import Section, name_apart, read_section, rename
from napari_peka.io.sections.choose import find_sections

if TYPE_CHECKING:
    from napari_peka.workflows.lesson import Asked

COLUMNS = ("section", "patient", "spots", "genes", "pitch µm", "µm/px", "platform", "on tissue", "problems")


@dataclass
class Added:
    """What came of an attempt to add sections: those that were read, and a sentence for each that was not."""

    sections: list[OpenSection] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)


def read_added(paths: Iterable[Path], known: Iterable[OpenSection]) -> Added:
    """Read the sections that files, folders and manifests stand for; one that cannot be read stops no other.

    Parameters
    ----------
    paths
        What a person chose or dropped.
    known
        Sections that are open: none of them is read twice, and no name is given twice.
    """
    added = Added()
    known = list(known)
    names = {x.section.section_id for x in known}
    seen = {x.section.fingerprint for x in known}
    for path in paths:
        try:
            entries = _entries(path)
        except PekaError as e:
            added.refused.append(in_the_window(str(e)))
            continue
        for entry in entries:
            try:
                item = _read(entry)
            except (PekaError, OSError) as e:
                added.refused.append(in_the_window(str(e)))
                continue
            if item.section.fingerprint in seen:
                added.refused.append(f"{item.section.section_id} is open already: the same spots, counts and image")
                item.section.close()
                continue
            seen.add(item.section.fingerprint)
            name_apart(item.section, names)
            names.add(item.section.section_id)
            added.sections.append(item)
    return added


def corrected(item: OpenSection, change: Any) -> OpenSection:
    """Read a section again with its spots where a correction puts them.

    Parameters
    ----------
    item
        The section as it is open.
    change
        Affine ``(2, 3)`` from where its spots lie to where they belong, (x, y) in level-0 px; None: as its files say.
    """
    old = item.section
    if change is None:
        request = dict(item.request if item.given is None else item.given)
    else:
        before = IDENTITY if old.placed_by is None else old.placed_by
        request = item.request | {"affine": compose(np.asarray(change), before).tolist()}
        if old.path != old.slide.path and old.path not in old.slide.path.parents:
            request.setdefault("image", str(old.slide.path))  # the same scan, whatever lies beside it
    section = read_section(old.path, **request)
    _take_over(section, old)
    given = None if change is None else item.given if item.given is not None else item.request
    return OpenSection(section, request, given)


def asked(item: OpenSection) -> Asked:
    """Return a section as a process of its own reads it."""
    from napari_peka.workflows.lesson import Asked

    s = item.section
    return Asked(s.path.resolve(), s.section_id, s.patient_id if s.patient_named else None, s.split, item.request)


def row_of(section: Section) -> tuple[str, ...]:
    """Return a section as a row of the table, see :data:`COLUMNS`."""
    n, g = section.adata.shape
    on = section.registration.given.on_tissue if section.registration is not None else float("nan")
    return (
        section.section_id, section.patient_id if section.patient_named else "", f"{n:,}", f"{g:,}",
        "?" if section.pitch_um is None else f"{section.pitch_um:.0f}", f"{np.mean(section.slide.mpp):.3g}",
        section.platform, "?" if np.isnan(on) else f"{on:.0%}", str(len(section.warnings) or "none"),
    )  # fmt: skip


def _entries(path: Path) -> list[Entry]:
    found: list[Entry] = []
    for one in find_sections(path):
        found += read_manifest(one) if one.suffix.lower() == ".csv" else [Entry(one)]
    return found


def _read(entry: Entry) -> OpenSection:
    given = {"image": entry.image, "section": entry.section, "patient": entry.patient, "mpp": entry.mpp,
             "affine": entry.affine}  # fmt: skip
    request: dict[str, Any] = {k: str(v) if isinstance(v, Path) else v for k, v in given.items() if v is not None}
    section = read_section(entry.path, **request)
    section.split = entry.split
    return OpenSection(section, request)


def _take_over(section: Section, old: Section) -> None:
    if section.section_id != old.section_id:
        rename(section, old.section_id)
    section.split = old.split
    item = OpenSection(section)
    item.name_patient(old.patient_id if old.patient_named else "")
