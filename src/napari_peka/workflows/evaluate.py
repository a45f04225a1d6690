"""A model's worth on measured sections."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from napari_peka.config import EvaluateConfig, PredictConfig
from napari_peka.core import files
from napari_peka.core.doubt import Intervals
from napari_peka.core.errors import OutputMismatch
from napari_peka.core.progress import NULL, Progress
from napari_peka.io.cache import TILES, kept_in
from napari_peka.io.section import Section, as_sections
from napari_peka.models.bundle import Model
from napari_peka.models.spec import SPEC_FILE
from napari_peka.training.baselines import PLACE_NAMES, LinearMap, colour_features, place_features, predict_baselines
from napari_peka.training.evaluate import EvaluationReport
from napari_peka.training.evaluate import evaluate as score
from napari_peka.training.paired import gather
from napari_peka.training.scoring import Measured
from napari_peka.training.targets import N_VARIABLE, expression, most_variable
from napari_peka.workflows.folds import ceiling, provenance
from napari_peka.workflows.spots import embed_spots, genes_in_both, misplaced, relation, unit_of

#: least share of a section's spots on tissue; with fewer its image is not believed, and a warning says so
LEAST_ON_TISSUE = 0.5
#: fold of sections that no fold was made of
GIVEN = "as given"


def evaluate(
    model: Model,
    sections: Sequence[Section] | Section,
    config: EvaluateConfig | None = None,
    *,
    output: Path | str | None = None,
    cache: Path | None = None,
    progress: Progress = NULL,
) -> EvaluationReport:
    """Score a model on sections as they are given; nothing is fitted.

    Parameters
    ----------
    model
        From :func:`load_model` or :func:`train`.
    sections
        From :func:`read_section` or :func:`read_sections`. One that the model was trained on is scored too, and the
        report says loudly that its figures are worth nothing.
    config
        Settings; see :class:`EvaluateConfig`.
    output
        Folder for ``report.json``, ``genes.csv`` and ``report.html``; None: nothing is written.
    cache
        Folder of what is kept to save time, such as cut tiles; None: the user's cache.
    progress
        Where to report; raises :class:`Cancelled` to stop.

    Raises
    ------
    SectionError
        If the sections have none of the model's genes.
    """
    config = config or EvaluateConfig()
    sections = as_sections(sections)
    unit = unit_of(model)
    if output is not None:
        check_folder(Path(output).expanduser())
    paired = gather(sections, model.tile_spec(), cache=kept_in(TILES, cache), progress=progress)
    in_model, in_counts, genes = genes_in_both(model, paired)
    warnings = paired.all_warnings
    if lost := len(model.head.genes) - len(genes):
        warnings.append(f"{lost} of the model's {len(model.head.genes)} genes were not measured in every section")
    y = expression(paired.counts[:, in_counts], paired.totals, unit)
    own = embed_spots(
        model, paired, PredictConfig(device=config.device, precision=config.precision, batch_size=config.batch_size),
        cache=cache, progress=progress,
    )  # fmt: skip
    near = None if model.head.context_um is None else paired.neighbours(model.head.context_um)
    predicted = model.head.matrix(own, neighbours=near)[:, in_model]
    colour = np.concatenate([colour_features(t) for _, t in paired.bank.batches(np.arange(len(paired)), 256)])
    place = place_features(paired.centre_um, list(paired.section))
    maps = {
        name: LinearMap(w[:, in_model], b[in_model])
        for name, (w, b) in model.baselines.items()
        if name in ("train_mean", "colour", "position") and len(w) in (0, colour.shape[1], len(PLACE_NAMES))
    }
    intervals, spread = intervals_of(model, own)
    progress.stage("measuring the noise ceiling", len(paired.sections))
    measured = []
    for s in paired.sections:
        rows = np.flatnonzero(paired.section == s.section_id)
        most = ceiling(paired, rows, in_counts, unit, repeats=config.ceiling_repeats, seed=config.seed)
        measured.append(
            Measured(
                section_id=s.section_id, patient_id=s.patient_id, fold=GIVEN, seed=config.seed,
                spot_ids=tuple(paired.spot_ids[i] for i in rows), centre_um=paired.centre_um[rows], truth=y[rows],
                predicted=predicted[rows], attainable=most,
                baselines=predict_baselines(maps, colour[rows], place[rows]),
                spread=None if spread is None else spread[rows],
            )
        )  # fmt: skip
        progress.advance()
    hvg50 = [g for g in model.hvg50 if g in set(genes)]
    if not hvg50:
        hvg50 = [genes[i] for i in most_variable(y, paired.counts[:, in_counts], N_VARIABLE)]
        warnings.append(
            "the model does not say which genes vary most in its training: those of these sections are used"
        )
    split, seen = relation(model, paired)
    warnings = [*seen, *misplaced(sections, LEAST_ON_TISSUE), *warnings]
    report = score(
        measured, genes, unit, hvg50=hvg50, model=model.name, split=split,
        intervals=None if intervals is None else intervals.only(in_model),
        warnings=warnings, neighbour_smoothing=False, optimistic=False, seed=config.seed,
        provenance={
            "model": {"name": model.name, "digest": model.digest, "pcc_split": model.spec.head.pcc_split},
            "sections": provenance(paired),
            "settings": json.loads(config.model_dump_json()),
            "versions": _versions(),
        },
    )  # fmt: skip
    if output is not None:
        progress.stage("writing the report")
        report.write(Path(output).expanduser())
    return report


def intervals_of(
    model: Model, embeddings: npt.NDArray[np.floating]
) -> tuple[Intervals | None, npt.NDArray[np.float32] | None]:
    """Return a model's intervals, and by how much they are wider at each of its embeddings ``(n, d)``.

    An older bundle knows one half width a gene, the same everywhere.
    """
    if model.intervals is not None and model.likeness is not None:
        return model.intervals, model.spread(embeddings)
    if np.isnan(half := model.residual_q90).all():
        return None, None
    return Intervals(np.array([0.05, 0.95]), np.stack([-half, half])), None


def check_folder(folder: Path) -> None:
    """Refuse a folder that cannot take a report, before the work and not after it."""
    files.check_writable(folder)
    if model := next((p for p in (folder, *folder.absolute().parents) if (p / SPEC_FILE).exists()), None):
        raise OutputMismatch(
            f"{folder} belongs to the model {model}, whose files and report are its own; choose another folder"
        )


def _versions() -> dict[str, str]:
    from napari_peka.workflows.predict import versions

    return versions()
