"""Slides as people name many of them: files, folders, and manifests."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from napari_peka.core.errors import SlideError
from napari_peka.core.progress import NULL, Progress
from napari_peka.io.manifest import read_manifest

#: names of whole-slide images; a folder of such a name is one slide
ENDINGS = (".svs", ".ndpi", ".mrxs", ".scn", ".vms", ".bif", ".svslide", ".ome.tif", ".ome.tiff", ".ome.zarr")
#: names of files that may be one; whoever names a folder of them says that they are
PLAIN_ENDINGS = (".tif", ".tiff")


@dataclass(frozen=True)
class Listed:
    """A slide of a list.

    Parameters
    ----------
    path
        Its file.
    mpp
        µm per level-0 px, where the list says so; None: by the file.
    """

    path: Path
    mpp: float | None = None


def slides_of(path: Path) -> list[Path]:
    """Return a file itself, or the slides that lie in a folder; a slide that is a folder is one."""
    try:
        is_slide = not path.is_dir() or path.name.lower().endswith(ENDINGS)
    except (OSError, ValueError):  # a name that cannot be: whoever opens it says so
        is_slide = True
    if is_slide:
        return [path]
    return sorted(p for p in path.iterdir() if p.name.lower().endswith((*ENDINGS, *PLAIN_ENDINGS)))


def list_slides(paths: Sequence[Path | str], *, progress: Progress = NULL) -> list[Listed]:
    """Return the slides that files, folders and manifests name, in their order.

    What lies in a folder or manifest and is named beside it is meant once.

    Parameters
    ----------
    paths
        Slides; folders, of which every slide is meant; and manifests, CSV files as :func:`read_manifest` reads them, of
        which every `image` is meant, or the `path` where there is none, at its `mpp`.
    progress
        Told of a manifest's columns that are not used.

    Raises
    ------
    SlideError
        If a folder holds no slide.
    SectionError
        If a manifest cannot be read.
    """
    found: list[Listed] = []
    named: set[Path] = set()
    of_groups: set[Path] = set()
    for path in map(Path, paths):
        if path.suffix.lower() == ".csv":
            some = [Listed(e.image or e.path, e.mpp) for e in read_manifest(path, progress=progress)]
        elif not (some := [Listed(p) for p in slides_of(path)]):
            raise SlideError(
                f"no slide or image lies in the folder {path} (*{', *'.join((*ENDINGS, *PLAIN_ENDINGS))}), and it is "
                "no OME-Zarr; name a slide's own file"
            )
        by_itself = [one.path for one in some] == [path]
        for one in some:
            at = _whole(one.path)
            # who names a file twice may have meant another one, and is told so by whoever uses the list
            if at not in of_groups and (by_itself or at not in named):
                found.append(one)
            (named if by_itself else of_groups).add(at)
    return found


def _whole(path: Path) -> Path:
    try:
        return path.resolve()
    except (OSError, ValueError):
        return path
