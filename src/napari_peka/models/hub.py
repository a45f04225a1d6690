"""The hub: what a repository holds and how large it is, and fetching it; kept from talking over our own sentences."""

from __future__ import annotations

import inspect
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from napari_peka.core.errors import BundleError, EncoderUnavailable, PekaError, UnknownName
from napari_peka.core.progress import NULL, Cancelled, Progress

LIBRARY = "napari-peka"
_TRUE = {"1", "ON", "YES", "TRUE"}


@contextmanager
def quiet_hub() -> Iterator[None]:
    """Keep the hub's library from telling each of its retries: one sentence says how it ended."""
    from huggingface_hub.utils import logging

    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(before)


def is_offline() -> bool:
    """Whether nobody wants the hub to be asked; the hub's library is not imported for it."""
    return os.environ.get("HF_HUB_OFFLINE", "").upper() in _TRUE


@dataclass(frozen=True)
class HubEntry:
    """What the hub says of a repository.

    Parameters
    ----------
    repo
        ``user/name``.
    revision
        Commit that is meant; None: the newest.
    files
        Those of the files asked for that it has.
    size_bytes
        Their size; None where the hub does not say.
    gated
        Whether access has to be asked for.
    licence
        As its page says; empty where it does not.
    """

    repo: str
    revision: str | None
    files: tuple[str, ...]
    size_bytes: int | None
    gated: bool
    licence: str

    @property
    def page(self) -> str:
        """Where access is asked for."""
        return f"https://huggingface.co/{self.repo}"


def look_up(repo: str, files: Sequence[str], *, revision: str | None = None, first: bool = False) -> HubEntry:
    """Ask the hub what a repository holds; some kilobytes go over the network, no file is fetched.

    Parameters
    ----------
    repo
        ``user/name``.
    files
        Files that are wanted.
    revision
        Commit that is wanted.
    first
        Whether the first of the files that is there is enough.

    Raises
    ------
    UnknownName
        If there is no such repository.
    BundleError
        If it lacks the files.
    EncoderUnavailable
        If the hub cannot be asked.
    """
    from huggingface_hub import HfApi

    if is_offline():
        raise EncoderUnavailable(f"offline: the hub is not asked for {repo} (Preferences, or HF_HUB_OFFLINE)")
    try:
        with quiet_hub():
            info = HfApi(library_name=LIBRARY).model_info(repo, revision=revision, files_metadata=True)
    except Exception as e:  # noqa: BLE001 - whatever the hub, a proxy or the disk says
        raise refusal(repo, e) from None  # the hub's own text may hold an address with a password in it
    sizes = {s.rfilename: s.size for s in info.siblings or []}
    there = [f for f in files if f in sizes]
    if not there or (len(there) < len(files) and not first):
        lacks = " or ".join(f for f in files if f not in sizes)
        raise BundleError(f"https://huggingface.co/{repo} is not what is wanted: it lacks {lacks}")
    there = there[:1] if first else there
    known = [sizes[f] for f in there]
    size = None if None in known else sum(known)
    card: Any = getattr(info, "card_data", None)
    licence = str((card.get("license") if card is not None else None) or "")
    return HubEntry(repo, revision, tuple(there), size, bool(info.gated), licence)


def fetch(entry: HubEntry, progress: Progress = NULL) -> list[Path]:
    """Fetch the files of a repository into the hub's own cache; what is there already is not fetched again.

    Parameters
    ----------
    entry
        From :func:`look_up`.
    progress
        Where to report, in MB; raises :class:`Cancelled` to stop. What was fetched is kept by the hub's library.

    Raises
    ------
    EncoderUnavailable
        If it is gated, or cannot be fetched.
    """
    from huggingface_hub import hf_hub_download

    total = None if entry.size_bytes is None else max(1, round(entry.size_bytes / 1e6))
    progress.stage(f"fetching {entry.repo}, MB", total)
    more = {}
    if "tqdm_class" in inspect.signature(hf_hub_download).parameters:  # older ones tell nothing on the way
        more["tqdm_class"] = _bar(progress)
    try:
        with quiet_hub():
            return [
                Path(hf_hub_download(entry.repo, f, revision=entry.revision, library_name=LIBRARY, **more))
                for f in entry.files
            ]
    except Cancelled:
        raise
    except Exception as e:  # noqa: BLE001 - as above
        raise refusal(entry.repo, e) from None


def refusal(repo: str, e: Exception) -> PekaError:
    """Return the sentence for what the hub, or the way to it, answered."""
    from huggingface_hub.errors import GatedRepoError, HFValidationError, RepositoryNotFoundError

    page = f"https://huggingface.co/{repo}"
    if isinstance(e, GatedRepoError):
        return EncoderUnavailable(f"{repo} is gated: ask for access at {page}, then log in with `hf auth login`")
    if isinstance(e, (RepositoryNotFoundError, HFValidationError)):
        return UnknownName(f"there is no {repo!r} on the hub, or your login (`hf auth login`) may not see it")
    return EncoderUnavailable(f"the hub cannot be reached for {repo} ({type(e).__name__}); try again later")


def _bar(progress: Progress) -> type:
    """Return what the hub's library takes for a progress bar: it reports megabytes, and can be stopped."""
    from tqdm import tqdm

    seen = {"bytes": 0.0, "told": 0}

    class Bar(tqdm):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **{k: v for k, v in kwargs.items() if k != "name"} | {"disable": True})

        def update(self, n: float | None = 1) -> bool | None:
            seen["bytes"] += n or 0
            new = int(seen["bytes"] / 1e6) - int(seen["told"])
            seen["told"] += new
            progress.advance(new)
            return None

    return Bar
