"""The model card: what a person should know before believing a model, in Markdown, from the bundle alone.

Every figure is read or computed from what the bundle carries; what it does not carry is said to be unknown.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from napari_peka.models.bundle import Model
    from napari_peka.models.spec import Preprocessing

CARD_FILE = "README.md"
#: genes that a pathologist asks for first: receptors, epithelium, stroma, vessels, immune cells
ASKED = tuple(
    (
        "ERBB2 GRB7 ESR1 PGR AR EGFR MKI67 TP53 KRT5 KRT8 KRT18 KRT19 EPCAM CD24 GATA3 COL1A1 COL3A1 VIM ACTA2 FN1 "
        "SPARC PECAM1 PTPRC CD3E CD8A CD4 CD19 CD79A MS4A1 CD68 CD74 CD274 IGKC HLA-DRA"
    ).split()
)
#: rows of the tables of best and worst genes
BEST, WORST = 25, 10
_ROTATIONS = {1: "as it is", 4: "mean over 4 quarter turns", 8: "mean over 4 quarter turns and their mirror images"}
_FEATURES = {
    "image": "the encoder's embedding",
    "peka": "the embedding translated towards the teacher's",
    "image+peka": "the encoder's embedding and its translation towards the teacher's",
}
#: what the card says in words; the rest of a training record is shown as it is
#: what simpler models, and a model before its head was refitted, are called
BASELINE_NAMES = {
    "train_mean": "training mean", "colour": "colour alone", "position": "position alone", "before": "the model before",
    "frozen": "the encoder untrained",
}  # fmt: skip
#: a difference in mean PCC below this is none
TIE = 0.005
_SAID = frozenset("data tissue sections summary baselines settings seeds versions data_digest made_by".split())


def model_card(model: Model) -> str:
    """Return a bundle's model card.

    Parameters
    ----------
    model
        From :func:`read_bundle` or :func:`load_model`. Of ``spec.training`` the keys ``data``, ``tissue``,
        ``sections``, ``summary``, ``baselines``, ``settings``, ``seeds``, ``versions``, ``data_digest`` and
        ``made_by`` are used where they are there.
    """
    parts = [
        f"# {_plain(model.name)}\n\nResearch use only. Not for diagnosis.",
        _plain(model.spec.description),
        _what(model),
        _data(model),
        _scores(model),
        _genes(model),
        _use(model),
        _made(model),
    ]
    return "\n\n".join(p for p in parts if p) + "\n"


def _what(model: Model) -> str:
    spec, card, p = model.spec, model.card, model.spec.preprocessing
    weights = f"sha256 {spec.encoder.sha256[:12]}" if spec.encoder.sha256 else "no hash recorded"
    adapter = "none: the encoder is used as it was published"
    if spec.adapter.kind != "none":
        rank = f", rank {spec.adapter.rank}" if spec.adapter.rank else ""
        adapter = f"{spec.adapter.kind}{rank}, on `{_plain(spec.adapter.target)}`"
    reads = _FEATURES[spec.head.features]
    narrowed = len(spec.translate) == 2 and spec.translate_activation == "none"
    if narrowed:
        reads = "the directions of the encoder's embedding that the genes share"
    if spec.translate:
        end = ", ReLU" if spec.translate_activation == "relu" else ""
        kind = "linear" if narrowed else "MLP"
        reads += f" ({kind} {' → '.join(map(str, spec.translate))}{end})"
    context = spec.head.context_um
    rows = [
        ("encoder", f"{card.name}, {weights}; {card.licence}{'; gated' if card.gated else ''}"),
        ("encoder's page", card.page or "—"),
        ("adapter", adapter),
        ("gene head reads", reads + (f", and its mean over the neighbours within {context:g} µm" if context else "")),
        ("predicts", f"{len(model.head.genes)} genes, unit {spec.head.unit}"),
        ("a tile is", f"{p.tile_px} px at {p.mpp:g} µm/px ({p.tile_px * p.mpp:.0f} µm)"),
        ("and is embedded", f"{_ROTATIONS[p.rotations]}{_views(p)}"),
        ("cost", _cost(model)),
        ("licence", spec.licence or "not stated"),
    ]
    return "## What it is\n\n" + _table(("", ""), rows)


def _views(p: Preprocessing) -> str:
    if p.views == (1.0,):
        return ""
    return f"; at {len(p.views)} widths: " + ", ".join(f"{p.tile_px * p.mpp * v:.0f} µm" for v in p.views)


def _cost(model: Model) -> str:
    if model.passes == 1:
        return "one pass of the encoder a tile"
    return f"{model.passes} passes of the encoder a tile, so a map takes about {model.passes} times as long as with one"


def _data(model: Model) -> str:
    training = model.spec.training
    lines = [_plain(str(training["data"]))] if training.get("data") else []
    lines += [f"Tissue: {_plain(model.spec.tissue)}."] if model.spec.tissue else []
    patients = {str(s["patient"]) for s in model.trained_on if s.get("patient")}
    if len(patients) == 1:
        lines.append("**One patient only**: on another patient or laboratory's stain expect less than the figures say.")
    elif patients:
        lines.append(f"{len(patients)} patients.")
    if model.trained_on:
        rows = [tuple(str(s.get(k, "")) for k in ("name", "patient", "part", "spots")) for s in model.trained_on]
        lines.append(_table(("section", "patient", "part", "spots"), rows))
    if digest := training.get("data_digest"):
        lines.append(f"Digest of the data: `{_plain(str(digest))}`")
    return "## Data\n\n" + "\n\n".join(lines or ["Nobody says on what it was trained."])


def _scores(model: Model) -> str:
    split = _plain(model.spec.head.pcc_split) or "nobody says on what the figures below were measured"
    lines = [f"Split: {split}."]
    if model.spec.head.neighbour_smoothing:
        lines.append(
            "**Measured on counts averaged over neighbouring spots, which flatters**: do not compare these figures "
            "with others."
        )
    # each training part has its own 50; together they may be some more
    rows = [
        _row(model, "hvg50", f"{min(50, len(model.hvg50) or 50)} most variable genes"),
        _row(model, "all", f"all {len(model.head.genes)} genes"),
    ]
    lines.append(_table(("held-out PCC", "mean", "attainable", "share of attainable"), rows))
    lines.append(
        "PCC: Pearson correlation of predicted and measured values over spots that the model never saw. Attainable: "
        "what a perfect model would reach against a measurement as noisy as this one."
    )
    return "## How well it predicts\n\n" + "\n\n".join([*lines, _baselines(model), *_intervals(model)])


def _intervals(model: Model) -> list[str]:
    """Return what intervals are worth, where the model has them."""
    if model.intervals is None:
        return []
    covered = _told(_summary(model), "coverage_90")
    held = (
        "No section was left to try them on."
        if math.isnan(covered)
        else f"On sections that had no part in their calibration, those of 90 % held {covered:.1%} of all values."
    )
    return [
        f"**Intervals.** From the residuals of held-out spots, grouped by section (cross-conformal). {held} For "
        "another patient or laboratory than those above they hold less, and nobody can say by how much without "
        "measured spots."
    ]


def _row(model: Model, key: str, name: str) -> tuple[str, str, str, str]:
    """Return a row of the table of scores: as the evaluation states them, or else as means over the genes."""
    told, most = _summary(model), model.attainable_pcc[_genes_of(model, key)]
    pcc = model.pcc[_genes_of(model, key)]
    both = np.isfinite(pcc) & np.isfinite(most)
    ratio = _mean(pcc[both]) / _mean(most[both]) if both.any() and _mean(most[both]) > 0 else math.nan
    share = _told(told, f"share_of_attainable_{key}", ratio)
    attainable = _told(told, f"attainable_{key}", _mean(most))
    shown = "unknown" if math.isnan(share) else f"{share:.0%}"
    return name, _number(_mean_pcc(model, key)) + _spread(told.get(f"pcc_{key}")), _number(attainable), shown


def _mean_pcc(model: Model, key: str) -> float:
    return _told(_summary(model), f"pcc_{key}", _mean(model.pcc[_genes_of(model, key)]))


def _spread(told: object) -> str:
    if not isinstance(told, dict):
        return ""
    sd, ends = _told(told, "sd"), told.get("ci95")
    text = "" if math.isnan(sd) else f" ± {sd:.3f}"
    if isinstance(ends, (list, tuple)) and all(isinstance(v, (int, float)) for v in ends):
        text += f" (95 %: {' to '.join(f'{v:.3f}' for v in ends)})"
    return text


def _mean(values: npt.NDArray[np.floating]) -> float:
    known = values[np.isfinite(values)]
    return float(known.mean()) if len(known) else math.nan


def _genes_of(model: Model, key: str) -> npt.NDArray[np.bool_]:
    return np.isin(model.head.genes, model.hvg50) if key == "hvg50" else np.ones(len(model.head.genes), bool)


def _summary(model: Model) -> dict[str, Any]:
    told = model.spec.training.get("summary")
    return told if isinstance(told, dict) else {}


def _baselines(model: Model) -> str:
    told = model.spec.training.get("baselines") or _summary(model).get("baselines")
    scores = {str(k): _told(v, "pcc_hvg50") for k, v in told.items()} if isinstance(told, dict) else {}
    if not scores:
        return "Nobody says whether it beats simple baselines."
    mean = _mean_pcc(model, "hvg50")
    rows = [
        (BASELINE_NAMES.get(k, k.replace("_", " ")), _number(v, "none"), _beats(mean, v)) for k, v in scores.items()
    ]
    return "Against simpler models on the same spots (most variable genes):\n\n" + _table(
        ("baseline", "PCC", "is it beaten"), rows
    )


def _beats(mean: float, other: float) -> str:
    if math.isnan(other):  # a constant has no correlation
        return "it has none to compare with"
    if math.isnan(mean):
        return "unknown"
    if abs(mean - other) < TIE:
        return "**no**, it is as good"
    return f"yes, by {mean - other:.3f}" if mean > other else f"**no**, it is better by {other - mean:.3f}"


def _genes(model: Model) -> str:
    pcc, genes = model.pcc, np.array(model.head.genes)
    known = np.flatnonzero(np.isfinite(pcc))
    order = known[np.lexsort((genes[known], -pcc[known]))]
    parts = ["## Genes", f"Of {len(genes)} genes {len(known)} were measured on held-out spots."]
    if model.head.baseline_pcc_high is not None:
        parts.append(
            f"{int(model.head.predictable.sum())} it was shown to predict better than colour, position or chance: "
            "their held-out PCC is 0.15 or more and lies above the upper confidence bound of these baselines on the "
            "same spots. The others are marked, and drawn only when they are asked for."
        )
    if len(order):
        parts += ["### Best predicted", _gene_table(model, order[:BEST])]
        parts += ["### Worst predicted", _gene_table(model, order[::-1][:WORST])]
    place = {g: i for i, g in enumerate(model.head.genes)}
    if asked := [place[g] for g in ASKED if g in place]:
        parts += ["### Often asked for", _gene_table(model, asked)]
    parts.append(
        "The whole list is in `peka.json` (`head.genes`, `head.pcc`, `head.pcc_low`, `head.pcc_high`, "
        "`head.attainable_pcc`)."
    )
    return "\n\n".join(parts)


def _gene_table(model: Model, rows: Iterable[int]) -> str:
    pcc, ceiling, head = model.pcc, model.attainable_pcc, model.head
    if np.isnan(ceiling).all():
        return _table(("gene", "held-out PCC"), [(head.genes[i], _number(pcc[i])) for i in rows])
    if head.pcc_low is None or head.pcc_high is None:
        return _table(
            ("gene", "held-out PCC", "attainable"),
            [(head.genes[i], _number(pcc[i]), _number(ceiling[i])) for i in rows],
        )
    ends = [f"{_number(low)} to {_number(high)}" for low, high in zip(head.pcc_low.tolist(), head.pcc_high.tolist())]
    return _table(
        ("gene", "held-out PCC", "95 % interval", "attainable", "shown to predict"),
        [
            (head.genes[i], _number(pcc[i]), ends[i], _number(ceiling[i]), "yes" if head.predictable[i] else "no")
            for i in rows
        ],
    )  # fmt: skip


def _use(model: Model) -> str:
    p, context = model.spec.preprocessing, model.spec.head.context_um
    limits = [
        "Research use only: not for diagnosis, and no substitute for a measurement.",
        "On tissue, stain or scanner unlike the data above its values may be wrong without looking wrong.",
        "A gene whose held-out PCC is near 0 is not predicted, whatever its map looks like.",
        f"It reads slides at {p.mpp:g} µm/px: a wrong resolution gives a wrong map.",
    ]
    if context:
        limits.append(
            f"It reads neighbours within {context:g} µm: at the rim of a region or of the tissue there are fewer."
        )
    return (
        "## Use\n\nFor looking at where genes are likely expressed on H&E slides of the kind of tissue above, and for "
        "choosing what to measure.\n\n" + "\n".join(f"- {line}" for line in limits)
    )


def _made(model: Model) -> str:
    training = model.spec.training
    lines = [f"Made by `{_plain(str(training['made_by']))}`."] if training.get("made_by") else []
    seeds = training.get("seeds")
    if seeds is not None:
        lines.append(f"Seeds: {_plain(str(seeds))}.")
    if isinstance(versions := training.get("versions"), dict):
        lines.append("Versions: " + ", ".join(f"{_plain(str(k))} {_plain(str(v))}" for k, v in versions.items()) + ".")
    rest = {k: v for k, v in training.items() if k not in _SAID}
    if settings := {**rest, **(training["settings"] if isinstance(training.get("settings"), dict) else {})}:
        lines.append("```json\n" + json.dumps(settings, indent=1, default=str).replace("```", "'''") + "\n```")
    lines.append(f"Digest of what decides its values: `{model.digest}`")
    return "## How it was made\n\n" + "\n\n".join(lines)


def _told(record: object, key: str, otherwise: float = math.nan) -> float:
    """Return a number that a record of unknown make states; a mean where it states its spread too."""
    value = record.get(key) if isinstance(record, dict) else record
    if isinstance(value, dict):
        value = value.get("mean")
    return float(value) if isinstance(value, (int, float)) and math.isfinite(value) else otherwise


def _number(value: float, otherwise: str = "unknown") -> str:
    return otherwise if math.isnan(value) else f"{value:.3f}"


def _plain(text: str) -> str:
    """Return text from a bundle as one line that opens no heading, cell or code of its own."""
    return " ".join(text.split()).replace("|", "\\|").replace("`", "'").replace("<", "&lt;")


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *([_cell(c) for c in row] for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("\\|", "|").replace("|", "\\|").replace("<", "&lt;") or "—"
