"""The contents of ``peka.json``: what a bundle says of itself, checked.

Schema 2 came with options that change the values and that readers of schema 1 would overlook, and with more tensors.
A bundle that uses none of them is still written with schema 1, so that older versions read it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from napari_peka.core.errors import BundleError

SCHEMA = 2
SPEC_FILE = "peka.json"
#: prefixes of tensors that a bundle carries beside those that decide its values; since schema 2
CARRIED = ("baseline.", "reference.", "residual.")

#: a channel's mean and standard deviation, of values in 0 to 1
Share = Annotated[float, Field(ge=0, le=1)]
Spread = Annotated[float, Field(gt=0, le=1)]
#: width of a crop in tiles
Width = Annotated[float, Field(ge=1, le=8)]


class _Part(BaseModel):
    # files from the future: unknown keys are named (Model.dropped) and left out, required ones still fail
    model_config = ConfigDict(frozen=True, extra="ignore")


class EncoderRef(_Part):
    """Which encoder the bundle stands on."""

    name: str
    sha256: str | None = None
    revision: str | None = None


class Preprocessing(_Part):
    """What a tile is before it reaches the encoder, and where the encoder is read.

    ``blocks`` and ``pooling``: after which blocks tokens are taken, and how they are pooled (see `EncoderCard`); empty
    and None: as published. ``rotations``: the embedding is the mean over so many images of the tile, turned by quarters
    (4) and mirrored as well (8). ``views``: widths of the crops around the tile's centre, in tiles; each is resized to
    ``tile_px`` and embedded, and the embeddings follow one another. Rotations and views multiply the encoder's passes.
    """

    tile_px: int = Field(ge=8, le=4096)
    mpp: float = Field(gt=0.05, lt=20)
    mean: tuple[Share, Share, Share]
    std: tuple[Spread, Spread, Spread]
    blocks: tuple[Annotated[int, Field(ge=0, lt=1000)], ...] = Field((), max_length=64)
    pooling: str | None = None
    rotations: Literal[1, 4, 8] = 1
    views: tuple[Width, ...] = Field((1.0,), min_length=1, max_length=8)

    @model_validator(mode="after")
    def _whole_crops(self) -> Preprocessing:
        if len(set(self.views)) != len(self.views):
            raise ValueError(f"views must differ, got {list(self.views)}")
        widths = [self.tile_px * v for v in self.views]
        if any(abs(w - round(w)) > 1e-6 or (self.read_px - round(w)) % 2 for w in widths):
            raise ValueError(
                f"crops must be whole pixels and lie in the middle of the widest, got {widths} px from views of "
                f"{self.tile_px} px"
            )
        return self

    @property
    def read_px(self) -> int:
        """Side of the square that is read a tile, px at ``mpp``."""
        return round(self.tile_px * max(self.views))


class AdapterRef(_Part):
    """Kind of the adapter whose weights the bundle carries."""

    kind: str = "none"
    rank: int | None = None
    target: str = r".*\.attn\.qkv"
    options: dict[str, Any] = Field(default_factory=dict)


class HeadRef(_Part):
    """What the gene head reads and predicts, and how well it did on data that it never saw.

    ``n_dims`` is the number of rows of its weights: twice the embedding's width with ``context_um``, the radius of
    the neighbours whose mean embedding is read as well. ``hvg50``: the 50 most variable genes of the training
    spots. ``pcc_low``, ``pcc_high``: ends of the 95 % interval of ``pcc``; ``baseline_pcc_high``: the upper end of it
    for the best of the baselines. ``neighbour_smoothing``: it was fitted and judged on counts averaged over
    neighbouring spots, which flatters.
    """

    features: Literal["image", "peka", "image+peka"] = "image"
    n_dims: int = Field(ge=1, le=131072)
    context_um: float | None = Field(None, gt=0, le=100_000)
    genes: list[str] = Field(min_length=1, max_length=200_000)
    gene_ids: list[str] = Field(default_factory=list)
    unit: str
    pcc: list[float | None] = Field(default_factory=list)
    pcc_low: list[float | None] = Field(default_factory=list)
    pcc_high: list[float | None] = Field(default_factory=list)
    baseline_pcc_high: list[float | None] = Field(default_factory=list)
    pcc_split: str = ""
    attainable_pcc: list[float | None] = Field(default_factory=list)
    hvg50: list[str] = Field(default_factory=list)
    neighbour_smoothing: bool = False

    @property
    def embedding_dims(self) -> int:
        """Width of a tile's own embedding."""
        return self.n_dims if self.context_um is None else self.n_dims // 2


class BundleSpec(_Part):
    """The contents of ``peka.json``.

    ``translate``: widths of the MLP behind the encoder; ``translate_activation``: what ends it, so that a head that
    reads ``"peka"`` features may read an MLP's hidden layer. ``training``: where the model comes from, in the keys
    of ``docs/concepts.md``.
    """

    schema_version: int = Field(alias="schema")
    name: str
    description: str = ""
    licence: str = ""
    encoder: EncoderRef
    preprocessing: Preprocessing
    adapter: AdapterRef = AdapterRef()
    translate: list[int] = Field(default_factory=list)
    translate_activation: Literal["none", "relu"] = "none"
    head: HeadRef
    tensors_sha256: str | None = None
    training: dict[str, Any] = Field(default_factory=dict)

    @property
    def tissue(self) -> str:
        """Of which organ the training tissue was; empty: nobody said."""
        return str(self.training.get("tissue") or "")

    def needs_schema(self, tensors: Iterable[str]) -> int:
        """Return the least schema whose readers read this bundle rightly, with the names of its tensors."""
        p = self.preprocessing
        options = p.blocks or p.pooling or p.rotations != 1 or p.views != (1.0,) or self.head.context_um is not None
        carried = any(name.startswith(CARRIED) for name in tensors)
        return 2 if bool(options) or self.translate_activation != "none" or carried else 1


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
