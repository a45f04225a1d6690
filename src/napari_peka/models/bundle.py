"""The one on-disk model format: a folder, or a ``.zip`` of it, of ``peka.json`` and ``model.safetensors``.

Never a pickle, never the encoder's own weights. Nothing is unpacked to the disk: a zip's members are checked and
read in memory.
"""

from __future__ import annotations

import hashlib
import json
import stat
import struct
import zipfile
import zlib
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from napari_peka.core import files
from napari_peka.core.errors import BundleError
from napari_peka.core.geometry import TileSpec
from napari_peka.core.head import GeneHead
from napari_peka.models.registry import AdapterSpec, EncoderCard, encoder_card

SCHEMA = 1
SPEC_FILE = "peka.json"
TENSOR_FILE = "model.safetensors"
#: a bundle holds adapters and heads, never an encoder: 4 GiB is far above the largest honest one
MAX_BYTES = 4 << 30
MAX_SPEC_BYTES = 64 << 20
#: a zip's member that inflates more than this is a bomb, unless it is small anyway
MAX_RATIO, SMALL_BYTES = 200, 16 << 20
ALLOWED_ENDINGS = {".json", ".safetensors", ".md", ".txt", ".csv", ".html", ".png", ".svg", ".yaml", ""}

MAX_BYTES_OF = {SPEC_FILE: MAX_SPEC_BYTES, TENSOR_FILE: MAX_BYTES}

HEAD_WEIGHTS, HEAD_BIAS = "head.weights", "head.bias"
TRANSLATE, ADAPTER = "translate.", "adapter."


#: a channel's mean and standard deviation, of values in 0 to 1
Share = Annotated[float, Field(ge=0, le=1)]
Spread = Annotated[float, Field(gt=0, le=1)]


class _Part(BaseModel):
    # files from the future: unknown keys are named (Model.dropped) and left out, required ones still fail
    model_config = ConfigDict(frozen=True, extra="ignore")


class EncoderRef(_Part):
    """Which encoder the bundle stands on."""

    name: str
    sha256: str | None = None
    revision: str | None = None


class Preprocessing(_Part):
    """What a tile is before it reaches the encoder."""

    tile_px: int = Field(ge=8, le=4096)
    mpp: float = Field(gt=0.05, lt=20)
    mean: tuple[Share, Share, Share]
    std: tuple[Spread, Spread, Spread]


class AdapterRef(_Part):
    """Kind of the adapter whose weights the bundle carries."""

    kind: str = "none"
    rank: int | None = None
    target: str = r".*\.attn\.qkv"
    options: dict[str, Any] = Field(default_factory=dict)


class HeadRef(_Part):
    """What the gene head reads and predicts."""

    features: Literal["image", "peka", "image+peka"] = "image"
    n_dims: int = Field(ge=1, le=65536)
    genes: list[str] = Field(min_length=1, max_length=200_000)
    gene_ids: list[str] = Field(default_factory=list)
    unit: str
    pcc: list[float | None] = Field(default_factory=list)
    pcc_split: str = ""


class BundleSpec(_Part):
    """The contents of ``peka.json``."""

    schema_version: int = Field(alias="schema")
    name: str
    description: str = ""
    licence: str = ""
    encoder: EncoderRef
    preprocessing: Preprocessing
    adapter: AdapterRef = AdapterRef()
    translate: list[int] = Field(default_factory=list)
    head: HeadRef
    tensors_sha256: str | None = None
    training: dict[str, Any] = Field(default_factory=dict)


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
    """

    spec: BundleSpec
    head: GeneHead
    tensors: dict[str, npt.NDArray[Any]]
    source: str
    digest: str
    embedding_digest: str
    dropped: tuple[str, ...] = field(default=())

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
        """Return the size of the tiles that the model reads."""
        return TileSpec(self.spec.preprocessing.tile_px, self.spec.preprocessing.mpp, stride_px)


def save_bundle(path: Path, spec: BundleSpec, tensors: dict[str, npt.NDArray[Any]]) -> Model:
    """Write a bundle as a folder; each file is written beside and renamed, ``peka.json`` last.

    Parameters
    ----------
    path
        Folder to write; made if needed.
    spec
        The record.
    tensors
        ``head.weights (d, g)``, ``head.bias (g,)``, ``translate.*`` and ``adapter.*``.
    """
    from safetensors.numpy import save

    files.make_folder(path)
    arrays = {k: np.ascontiguousarray(v) for k, v in sorted(tensors.items())}
    _checked(spec, {k: v.shape for k, v in arrays.items()}, path.name)
    data = save(arrays)
    # a crash between the two files leaves halves of two models, which must not pass for one
    spec = spec.model_copy(update={"tensors_sha256": hashlib.sha256(data).hexdigest()})
    files.write_whole(path / TENSOR_FILE, data)
    files.write_whole(path / SPEC_FILE, spec.model_dump_json(by_alias=True, indent=1).encode())
    return read_bundle(path)


def read_bundle(path: Path) -> Model:
    """Read a bundle from its folder or ``.zip``.

    Raises
    ------
    BundleError
        If anything is not as it should be; the sentence names the file and the fault.
    """
    if path.is_dir():
        raw = {n: _read_file(path / n, limit) for n, limit in MAX_BYTES_OF.items()}
    elif path.is_file():
        raw = _read_zip(path)
    else:
        raise BundleError(f"there is no model bundle at {path}; give a folder that holds {SPEC_FILE}, or a .zip of it")
    spec, dropped = parse_spec(raw[SPEC_FILE], path.name)
    shapes = tensor_shapes(raw[TENSOR_FILE], path.name)
    _checked(spec, shapes, path.name)
    tensors = _load_tensors(raw[TENSOR_FILE], path.name)
    if spec.tensors_sha256 not in (None, hashlib.sha256(raw[TENSOR_FILE]).hexdigest()):
        raise BundleError(f"{path.name}: {TENSOR_FILE} is not the one that {SPEC_FILE} speaks of; get the bundle again")
    weights, bias = (tensors.pop(k).astype(np.float32) for k in (HEAD_WEIGHTS, HEAD_BIAS))
    h = spec.head
    pcc = np.array([np.nan if v is None else v for v in h.pcc], np.float32) if h.pcc else None
    head = GeneHead(weights, bias, tuple(h.genes), h.unit, tuple(h.gene_ids), pcc)
    embedding = {
        "encoder": spec.encoder.model_dump(),
        "preprocessing": spec.preprocessing.model_dump(),
        "adapter": spec.adapter.model_dump(),
        "translate": spec.translate,
        "features": h.features,
        "tensors": {k: hashlib.sha256(v.tobytes()).hexdigest() for k, v in sorted(tensors.items())},
    }
    embedding_digest = _digest(embedding)
    whole = {
        "embedding": embedding_digest,
        "genes": h.genes,
        "unit": h.unit,
        "head": hashlib.sha256(weights.tobytes() + bias.tobytes()).hexdigest(),
    }
    return Model(spec, head, tensors, str(path), _digest(whole), embedding_digest, dropped)


def _load_tensors(raw: bytes, where: str) -> dict[str, npt.NDArray[Any]]:
    from safetensors import SafetensorError
    from safetensors.numpy import load

    try:
        tensors: dict[str, npt.NDArray[Any]] = load(raw)
    except (SafetensorError, ValueError, KeyError, TypeError) as e:
        raise BundleError(f"{where}: {TENSOR_FILE} cannot be read ({type(e).__name__}: {e}); get it again") from e
    for name, values in tensors.items():
        if values.dtype.kind == "f" and not np.isfinite(values).all():
            raise BundleError(f"{where}: the tensor {name} holds NaN or infinite numbers; get the bundle again")
    return tensors


def parse_spec(raw: bytes, where: str) -> tuple[BundleSpec, tuple[str, ...]]:
    """Return the validated ``peka.json`` and the keys that this version does not know."""
    try:
        data = json.loads(raw)
    except (ValueError, RecursionError) as e:
        raise BundleError(f"{where}: {SPEC_FILE} is not JSON ({e}); the bundle is damaged, get it again") from e
    if not isinstance(data, dict):
        raise BundleError(f"{where}: {SPEC_FILE} must hold one JSON object, got a {type(data).__name__}")
    version = data.get("schema")
    if type(version) is not int or version < 1:
        raise BundleError(f"{where}: {SPEC_FILE} has no schema number; this is no napari-peka bundle")
    if version > SCHEMA:
        raise BundleError(
            f"{where} has bundle schema {version}, this version of napari-peka reads up to {SCHEMA}; update napari-peka"
        )
    try:
        spec = BundleSpec.model_validate(data)
    except ValidationError as e:
        first = e.errors()[0]
        loc = ".".join(map(str, first["loc"]))
        raise BundleError(
            f"{where}: {SPEC_FILE}: {loc}: {first['msg']}; the bundle is damaged or of another kind"
        ) from e
    known = {f.alias or n for n, f in BundleSpec.model_fields.items()}
    return spec, tuple(sorted(set(data) - known))


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
    h = spec.head
    card = encoder_card(spec.encoder.name)  # an unknown encoder is said before anything is built
    d, g = h.n_dims, len(h.genes)
    if len(spec.translate) == 1 or any(n < 1 for n in spec.translate):
        raise BundleError(f"{where}: a translation needs two or more widths, got {spec.translate}")
    wanted: dict[str, tuple[int, ...]] = {HEAD_WEIGHTS: (d, g), HEAD_BIAS: (g,)}
    for i, (a, b) in enumerate(zip(spec.translate, spec.translate[1:])):
        wanted |= {f"{TRANSLATE}{i}.weight": (b, a), f"{TRANSLATE}{i}.bias": (b,)}
    for name, shape in wanted.items():
        if name not in shapes:
            raise BundleError(f"{where}: the tensor {name} is missing from {TENSOR_FILE}; get the bundle again")
        if shapes[name] != shape:
            raise BundleError(
                f"{where}: the tensor {name} has shape {shapes[name]}, {SPEC_FILE} wants {shape}; the two files do not "
                "belong together"
            )
    stray = [k for k in shapes if k not in wanted and not k.startswith(ADAPTER)]
    if stray:
        raise BundleError(f"{where}: {TENSOR_FILE} holds the unknown tensor {stray[0]}; the bundle is of another kind")
    if any(k.startswith(ADAPTER) for k in shapes) == (spec.adapter.kind == "none"):
        raise BundleError(f"{where}: adapter weights and the adapter kind {spec.adapter.kind!r} do not fit")
    for name, values in (("gene_ids", h.gene_ids), ("pcc", h.pcc)):
        if values and len(values) != g:
            raise BundleError(f"{where}: head.{name} has {len(values)} entries for {g} genes")
    if len(set(h.genes)) != g:
        raise BundleError(f"{where}: gene names of the head are not unique")
    if (h.features == "image") == bool(spec.translate):
        raise BundleError(f"{where}: features {h.features!r} and a translation of {spec.translate} do not fit")
    if card.dim and h.features == "image" and d != card.dim:
        raise BundleError(f"{where}: the gene head reads {d} numbers, {card.name} gives {card.dim}")


def _read_file(path: Path, limit: int) -> bytes:
    try:
        if path.stat().st_size > limit:
            raise BundleError(f"{path} is larger than {limit >> 20} MiB, too large for a bundle")
        return path.read_bytes()
    except FileNotFoundError as e:
        raise BundleError(f"{path.parent} is no model bundle: {path.name} is missing") from e
    except OSError as e:
        raise BundleError(f"cannot read {path}: {e.strerror or e}") from e


def _read_zip(path: Path) -> dict[str, bytes]:
    """Return the two files of a zipped bundle after checking names, links and sizes of every member."""
    if not zipfile.is_zipfile(path):
        raise BundleError(f"{path} is neither a bundle folder nor a .zip of one")
    found: dict[str, bytes] = {}
    try:
        with zipfile.ZipFile(path) as z:
            members = [m for m in z.infolist() if not m.is_dir()]
            if len(members) > 1000 or sum(m.file_size for m in members) > MAX_BYTES:
                raise BundleError(f"{path.name} is too large for a bundle (over 1000 files or {MAX_BYTES >> 30} GiB)")
            for m in members:
                _check_member(m, path.name)
                name = PurePosixPath(m.filename)
                if name.name in MAX_BYTES_OF and len(name.parts) <= 2:
                    if name.name in found:
                        raise BundleError(f"{path.name} holds {name.name} twice")
                    found[name.name] = _inflate(z, m, MAX_BYTES_OF[name.name], path.name)
    except (zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError, EOFError, OSError) as e:
        if isinstance(e, BundleError):
            raise
        raise BundleError(f"{path.name} is a damaged .zip ({e}); get the bundle again") from e
    missing = [n for n in MAX_BYTES_OF if n not in found]
    if missing:
        raise BundleError(f"{path.name} is no model bundle: {missing[0]} is missing at its top or in its one folder")
    return found


def _inflate(z: zipfile.ZipFile, m: zipfile.ZipInfo, limit: int, where: str) -> bytes:
    """Return a member's bytes; never more than it claims are inflated, whatever the stream holds."""
    if m.file_size > limit:
        raise BundleError(f"{where}: {m.filename} is absurdly large ({m.file_size >> 20} MiB)")
    if m.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):  # others inflate without a bound
        raise BundleError(f"{where}: {m.filename} is packed in a way that no bundle is; zip it again")
    if m.file_size > max(SMALL_BYTES, MAX_RATIO * m.compress_size):
        raise BundleError(f"{where}: {m.filename} claims to inflate to {m.file_size >> 20} MiB; do not use this file")
    with z.open(m) as f:
        data = f.read(m.file_size)  # with a number, zlib is asked for no more; without, it inflates all there is
        if len(data) != m.file_size:
            raise BundleError(f"{where}: {m.filename} is shorter than it claims; get the bundle again")
    return data


def _check_member(m: zipfile.ZipInfo, where: str) -> None:
    name = m.filename.replace("\\", "/")
    parts = PurePosixPath(name).parts
    if name.startswith("/") or ".." in parts or ":" in name or "\0" in name or len(parts) > 3:
        raise BundleError(f"{where} holds the unsafe name {m.filename!r}; do not use this file")
    if m.flag_bits & 0x1:
        raise BundleError(f"{where}: {m.filename!r} is encrypted, which no bundle is; unpack it and zip it again")
    if stat.S_ISLNK(m.external_attr >> 16):
        raise BundleError(f"{where} holds a link ({m.filename!r}); do not use this file")
    if PurePosixPath(name).suffix.lower() not in ALLOWED_ENDINGS:
        raise BundleError(f"{where} holds {m.filename!r}, a kind of file that no bundle has; do not use this file")


def _digest(data: object) -> str:
    return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()
