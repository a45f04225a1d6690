"""The one on-disk model format: a folder, or a ``.zip`` of it, of ``peka.json`` and ``model.safetensors``.

Never a pickle, never the encoder's own weights. Beside what decides its values a bundle carries what is needed to
judge and calibrate them; nothing of that changes its digests.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel

from napari_peka.core import files
from napari_peka.core.doubt import Intervals, Likeness
from napari_peka.core.errors import BundleError
from napari_peka.core.geometry import TileSpec
from napari_peka.core.head import MEASURED, GeneHead
from napari_peka.core.units import least_value
from napari_peka.models import reference
from napari_peka.models.archive import TENSOR_FILE, read_files
from napari_peka.models.card import CARD_FILE, model_card
from napari_peka.models.registry import AdapterSpec, EncoderCard, encoder_card
from napari_peka.models.spec import CARRIED, SPEC_FILE, BundleSpec, parse_spec

HEAD_WEIGHTS, HEAD_BIAS = "head.weights", "head.bias"
TRANSLATE, ADAPTER, BASELINE = "translate.", "adapter.", "baseline."
RESIDUAL_Q90 = "residual.q90"
PROBABILITIES, QUANTILES = "residual.probabilities", "residual.quantiles"
#: tensors in which a gene may be unknown
_MAY_LACK = (RESIDUAL_Q90, QUANTILES)
#: options of a part that came after its digest was defined: they count when they are used, so old digests stay
_LATER = ("rotations", "views", "blocks", "pooling")

Array = npt.NDArray[Any]
Float32 = npt.NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Model:
    """A model as a person holds it: light (no torch), the encoder is built when it is needed.

    Parameters
    ----------
    spec
        What ``peka.json`` says.
    head
        The gene head.
    tensors
        Adapter and translation weights by name, as numpy arrays.
    source
        Where it came from.
    digest
        sha256 of all that decides the predicted values.
    embedding_digest
        sha256 of what decides the embeddings alone: a new head keeps it.
    dropped
        Keys of ``peka.json`` that this version does not know.
    carried
        Further tensors by name, for judging and calibrating values.
    """

    spec: BundleSpec
    head: GeneHead
    tensors: dict[str, Array]
    source: str
    digest: str
    embedding_digest: str
    dropped: tuple[str, ...] = field(default=())
    carried: dict[str, Array] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The bundle's own name."""
        return self.spec.name

    @property
    def card(self) -> EncoderCard:
        """The encoder's record in the registry."""
        return encoder_card(self.spec.encoder.name)

    @property
    def adapter(self) -> AdapterSpec:
        """The adapter's record."""
        a = self.spec.adapter
        return AdapterSpec(kind=a.kind, rank=a.rank, target=a.target, options=dict(a.options))

    def tile_spec(self, stride_px: int | None = None) -> TileSpec:
        """Return the size of the tiles that the model reads: as wide as the widest of its views."""
        p = self.spec.preprocessing
        if p.read_px == p.tile_px:
            return TileSpec(p.tile_px, p.mpp, stride_px)
        return TileSpec(p.read_px, p.mpp, stride_px, p.tile_px)

    @property
    def passes(self) -> int:
        """Passes of the encoder a tile: rotations times views. A map takes about so many times as long."""
        return self.spec.preprocessing.rotations * len(self.spec.preprocessing.views)

    @property
    def pcc(self) -> Float32:
        """Held-out Pearson correlation of each gene, ``(g,)``; NaN where it was not measured."""
        return _per_gene(self.spec.head.pcc, len(self.head.genes))

    @property
    def attainable_pcc(self) -> Float32:
        """Noise ceiling of :attr:`pcc`, ``(g,)``: what a perfect model would reach; NaN where unknown."""
        return _per_gene(self.spec.head.attainable_pcc, len(self.head.genes))

    @property
    def residual_q90(self) -> Float32:
        """Half width of the 90 % interval from held-out residuals, ``(g,)``, in the head's unit; NaN where unknown."""
        unknown = np.full(len(self.head.genes), np.nan)
        return np.asarray(self.carried.get(RESIDUAL_Q90, unknown), np.float32)

    @cached_property
    def intervals(self) -> Intervals | None:
        """Around which predicted values the measured ones lie; None where nobody calibrated them."""
        if QUANTILES not in self.carried:
            return None
        p, q = (self.carried[k] for k in (PROBABILITIES, QUANTILES))
        return Intervals(p.astype(np.float64), q.astype(np.float32), least_value(self.head.unit))

    @cached_property
    def likeness(self) -> Likeness | None:
        """What a tile's distance from the training spots means; None where the bundle has no reference."""
        if reference.PERCENTILES not in self.carried:
            return None
        rows = self.carried.get(reference.ROWS)
        n = sum(int(s.get("spots", 0)) for s in self.trained_on) if rows is None else int(rows[0])
        return Likeness(np.asarray(self.carried[reference.PERCENTILES], np.float64), n)

    @cached_property
    def image_reference(self) -> dict[str, Float32]:
        """Statistics of what the encoder saw in the training spots, before it was narrowed; empty where it was not.

        An embedding that was narrowed to what genes need no longer tells a fold or a wrong scale, so distances are then
        measured before.
        """
        return {k: v.astype(np.float32) for k, v in reference.of_image(self.carried).items()}

    @property
    def seen_dims(self) -> int:
        """Numbers that the encoder gives a tile: its embedding and, with an :attr:`image_reference`, its distance."""
        return self.head.embedding_dims + bool(self.image_reference)

    @cached_property
    def seen_digest(self) -> str:
        """sha256 of what decides these numbers."""
        if not self.image_reference:
            return self.embedding_digest
        tensors = {k: hashlib.sha256(v.tobytes()).hexdigest() for k, v in sorted(self.image_reference.items())}
        return _digest({"embedding": self.embedding_digest, "reference": tensors})

    def spread(self, embeddings: npt.NDArray[np.floating]) -> Float32:
        """Return by how much intervals are wider at tiles with these embeddings ``(n, d)``, ``(n,)``; 1: not known."""
        if self.likeness is None:
            return np.ones(len(embeddings), np.float32)
        return self.likeness.spread(reference.distances(embeddings, self.carried))

    def ood(self, seen: npt.NDArray[np.floating]) -> Float32:
        """Return how unlike the training data tiles are, 0 to 100, ``(n,)``; NaN: not known.

        Parameters
        ----------
        seen
            What the encoder gives each of them, ``(n, seen_dims)``.
        """
        if self.likeness is None:
            return np.full(len(seen), np.nan, np.float32)
        if not self.image_reference:
            return self.likeness.percentile(reference.distances(seen, self.carried))
        return Likeness(self.image_reference[reference.PERCENTILES], 0).percentile(seen[:, -1])

    def doubt(self, seen: npt.NDArray[np.floating]) -> tuple[Float32, Float32]:
        """Return :meth:`ood` and :meth:`spread` of tiles; a distance that both rest on is measured once.

        Parameters
        ----------
        seen
            As for :meth:`ood`.
        """
        if self.likeness is None or self.image_reference:
            return self.ood(seen), self.spread(seen[:, : self.head.embedding_dims])
        far = reference.distances(seen, self.carried)
        return self.likeness.percentile(far), self.likeness.spread(far)

    @property
    def hvg50(self) -> tuple[str, ...]:
        """The most variable genes of the training spots; empty when nobody says."""
        return tuple(self.spec.head.hvg50)

    @property
    def baselines(self) -> dict[str, tuple[Float32, Float32]]:
        """Simple models fitted on the same spots, by name: ``weights (k, g)`` and ``bias (g,)``, k may be 0."""
        out: dict[str, tuple[Float32, Float32]] = {}
        for key, bias in self.carried.items():
            if key.startswith(BASELINE) and key.endswith(".bias"):
                name = key.removeprefix(BASELINE).removesuffix(".bias")
                weights = self.carried.get(f"{BASELINE}{name}.weights", np.empty((0, len(bias))))
                out[name] = np.asarray(weights, np.float32), np.asarray(bias, np.float32)
        return out

    @property
    def reference(self) -> dict[str, Float32]:
        """Statistics of training embeddings for `models.reference.distances`; empty when there are none."""
        return {k: np.asarray(v, np.float32) for k, v in self.carried.items() if k.startswith(reference.PREFIX)}

    @property
    def trained_on(self) -> tuple[dict[str, Any], ...]:
        """Sections that the model has seen: each its ``name``, ``patient``, ``fingerprint``, ``part``, as known."""
        sections = self.spec.training.get("sections", [])
        return tuple(s for s in sections if isinstance(s, dict)) if isinstance(sections, list) else ()


def save_bundle(path: Path, spec: BundleSpec, tensors: dict[str, Array]) -> Model:
    """Write a bundle as a folder, with its model card as ``README.md``.

    Each file is written beside and renamed, ``peka.json`` last. The schema is the least that reads the bundle
    rightly, whatever `spec` says.

    Parameters
    ----------
    path
        Folder to write; made if needed.
    spec
        The record.
    tensors
        ``head.weights (n_dims, g)``, ``head.bias (g,)``, ``translate.*`` and ``adapter.*``. As known: ``residual.q90
        (g,)``, NaN for a gene that was not measured; ``residual.probabilities (m,)`` and ``residual.quantiles (m, g)``,
        as of :class:`Intervals`; ``baseline.NAME.bias (g,)`` and ``baseline.NAME.weights (k, g)``;
        what `models.reference.reference_of` returns.

    Raises
    ------
    BundleError
        If the parts do not fit; nothing is written.
    StoreError
        If the folder cannot be written.
    """
    from safetensors.numpy import save

    arrays = {k: np.ascontiguousarray(v) for k, v in sorted(tensors.items())}
    data = save(arrays)
    # a crash between the files leaves parts of two models, which must not pass for one
    update = {"tensors_sha256": hashlib.sha256(data).hexdigest(), "schema_version": spec.needs_schema(arrays)}
    text = spec.model_copy(update=update).model_dump_json(by_alias=True, indent=1).encode()
    model = _model({TENSOR_FILE: data, SPEC_FILE: text}, path)
    files.make_folder(path)
    files.write_whole(path / CARD_FILE, model_card(model).encode())
    files.write_whole(path / TENSOR_FILE, data)
    files.write_whole(path / SPEC_FILE, text)
    return model


def read_bundle(path: Path) -> Model:
    """Read a bundle from its folder or ``.zip``.

    Raises
    ------
    BundleError
        If anything is not as it should be; the sentence names the file and the fault.
    """
    return _model(read_files(path), path)


def _model(raw: dict[str, bytes], path: Path) -> Model:
    where = path.name
    spec, dropped = parse_spec(raw[SPEC_FILE], where)
    _checked(spec, tensor_shapes(raw[TENSOR_FILE], where), where)
    tensors = _load_tensors(raw[TENSOR_FILE], where)
    if spec.tensors_sha256 not in (None, hashlib.sha256(raw[TENSOR_FILE]).hexdigest()):
        raise BundleError(f"{where}: {TENSOR_FILE} is not the one that {SPEC_FILE} speaks of; get the bundle again")
    weights, bias = (tensors.pop(k).astype(np.float32) for k in (HEAD_WEIGHTS, HEAD_BIAS))
    carried = {k: tensors.pop(k) for k in list(tensors) if k.startswith(CARRIED)}
    h = spec.head
    measured = {name: _per_gene(told, len(h.genes)) for name in MEASURED if (told := getattr(h, name))}
    head = GeneHead(weights, bias, tuple(h.genes), h.unit, tuple(h.gene_ids), context_um=h.context_um, **measured)
    model = Model(spec, head, tensors, str(path), *_digests(spec, head, tensors), dropped, carried)
    try:
        _ = model.intervals, model.likeness
    except ValueError as e:
        raise BundleError(f"{where}: {e}; the bundle is damaged, get it again") from e
    return model


def _digests(spec: BundleSpec, head: GeneHead, tensors: dict[str, Array]) -> tuple[str, str]:
    """Return the digests of all that decides values, and of what decides embeddings."""
    embedding: dict[str, object] = {
        "encoder": spec.encoder.model_dump(),
        "preprocessing": _deciding(spec.preprocessing),
        "adapter": spec.adapter.model_dump(),
        "translate": spec.translate,
        "features": spec.head.features,
        "tensors": {k: hashlib.sha256(v.tobytes()).hexdigest() for k, v in sorted(tensors.items())},
    }
    if spec.translate_activation != "none":
        embedding["translate_activation"] = spec.translate_activation
    embedding_digest = _digest(embedding)
    whole: dict[str, object] = {
        "embedding": embedding_digest,
        "genes": spec.head.genes,
        "unit": head.unit,
        "head": hashlib.sha256(head.weights.tobytes() + head.bias.tobytes()).hexdigest(),
    }
    if head.context_um is not None:
        whole["context_um"] = head.context_um
    return _digest(whole), embedding_digest


def _deciding(part: BaseModel) -> dict[str, Any]:
    defaults = {k: f.default for k, f in type(part).model_fields.items()}
    return {k: v for k, v in part.model_dump().items() if k not in _LATER or v != defaults[k]}


def _digest(data: object) -> str:
    return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()


def _per_gene(values: Sequence[float | None], n: int) -> Float32:
    return np.array([np.nan if v is None else v for v in values] if values else [np.nan] * n, np.float32)


def _load_tensors(raw: bytes, where: str) -> dict[str, Array]:
    from safetensors import SafetensorError
    from safetensors.numpy import load

    try:
        tensors: dict[str, Array] = load(raw)
    except (SafetensorError, ValueError, KeyError, TypeError) as e:
        raise BundleError(f"{where}: {TENSOR_FILE} cannot be read ({type(e).__name__}: {e}); get it again") from e
    for name, values in tensors.items():
        # residuals alone may be unknown of a gene
        wrong = np.isinf(values) if name in _MAY_LACK else ~np.isfinite(values)
        if values.dtype.kind == "f" and wrong.any():
            raise BundleError(f"{where}: the tensor {name} holds NaN or infinite numbers; get the bundle again")
    return tensors


def tensor_shapes(raw: bytes, where: str) -> dict[str, tuple[int, ...]]:
    """Return the shapes that a safetensors header declares, before anything is allocated."""
    try:
        (n,) = struct.unpack("<Q", raw[:8])
        if n > min(len(raw) - 8, 100 << 20):
            raise ValueError(f"its header claims {n} bytes")
        header = json.loads(raw[8 : 8 + n])
        shapes = {k: tuple(map(int, v["shape"])) for k, v in header.items() if k != "__metadata__"}
        end = max((int(v["data_offsets"][1]) for k, v in header.items() if k != "__metadata__"), default=0)
        if end != len(raw) - 8 - n:
            raise ValueError(f"it should hold {end} bytes of data and holds {len(raw) - 8 - n}")
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError, struct.error) as e:
        raise BundleError(
            f"{where}: {TENSOR_FILE} is damaged or no safetensors file ({e}); get the bundle again"
        ) from e
    return shapes


def _checked(spec: BundleSpec, shapes: dict[str, tuple[int, ...]], where: str) -> None:
    card = encoder_card(spec.encoder.name)  # an unknown encoder is said before anything is built
    if len(spec.translate) == 1 or any(n < 1 for n in spec.translate):
        raise BundleError(f"{where}: a translation needs two or more widths, got {spec.translate}")
    wanted = _wanted(spec) | _wanted_carried(spec, shapes)
    for name, shape in wanted.items():
        if name not in shapes:
            raise BundleError(f"{where}: the tensor {name} is missing from {TENSOR_FILE}; get the bundle again")
        if shapes[name] != shape:
            raise BundleError(
                f"{where}: the tensor {name} has shape {shapes[name]}, {SPEC_FILE} wants {shape}; the two files do not "
                "belong together"
            )
    stray = [k for k in shapes if k not in wanted and not k.startswith((ADAPTER, *CARRIED))]
    if stray:
        raise BundleError(f"{where}: {TENSOR_FILE} holds the unknown tensor {stray[0]}; the bundle is of another kind")
    if any(k.startswith(ADAPTER) for k in shapes) == (spec.adapter.kind == "none"):
        raise BundleError(f"{where}: adapter weights and the adapter kind {spec.adapter.kind!r} do not fit")
    if spec.schema_version < (least := spec.needs_schema(shapes)):
        raise BundleError(
            f"{where} says schema {spec.schema_version} and asks for what only schema {least} has; save it again"
        )
    _check_head(spec, card, where)


def _wanted(spec: BundleSpec) -> dict[str, tuple[int, ...]]:
    d, g = spec.head.n_dims, len(spec.head.genes)
    wanted: dict[str, tuple[int, ...]] = {HEAD_WEIGHTS: (d, g), HEAD_BIAS: (g,)}
    for i, (a, b) in enumerate(zip(spec.translate, spec.translate[1:])):
        wanted |= {f"{TRANSLATE}{i}.weight": (b, a), f"{TRANSLATE}{i}.bias": (b,)}
    return wanted


def _wanted_carried(spec: BundleSpec, shapes: dict[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    """Return the shapes of the carried tensors that are there and known; others are kept for who knows them."""
    d, g = spec.head.embedding_dims, len(spec.head.genes)
    wanted: dict[str, tuple[int, ...]] = {RESIDUAL_Q90: (g,)} if RESIDUAL_Q90 in shapes else {}
    if QUANTILES in shapes or PROBABILITIES in shapes:
        m = (shapes.get(PROBABILITIES) or (0,))[0]
        wanted |= {PROBABILITIES: (m,), QUANTILES: (m, g)}
    for name, shape in shapes.items():
        if name.startswith(BASELINE) and name.endswith(".weights"):
            wanted |= {name: (*shape[:1], g), f"{name.removesuffix('.weights')}.bias": (g,)}
        elif name.startswith(BASELINE) and name.endswith(".bias"):
            wanted[name] = (g,)
    if any(name.startswith(reference.PREFIX) for name in shapes):
        wanted |= reference.shapes_of(shapes, d)
    if image := reference.of_image(shapes):
        width = spec.translate[0] if spec.translate else d
        wanted |= reference.as_image(reference.shapes_of(image, width))
    return wanted


def _check_head(spec: BundleSpec, card: EncoderCard, where: str) -> None:
    h = spec.head
    for name, values in (("gene_ids", h.gene_ids), *((name, getattr(h, name)) for name in MEASURED)):
        if values and len(values) != len(h.genes):
            raise BundleError(f"{where}: head.{name} has {len(values)} entries for {len(h.genes)} genes")
    if len(set(h.genes)) != len(h.genes):
        raise BundleError(f"{where}: gene names of the head are not unique")
    if (h.features == "image") == bool(spec.translate):
        raise BundleError(f"{where}: features {h.features!r} and a translation of {spec.translate} do not fit")
    if spec.translate_activation != "none" and not spec.translate:
        raise BundleError(f"{where}: there is no translation that the activation {spec.translate_activation!r} ends")
    if h.context_um is not None and h.n_dims % 2:
        raise BundleError(f"{where}: a head with context reads two embeddings, so not {h.n_dims} numbers")
    gives = card.dim * len(spec.preprocessing.views)
    as_published = not spec.preprocessing.blocks and spec.preprocessing.pooling is None
    if card.dim and as_published and h.features == "image" and h.embedding_dims != gives:
        raise BundleError(f"{where}: the gene head reads {h.embedding_dims} numbers, {card.name} gives {gives}")
