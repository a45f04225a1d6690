"""Validated settings. Command line, docks and Python take the same ones from here."""

from __future__ import annotations

from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from napari_peka.core.errors import SettingError

Precision = Literal["auto", "fp32", "bf16", "fp16"]


class PredictConfig(BaseModel):
    """How to predict a map. Every field that changes the numbers is written into the result."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    device: str = Field("auto", description="auto, cpu, cuda, cuda:1 or mps")
    precision: Precision = Field(
        "auto", description="number format of the encoder; auto: bf16 where the machine has it"
    )
    batch_size: int | None = Field(None, ge=1, le=4096, description="tiles a forward pass; halved when memory runs out")
    stride_px: int | None = Field(
        None, ge=1, description="distance of tiles in px at the model's mpp; None: no overlap"
    )
    min_tissue: float = Field(0.25, ge=0, le=1, description="least share of a tile that must be tissue")
    min_region: float = Field(0.5, ge=0, le=1, description="least share of a tile that must lie in the region")
    readers: int | None = Field(None, ge=1, le=64, description="threads that read the slide; None: by the machine")


C = TypeVar("C", bound=BaseModel)


def checked(kind: type[C], **settings: Any) -> C:
    """Return settings of a kind, or raise a :class:`SettingError` that names the field and what it takes."""
    try:
        return kind(**settings)
    except ValidationError as e:
        first = e.errors()[0]
        field = ".".join(map(str, first["loc"])) or "settings"
        raise SettingError(f"{field} = {first.get('input')!r} cannot be used: {first['msg']}") from e
