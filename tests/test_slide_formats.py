"""Slides are made here, one for each kind of file; what each guards is said beside it."""

from __future__ import annotations

import io
import struct
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from napari_peka.core.errors import MissingResolution, SlideError
from napari_peka.core.geometry import Rect
from napari_peka.io.slide import open_slide
from slide_files import HALF_UM, halved, patch_tag, picture, write_pyramid

# -- every kind of file ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", ["tiles", "strips", "one piece"])
@pytest.mark.parametrize("compression", [None, "lzw", "deflate", "jpeg", "jpeg2000"])
def test_tiff(tmp_path: Path, layout: str, compression: str | None) -> None:
    image = picture()
    extra = {"tiles": {"tile": (128, 128)}, "strips": {"rowsperstrip": 64}, "one piece": {}}[layout]
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, image, photometric="rgb", compression=compression, **extra, **HALF_UM)
    with open_slide(path) as slide:
        assert slide.shape == (600, 700)
        assert slide.mpp == pytest.approx((0.5, 0.5))
        got = slide.read_level(0, 100, 300, 333, 222)
        assert np.abs(got.astype(int) - image[100:433, 300:522]).mean() < (2 if compression == "jpeg" else 0.5)


@pytest.mark.parametrize("subifds", [True, False])
@pytest.mark.parametrize("compression", ["jpeg", "deflate"])
def test_pyramid(tmp_path: Path, subifds: bool, compression: str) -> None:
    write_pyramid(tmp_path / "p.tif", picture(), subifds=subifds, compression=compression, **HALF_UM)
    with open_slide(tmp_path / "p.tif") as slide:
        assert slide.level_shapes == [(600, 700), (300, 350), (150, 175)]
        assert slide.downsamples == [1, 2, 4]
        low = slide.read_level(2, 0, 0, 150, 175)
        assert np.abs(low.astype(int) - halved(halved(picture()))).mean() < 2


def test_ome_tiff_units_and_subifds(tmp_path: Path) -> None:
    with tifffile.TiffWriter(tmp_path / "o.ome.tif", ome=True) as tif:
        meta = {"axes": "YXS", "PhysicalSizeX": 250, "PhysicalSizeXUnit": "nm",
                "PhysicalSizeY": 0.25e-3, "PhysicalSizeYUnit": "mm"}  # fmt: skip
        tif.write(picture(), subifds=1, photometric="rgb", tile=(128, 128), metadata=meta)
        tif.write(halved(picture()), subfiletype=1, photometric="rgb", tile=(128, 128))
    with open_slide(tmp_path / "o.ome.tif") as slide:
        assert slide.name == "o"
        assert slide.mpp == pytest.approx((0.25, 0.25))
        assert slide.resolution is not None
        assert slide.resolution.source == "ome-xml"
        assert len(slide.level_shapes) == 2


@pytest.mark.parametrize(("zarr_format", "version"), [(2, "0.4"), (3, "0.5")])
@pytest.mark.parametrize("axes", ["tczyx", "cyx", "yxc"])
def test_ome_zarr(tmp_path: Path, zarr_format: int, version: str, axes: str) -> None:
    zarr = pytest.importorskip("zarr", minversion="3")
    image = picture(300, 400)
    path = tmp_path / "z.ome.zarr"
    group = zarr.open_group(str(path), mode="w", zarr_format=zarr_format)
    datasets = []
    for i, level in enumerate([image, halved(image)]):
        data = level if axes == "yxc" else level.transpose(2, 0, 1)
        data = data[None, :, None] if axes == "tczyx" else data
        chunks = tuple(64 if a in "yx" else 1 for a in axes)
        array = group.create_array(str(i), shape=data.shape, chunks=chunks, dtype="u1")
        array[:] = data
        scale = [0.5 * 2**i if a in "yx" else 1.0 for a in axes]
        datasets.append({"path": str(i), "coordinateTransformations": [{"type": "scale", "scale": scale}]})
    kinds = {"t": "time", "c": "channel"}
    multi = [{"version": version, "datasets": datasets, "axes": [
        {"name": a, "type": kinds.get(a, "space"), **({"unit": "micrometer"} if a in "zyx" else {})} for a in axes
    ]}]  # fmt: skip
    group.attrs.update({"multiscales": multi} if version == "0.4" else {"ome": {"multiscales": multi}})
    with open_slide(path) as slide:
        assert (slide.name, slide.vendor, slide.reader) == ("z", "ome-zarr", "zarr")
        assert slide.mpp == (0.5, 0.5)
        np.testing.assert_array_equal(slide.read_level(0, 10, 20, 200, 300), image[10:210, 20:320])
        np.testing.assert_array_equal(slide.read_level(1, 0, 0, 150, 200), halved(image))
        first = slide.fingerprint
    (path / ("zarr.json" if zarr_format == 3 else ".zattrs")).write_text("{}")
    with pytest.raises(SlideError, match=r"zarr: .*(multiscales|metadata)"):
        open_slide(path)
    assert len(first) == 64


@pytest.mark.parametrize("ending", ["png", "jpg"])
def test_plain_image_has_no_resolution(tmp_path: Path, ending: str) -> None:
    Image.fromarray(picture()).save(tmp_path / f"a.{ending}", dpi=(50_800, 50_800), quality=95)
    with open_slide(tmp_path / f"a.{ending}") as slide:
        assert slide.resolution is None
        with pytest.raises(MissingResolution, match=r"says nothing .* --mpp or mpp="):
            _ = slide.mpp
        assert np.abs(slide.read_block(Rect(5, 9, 50, 60)).astype(int) - picture()[5:55, 9:69]).mean() < 2
        assert slide.thumbnail(100).shape == (86, 100, 3)


def test_extension_does_not_matter(tmp_path: Path) -> None:
    Image.fromarray(picture()).save(tmp_path / "a.png")
    (tmp_path / "a.png").rename(tmp_path / "a.svs")
    with open_slide(tmp_path / "a.svs") as slide:
        assert slide.vendor == "png"


# -- colours -----------------------------------------------------------------------------------------------------


def _colours() -> dict[str, tuple[np.ndarray, dict[str, object], np.ndarray]]:
    image = picture(200, 256)
    alpha = np.zeros((200, 256), np.uint8)
    alpha[:, 128:] = 255
    over = np.where(alpha[..., None] == 255, image, 255)
    grey = image[..., 0]
    cmyk = np.concatenate([255 - image, np.zeros((200, 256, 1), np.uint8)], 2)
    return {
        "grey": (grey, {"photometric": "minisblack"}, np.repeat(grey[..., None], 3, 2)),
        "white is zero": (grey, {"photometric": "miniswhite"}, np.repeat(255 - grey[..., None], 3, 2)),
        "16 bit": (image.astype(np.uint16) * 257, {"photometric": "rgb"}, image),
        "rgba": (np.dstack([image, alpha]), {"photometric": "rgb", "extrasamples": ["unassalpha"]}, over),
        "planar": (image.transpose(2, 0, 1), {"photometric": "rgb", "planarconfig": "separate"}, image),
        "cmyk": (cmyk, {"photometric": "separated"}, image),
        "palette": (grey, {"photometric": "palette", "colormap": np.stack([np.arange(256) * 257] * 3).astype("u2")},
                    np.repeat(grey[..., None], 3, 2)),
    }  # fmt: skip


@pytest.mark.parametrize("kind", list(_colours()))
@pytest.mark.parametrize("tiled", [True, False])
def test_colours(tmp_path: Path, kind: str, tiled: bool) -> None:
    data, options, expected = _colours()[kind]
    extra = {"tile": (64, 64), "compression": "deflate"} if tiled else {}
    tifffile.imwrite(tmp_path / "c.tif", data, **options, **extra)
    with open_slide(tmp_path / "c.tif") as slide:
        got = slide.read_level(0, 0, 0, 200, 256)
        assert np.abs(got.astype(int) - expected).max() <= 1
        text = " ".join(slide.warnings)
        assert ("grey" in text) == (kind in ("grey", "white is zero"))
        assert ("16-bit" in text) == (kind == "16 bit")


@pytest.mark.parametrize("mode", ["RGBA", "CMYK", "L", "LA", "P", "I;16"])
def test_image_modes(tmp_path: Path, mode: str) -> None:
    rgb = Image.fromarray(picture(64, 64))
    if mode == "I;16":
        image = Image.fromarray(np.asarray(rgb.convert("L")).astype(np.uint16) * 257)
    else:
        image = rgb.convert(mode)
    path = tmp_path / ("a.jpg" if mode == "CMYK" else "a.png")
    image.save(path)
    with open_slide(path) as slide:
        grey = mode in ("L", "LA", "I;16")
        source = image if mode == "P" else rgb.convert("L") if grey else rgb
        expected = np.asarray(source.convert("RGB")).astype(int)
        got = slide.read_level(0, 0, 0, 64, 64)
        assert np.abs(got - expected).mean() < 6
        assert bool(slide.warnings) == grey


def test_fluorescence_is_refused(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "f.ome.tif", np.zeros((5, 64, 64), np.uint16), metadata={"axes": "CYX"})
    with pytest.raises(SlideError, match=r"5 separate channels.*fluorescence"):
        open_slide(tmp_path / "f.ome.tif")
    tifffile.imwrite(tmp_path / "f.tif", np.zeros((64, 64, 3), np.float32), photometric="rgb")
    with pytest.raises(SlideError, match="float32"):
        open_slide(tmp_path / "f.tif")


@pytest.mark.parametrize("bits", [2, 4, 10, 12, 14])
@pytest.mark.parametrize("tiled", [True, False])
def test_bits_that_fill_no_byte(tmp_path: Path, bits: int, tiled: bool) -> None:
    """Cameras write 12 bits into 16: taken for the full range, the slide would be nearly black."""
    grey = picture(200, 256)[..., 1]
    data = grey >> (8 - bits) if bits < 8 else grey.astype(np.uint16) << (bits - 8)
    extra = {"tile": (64, 64)} if tiled else {}
    tifffile.imwrite(tmp_path / "b.tif", data, photometric="minisblack", bitspersample=bits, **extra)
    with open_slide(tmp_path / "b.tif") as slide:
        want = np.round(data * (255 / (2**bits - 1)))
        assert np.abs(slide.read_level(0, 0, 0, 200, 256)[..., 0] - want).max() <= 1
        assert f"{bits}-bit pixels" in " ".join(slide.warnings)


@pytest.mark.parametrize("vendor", ["aperio", "tiff"])
def test_jpeg2000_of_ycbcr(tmp_path: Path, vendor: str) -> None:
    """Aperio's compression 33003 holds YCbCr under a tag that says RGB: shown as it is, the slide is green."""
    jpeg2k_encode = pytest.importorskip("imagecodecs").jpeg2k_encode
    ycc = np.pad(np.asarray(Image.fromarray(picture(240, 240)).convert("YCbCr")), ((0, 16), (0, 16), (0, 0)))
    tiles = [
        jpeg2k_encode(np.ascontiguousarray(ycc[y : y + 128, x : x + 128]), codecformat="j2k", mct=False, level=0)
        for y in (0, 128) for x in (0, 128)
    ]  # fmt: skip
    text = "Aperio Image Library v11\r\n240x240 (128x128) J2K/YUV16 Q=70|AppMag = 20|MPP = 0.4990"
    tifffile.imwrite(
        tmp_path / "a.svs", iter(tiles), shape=(240, 240, 3), dtype="u1", compression=33003, photometric="rgb",
        tile=(128, 128), description=text if vendor == "aperio" else "", metadata=None,
    )  # fmt: skip
    with open_slide(tmp_path / "a.svs") as slide:
        assert slide.vendor == vendor
        for reader in slide._readers:
            got = reader.read(0, 0, 0, 240, 240)
            assert np.abs(got.astype(int) - picture(240, 240)).mean() < 2, reader.name


def test_colours_of_half_size_outside_of_jpeg_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "y.tif"
    tifffile.imwrite(path, picture(64, 64), photometric="ycbcr", metadata=None)
    patch_tag(path, "YCbCrSubSampling", struct.pack("<HIHH", 3, 2, 2, 2))
    with pytest.raises(SlideError, match="YCbCr with subsampled colours outside of JPEG"):
        open_slide(path)


@pytest.mark.parametrize(
    "entry", [struct.pack("<HIf", 11, 1, 20_000), struct.pack("<HII", 4, 1, 20_000)], ids=["float", "whole"]
)
def test_resolution_that_is_no_ratio(tmp_path: Path, entry: bytes) -> None:
    tifffile.imwrite(tmp_path / "r.tif", picture(64, 64), photometric="rgb", metadata=None, **HALF_UM)
    for name in ("XResolution", "YResolution"):
        patch_tag(tmp_path / "r.tif", name, entry)
    with open_slide(tmp_path / "r.tif") as slide:
        assert slide.mpp == (0.5, 0.5)
        np.testing.assert_array_equal(slide.read_level(0, 0, 0, 64, 64), picture(64, 64))


def test_orientation_is_told(tmp_path: Path) -> None:
    tags = [(274, "H", 1, 6, True)]
    tifffile.imwrite(tmp_path / "o.tif", picture(64, 64), photometric="rgb", metadata=None, extratags=tags)
    with open_slide(tmp_path / "o.tif") as slide:
        assert "turned" in slide.warnings[0]


def test_narrow_slide_keeps_its_levels(tmp_path: Path) -> None:
    """A core biopsy: half a pixel that its width was rounded by is ten of its height."""
    write_pyramid(tmp_path / "n.tif", picture(9000, 250), subifds=False, levels=5, compression="deflate")
    with open_slide(tmp_path / "n.tif") as slide:
        assert slide.level_shapes == [(9000, 250), (4500, 125), (2250, 62), (1125, 31), (562, 15)]


def test_opening_a_png_decodes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.fromarray(picture()).save(tmp_path / "a.png")
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", lambda self: pytest.fail("decoded"))
    with open_slide(tmp_path / "a.png") as slide:
        assert slide.info()["shape"] == [600, 700]


def test_jpeg_with_previews_before_and_behind(tmp_path: Path) -> None:
    """Cameras and Photoshop put small JPEGs into the header; phones append others."""
    preview = io.BytesIO()
    Image.fromarray(picture(48, 64)).save(preview, "JPEG")
    header = b"\xff\xe2" + (len(preview.getvalue()) + 2).to_bytes(2, "big") + preview.getvalue()
    Image.fromarray(picture()).save(tmp_path / "a.jpg", quality=95)
    data = (tmp_path / "a.jpg").read_bytes()
    (tmp_path / "a.jpg").write_bytes(data[:2] + header + data[2:] + preview.getvalue() + b"made by hand")
    with open_slide(tmp_path / "a.jpg") as slide:
        assert np.abs(slide.read_level(0, 0, 0, 600, 700).astype(int) - picture()).mean() < 2


def test_large_pictures_are_converted_in_bands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("napari_peka.io.readers.image._BAND", 7)
    image = np.dstack([picture(100, 64), np.where(np.arange(64) < 30, 0, 255)[None].repeat(100, 0)]).astype(np.uint8)
    Image.fromarray(image).save(tmp_path / "a.png")
    with open_slide(tmp_path / "a.png") as slide:
        want = np.where(image[..., 3:] == 255, image[..., :3], 255)
        np.testing.assert_array_equal(slide.read_level(0, 0, 0, 100, 64), want)


# -- which image is the slide ------------------------------------------------------------------------------------

NAME_TAG = np.full((900, 900, 3), (10, 20, 250), np.uint8)


def _write_pages(path: Path, pages: list[tuple[str, np.ndarray]], **options: object) -> None:
    ome = path.name.endswith(".ome.tif")
    with tifffile.TiffWriter(path, ome=ome) as tif:
        for name, image in pages:
            told = {"metadata": {"axes": "YXS", "Name": name}} if ome else {"description": name, "metadata": None}
            tif.write(image, photometric="rgb", tile=(128, 128), compression="deflate", **told, **options)


@pytest.mark.parametrize("ending", ["tif", "ome.tif"])
@pytest.mark.parametrize("name", ["label", "Macro", "case 7.svs [label image]", "macro 900x900"])
@pytest.mark.parametrize("first", [True, False])
def test_a_label_is_never_the_slide(tmp_path: Path, ending: str, name: str, first: bool) -> None:
    """It may carry a patient's name; here it is larger than the scan, and may come first."""
    pages = [("case 7", picture()), (name, NAME_TAG)]
    _write_pages(tmp_path / f"a.{ending}", pages[::-1] if first else pages)
    with open_slide(tmp_path / f"a.{ending}") as slide:
        assert slide.level_shapes == [(600, 700)]
        np.testing.assert_array_equal(slide.read_level(0, 0, 0, 600, 700), picture())
        assert [n.lower() for n in slide.associated] == ["macro" if "acro" in name else "label"]
        assert (slide.associated_image(slide.associated[0]) == NAME_TAG).all()


def test_a_label_alone_is_refused(tmp_path: Path) -> None:
    _write_pages(tmp_path / "a.tif", [("label", NAME_TAG)])
    with pytest.raises(SlideError, match="a label or macro image and no scan"):
        open_slide(tmp_path / "a.tif")


@pytest.mark.parametrize(("name", "shape"), [("label", (300, 350)), ("", (178, 208))])
def test_a_label_of_the_slides_shape_is_no_level(tmp_path: Path, name: str, shape: tuple[int, int]) -> None:
    """It would be shown when zoomed out, and tissue would be looked for in it."""
    _write_pages(tmp_path / "a.tif", [("", picture()), (name, NAME_TAG[: shape[0], : shape[1]])])
    with open_slide(tmp_path / "a.tif") as slide:
        assert slide.level_shapes == [(600, 700)]


def test_pixels_in_another_file_are_refused(tmp_path: Path) -> None:
    """The first of several OME-TIFFs names the others: their offsets mean nothing in this one."""
    tifffile.imwrite(tmp_path / "b.ome.tif", picture(), photometric="rgb", metadata=None)
    xml = (
        '<?xml version="1.0" encoding="UTF-8"?><OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06" '
        'UUID="urn:uuid:1"><Image ID="Image:0"><Pixels ID="Pixels:0" DimensionOrder="XYCZT" Type="uint8" SizeX="700" '
        'SizeY="600" SizeC="3" SizeZ="1" SizeT="1"><Channel ID="Channel:0:0" SamplesPerPixel="3"/>'
        '<TiffData IFD="0" PlaneCount="1"><UUID FileName="b.ome.tif">urn:uuid:2</UUID></TiffData>'
        "</Pixels></Image></OME>"
    )
    tifffile.imwrite(tmp_path / "a.ome.tif", picture(), photometric="rgb", description=xml, metadata=None)
    with pytest.raises(SlideError, match=r"its pixels are in another file, b\.ome\.tif"):
        open_slide(tmp_path / "a.ome.tif")


def _write_zarr(path: Path, levels: list[np.ndarray], *, channels: list[dict[str, str]] | None = None) -> None:
    zarr = pytest.importorskip("zarr", minversion="3")
    group = zarr.open_group(str(path), mode="w", zarr_format=2)
    datasets = []
    for i, level in enumerate(levels):
        data = level.transpose(2, 0, 1)
        group.create_array(str(i), shape=data.shape, chunks=(1, 64, 64), dtype=data.dtype)[:] = data
        scale = [1.0, 0.25 * 600 / level.shape[0], 0.25 * 600 / level.shape[0]]
        datasets.append({"path": str(i), "coordinateTransformations": [{"type": "scale", "scale": scale}]})
    axes = [{"name": "c"}, *({"name": n, "unit": "micrometer"} for n in "yx")]
    group.attrs["multiscales"] = [{"version": "0.4", "datasets": datasets, "axes": axes}]
    if channels:
        group.attrs["omero"] = {"channels": channels}


def test_zarr_levels_in_any_order(tmp_path: Path) -> None:
    _write_zarr(tmp_path / "z.zarr", [halved(picture()), picture()])
    with open_slide(tmp_path / "z.zarr") as slide:
        assert slide.level_shapes == [(600, 700), (300, 350)]
        assert slide.mpp == (0.25, 0.25)
        np.testing.assert_array_equal(slide.read_level(0, 0, 0, 600, 700), picture())


def test_zarr_of_either_byte_order(tmp_path: Path) -> None:
    _write_zarr(tmp_path / "z.zarr", [(picture().astype(np.uint16) * 257).astype(">u2")])
    with open_slide(tmp_path / "z.zarr") as slide:
        np.testing.assert_array_equal(slide.read_level(0, 0, 0, 600, 700), picture())


@pytest.mark.parametrize("name", ["", "label image"])
def test_zarr_of_several_images(tmp_path: Path, name: str) -> None:
    """bioformats2raw: Leica's files begin with the macro image, and a label may be larger than a small scan."""
    zarr = pytest.importorskip("zarr", minversion="3")
    root = tmp_path / "z.zarr"
    zarr.open_group(str(root), mode="w", zarr_format=2).attrs["bioformats2raw.layout"] = 3
    _write_zarr(root / "0", [NAME_TAG if name else NAME_TAG[:150, :350]])
    _write_zarr(root / "1", [picture()])
    (root / "OME").mkdir()
    (root / "OME" / "METADATA.ome.xml").write_text(f'<OME xmlns="x"><Image Name="{name}"/><Image Name="a"/></OME>')
    with open_slide(root) as slide:
        np.testing.assert_array_equal(slide.read_level(0, 0, 0, 600, 700), picture())


def test_channels_of_other_colours_are_told(tmp_path: Path) -> None:
    """Three channels of fluorescence look like RGB to a program."""
    stains = [{"label": n, "color": c} for n, c in (("DAPI", "0000FF"), ("GFP", "00FF00"), ("Cy5", "FF0000"))]
    plain = [{"label": n, "color": c} for n, c in (("R", "FF0000"), ("G", "00ff00"), ("B", "0000FF"))]
    for channels, told in ((stains, True), (plain, False)):
        _write_zarr(tmp_path / "z.zarr", [picture()], channels=channels)
        with open_slide(tmp_path / "z.zarr") as slide:
            assert ("DAPI, GFP, Cy5" in " ".join(slide.warnings)) == told
