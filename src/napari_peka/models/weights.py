"""Where an encoder's weights are, and how they are read: never a pickle, never a token of ours."""

from __future__ import annotations

import hashlib
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from napari_peka.core.errors import BundleError, EncoderUnavailable
from napari_peka.models.folder import encoder_folder
from napari_peka.models.registry import EncoderCard

ASSETS = Path(__file__).parent.parent / "assets" / "encoder"
SAFETENSORS, PICKLED = ("model.safetensors",), ("pytorch_model.bin",)
ENDINGS = (".safetensors", ".bin", ".pth", ".pt")


def find_weights(card: EncoderCard, weights: str | Path | None = None, *, offline: bool = False) -> Path:
    """Return the file that holds an encoder's weights.

    Looked up in this order: `weights` (a file or a folder), this package, the models folder, the filled hub cache,
    and, unless `offline`, the hub with the person's own login.

    Raises
    ------
    EncoderUnavailable
        If there is none; the sentence says which page to visit or where to put the file.
    """
    if weights is not None:
        return _explicit(card, Path(weights).expanduser())
    for folder in (ASSETS, encoder_folder(card.name)):
        found = _in_folder(card, folder)
        if found:
            return found
    if card.hub_id is None:
        raise EncoderUnavailable(f"no weights of {card.name} are here; {_put_it(card)}")
    return _from_cache(card) or _from_hub(card, offline)


def candidates(card: EncoderCard) -> tuple[str, ...]:
    """Return the file names that may hold the weights, safetensors first."""
    if card.weights_file in (None, *SAFETENSORS, *PICKLED):
        return (*SAFETENSORS, *PICKLED)
    return (str(card.weights_file),)


def check_sha256(card: EncoderCard, path: Path) -> None:
    """Refuse a file that is not the one the card speaks of.

    Raises
    ------
    BundleError
        If the hash differs.
    """
    if card.sha256 is None:
        return
    digest = hashlib.sha256()
    with path.open("rb") as f:
        for part in iter(lambda: f.read(1 << 20), b""):
            digest.update(part)
    if digest.hexdigest() != card.sha256:
        raise BundleError(
            f"{path} is not {card.name}: its sha256 is {digest.hexdigest()[:12]}…, wanted {card.sha256[:12]}…"
        )


def read_shapes(path: Path) -> dict[str, torch.Tensor]:
    """Return the tensors of a safetensors file as meta tensors: names and shapes, nothing allocated."""
    with _opened(path) as f:
        return {k: torch.empty(f.get_slice(k).get_shape(), device="meta") for k in f.keys()}  # noqa: SIM118


def read_tensors(path: Path) -> dict[str, torch.Tensor]:
    """Return the tensors of a safetensors file, or of a torch file that holds nothing but tensors.

    Raises
    ------
    BundleError
        If the file is damaged, or holds more than tensors.
    """
    if path.suffix == ".safetensors":
        with _opened(path) as f:
            return {k: f.get_tensor(k) for k in f.keys()}  # noqa: SIM118
    return dict(_state_dict(_load_torch(path), path))


def _opened(path: Path) -> Any:
    from safetensors import SafetensorError, safe_open

    try:
        return safe_open(path, framework="pt")
    except (SafetensorError, OSError) as e:
        raise BundleError(f"{path} is not a whole safetensors file ({e}); fetch it again") from e


def _load_torch(path: Path) -> Any:
    for mmap in (True, False):  # files of old torch cannot be mapped
        try:
            return torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
        except pickle.UnpicklingError as e:
            raise BundleError(
                f"{path} holds more than tensors and is not opened, since it could run code; "
                "convert it to safetensors where you trust it"
            ) from e
        except (RuntimeError, OSError, EOFError, ValueError) as e:
            if not mmap:
                raise BundleError(f"{path} is not a whole torch file ({e}); fetch it again") from e
    raise AssertionError


def _state_dict(content: Any, path: Path) -> Iterator[tuple[str, torch.Tensor]]:
    for key in ("state_dict", "model"):
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    if not isinstance(content, dict):
        raise BundleError(f"{path} holds no named tensors")
    for name, value in content.items():
        if isinstance(value, torch.Tensor):
            yield str(name), value


def _explicit(card: EncoderCard, path: Path) -> Path:
    if path.is_file():
        return path
    found = _in_folder(card, path) or _only_file(path)
    if found is None:
        raise EncoderUnavailable(
            f"no weights of {card.name} at {path}: wanted a file, or a folder with {' or '.join(candidates(card))}"
        )
    return found


def _in_folder(card: EncoderCard, folder: Path) -> Path | None:
    names = candidates(card) if folder != ASSETS else (str(card.weights_file),) if card.hub_id is None else ()
    return next((folder / n for n in names if (folder / n).is_file()), None) or (
        _only_file(folder) if folder != ASSETS else None
    )


def _only_file(folder: Path) -> Path | None:
    for ending in ENDINGS:
        found = sorted(folder.glob(f"*{ending}")) if folder.is_dir() else []
        if len(found) == 1:
            return found[0]
    return None


def _from_cache(card: EncoderCard) -> Path | None:
    from huggingface_hub import try_to_load_from_cache

    for name in candidates(card):
        found = try_to_load_from_cache(str(card.hub_id), name, revision=card.revision)
        if isinstance(found, str):
            return Path(found)
    return None


def _from_hub(card: EncoderCard, offline: bool) -> Path:
    from huggingface_hub import constants, hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    if offline or constants.HF_HUB_OFFLINE:
        raise EncoderUnavailable(
            f"the weights of {card.name} are not here and nothing is fetched offline; {_put_it(card)}"
        )
    missing: Exception | None = None
    for name in candidates(card):
        try:
            return Path(hf_hub_download(str(card.hub_id), name, revision=card.revision, library_name="napari-peka"))
        except LocalEntryNotFoundError as e:
            raise EncoderUnavailable(f"the hub cannot be reached for {card.name}; {_put_it(card)}") from e
        except EntryNotFoundError as e:
            missing = e
        except Exception as e:
            raise _refused(card, e) from e
    raise EncoderUnavailable(f"{card.page} has none of {', '.join(candidates(card))}") from missing


def _refused(card: EncoderCard, e: Exception) -> EncoderUnavailable:
    """Return the sentence for what the hub, or the way to it, answered."""
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

    status = getattr(getattr(e, "response", None), "status_code", None)
    if isinstance(e, (GatedRepoError, RepositoryNotFoundError)) or status in (401, 403):
        return EncoderUnavailable(
            f"{card.name} is gated: ask for access at {card.page}, then log in with `hf auth login`; "
            "the licence there binds what you may do with it"
        )
    return EncoderUnavailable(f"{card.name} cannot be fetched ({type(e).__name__}); {_put_it(card)}")


def _put_it(card: EncoderCard) -> str:
    where = encoder_folder(card.name)
    source = f" from {card.page}" if card.page else ""
    return f"put {candidates(card)[0]}{source} into {where}, or name the file with weights="
