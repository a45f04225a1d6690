"""Validated settings. Command line, docks and Python take the same ones from here."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from napari_peka.core.errors import SettingError, near_names

Precision = Literal["auto", "fp32", "bf16", "fp16"]


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

    device: str = Field("auto", pattern=r"^(auto|(cpu|cuda|mps)(:\d+)?)$", description="auto, cpu, cuda, cuda:1 or mps")
    precision: Precision = Field(
        "auto", description="number format of the encoder; auto: bf16 where the machine has it"
    )
    batch_size: int | None = Field(None, ge=1, le=4096, description="tiles a forward pass; halved when memory runs out")
    stride_px: int | None = Field(
        None, ge=1, description="distance of tiles in px at the model's mpp; None: no overlap"
    )
    find_tissue: bool = Field(True, description="only tiles on tissue; off: every tile of the region or slide")
    min_tissue: float = Field(0.25, ge=0, le=1, description="least share of a tile that must be tissue")
    min_region: float = Field(0.5, ge=0, le=1, description="least share of a tile that must lie in the region")
    readers: int | None = Field(None, ge=1, le=64, description="threads that read the slide; None: by the machine")


def _setting_error(e: ValidationError, kind: type[BaseModel]) -> SettingError:
    first = e.errors()[0]
    name = ".".join(map(str, first["loc"])) or "settings"
    if first["type"] == "extra_forbidden":
        return SettingError(f"there is no setting {name!r}{near_names(name, kind.model_fields)}")
    field = kind.model_fields.get(name)
    if first["type"] == "string_pattern_mismatch" and field is not None:
        wanted = f"it is one of {field.description}"
    else:
        wanted = first["msg"].replace("Input should be", "it must be")
    return SettingError(f"{name} = {first.get('input')!r} cannot be used: {wanted}")
