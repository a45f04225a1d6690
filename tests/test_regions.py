"""Regions of interest: what QuPath writes is read, what is no region is refused in one sentence."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st

import napari_peka as peka
from napari_peka.core.errors import PekaError, RegionError, StoreError
from napari_peka.io.regions import check_region, read_regions, regions_by_name, write_regions

# QuPath 0.4 to 0.6: "Export objects as GeoJSON" with "Pretty JSON" and "Export as FeatureCollection"
QUPATH_06 = """{
  "type": "FeatureCollection",
  "features": [
    {
      "type": "Feature",
      "id": "3b9b7f0c-43f2-4f7e-9c6a-0b8f0b8b4d5e",
      "geometry": {
        "type": "Polygon",
        "coordinates": [
          [[1000, 2000], [5000, 2000], [5000, 4000], [1000, 4000], [1000, 2000]],
          [[2000, 2500], [2000, 3000], [3000, 3000], [3000, 2500], [2000, 2500]]
        ]
      },
      "properties": {
        "objectType": "annotation",
        "name": "core",
        "color": [255, 200, 0],
        "classification": {
          "name": "Tumor",
          "color": [200, 0, 0]
        },
        "isLocked": true,
        "measurements": {
          "Area px^2": 7500000.0,
          "Num Detections": NaN
        }
      }
    },
    {
      "type": "Feature",
      "id": "a8c2bd56-8f0c-4c8f-8b0a-51c1d2a7e111",
      "geometry": {
        "type": "MultiPolygon",
        "coordinates": [
          [[[7000, 100], [7100, 100], [7100, 200], [7000, 200], [7000, 100]]],
          [
            [[8000.25, 100], [8400.25, 100], [8400.25, 500], [8000.25, 500], [8000.25, 100]],
            [[8100.25, 200], [8200.25, 200], [8200.25, 300], [8100.25, 300], [8100.25, 200]]
          ]
        ]
      },
      "properties": {
        "objectType": "annotation",
        "classification": {
          "names": ["Stroma", "Inflamed"],
          "color": [150, 200, 150]
        },
        "metadata": {
          "ANNOTATION_DESCRIPTION": "by hand"
        }
      }
    }
  ]
}"""

# QuPath 0.2: a list of features, the type as id, the class's colour as one number
QUPATH_02 = """[
  {"type": "Feature", "id": "PathAnnotationObject",
   "geometry": {"type": "Polygon", "coordinates": [[[10, 20], [30, 20], [30, 60], [10, 60], [10, 20]]]},
   "properties": {"classification": {"name": "Tumor", "colorRGB": -3670016}, "isLocked": false, "measurements": []}}
]"""

DRAW = "draw a polygon, rectangle or ellipse in QuPath"
SQUARE = [[[10, 20], [30, 20], [30, 60], [10, 60], [10, 20]]]


def feature(geometry: Any, **properties: Any) -> dict[str, Any]:
    return {"type": "Feature", "id": "x", "geometry": geometry, "properties": properties}


def polygon(rings: Any = SQUARE, **more: Any) -> dict[str, Any]:
    return {"type": "Polygon", "coordinates": rings, **more}


@pytest.fixture
def saved(tmp_path):
    """Write JSON, text or bytes to a file and return its path."""

    def save(content: Any) -> Path:
        path = tmp_path / "region.geojson"
        if not isinstance(content, str | bytes):
            content = json.dumps(content)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return save


# -- what QuPath writes ----------------------------------------------------------------------------------------------


def test_a_feature_collection_of_qupath(saved):
    region = peka.read_regions(saved(QUPATH_06))
    hole = shapely.box(2000, 2500, 3000, 3000)
    ring = shapely.box(8000.25, 100, 8400.25, 500) - shapely.box(8100.25, 200, 8200.25, 300)
    expected = shapely.union_all([shapely.box(1000, 2000, 5000, 4000) - hole, shapely.box(7000, 100, 7100, 200), ring])
    assert region.geom_type == "MultiPolygon"
    assert region.is_valid
    assert region.equals(expected)
    assert region.area == 4000 * 2000 - 1000 * 500 + 100**2 + 400**2 - 100**2
    assert region.bounds == (1000, 100, 8400.25, 4000)  # x first
    assert not region.contains(shapely.Point(2500, 2750))


def test_names_come_from_the_name_or_the_class(saved):
    named = regions_by_name(saved(QUPATH_06))
    assert list(named) == ["core", "Stroma: Inflamed"]
    assert named["core"].area == 7_500_000
    assert named["Stroma: Inflamed"].geom_type == "MultiPolygon"


def test_regions_of_one_name_are_united_and_the_nameless_numbered(saved):
    second = [[[30, 20], [50, 20], [50, 60], [30, 60], [30, 20]]]
    far = [[[90, 90], [95, 90], [95, 95], [90, 90]]]
    path = saved([
        feature(polygon(), classification={"name": "Tumor"}),
        feature(polygon(far)),
        feature(polygon(second), classification="Tumor"),
        feature(polygon(far), name=""),
    ])  # fmt: skip
    named = regions_by_name(path)
    assert list(named) == ["Tumor", "region 2", "region 4"]
    assert named["Tumor"].equals(shapely.box(10, 20, 50, 60))


def test_a_list_of_features_of_an_older_qupath(saved):
    assert peka.read_regions(saved(QUPATH_02)).equals(shapely.box(10, 20, 30, 60))
    assert list(regions_by_name(saved(QUPATH_02))) == ["Tumor"]


@pytest.mark.parametrize(
    "content",
    [
        feature(polygon(), objectType="annotation"),
        polygon(),
        [polygon()],
        {"type": "MultiPolygon", "coordinates": [SQUARE]},
        {"type": "GeometryCollection", "geometries": [polygon()]},
        {"type": "FeatureCollection", "features": [feature(polygon()), feature(None, objectType="root")]},
        {"type": "FeatureCollection", "features": [feature(polygon()), {"type": "Feature", "properties": None}]},
        feature(polygon([[[*xy, 0.0] for xy in SQUARE[0]]])),
        feature(polygon([SQUARE[0][:-1]])),
        feature(polygon([SQUARE[0][::-1]])),
        feature(polygon(plane={"c": -1, "z": 0, "t": 0})),
    ],
    ids=[
        "one feature", "a bare polygon", "a list of geometries", "a multipolygon of one", "a collection",
        "with a feature without place", "with a feature without geometry", "with z", "not closed", "clockwise",
        "with a plane",
    ],
)  # fmt: skip
def test_every_shape_of_geojson(saved, content):
    region = read_regions(saved(content))
    assert region.equals(shapely.box(10, 20, 30, 60))
    assert not region.has_z


def test_an_ellipse_is_read_as_the_polygon_that_qupath_writes(saved):
    around = [2 * math.pi * k / 96 for k in range(96)]
    ring = [[round(500 + 300 * math.cos(a), 2), round(400 + 100 * math.sin(a), 2)] for a in around]
    region = read_regions(saved(feature(polygon([[*ring, ring[0]]], isEllipse=True), objectType="annotation")))
    assert region.area == pytest.approx(math.pi * 300 * 100, rel=2e-3)
    assert region.bounds == (200, 300, 800, 500)


def test_cells_lie_inside_their_annotation(saved):
    inner = [[[12, 22], [15, 22], [15, 25], [12, 22]]]
    cell = feature(polygon(inner), objectType="cell", measurements=[{"name": "Nucleus: Area", "value": 1.0}])
    cell["nucleusGeometry"] = polygon(inner)
    path = saved({"type": "FeatureCollection", "features": [feature(polygon(), objectType="annotation"), cell]})
    assert read_regions(path).equals(shapely.box(10, 20, 30, 60))


def test_overlapping_regions_count_once_and_islands_in_holes_stay(saved):
    ring = [[[0, 0], [100, 0], [100, 100], [0, 100], [0, 0]], [[20, 20], [20, 80], [80, 80], [80, 20], [20, 20]]]
    island = [[[40, 40], [60, 40], [60, 60], [40, 60], [40, 40]]]
    again = [[[0, 0], [10, 0], [10, 10], [0, 10], [0, 0]]]
    region = read_regions(saved([feature(polygon(r)) for r in (ring, island, again)]))
    assert region.area == 100**2 - 60**2 + 20**2
    assert region.contains(shapely.Point(50, 50))
    assert not region.contains(shapely.Point(30, 50))


def test_unicode_and_a_byte_order_mark(saved):
    text = json.dumps(feature(polygon(), name="Präparat 肿瘤 α"), ensure_ascii=False)
    for content in (text.encode("utf-8"), b"\xef\xbb\xbf" + text.encode("utf-8"), json.dumps(json.loads(text))):
        assert list(regions_by_name(saved(content))) == ["Präparat 肿瘤 α"]


def test_a_line_that_crosses_itself_is_mended(saved):
    bow_tie = [[[0, 0], [100, 100], [100, 0], [0, 100], [0, 0]]]
    region = read_regions(saved(feature(polygon(bow_tie))))
    assert region.is_valid
    assert region.area == 2 * 100 * 50 / 2
    spike = [[[0, 0], [10, 0], [10, 10], [20, 10], [10, 10], [0, 10], [0, 0]]]
    assert read_regions(saved(feature(polygon(spike)))).equals(shapely.box(0, 0, 10, 10))


# -- what is refused -------------------------------------------------------------------------------------------------

LINE = {"type": "LineString", "coordinates": [[0, 0], [5, 5]]}
CRS84 = {"type": "name", "properties": {"name": "urn:ogc:def:crs:OGC:1.3:CRS84"}}
REFUSED = {
    "no JSON": ("POLYGON ((0 0, 1 0, 1 1, 0 0))", "is not GeoJSON"),
    "an empty file": ("", "is not GeoJSON"),
    "half a file": (QUPATH_06[:700], "is not GeoJSON"),
    "another encoding": (QUPATH_02.encode("utf-16"), "is not GeoJSON"),
    "an image": (b"\x89PNG\r\n\x1a\n\x00\x00", "is not GeoJSON"),
    "a number": ("5", "JSON but not GeoJSON (found int"),
    "nothing": ("null", "JSON but not GeoJSON (found NoneType"),
    "other JSON": ({"regions": [[1, 2]]}, "JSON but not GeoJSON (found type None"),
    "a wrong type": ({"type": "polygon", "coordinates": SQUARE}, "not GeoJSON (found type 'polygon'"),
    "a type that is a list": ({"type": ["Polygon"], "coordinates": SQUARE}, "JSON but not GeoJSON"),
    "features that are none": ({"type": "FeatureCollection", "features": 5}, "JSON but not GeoJSON (found int"),
    "a point": (feature({"type": "Point", "coordinates": [3, 4]}), "holds a Point, which has no area"),
    "points": (feature({"type": "MultiPoint", "coordinates": [[3, 4]]}), "holds a MultiPoint, which has no area"),
    "a line": ([feature(polygon()), feature(LINE)], "holds a LineString, which has no area"),
    "lines": ({"type": "MultiLineString", "coordinates": []}, "holds a MultiLineString, which has no area"),
    "no features": ({"type": "FeatureCollection", "features": []}, "holds no region"),
    "features null": ({"type": "FeatureCollection", "features": None}, "holds no region"),
    "an empty list": ([], "holds no region"),
    "a feature without a place": (feature(None), "holds no region"),
    "no coordinates": ({"type": "Polygon"}, "unusable coordinates"),
    "empty coordinates": (polygon([]), "is empty"),
    "an empty ring": (polygon([[]]), "is empty"),
    "an empty multipolygon": ({"type": "MultiPolygon", "coordinates": []}, "is empty"),
    "two corners": (polygon([[[0, 0], [5, 5]]]), "unusable coordinates"),
    "no area": (polygon([[[0, 0], [5, 5], [2, 2], [0, 0]]]), "has no area"),
    "words": (polygon([[["a", "b"], ["c", "d"], ["e", "f"]]]), "unusable coordinates"),
    "null": (polygon([[[0, 0], [None, 0], [1, 1], [0, 0]]]), "unusable coordinates"),
    "coordinates too shallow": (polygon([[0, 0], [5, 0], [5, 5]]), "unusable coordinates"),
    "NaN": (polygon([[[0, 0], [math.nan, 0], [1, 1], [0, 0]]]), "not finite"),
    "infinity": (polygon([[[0, 0], [math.inf, 0], [1, 1], [0, 0]]]), "not finite"),
    "a number past all bounds": (polygon([[[0, 0], [10**400, 0], [1, 1], [0, 0]]]), "unusable coordinates"),
    "degrees": ({**polygon(), "crs": CRS84}, "geographic coordinates"),
    "degrees, by code": ({"type": "FeatureCollection", "features": [], "crs": "EPSG:4326"}, "geographic coordinates"),
}


@pytest.mark.parametrize("kind", REFUSED)
@pytest.mark.parametrize("read", [read_regions, regions_by_name])
def test_what_is_no_region_is_refused_in_one_sentence(saved, kind, read):
    content, says = REFUSED[kind]
    with pytest.raises(RegionError) as caught:
        read(saved(content))
    said = str(caught.value)
    assert says in said
    assert "region.geojson" in said
    assert "\n" not in said
    assert "; " in said  # and after that what to do
    assert said.split("; ")[-1].startswith((DRAW, "give a region in level-0 pixels"))


@pytest.mark.parametrize("depth", [5, 300, 900, 3000, 100_000])
@pytest.mark.parametrize("form", ["lists", "features", "coordinates"])
def test_deep_nesting_is_refused_and_brings_nothing_down(saved, depth, form):
    text = {
        "lists": "[" * depth + "]" * depth,
        "features": '{"type":"Feature","geometry":' * depth + "null" + "}" * depth,
        "coordinates": '{"type":"Polygon","coordinates":' + "[" * depth + "]" * depth + "}",
    }[form]
    with pytest.raises(RegionError, match=DRAW):
        read_regions(saved(text))


def test_a_plain_crs_is_no_reason_to_refuse(saved):
    local = {"type": "name", "properties": {"name": "Local pixel coordinates"}}
    assert read_regions(saved({**polygon(), "crs": local})).area == 800
    assert read_regions(saved({**polygon(), "crs": None})).area == 800


def test_a_file_that_is_not_there(tmp_path):
    for path in (tmp_path / "absent.geojson", tmp_path):
        with pytest.raises(RegionError, match=r"cannot be read.*; check the path") as caught:
            peka.read_regions(path)
        assert isinstance(caught.value, PekaError)
        assert isinstance(caught.value, ValueError)


# -- writing ---------------------------------------------------------------------------------------------------------


def test_what_is_written_is_what_qupath_imports(tmp_path):
    path = tmp_path / "out.geojson"
    ring = shapely.box(0, 0, 100, 100) - shapely.box(20, 20, 80, 80)
    write_regions(
        path, {"ring α": ring, "two": shapely.MultiPolygon([shapely.box(0, 0, 1, 1), shapely.box(5, 5, 6, 6)])}
    )
    data = json.loads(path.read_text(encoding="utf-8"))
    assert data["type"] == "FeatureCollection"
    first, second = data["features"]
    assert first["properties"] == {"objectType": "annotation", "name": "ring α"}
    assert first["geometry"]["type"] == "Polygon"
    outer, hole = (shapely.LinearRing(r) for r in first["geometry"]["coordinates"])
    assert outer.is_ccw
    assert not hole.is_ccw
    assert second["geometry"]["type"] == "MultiPolygon"
    assert first["id"] != second["id"]
    assert [p.name for p in tmp_path.iterdir()] == ["out.geojson"]  # nothing is left beside it


def test_a_multipolygon_of_one_is_written_as_a_polygon(tmp_path):
    write_regions(tmp_path / "one.geojson", {"a": shapely.MultiPolygon([shapely.box(0, 0, 1, 1)])})
    data = json.loads((tmp_path / "one.geojson").read_text(encoding="utf-8"))
    assert data["features"][0]["geometry"]["type"] == "Polygon"


NAMES = st.text(min_size=1).filter(lambda name: name.strip())
BOXES = st.builds(
    lambda x, y, w, h: shapely.box(x, y, x + w, y + h),
    st.integers(-10_000, 200_000), st.integers(-10_000, 200_000), st.integers(3, 9000), st.integers(3, 9000),
)  # fmt: skip


def with_hole(box: shapely.Polygon) -> shapely.Polygon:
    return box - shapely.affinity.scale(box, 0.5, 0.25)


@settings(max_examples=60, deadline=None)
@given(st.dictionaries(NAMES, st.lists(BOXES, min_size=1, max_size=3), min_size=1, max_size=4), st.booleans())
def test_what_is_written_is_read_back(tmp_path_factory, groups, holes):
    regions = {n: shapely.union_all([with_hole(b) if holes else b for b in boxes]) for n, boxes in groups.items()}
    path = tmp_path_factory.mktemp("regions") / "region.geojson"
    write_regions(path, regions)
    back = regions_by_name(path)
    assert list(back) == list(regions)
    for name, region in regions.items():
        assert back[name].symmetric_difference(region).area == pytest.approx(0, abs=1e-6)
    whole = shapely.union_all(list(regions.values()))
    assert read_regions(path).area == pytest.approx(whole.area)


def test_half_a_character_in_a_name_survives(saved, tmp_path):
    named = regions_by_name(saved(feature(polygon(), name="\ud83d")))
    write_regions(tmp_path / "again.geojson", named)
    assert regions_by_name(tmp_path / "again.geojson").keys() == {"\ud83d"}


def test_the_outlines_of_tissue_are_a_region(tmp_path, sample):
    tissue = peka.find_tissue(peka.open_slide(sample))
    write_regions(tmp_path / "tissue.geojson", {"tissue": tissue.polygons()})
    back = read_regions(tmp_path / "tissue.geojson")
    assert back.symmetric_difference(tissue.polygons()).area == pytest.approx(0, abs=1)


@pytest.mark.parametrize(
    ("bad", "says"),
    [
        (shapely.Point(1, 2), "'a' is a Point, which has no area"),
        (shapely.LineString([(0, 0), (1, 1)]), "'a' is a LineString, which has no area"),
        (shapely.Polygon(), "'a' is empty"),
        (shapely.Polygon([(0, 0), (math.inf, 1), (1, 1)]), "'a' has coordinates that are not finite"),
        ([(0, 0), (1, 1)], "'a' must be a shapely polygon, got list"),
        (None, "'a' must be a shapely polygon, got NoneType"),
    ],
)
def test_what_is_no_polygon_is_not_written(tmp_path, bad, says):
    path = tmp_path / "out.geojson"
    path.write_text("of yore", encoding="utf-8")
    with pytest.raises(RegionError) as caught:
        write_regions(path, {"good": shapely.box(0, 0, 1, 1), "a": bad})
    assert says in str(caught.value)
    assert path.read_text(encoding="utf-8") == "of yore"


def test_a_self_crossing_region_is_mended_before_it_is_written(tmp_path):
    write_regions(tmp_path / "a.geojson", {"bow": shapely.Polygon([(0, 0), (10, 10), (10, 0), (0, 10)])})
    back = read_regions(tmp_path / "a.geojson")
    assert back.is_valid
    assert back.area == 50


def test_a_folder_that_is_not_there_is_an_error_of_writing(tmp_path):
    with pytest.raises(StoreError, match="cannot write"):
        write_regions(tmp_path / "absent" / "a.geojson", {"a": shapely.box(0, 0, 1, 1)})


# -- on a slide ------------------------------------------------------------------------------------------------------


def test_a_region_is_clipped_to_the_slide():
    inside = check_region(shapely.box(-50, 100, 150, 900), (300, 200))  # height, width
    assert inside.equals(shapely.box(0, 100, 150, 300))
    ring = shapely.box(-10, -10, 400, 400) - shapely.box(50, 50, 100, 100)
    assert check_region(ring, (300, 200)).area == 300 * 200 - 50 * 50
    assert check_region(shapely.box(5, 5, 9, 9), (300, 200)).equals(shapely.box(5, 5, 9, 9))


@pytest.mark.parametrize(
    "region",
    [
        shapely.box(500, 100, 600, 200),
        shapely.box(10, 301, 20, 400),  # would fit if y and x were mixed up
        shapely.box(-9, -9, -1, -1),
        shapely.box(200, 0, 300, 100),  # touches the slide's edge, with no area on it
    ],
)
def test_a_region_outside_the_slide_says_where_both_are(region):
    with pytest.raises(RegionError) as caught:
        check_region(region, (300, 200))
    x0, y0, x1, y1 = region.bounds
    said = str(caught.value)
    assert f"x {x0:.0f} to {x1:.0f}, y {y0:.0f} to {y1:.0f}" in said
    assert "outside the slide, which is 200 px wide and 300 px high" in said


@pytest.mark.parametrize("bad", [None, "POLYGON ((0 0, 1 0, 1 1, 0 0))", shapely.Point(5, 5), shapely.Polygon()])
def test_what_is_no_region_cannot_be_laid_on_a_slide(bad):
    with pytest.raises(RegionError, match="the region"):
        check_region(bad, (300, 200))


def test_a_self_crossing_region_is_mended_before_it_is_clipped():
    inside = check_region(shapely.Polygon([(0, 0), (100, 100), (100, 0), (0, 100)]), (50, 1000))
    assert inside.is_valid
    assert inside.area == 2500
