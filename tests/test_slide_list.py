"""Piles of slides: files, folders and manifests."""

from __future__ import annotations

import pytest

from napari_peka.core.errors import SectionError, SlideError
from napari_peka.io.slide_list import list_slides


@pytest.fixture
def folder(tmp_path):
    made = tmp_path / "slides"
    made.mkdir()
    for name in ("b.svs", "a.tif", "notes.txt", "c.ome.tif"):
        (made / name).touch()
    return made


def names(found):
    return [(one.path.name, one.mpp) for one in found]


def test_folders_and_manifests_name_their_slides(tmp_path, folder):
    (tmp_path / "list.csv").write_text("path,mpp\nslides/b.svs,0.25\nother.tif,\n")
    found = list_slides([tmp_path / "list.csv", folder, folder / "a.tif"])
    assert names(found) == [("b.svs", 0.25), ("other.tif", None), ("a.tif", None), ("c.ome.tif", None)]


def test_of_a_manifest_of_sections_the_images_are_meant(tmp_path):
    (tmp_path / "sections.csv").write_text("path,section,image,mpp\nA.h5ad,A,A.svs,\nB.h5ad,B,B.ndpi,0.5\n")
    assert names(list_slides([tmp_path / "sections.csv"])) == [("A.svs", None), ("B.ndpi", 0.5)]


def test_a_file_beside_its_folder_is_meant_once_and_named_twice_it_stays_twice(folder):
    assert len(list_slides([folder / "a.tif", folder])) == 3
    assert len(list_slides([folder, folder / "a.tif"])) == 3
    assert len(list_slides([folder / "a.tif", folder / "a.tif"])) == 2


def test_a_slide_that_is_a_folder_is_one(tmp_path):
    (tmp_path / "x.ome.zarr" / "0").mkdir(parents=True)
    assert names(list_slides([tmp_path / "x.ome.zarr"])) == [("x.ome.zarr", None)]
    assert names(list_slides([tmp_path])) == [("x.ome.zarr", None)]


def test_what_names_no_slide_is_one_sentence(tmp_path):
    with pytest.raises(SlideError, match="no slide or image lies in the folder"):
        list_slides([tmp_path])
    (tmp_path / "list.csv").write_text("file\na.svs\n")
    with pytest.raises(SectionError, match="needs a header with a column path"):
        list_slides([tmp_path / "list.csv"])
