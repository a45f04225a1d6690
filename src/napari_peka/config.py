"""Validated settings. Command line, docks and Python take the same ones from here."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from napari_peka.core.errors import SettingError, near_names

Precision = Literal["auto", "fp32", "bf16", "fp16"]
Backend = Literal["auto", "torch", "openvino", "onnx"]
AdapterKind = Literal["none", "bone", "bat", "lora", "adalora", "hra", "dora", "full"]
Unit = Literal["log1p CP10K", "log2(1+CP10K)", "log1p counts"]
Stain = Literal["none", "macenko", "reinhard"]
Device = Annotated[str, Field(pattern=r"^(auto|(cpu|cuda|mps)(:\d+)?)$", description="auto, cpu, cuda, cuda:1 or mps")]
Organ = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1)]


class Settings(BaseModel):
    """Base of all settings: frozen, checked; a value that cannot be used is a :class:`SettingError`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    def __init__(self, **settings: Any) -> None:
        try:
            super().__init__(**settings)
        except ValidationError as e:
            raise _setting_error(e, type(self)) from e


class PredictConfig(Settings):
    """How to predict a map. Every field that changes the numbers is written into the result."""

    device: Device = "auto"
    precision: Precision = Field(
        "auto", description="number format of the encoder; auto: bf16 where the machine has it"
    )
    backend: Backend = Field(
        "auto", description="what runs the encoder; auto: openvino on a CPU where it is installed, else torch"
    )
    batch_size: int | None = Field(None, ge=1, le=4096, description="tiles a forward pass; halved when memory runs out")
    stride_px: int | None = Field(
        None, ge=1, description="distance of tiles in px at the model's mpp; None: no overlap"
    )
    find_tissue: bool = Field(True, description="only tiles on tissue; off: every tile of the region or slide")
    tissue_threshold: float | None = Field(
        None, gt=0, le=100, description="Lab distance from glass that tissue has at least; None: found by itself"
    )
    min_tissue: float = Field(0.25, ge=0, le=1, description="least share of a tile that must be tissue")
    min_region: float = Field(0.5, ge=0, le=1, description="least share of a tile that must lie in the region")
    stain: Stain = Field(
        "none", description="bring the slide's colours towards the model's training data: by macenko or reinhard"
    )
    organ: Organ | None = Field(
        None, description="of which organ the slide is, said beside what the model was trained on"
    )
    readers: int | None = Field(None, ge=1, le=64, description="threads that read the slide; None: by the machine")


class HeadConfig(Settings):
    """What a gene head learns, from which spots, and on what it is judged."""

    genes: list[str] | None = Field(None, description="genes to predict; None: all that enough spots show")
    min_detected: float = Field(0.1, ge=0, le=1, description="least share of training spots in which a gene is seen")
    n_top_genes: int | None = Field(None, ge=1, description="only the most variable genes; None: all")
    min_counts: int = Field(0, ge=0, description="least counts of a spot")
    min_on_tissue: float = Field(
        0.5, ge=0, le=1, description="least share of a section's spots on tissue; with fewer its image is not believed"
    )
    smooth_um: float | None = Field(
        None, gt=0, description="average spots with neighbours this near; flatters scores, and every result says so"
    )
    depth_power: float = Field(0.5, ge=0, le=2, description="weight of a spot in the head: its counts to this power")
    centre_sections: bool = Field(True, description="neither teacher nor head tells what sections differ in as a whole")
    target_rank: int | None = Field(
        20, ge=1, description="the head learns this many common directions of the genes; None: each gene as measured"
    )
    standardise: bool = Field(True, description="divide each number of the features by its spread before the head")
    n_components: int | None = Field(256, ge=1, description="principal components that the head reads; None: all")
    ridge_alpha: float | Literal["gcv", "groups"] = Field(
        "groups", description="penalty; gcv: by generalised cross-validation; groups: by leaving sections out"
    )
    hold_out: str | None = Field(
        None,
        description="section, patient or block: each left out in turn; names: left out for good; None: what a manifest "
        "calls test, else sections, or blocks of the only one",
    )
    organ: Organ | None = Field(None, description="of which organ the sections are: the model says so of other slides")

    seed: int = Field(0, ge=0, description="of everything that is drawn")
    device: Device = "auto"


class TrainConfig(HeadConfig):
    """How to learn from paired sections. All of it is written into the model that comes out.

    Defaults follow the paper (arXiv 2504.07061) where it speaks; ``docs/training.md`` says where they do not, and why.
    """

    # what is learnt
    encoder: str = Field("dinov2-vits14-demo", description="encoder to adapt; `napari-peka models` lists them")
    adapter: AdapterKind = Field("bone", description="what is trained in the encoder; none leaves it frozen")
    rank: int | None = Field(None, ge=1, description="rank of the adapter; None: about 5 % of the encoder's weights")
    target: str | None = Field(None, description="regular expression of layers; None: every block's attention")
    last_blocks: int | None = Field(None, ge=1, description="adapt the last blocks only")
    adapter_options: dict[str, Any] = Field({}, description="more options of the adapter, as peft names them")
    teacher: str = Field("pca", description="pca, scvi, pathways, obsm:KEY, or a .npy or .parquet file of embeddings")
    teacher_dims: int | None = Field(
        None, ge=1, le=4096, description="dimensions of a teacher that is fitted here; None: 50 (pca) or 10 (scvi)"
    )
    pathways: str | None = Field(None, description="PROGENy weights (TSV) for the teacher pathways")
    clusters: int = Field(100, ge=2, description="pseudo-labels; fewer are made when spots are few")
    alpha: float = Field(0.5, ge=0, le=1, description="share of distillation; the rest is cross-entropy to labels")
    temperature: float = Field(2.0, gt=0, description="by which logits are divided in the distillation")
    terms: dict[str, float] = Field({}, description="weights of further loss terms, such as cosine or genes")

    # of what
    unit: Unit = Field("log1p CP10K", description="unit of expression")
    tile_px: int | None = Field(None, ge=8, le=4096, description="side of a tile in px; None: the encoder's")
    mpp: float | None = Field(None, gt=0.05, lt=20, description="µm per px of a tile; None: the encoder's")
    blocks: list[int] = Field([], description="blocks after which the encoder is read, from 0; none: after the last")
    pooling: str | None = Field(None, description="cls, mean, std, joined by +; None: as the encoder was published")

    # how
    epochs: int = Field(10, ge=1, le=10_000, description="times that each tile is looked at")
    lr: float = Field(3e-4, gt=0, lt=1, description="highest learning rate")
    schedule: Literal["one-cycle", "cosine", "step", "constant"] = Field(
        "one-cycle", description="course of the learning rate; step, a tenth after each third, is the paper's"
    )
    weight_decay: float = Field(0.0, ge=0, description="of AdamW")
    batch_size: int = Field(32, ge=2, le=4096, description="tiles a pass")
    accumulate: int = Field(1, ge=1, description="passes a step")
    clip: float | None = Field(1.0, gt=0, description="largest norm of the gradient")
    validation_share: float = Field(
        0.15, ge=0, lt=0.9, description="share of training spots, in blocks, by which the best epoch is chosen"
    )
    patience: int | None = Field(None, ge=1, description="stop after so many epochs without a better held-out loss")
    keep: Literal["best", "last"] = Field("best", description="epoch whose weights are kept")
    dihedral: bool = Field(True, description="turn and mirror tiles while training")
    stain: float = Field(0.05, ge=0, le=1, description="spread of the stains' strength while training")
    light: float = Field(0.1, ge=0, le=0.9, description="spread of brightness and contrast while training")
    patch_dropout: float = Field(
        0.0, ge=0, lt=1, description="share of a tile's patches left out while training: faster, and regularises"
    )
    checkpoint_gradients: bool = Field(False, description="recompute activations: less memory, about a third slower")
    trunk_cache: bool = Field(True, description="with last_blocks: compute the frozen blocks once and keep the result")
    cached_views: int = Field(8, ge=1, le=64, description="augmented looks at each tile in the trunk cache")
    precision: Precision = Field("auto", description="number format; fp32 weights are kept either way")
    devices: int = Field(1, ge=1, le=64, description="GPUs (or processes) to train on")
    tensorboard: bool = Field(False, description="write TensorBoard logs too")

    # what reads the genes
    features: Literal["image", "peka", "image+peka"] = Field("image", description="what the gene head reads")
    rotations: Literal[1, 4, 8] = Field(1, description="embedding averaged over turned tiles; costs as many passes")
    views: list[float] = Field([1.0], min_length=1, description="widths of crops, in tiles; each costs a pass")
    context_um: float | None = Field(None, gt=0, description="radius of neighbours whose mean is read as well")
    head: Literal["ridge", "mlp"] = Field("ridge", description="ridge in closed form, or a small MLP")
    compress: bool = Field(
        True, description="keep of each tile only the directions that the head reads, where they are far fewer"
    )


class RefitConfig(HeadConfig):
    """How to fit a model's gene head anew on measured spots. What it sees in a tile stays as it is."""

    start: Literal["model", "nothing"] = Field(
        "model", description="model: correct what it says of these spots, and leave the rest as it was; nothing: forget"
    )
    ridge_alpha: float | Literal["gcv", "groups"] = Field(
        "gcv", description="penalty; gcv: by generalised cross-validation; groups: by leaving sections out"
    )
    precision: Precision = Field("auto", description="number format of the encoder, as in predicting")
    batch_size: int | None = Field(None, ge=1, le=4096, description="tiles a forward pass")


#: settings of :class:`TrainConfig` that do not decide what is learnt: a run may go on with others
HOW_TO_RUN = {"device", "devices", "tensorboard", "checkpoint_gradients", "min_on_tissue", "organ"}


class EvaluateConfig(Settings):
    """How to score a model on measured sections."""

    device: Device = "auto"
    precision: Precision = Field("auto", description="number format of the encoder, as in predicting")
    batch_size: int | None = Field(None, ge=1, le=4096, description="tiles a forward pass")
    ceiling_repeats: int = Field(10, ge=1, le=1000, description="thinnings of the counts for the noise ceiling")
    seed: int = Field(0, ge=0)


class BenchmarkConfig(Settings):
    """What to compare. Every arm's own frozen encoder is compared under equal averaging, context and head."""

    encoders: list[str] = Field(["dinov2-vits14-demo"], min_length=1)
    adapters: list[AdapterKind] = Field(["none", "bone", "lora", "adalora", "hra"], min_length=1)
    features: list[Literal["image", "peka", "teacher", "image+peka"]] = Field(["image"], min_length=1)
    rotations: list[Literal[1, 4, 8]] = Field([1, 4], min_length=1)
    contexts_um: list[float | None] = Field([None], min_length=1, description="radii of neighbours; None: none")
    seeds: list[int] = Field([0], min_length=1)
    protocol: Literal["grouped", "paper"] = Field("grouped", description="paper: spots at random, optimistic")
    train: TrainConfig = TrainConfig()
    evaluate: EvaluateConfig = EvaluateConfig()


#: what pydantic says of a value of the wrong kind, in our words
_WORDS = {
    "int_parsing": "a whole number", "int_type": "a whole number", "int_from_float": "a whole number",
    "float_parsing": "a number", "float_type": "a number", "bool_parsing": "true or false",
    "bool_type": "true or false", "string_type": "text",
    "string_too_short": "some text, or left away", "list_type": "a list", "dict_type": "names with values",
}  # fmt: skip


def _setting_error(e: ValidationError, kind: type[BaseModel]) -> SettingError:
    first = e.errors()[0]
    name = ".".join(map(str, first["loc"])) or "settings"
    if first["type"] == "extra_forbidden":
        near = near_names(name, kind.model_fields)
        job = kind.__name__.removesuffix("Config").lower()
        return SettingError(f"there is no setting {name!r}{near or f'; `napari-peka settings {job}` lists them'}")
    field = kind.model_fields.get(name)
    if first["type"] == "string_pattern_mismatch" and field is not None:
        wanted = f"it is one of {field.description}"
    elif first["type"] in _WORDS:
        wanted = f"it must be {_WORDS[first['type']]}"
    else:
        wanted = first["msg"].replace("Input should be", "it must be")
    return SettingError(f"{name} = {first.get('input')!r} cannot be used: {wanted}")
