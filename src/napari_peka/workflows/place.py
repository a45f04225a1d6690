"""Where an output folder comes into being: beside its final name, resumable, renamed when it is whole."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

from napari_peka.core import files
from napari_peka.core.errors import OutputMismatch, StoreError

RUN_FILE = "run.json"


class Workplace:
    """The working folder ``NAME.partial`` beside an output folder `NAME`; use it in a ``with`` block.

    Parameters
    ----------
    path
        The output folder.
    identity
        What decides the result; only an equal one is resumed.
    resume
        Go on from a working folder that is there.
    overwrite
        Replace an output, or begin anew where a working folder is.
    own
        Names that an output folder may hold to be replaced: what this package did not write is never removed.
    """

    def __init__(
        self, path: Path, identity: dict[str, Any], *, resume: bool, overwrite: bool, own: tuple[str, ...]
    ) -> None:
        self.path = path.expanduser()
        self.folder = self.path.with_name(self.path.name + ".partial")
        self._identity = json.loads(json.dumps(identity))
        self._resume, self._overwrite, self._own = resume, overwrite, own
        self._lock: Any = None

    def __enter__(self) -> Workplace:
        self._lock = files.take_lock(self.path)
        try:
            self._prepare()
        except BaseException:
            files.drop_lock(self._lock)
            raise
        return self

    def __exit__(self, *exc: object) -> None:
        # nothing was done yet, as after a setting that cannot be used: there is nothing to go on with
        if exc[0] is not None and not any(p.name != RUN_FILE for p in self.folder.rglob("*") if p.is_file()):
            with suppress(OSError):
                files.remove_tree(self.folder)
        files.drop_lock(self._lock)

    def finish(self, built: Path) -> None:
        """Rename a finished folder inside the working folder to the output, and drop the working folder."""
        old = self.folder / "replaced"
        try:
            files.sync_tree(built)
            files.remove_tree(old)
            if self.path.exists():
                files.replace(self.path, old)
            files.replace(built, self.path)
        except OSError as e:
            if isinstance(e, StoreError):
                raise
            raise files.cannot_write(self.path, e) from e
        files.remove_tree(self.folder)

    def _prepare(self) -> None:
        self._check_output()
        before = self._before()
        if before is None and self.folder.exists() and any(self.folder.iterdir()):
            raise StoreError(f"{self.folder} is needed here and holds other files; move it, or choose another output")
        if self.folder.exists() and not self._resume:
            if before is not None and not self._overwrite:
                raise OutputMismatch(
                    f"{self.folder} holds unfinished work; go on with it (--resume), or begin anew (--overwrite)"
                )
            files.remove_tree(self.folder)
            before = None
        if before is not None and before != self._identity:
            changed = _changed(before, self._identity)
            raise OutputMismatch(
                f"{self.folder} was begun otherwise ({'; '.join(changed)}); give what it was begun with, or begin anew "
                "without --resume (--overwrite)"
            )
        files.make_folder(self.folder)
        if before is None:
            files.write_whole(self.folder / RUN_FILE, json.dumps(self._identity, indent=1).encode())

    def _check_output(self) -> None:
        if not self.path.exists():
            return
        if not self.path.is_dir():
            raise StoreError(f"{self.path} is a file; choose another output")
        inside = {p.name for p in self.path.iterdir()}
        if not inside:
            return
        if foreign := sorted(inside - set(self._own)):
            raise StoreError(f"{self.path} holds other files ({foreign[0]}); choose another output")
        if not self._overwrite:
            raise OutputMismatch(f"{self.path} is there already; choose another output, or overwrite it (--overwrite)")

    def _before(self) -> dict[str, Any] | None:
        try:
            return dict(json.loads((self.folder / RUN_FILE).read_text("utf-8")))
        except (OSError, ValueError, TypeError):
            return None  # none, or killed before it was described


def _changed(before: dict[str, Any], now: dict[str, Any], at: str = "") -> list[str]:
    """Return in words what two identities differ in."""
    out = []
    for key in dict.fromkeys([*before, *now]):
        a, b = before.get(key), now.get(key)
        if isinstance(a, dict) and isinstance(b, dict):
            out += _changed(a, b, f"{at}{key}.")
        elif a != b:
            short = len(str(a)) + len(str(b)) < 80
            out.append(f"{at}{key} was {a}, now {b}" if short else f"other {at}{key}")
    return out
