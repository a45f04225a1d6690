"""Finding models by name: the embedded demo, the models folder, a path, or a hub id."""

from __future__ import annotations

import dataclasses
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from napari_peka.core.errors import BundleError, EncoderUnavailable, PekaError, UnknownName, near_names
from napari_peka.core.head import MEASURED
from napari_peka.models.bundle import SPEC_FILE, TENSOR_FILE, Model, read_bundle
from napari_peka.models.folder import ENVIRONMENT, models_folder
from napari_peka.models.hub import quiet_hub
from napari_peka.models.registry import ENCODERS, TIMM_PREFIX, EncoderCard, encoder_card

DEMO = "demo"
ASSETS = Path(__file__).parent.parent / "assets"

#: what is told of each gene
_OF_GENES = ("pcc", "pcc_low", "pcc_high", "attainable_pcc")


def load_model(name: str | Path, *, offline: bool = False) -> Model:
    """Load a model bundle.

    Parameters
    ----------
    name
        ``"demo"`` (embedded), the name of a bundle in the models folder, a path to a bundle folder or ``.zip``, or a
        hub id ``"organisation/name"``. Only a hub id may use the network, and only when it is not cached.
    offline
        Never use the network.

    Raises
    ------
    UnknownName
        If there is no such model; near names are offered.
    BundleError
        If the bundle is damaged or of another kind.
    """
    text = str(name)
    if text == DEMO:
        return read_bundle(ASSETS / DEMO)
    path = Path(name).expanduser()
    if _is_there(path / SPEC_FILE) or (_is_there(path) and not path.is_dir()):
        return read_bundle(path)
    local = local_models()
    if text in local:
        return read_bundle(local[text])
    if _is_there(path):
        return read_bundle(path)  # a folder, and no bundle: the error says what is missing
    if isinstance(name, str) and text.count("/") == 1 and not text.startswith((".", "/", "~")):
        return read_bundle(_from_hub(text, offline))
    if text.casefold() in {n.casefold() for n in ENCODERS}:
        raise UnknownName(
            f"{text} is an encoder, which turns tiles into numbers; to predict genes a model is needed that was "
            "trained on it: the path of a bundle, or demo"
        )
    raise UnknownName(
        f"there is no model {text!r}: neither a path nor a bundle in {models_folder()}"
        + near_names(text, [DEMO, *local])
        + "; `napari-peka models` lists what there is"
    )


def local_models() -> dict[str, Path]:
    """Return the bundles in the models folder by name; a folder goes before a ``.zip`` of the same name.

    Raises
    ------
    BundleError
        If there is a models folder and it cannot be read.
    """
    folder = models_folder()
    try:
        if not folder.is_dir():
            return {}
        inside = sorted(folder.iterdir())
    except OSError as e:
        raise BundleError(
            f"the models folder {folder} cannot be read ({e.strerror}); ask for the right to, or set {ENVIRONMENT}"
        ) from e
    zips = {p.stem: p for p in inside if p.suffix.lower() == ".zip"}
    return zips | {p.name: p for p in inside if _is_there(p / SPEC_FILE)}


def _is_there(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:  # a name too long for a file, or a folder that may not be entered
        return False


def _from_hub(repo: str, offline: bool) -> Path:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import (
        EntryNotFoundError,
        GatedRepoError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
    )

    page = f"https://huggingface.co/{repo}"
    refusal: Exception
    try:
        with quiet_hub():
            paths = [
                Path(hf_hub_download(repo, file, local_files_only=offline, library_name="napari-peka"))
                for file in (TENSOR_FILE, SPEC_FILE)
            ]
    except GatedRepoError:
        refusal = EncoderUnavailable(
            f"the model {repo} is gated: ask for access at {page}, then log in with `hf auth login`"
        )
    except (RepositoryNotFoundError, LocalEntryNotFoundError, HFValidationError):
        where = "in the cache" if offline else "or on the hub (or the hub cannot be reached)"
        refusal = UnknownName(f"there is no model {repo!r} here {where}; give the path of a bundle")
    except EntryNotFoundError:
        refusal = BundleError(f"{page} is no model bundle: it lacks {TENSOR_FILE} or {SPEC_FILE}")
    except Exception as e:  # noqa: BLE001 - whatever the hub, a proxy or the disk says
        refusal = EncoderUnavailable(f"the model {repo} cannot be fetched ({type(e).__name__}); try again later")
    else:
        if paths[0].parent != paths[1].parent:
            raise BundleError(f"the two files of {repo} come from different revisions; fetch it again")
        return paths[1].parent
    raise refusal from None  # the hub's own text may hold an address with a password in it


def listing() -> dict[str, Any]:
    """Return what models and encoders there are, as data for JSON."""
    models = []
    for name, path in {DEMO: ASSETS / DEMO, **local_models()}.items():
        try:
            model = read_bundle(path)
            models.append(_brief(name, model))
        except PekaError as e:
            models.append({"name": name, "genes": 0, "encoder": f"cannot be used: {e}", "path": str(path)})
    encoders = [
        {
            "name": c.name, "dim": c.dim, "px": c.px, "mpp": c.mpp, "gated": c.gated, "licence": c.licence,
            "hub_id": c.hub_id, "page": c.page,
        }
        for c in ENCODERS.values()
    ]  # fmt: skip
    return {"folder": str(models_folder()), "models": models, "encoders": encoders}


def show(name: str) -> dict[str, Any]:
    """Return all that is known of one model or encoder, as data for JSON.

    Raises
    ------
    UnknownName
        If there is neither.
    """
    encoders = {k.casefold(): k for k in ENCODERS}
    if name.casefold() in encoders:
        return _card(ENCODERS[encoders[name.casefold()]])
    if name.startswith(TIMM_PREFIX):
        from napari_peka.models.encoder import complete  # imports torch

        return _card(complete(encoder_card(name)))
    try:
        model = load_model(name, offline=True)
    except UnknownName as e:
        raise UnknownName(f"{e}{near_names(name, ENCODERS)}") from None
    spec = model.spec.model_dump(by_alias=True)
    long = ("genes", "gene_ids", *MEASURED)
    spec["head"] = {k: v for k, v in spec["head"].items() if k not in long}
    return {**_brief(name, model), **spec, "digest": model.digest, "unknown_keys": list(model.dropped)}


def about(name: str) -> dict[str, Any]:
    """Return what a person asks of a model before using it, as data for JSON; nothing is fetched.

    ``name``, ``path``, ``description``, ``data`` (what it was trained on), ``licence``, ``genes``, ``unit``,
    ``tile_um``, ``passes``; ``pcc`` (mean over ``pcc_genes`` genes, held out as ``pcc_split`` says; None if not known);
    ``encoder``, ``encoder_licence``, ``gated``, ``page``, ``hub_id``, ``revision``, ``files`` (that may hold its
    weights), ``weights`` (their path here, or None), ``weights_bytes``, ``weights_needed``.

    Raises
    ------
    UnknownName
        If there is no such model here.
    """
    from napari_peka.models.encoder import complete, has_weights  # imports torch
    from napari_peka.models.weights import candidates, find_weights

    model = load_model(name, offline=True)
    spec = model.spec
    card = complete(model.card)
    here: Path | None = None
    with suppress(EncoderUnavailable):
        here = find_weights(card, offline=True)
    top = [model.head.index(g) for g in model.hvg50 if model.head.find(g) is not None]
    pcc = model.pcc[top] if top else model.pcc
    pcc = pcc[np.isfinite(pcc)]
    return {
        **_brief(name, model),
        "description": spec.description,
        "data": str(spec.training.get("data") or ""),
        "licence": spec.licence,
        "unit": model.head.unit,
        "tile_um": model.tile_spec().footprint_um,
        "passes": model.passes,
        "pcc": float(pcc.mean()) if len(pcc) else None,
        "pcc_genes": len(pcc),
        "pcc_split": spec.head.pcc_split,
        "encoder_licence": card.licence,
        "gated": card.gated,
        "page": card.page,
        "hub_id": card.hub_id,
        "revision": card.revision,
        "files": list(candidates(card)),
        "weights": None if here is None else str(here),
        "weights_bytes": None if here is None else here.stat().st_size,
        "weights_needed": not has_weights(card),
    }


def gene_table(name: str) -> list[dict[str, Any]]:
    """Return the genes of a model, best predicted first, those that it was not shown to predict last.

    A row has ``gene``, ``gene_id``, ``pcc`` (held out), ``pcc_low``, ``pcc_high``, ``attainable_pcc`` (None if not
    known) and ``predictable``.

    Raises
    ------
    UnknownName
        If there is no such model.
    """
    head = load_model(name, offline=True).head
    ids = head.gene_ids or ("",) * len(head.genes)
    numbers = {name: _or_none(head.measured.get(name), len(head.genes)) for name in _OF_GENES}
    columns = {"gene": head.genes, "gene_id": ids, **numbers, "predictable": head.predictable.tolist()}
    rows = [dict(zip(columns, row)) for row in zip(*columns.values())]
    return sorted(rows, key=lambda r: (not r["predictable"], r["pcc"] is None, -(r["pcc"] or 0.0), r["gene"]))


def _or_none(values: npt.NDArray[np.floating] | None, n: int) -> list[float | None]:
    """Return numbers fit for JSON: None where nothing is known."""
    return [None] * n if values is None else [v if v == v else None for v in values.tolist()]


def _card(card: EncoderCard) -> dict[str, Any]:
    """Return an encoder's record, and whether and where its weights are on this machine."""
    from napari_peka.models.weights import find_weights  # imports torch

    here: str | None = None
    with suppress(EncoderUnavailable):
        here = str(find_weights(card, offline=True))
    return {**dataclasses.asdict(card), "weights_here": here is not None, "weights": here}


def _brief(name: str, model: Model) -> dict[str, Any]:
    return {
        "name": name,
        "genes": len(model.head.genes),
        "encoder": model.spec.encoder.name,
        "path": model.source,
    }
