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
from napari_peka.models.hub import quiet_hub
from napari_peka.models.registry import EncoderCard

ASSETS = Path(__file__).parent.parent / "assets" / "encoder"
SAFETENSORS, PICKLED = ("model.safetensors",), ("pytorch_model.bin",)
ENDINGS = (".safetensors", ".bin", ".pth", ".pt")
#: what torch says when a file asks for a function to be called, and not when it is merely damaged
ASKS_FOR_CODE = ("Unsupported global", "GLOBAL", "Unsupported class", "__reduce__", "persistent_load")
LFS_POINTER = b"version https://git-lfs"


def find_weights(card: EncoderCard, weights: str | Path | None = None, *, offline: bool = False) -> Path:
    """Return the file that holds an encoder's weights.

    Looked up in this order: `weights` (a file or a folder), this package, the models folder, the hub's cache, and,
    unless `offline`, the hub with the person's own login; where that fails, any other commit in the cache. Nothing is
    written but the hub's own cache.

    Raises
    ------
    EncoderUnavailable
        If there is none; the sentence says which page to visit or where to put the file.
    """
    if weights is not None:
        return _explicit(card, Path(weights).expanduser())
    if card.hub_id is None and card.weights_file and (ASSETS / card.weights_file).is_file():
        return ASSETS / card.weights_file
    found = _in_folder(card, encoder_folder(card.name))
    if found:
        return found
    if card.hub_id is None:
        raise EncoderUnavailable(f"no weights of {card.name} are here; {_put_it(card)}")
    cached = _from_cache(card, card.revision)
    if cached:
        return cached
    other = _from_cache(card, None)  # another commit than the pinned one, as other tools may have fetched it
    try:
        return _from_hub(card, offline)
    except EncoderUnavailable:
        if other is None:
            raise
    return other


def candidates(card: EncoderCard) -> tuple[str, ...]:
    """Return the file names that may hold the weights, safetensors first."""
    if card.weights_file in (None, *SAFETENSORS, *PICKLED):
        return (*SAFETENSORS, *PICKLED)
    return (str(card.weights_file),)


def weights_mark(card: EncoderCard) -> str:
    """Return what tells an encoder's file from another that is put in its place; empty where its sha256 is known.

    Nothing is fetched, and nothing is read but the file's size and date.
    """
    if card.sha256:
        return ""
    try:
        said = find_weights(card, offline=True).stat()
    except (EncoderUnavailable, OSError):  # random weights; or whoever needs them says so
        return ""
    return f" {said.st_size} {said.st_mtime_ns}"


def file_sha256(path: Path) -> str:
    """Return the sha256 of a file in hexadecimal."""
    with path.open("rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def check_sha256(card: EncoderCard, path: Path) -> None:
    """Refuse a file that is not the one the card speaks of.

    Raises
    ------
    BundleError
        If the hash differs.
    """
    if card.sha256 is None:
        return
    digest = file_sha256(path)
    if digest != card.sha256:
        raise BundleError(
            f"{path} is not the {card.name} that is wanted: its sha256 is {digest[:12]}…, wanted {card.sha256[:12]}…; "
            "another file, or another version of it, would give other values"
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
        raise _damaged(path, "safetensors", e) from e


def _load_torch(path: Path) -> Any:
    for mmap in (True, False):  # files of old torch cannot be mapped
        try:
            return torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
        except pickle.UnpicklingError as e:
            if any(words in str(e) for words in ASKS_FOR_CODE):
                raise BundleError(
                    f"{path} holds more than tensors and is not opened, since it could run code; "
                    "convert it to safetensors where you trust it"
                ) from e
            raise _damaged(path, "torch", e) from e
        except Exception as e:  # damaged bytes make torch fail in many ways
            if not mmap:
                raise _damaged(path, "torch", e) from e
    raise AssertionError


def _damaged(path: Path, kind: str, e: Exception) -> BundleError:
    with path.open("rb") as f:
        start = f.read(len(LFS_POINTER))
    if start == LFS_POINTER:
        return BundleError(f"{path} is a pointer of Git LFS, not the file itself; fetch it with `git lfs pull`")
    said = str(e).splitlines()[:1] or [""]
    reason = type(e).__name__ if isinstance(e, pickle.UnpicklingError) or not said[0] else said[0]
    return BundleError(f"{path} is not a whole {kind} file ({reason}); fetch it again")


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
    found = _in_folder(card, path)
    if found is None:
        raise EncoderUnavailable(
            f"no weights of {card.name} at {path}: wanted a file, or a folder with {' or '.join(candidates(card))}"
        )
    return found


def _in_folder(card: EncoderCard, folder: Path) -> Path | None:
    """Return a file of the expected name, else the only file of its kind."""
    for name in candidates(card):
        if (folder / name).is_file():
            return folder / name
    for ending in ENDINGS:
        found = sorted(folder.glob(f"*{ending}")) if folder.is_dir() else []
        if len(found) == 1:
            return found[0]
    return None


def _from_cache(card: EncoderCard, revision: str | None) -> Path | None:
    from huggingface_hub import try_to_load_from_cache

    for repo in _spellings(str(card.hub_id)):
        for name in candidates(card):
            found = try_to_load_from_cache(repo, name, revision=revision)
            if isinstance(found, str):
                return Path(found)
    return None


def _spellings(repo: str) -> list[str]:
    """Return a hub id as it is spelt in the cache: the hub takes any capitals, a folder's name keeps them."""
    from huggingface_hub import constants
    from huggingface_hub.file_download import repo_folder_name

    wanted = repo_folder_name(repo_id=repo, repo_type="model").casefold()
    try:
        there = sorted(p.name for p in Path(constants.HF_HUB_CACHE).iterdir() if p.name.casefold() == wanted)
    except OSError:  # no cache yet
        there = []
    return [repo, *(name.removeprefix("models--").replace("--", "/", 1) for name in there)]


def _from_hub(card: EncoderCard, offline: bool) -> Path:
    from huggingface_hub import constants, hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    if offline or constants.HF_HUB_OFFLINE:
        raise EncoderUnavailable(
            f"the weights of {card.name} are not here and nothing is fetched offline; {_put_it(card)}"
        )
    for name in candidates(card):
        try:
            with quiet_hub():
                return Path(hf_hub_download(str(card.hub_id), name, revision=card.revision, library_name="napari-peka"))
        except LocalEntryNotFoundError:
            refusal = EncoderUnavailable(f"the hub cannot be reached for {card.name}; {_put_it(card)}")
        except EntryNotFoundError:
            continue
        except Exception as e:  # noqa: BLE001 - whatever the hub, a proxy or the disk says
            refusal = _refused(card, e)
        raise refusal from None  # the hub's own text may hold an address with a password in it
    raise EncoderUnavailable(f"{card.page} has none of {', '.join(candidates(card))}")


def _refused(card: EncoderCard, e: Exception) -> EncoderUnavailable:
    """Return the sentence for what the hub, or the way to it, answered."""
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

    status = getattr(getattr(e, "response", None), "status_code", None)
    if isinstance(e, GatedRepoError) or status == 403 or (card.gated and status in (401, 404)):
        return EncoderUnavailable(
            f"{card.name} is gated: ask for access at {card.page}, then log in with `hf auth login`; "
            "the licence there binds what you may do with it"
        )
    if isinstance(e, RepositoryNotFoundError) or status == 401:
        return EncoderUnavailable(
            f"{card.name} is not to be had at {card.page}: it has moved, or your login (`hf auth login`) is not "
            f"accepted; {_put_it(card)}"
        )
    return EncoderUnavailable(f"{card.name} cannot be fetched ({type(e).__name__}); {_put_it(card)}")


def _put_it(card: EncoderCard) -> str:
    where = encoder_folder(card.name)
    source = f" from {card.page}" if card.page else ""
    return f"put {card.weights_file or candidates(card)[0]}{source} into {where}, or name the file with weights="
