"""Files are whole or not there, whatever fails on the way."""

from __future__ import annotations

import errno
import os
import sys
from pathlib import Path

import pytest

from napari_peka.core import files
from napari_peka.core.errors import StoreError


def whole(path: Path) -> None:
    files.write_whole(path, b"new")


def beside(path: Path) -> None:
    files.write_beside(path, lambda p: p.write_bytes(b"new"))


WRITERS = pytest.mark.parametrize("write", [whole, beside])


def failing(number):
    def fail(*_args, **_kwargs):
        raise OSError(number, os.strerror(number))

    return fail


@WRITERS
def test_it_writes_and_replaces_and_leaves_nothing_beside(write, tmp_path):
    path = tmp_path / "a.png"
    for _ in range(2):
        write(path)
        assert path.read_bytes() == b"new"
    assert list(tmp_path.iterdir()) == [path]


FAULTS = {
    "the disk is full": (os, "fsync", errno.ENOSPC, "disk is full"),
    "the quota is used up": (os, "fsync", errno.EDQUOT, "disk is full"),
    "the disk is broken": (os, "fsync", errno.EIO, "cannot write"),
    "renaming fails": (Path, "replace", errno.EACCES, "cannot write"),
    "it is read-only": (Path, "open", errno.EROFS, "choose a folder that you may write to"),
    "the name is too long": (Path, "open", errno.ENAMETOOLONG, "shorter"),
}


@WRITERS
@pytest.mark.parametrize("there", [False, True])
@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_one_sentence_and_leaves_what_was_there(fault, there, write, tmp_path, monkeypatch):
    owner, name, number, words = FAULTS[fault]
    path = tmp_path / "a.png"
    if there:
        path.write_bytes(b"old")
    with monkeypatch.context() as m:
        m.setattr(owner, name, failing(number))
        with pytest.raises(StoreError, match=words) as caught:
            write(path)
    assert str(path) in str(caught.value)
    assert isinstance(caught.value.__cause__, OSError)
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == ({"a.png": b"old"} if there else {})


@WRITERS
def test_an_interrupt_leaves_nothing_beside(write, tmp_path, monkeypatch):
    def interrupt(_fd):
        raise KeyboardInterrupt

    with monkeypatch.context() as m:
        m.setattr(os, "fsync", interrupt)
        with pytest.raises(KeyboardInterrupt):
            write(tmp_path / "a.png")
    assert not list(tmp_path.iterdir())


def test_a_writer_that_fails_halfway_leaves_nothing(tmp_path):
    def half(path):
        path.write_bytes(b"ha")
        raise RuntimeError("boom")

    with pytest.raises(RuntimeError, match="boom"):
        files.write_beside(tmp_path / "a.png", half)
    assert not list(tmp_path.iterdir())


@WRITERS
def test_below_a_file_nothing_can_be_written(write, tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(StoreError, match=r"file is a file, not a folder"):
        write(tmp_path / "file" / "a.png")
    assert (tmp_path / "file").read_text() == "mine"


@WRITERS
def test_a_folder_of_that_name_is_kept(write, tmp_path):
    (tmp_path / "a.png").mkdir()
    with pytest.raises(StoreError, match="cannot write"):
        write(tmp_path / "a.png")
    assert [p.name for p in tmp_path.iterdir()] == ["a.png"]


def test_the_temporary_file_keeps_the_ending(tmp_path):
    seen = []
    files.write_beside(tmp_path / "a.png", lambda p: (seen.append(p), p.write_bytes(b"x")))
    assert seen[0].suffix == ".png"
    assert seen[0].parent == tmp_path


def test_a_file_held_by_another_program_is_tried_again_on_windows(tmp_path, monkeypatch):
    (tmp_path / "new").write_text("new")
    tries, real = [], Path.replace

    def held(self, target):
        tries.append(self)
        if len(tries) < 4:
            raise PermissionError(errno.EACCES, "held")
        return real(self, target)

    monkeypatch.setattr(Path, "replace", held)
    monkeypatch.setattr(files.time, "sleep", lambda _s: None)
    monkeypatch.setattr(sys, "platform", "win32")
    files.replace(tmp_path / "new", tmp_path / "a")
    assert (tmp_path / "a").read_text() == "new"
    assert len(tries) == 4
    monkeypatch.setattr(sys, "platform", "linux")
    tries.clear()
    (tmp_path / "new").write_text("newer")
    with pytest.raises(PermissionError):
        files.replace(tmp_path / "new", tmp_path / "a")
    assert len(tries) == 1


def test_folders_are_made_with_their_parents_and_tried(tmp_path, monkeypatch):
    made = files.make_folder(tmp_path / "a" / "b")
    assert files.make_folder(made) == made
    assert not list(made.iterdir())
    (tmp_path / "file").touch()
    for path in (tmp_path / "file", tmp_path / "file" / "a"):
        with pytest.raises(StoreError, match="is a file"):
            files.make_folder(path)
    monkeypatch.setattr(Path, "touch", failing(errno.EROFS))  # it is there, and cannot be written
    with pytest.raises(StoreError, match="cannot write"):
        files.make_folder(made)


@pytest.mark.skipif(os.name == "nt", reason="a link needs a right of its own there")
def test_a_tree_is_removed_and_never_what_a_link_points_at(tmp_path, monkeypatch):
    precious = tmp_path / "precious"
    (precious / "deep").mkdir(parents=True)
    (tmp_path / "link").symlink_to(precious)
    (tmp_path / "file").touch()
    for name in ("link", "file", "missing"):
        files.remove_tree(tmp_path / name)
    assert (precious / "deep").is_dir()
    with monkeypatch.context() as m:
        m.setattr(files.shutil, "rmtree", failing(errno.EACCES))
        with pytest.raises(StoreError, match="cannot remove"):
            files.remove_tree(precious)
    files.remove_tree(precious)
    assert not list(tmp_path.iterdir())
