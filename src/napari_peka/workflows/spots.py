"""A model on measured spots: what it sees in them, which genes both know, and whether it has seen them before."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, get_args

import numpy as np
import numpy.typing as npt

from napari_peka.config import PredictConfig, Unit
from napari_peka.core import files
from napari_peka.core.errors import SectionError, SettingError
from napari_peka.core.head import GeneHead
from napari_peka.core.progress import NULL, Progress
from napari_peka.io.cache import EMBEDDINGS, kept_in, touch
from napari_peka.io.section import Section
from napari_peka.models.bundle import Model
from napari_peka.training.paired import Paired, PairedSection
from napari_peka.training.panel import GeneNames
from napari_peka.training.report_words import TRAINED_ON

if TYPE_CHECKING:
    from napari_peka.infer.forward import Forward

_TENSOR = "embeddings"


def unit_of(model: Model) -> Unit:
    """Return the unit of a model's values, where measured counts can be brought to it.

    Raises
    ------
    SettingError
        If they cannot.
    """
    return known_unit(model.head.unit, model.name)


def known_unit(unit: str, name: str) -> Unit:
    """Return the unit of the model `name`, as :func:`unit_of` does."""
    for known in get_args(Unit):
        if unit == known:
            return known  # type: ignore[no-any-return]
    raise SettingError(
        f"the model {name} predicts {unit!r}, which cannot be made from counts here; there are "
        + ", ".join(get_args(Unit))
    )


#: another orientation with so many more of the spots on tissue is the right one
_CLEARLY_TURNED = 0.25


def misplaced(sections: Sequence[Section], least: float) -> list[str]:
    """Return a sentence for each section whose spots do not belong where they lie on its image.

    Parameters
    ----------
    sections
        From :func:`read_sections`.
    least
        Least share of spots on tissue, 0 to 1; 0: none is misplaced. A section of which another orientation has far
        more of the spots on tissue is misplaced too.
    """
    said = []
    for s in sections:
        if s.registration is None or not least:
            continue
        given, best = s.registration.given, s.registration.best
        turned = best is not given and best.on_tissue > given.on_tissue + _CLEARLY_TURNED
        if given.on_tissue >= least and not turned:
            continue
        hint = f" (with {best.name} it would be {best.on_tissue:.0%})" if best is not given else ""
        said.append(
            f"{s.section_id}: only {given.on_tissue:.0%} of its spots lie on the tissue of {s.slide.path.name}{hint}: "
            "it may be another section's image, or turned"
        )
    return said


def refuse_misplaced(sections: Sequence[Section], least: float) -> None:
    """Refuse sections that are :func:`misplaced`, before anything is learnt from the wrong picture.

    Raises
    ------
    SectionError
        For the first such section.
    """
    for text in misplaced(sections, least):
        raise SectionError(
            f"{text}; name the right one (--image), map the positions (--affine), or set min_on_tissue to 0 where the "
            "tissue is only too pale to be found"
        )


def embed_spots(
    model: Model, paired: Paired, config: PredictConfig, *, cache: Path | None = None, progress: Progress = NULL
) -> npt.NDArray[np.float32]:
    """Return what a model's head reads of each spot's own tile, float32 ``(n, d)``, as it would on a slide.

    A section's embeddings are kept, so that the encoder is neither loaded nor run for spots that it has seen before.

    Parameters
    ----------
    model, paired
        The model, and spots whose tiles were cut for it.
    config
        ``device``, ``precision`` and ``batch_size`` count.
    cache
        Folder of what is kept; None: the user's cache.
    """
    from napari_peka.workflows.predict import load_forward

    forward = load_forward(model, config)
    folder = kept_in(EMBEDDINGS, cache)
    rows = [np.flatnonzero(paired.section == s.section_id) for s in paired.sections]
    kept = [folder / _name(forward, paired, i, own) for i, own in enumerate(rows)]
    done = [_read(path, len(own)) for path, own in zip(kept, rows)]
    if missing := sum(len(own) for own, values in zip(rows, done) if values is None):
        progress.stage("loading the model")
        _ = forward.module
        progress.stage("embedding spots", missing)
    for i, (path, own) in enumerate(zip(kept, rows)):
        if done[i] is None:
            parts = []
            for part, tiles in paired.bank.batches(own, forward.batch_size):
                parts.append(forward(tiles))
                progress.advance(len(part))
            done[i] = values = np.concatenate(parts) if parts else np.zeros((0, model.seen_dims), np.float16)
            _write(path, values)
    seen = np.concatenate([v for v in done if v is not None])
    return seen[:, : model.head.embedding_dims].astype(np.float32)


def genes_in_both(model: Model, paired: Paired) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp], tuple[str, ...]]:
    """Return the genes that both have: columns of the model, columns of the counts, and the model's names.

    Raises
    ------
    SectionError
        If there is none.
    """
    return shared_genes(model.head, model.name, GeneNames("the sections", paired.genes, paired.gene_ids))


def shared_genes(
    head: GeneHead, name: str, names: GeneNames
) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp], tuple[str, ...]]:
    """Return the genes that the head of the model `name` and measured ones share, as :func:`genes_in_both` does."""
    at = names.find(head.genes, head.gene_ids or head.genes)
    in_model = np.flatnonzero(at >= 0)
    if not len(in_model):
        raise SectionError(
            f"{names.owner} have none of the genes that {name} predicts (such as {head.genes[0]}; they have "
            f"{names.genes[0]}); is it the same species, and are genes named by symbol or Ensembl id?"
        )
    return in_model, at[in_model], tuple(head.genes[k] for k in in_model)


def seen_before(model: Model, paired: Paired) -> list[str]:
    """Return the sections that the model was trained on, by spots or by slide."""
    return _seen(_trained(model), paired.sections)


def _seen(trained: Sequence[Mapping[str, object]], sections: Sequence[PairedSection]) -> list[str]:
    known = {v for t in trained for v in (t.get("fingerprint"), t.get("slide")) if v}
    return [s.section_id for s in sections if {s.fingerprint, s.slide.fingerprint} & known]


def relation(model: Model, paired: Paired) -> tuple[str, list[str]]:
    """Return in words how the model's training data relate to these sections, and what must be said loudly."""
    return related(_trained(model), paired.sections)


def related(trained: Sequence[Mapping[str, object]], sections: Sequence[PairedSection]) -> tuple[str, list[str]]:
    """Return what :func:`relation` does, of the entries of ``Model.trained_on`` whose part is ``train``."""
    if seen := _seen(trained, sections):
        names = ", ".join(seen)
        return (
            f"{TRAINED_ON}: the model has seen {names}; these figures say nothing of how well it predicts",
            [f"the model was trained on {names}: its scores there are worth nothing, leave them out"],
        )
    if not trained:
        return "the model does not say what it was trained on", ["the model does not say what it was trained on"]
    patients = {str(t.get("patient")) for t in trained}
    same = sorted({s.patient_id for s in sections} & patients)
    if same:
        return f"other sections of patients that it was trained on ({', '.join(same)})", []
    # bundles of before name a patient after the section where nobody said whose it is
    unnamed = [str(t.get("name")) for t in trained if not t.get("patient_named", t.get("patient") != t.get("name"))]
    if unnamed := [*unnamed, *(s.section_id for s in sections if not s.patient_named)]:
        names = ", ".join(dict.fromkeys(unnamed))
        return (
            f"sections that the model never saw; whether it knows their patients is not known (nobody named {names}'s)",
            ["these may be patients that the model was trained on, which would flatter it: name the patients"],
        )
    return "sections and patients that the model never saw", []


def _trained(model: Model) -> list[dict[str, object]]:
    return [t for t in model.trained_on if t.get("part", "train") == "train"]


def _name(forward: Forward, paired: Paired, number: int, rows: npt.NDArray[np.intp]) -> str:
    """Return the file name of a section's embeddings: after all that decides them."""
    slide = paired.sections[number].slide
    text = " ".join([forward.digest, forward.precision, forward.device.type, slide.fingerprint, *map(repr, slide.mpp)])
    digest = hashlib.sha256(text.encode() + np.ascontiguousarray(paired.centre_um[rows]).tobytes())
    return f"{slide.name}-{digest.hexdigest()[:16]}.safetensors"


def _read(path: Path, n: int) -> npt.NDArray[np.float16] | None:
    """Return kept embeddings; None where there are none, or they are damaged: they are made again."""
    from safetensors import SafetensorError
    from safetensors.numpy import load

    try:
        values: npt.NDArray[np.float16] = load(path.read_bytes())[_TENSOR]
    except (OSError, SafetensorError, KeyError, ValueError):
        return None
    touch(path)
    return values if values.ndim == 2 and len(values) == n else None


def _write(path: Path, values: npt.NDArray[np.float16]) -> None:
    from safetensors.numpy import save

    files.write_whole(path, save({_TENSOR: np.ascontiguousarray(values)}))
