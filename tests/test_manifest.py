"""Manifests, and several sections read at once."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from napari_peka.core.errors import SectionError
from napari_peka.core.progress import JobProgress
from napari_peka.io import section as section_module
from napari_peka.io.manifest import Entry, read_manifest
from napari_peka.io.sample import sample_section, sample_sections
from napari_peka.io.section import read_section, read_sections


@pytest.fixture(scope="module")
def study(tmp_path_factory) -> Path:
    """Two patients with two sections each, and their manifest."""
    return sample_sections(tmp_path_factory.mktemp("study"), spots=(7, 7), mpp=1.0)


@pytest.fixture
def manifest(tmp_path):
    def write(text: str) -> Path:
        path = tmp_path / "m.csv"
        path.write_text(text, encoding="utf-8")
        return path

    return write


def closed(sections) -> None:
    for section in sections:
        section.close()


def test_rows_and_relative_paths(manifest, tmp_path):
    path = manifest(
        "\ufeffPath, section ,patient,image,split\n"
        "a/outs,A,P1,scans/a.tif,train\n"
        "# a comment\n"
        "\n"
        "/data/b.h5ad,,,,\n"
        '"c, d.tsv.gz"\n'
    )
    assert read_manifest(path) == [
        Entry(tmp_path / "a/outs", "A", "P1", tmp_path / "scans/a.tif", "train"),
        Entry(Path("/data/b.h5ad")),
        Entry(tmp_path / "c, d.tsv.gz"),
    ]


def test_resolution_and_affine_are_a_rows_own(manifest, tmp_path):
    path = manifest("path,mpp,affine\na/outs,0.5,maps/a.json\nb/outs,,\n")
    assert read_manifest(path) == [
        Entry(tmp_path / "a/outs", mpp=0.5, affine=tmp_path / "maps/a.json"), Entry(tmp_path / "b/outs"),
    ]  # fmt: skip


def test_resolution_and_affine_reach_the_section(study, tmp_path):
    outs = study.parent / "P1S1/outs"
    (tmp_path / "m.json").write_text(json.dumps({"affine": [[1, 0, 5], [0, 1, -3]]}))
    own = tmp_path / "own.csv"
    own.write_text(f"path,mpp,affine\n{study.parent / 'P1S2/outs'},,\n{outs},1.02,m.json\n")
    plain, (_, moved) = read_section(outs), read_sections(own)
    try:
        assert moved.slide.mpp == (1.02, 1.02)
        np.testing.assert_allclose(
            moved.adata.obsm["spatial"] - plain.adata.obsm["spatial"], [[5, -3]] * len(moved.adata)
        )
    finally:
        closed([plain, _, moved])


def test_columns_that_are_not_known_are_named(manifest):
    progress = JobProgress()
    assert len(read_manifest(manifest("patiant,path\nP,a\n"), progress=progress)) == 1
    assert "patiant" in progress.notes[0]
    assert "patient" in progress.notes[0]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "header"),
        ("section,patient\nA,B\n", "header"),
        ("a/outs,A\nb/outs,B\n", "header"),
        ("path,section\n", "names no section"),
        ("path,section\n,A\n", "path is empty"),
        ("path,section\na,A,B,C\n", "row 2: 4 cells for 2"),
        ("path,path\na,b\n", "path twice"),
        ("path,mpp\na,fine\n", "row 2: mpp is µm per pixel .* got 'fine'"),
        ("path\na\n./a\n", "there twice"),
        ("path,section\na,A\nb,A\n", "two sections are named A"),
    ],
)
def test_manifests_that_cannot_be_used(manifest, text, message):
    with pytest.raises(SectionError, match=message):
        read_manifest(manifest(text))


def test_one_file_may_hold_several_sections(manifest, tmp_path):
    entries = read_manifest(manifest("path,section\nboth.h5ad,A\nboth.h5ad,B\n"))
    assert [e.section for e in entries] == ["A", "B"]
    with pytest.raises(SectionError, match="cannot be read"):
        read_manifest(tmp_path / "nowhere.csv")


def test_sections_of_a_manifest(study):
    progress = JobProgress()
    sections = read_sections(study, progress=progress)
    try:
        assert [s.section_id for s in sections] == ["P1S1", "P1S2", "P2S1", "P2S2"]
        assert [s.patient_id for s in sections] == ["P1", "P1", "P2", "P2"]
        assert {s.split for s in sections} == {""}
        assert progress.snapshot().done == 4
    finally:
        closed(sections)


def test_manifests_and_paths_may_be_mixed(study, tmp_path):
    more = sample_section(tmp_path, name="more", spots=(7, 7), mpp=1.0)
    own = tmp_path / "own.csv"
    scan = study.parent / "P2S2/P2S2.tif"
    own.write_text(f"path,section,image,split\n{study.parent / 'P2S2/outs'},renamed,{scan},test\n")
    sections = read_sections([more, own])
    try:
        assert [s.section_id for s in sections] == ["more", "renamed"]
        assert [s.split for s in sections] == ["", "test"]
        assert "renamed" in sections[1].adata.uns["spatial"]
    finally:
        closed(sections)


def test_sections_with_the_same_folder_name_are_told_apart(tmp_path):
    paths = [sample_section(tmp_path / k, name="S", seed=i, spots=(7, 7), mpp=1.0) for i, k in enumerate("ab")]
    sections = read_sections(paths)
    try:
        assert [s.section_id for s in sections] == ["S", "S-2"]
        assert [s.patient_id for s in sections] == ["S", "S-2"]
        assert list(sections[1].adata.uns["spatial"]) == ["S-2"]
        assert any("S-2" in w for w in sections[1].warnings)
    finally:
        closed(sections)
    given = tmp_path / "given.csv"  # a name that a person gave is never changed, whoever comes first
    given.write_text(f"path,section\n{paths[0]},\n{paths[1]},S\n")
    sections = read_sections(given)
    closed(sections)
    assert [s.section_id for s in sections] == ["S-2", "S"]


def test_the_same_section_twice_is_refused(study):
    outs = study.parent / "P1S1/outs"
    with pytest.raises(SectionError, match="there twice"):
        read_sections([outs, outs])
    with pytest.raises(SectionError, match="there twice"):
        read_sections([study, outs.parent / "." / "outs"])
    with pytest.raises(SectionError, match="no section"):
        read_sections([])


def test_a_copy_under_another_name_is_refused(study, tmp_path):
    # held out, its twin would still be trained on
    shutil.copytree(study.parent / "P1S1", tmp_path / "copy")
    (tmp_path / "copy/P1S1.tif").rename(tmp_path / "copy/copy.tif")
    with pytest.raises(SectionError, match=r"P1S1 .* and copy .* are the same"):
        read_sections([study.parent / "P1S1/outs", tmp_path / "copy/outs"])


def test_those_that_were_open_are_closed_when_one_fails(study, tmp_path, monkeypatch):
    opened, shut = [], []
    read, close = section_module.read_section, section_module.Section.close

    def reading(*args, **kwargs):
        opened.append(read(*args, **kwargs))
        return opened[-1]

    monkeypatch.setattr(section_module, "read_section", reading)
    monkeypatch.setattr(section_module.Section, "close", lambda self: (shut.append(self), close(self))[1])
    with pytest.raises(SectionError, match="nowhere"):
        read_sections([study, tmp_path / "nowhere"])
    assert len(opened) == 4
    assert shut == opened
