"""Small sound files of every format and kind that the readers of images take: {name in a folder: content}."""

import io
import itertools
import warnings

import numpy as np
from PIL import Image
from rasterio.errors import NotGeoreferencedWarning
from rasterio.io import MemoryFile
from rasterio.transform import from_origin

SIDE = 16
RGB = ("red", "green", "blue")
PLACE = from_origin(500_000, 7_600_000, 3, 3)
TURNED = b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0"  # a picture on its side
BANDS = [f"Band{number}" for number in range(1, 6)]


def values(shape, kind="uint8", most=200, seed=0) -> np.ndarray:
    return np.random.default_rng(seed).integers(1, most, shape).astype(kind)


def tif(array, *, crs="EPSG:32608", place=PLACE, names=None, **options) -> bytes:
    """Bytes of a GeoTIFF of (C,H,W)."""
    size = {"count": len(array), "height": array.shape[1], "width": array.shape[2], "dtype": array.dtype}
    where = {"crs": crs, "transform": place} if crs else {}
    with MemoryFile() as memory, warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        with memory.open(driver="GTiff", **size, **where, **options) as file:
            file.write(array)
            if names:
                file.descriptions = names
        return memory.read()


def npy(array) -> bytes:
    np.save(out := io.BytesIO(), array)
    return out.getvalue()


def npz(**arrays) -> bytes:
    np.savez_compressed(out := io.BytesIO(), **arrays)
    return out.getvalue()


def picture(array, kind, **options) -> bytes:
    Image.fromarray(array).save(out := io.BytesIO(), kind, **options)
    return out.getvalue()


def tif_kinds(bands: int) -> list[bytes]:
    """The same picture as strips, tiles, deflated, in either order of bytes, as BigTIFF, floats, by band or pixel."""
    array = values((bands, SIDE, SIDE))
    floats = array.astype("float32") / 7
    return [tif(array), tif(array, tiled=True, blockxsize=16, blockysize=16, compress="deflate", nodata=0),
            tif(array.astype("uint16"), ENDIANNESS="BIG", interleave="band", compress="lzw"),
            tif(floats, nodata=-3.4e38, compress="deflate", predictor=3, blockysize=4), tif(array, BIGTIFF="YES"),
            tif(array.astype("int16"), crs="EPSG:4326", place=from_origin(-130, 68, 1e-4, 1e-4), compress="packbits"),
            tif(array, crs=None, interleave="pixel", compress="zstd"), tif(floats.astype("float64"))]  # fmt: skip


def label(kind="uint8", second=1, **options) -> bytes:
    return tif((values((1, SIDE, SIDE), most=99) % 2 * second).astype(kind), **options)


def photo_samples() -> list[dict]:
    photo = values((24, 40, 3))
    jpegs = [{}, {"progressive": True}, {"quality": 30, "subsampling": 2, "optimize": True},
             {"restart_marker_blocks": 2}, {"exif": TURNED}]  # fmt: skip
    pngs = [
        photo,
        photo[..., 0],
        np.dstack([photo, photo[..., 0]]),
        photo[..., 0] > 100,
        photo[..., 0].astype("uint16"),
    ]
    return [{"a.jpg": picture(photo, "JPEG", **options)} for options in jpegs] + [
        {"a.jpg": picture(photo[..., 0], "JPEG")}, *({"a.png": picture(array, "PNG")} for array in pngs)]  # fmt: skip


def glacier_samples() -> list[dict]:
    other = {f"{name}/img_01_02.tif": tif(values((1, SIDE, SIDE), seed=2)) for name in BANDS[1:]}
    return [{"Band1/img_01_02.tif": kind, "label/img_01_02.tif": label(second=255), **other} for kind in tif_kinds(1)]


def npy_kinds(shape) -> list[np.ndarray]:
    array = values(shape)
    return [array.astype(kind) for kind in ("<f4", ">f4", "u1", "<u2", "f2", "<i8", "?")] + [np.asfortranarray(array)]


def slice_samples() -> list[dict]:
    return [
        {"tile.npy": npy(array), "label.npy": npy(values((SIDE, SIDE), most=3))} for array in npy_kinds((5, 16, 16))
    ]


def hkh_samples() -> list[dict]:
    masks = [values((16, 16, n), most=3) % 2 for n in (2, 2)] + [np.ones((16, 16, 3))]
    return [{"slice_a_img_1.npy": npy(array), "slice_a_mask_1.npy": npy(mask)}
            for mask in masks for array in npy_kinds((16, 16, 15))[:3]]  # fmt: skip


def rts_samples() -> list[dict]:
    labels = [label(), label("uint16"), label(nodata=255), label("float32"),
              label(place=from_origin(500_003, 7_600_000, 2, 2))]  # fmt: skip
    extra = tif(values((2, SIDE, SIDE), "float32"), names=("ndvi", "nir"))
    return [{"PLANET-RGB/a.tif": kind, "labels/a.tif": mask, "EXTRA/a.tif": extra}
            for kind, mask in zip(tif_kinds(3), labels, strict=False)]  # fmt: skip


def landslide_samples() -> list[dict]:
    mask = values((SIDE, SIDE), most=4) % 3
    labels = [{"labels/a.png": picture(mask, "PNG")}, {"labels/a.npy": npy(mask)}, {"labels/a.tif": tif(mask[None])}]
    images = [{"images/a.tif": kind} for kind in tif_kinds(4)] + [
        {"images/a.npy": npy(a)} for a in npy_kinds((4, 16, 16))
    ]
    beside = [{"images/a.tif.msk": tif(values((1, SIDE, SIDE)) // 100 * 255, crs=None)},
              {"images/a.tif.aux.xml": AUX.encode()}]  # fmt: skip
    return [{**image, **mask} for image, mask in zip(images, itertools.cycle(labels))] + [
        {**images[0], **labels[2], **more} for more in beside]  # fmt: skip


AUX = """<PAMDataset>
  <PAMRasterBand band="1">
    <NoDataValue>7</NoDataValue>
    <Scale>2</Scale>
  </PAMRasterBand>
</PAMDataset>"""


def layer_samples() -> list[dict]:
    grid, array = {"grid.tif": tif(values((1, SIDE, SIDE)))}, values((1, SIDE, SIDE))
    moved = from_origin(500_001, 7_600_000, 4, 4)
    kinds = [tif(array), tif(array, place=moved), tif(array.astype("float32"), place=moved, nodata=5, compress="lzw"),
             tif(array, crs="EPSG:4326", place=from_origin(-135.0001, 68.5125, 1e-4, 1e-4)),
             tif(array, crs=None),
             tif(array, crs="EPSG:32609", place=from_origin(200_000, 7_650_000, 9_000, 9_000))]  # fmt: skip
    return [{**grid, "a.tif": kind} for kind in kinds]


def prior_samples() -> list[dict]:
    grid, array = {"grid.tif": tif(values((1, SIDE, SIDE)))}, values((1, SIDE, SIDE), "float32") / 250
    kinds = [tif(array), tif(array, place=from_origin(500_001, 7_600_000, 5, 5), compress="deflate"),
             tif(array, nodata=0.5, tiled=True, blockxsize=16, blockysize=16)]  # fmt: skip
    return [{**grid, "a.tif": kind} for kind in kinds]


def scene_samples() -> list[dict]:
    plain = [{"a.tif": kind} for kind in tif_kinds(3)]
    return [*plain, {**plain[0], "a.tif.msk": tif(values((1, SIDE, SIDE)) // 100 * 255, crs=None)}]


VRT_HEAD = """<VRTDataset rasterXSize="32" rasterYSize="16">
  <SRS dataAxisToSRSAxisMapping="1,2">EPSG:32608</SRS>
  <GeoTransform>500000, 3, 0, 7600000, 0, -3</GeoTransform>
  <Metadata><MDI key="AREA_OR_POINT">Area</MDI></Metadata>
"""
VRT_BAND = """  <VRTRasterBand dataType="Byte" band="{band}">
    <Description>{name}</Description>
    <NoDataValue>0</NoDataValue>
    <ColorInterp>{name}</ColorInterp>
    <SimpleSource>
      <SourceFilename relativeToVRT="1" shared="0">{part}</SourceFilename>
      <SourceBand>{band}</SourceBand>
      <SourceProperties RasterXSize="16" RasterYSize="16" DataType="Byte" BlockXSize="16" BlockYSize="16" />
      <SrcRect xOff="0" yOff="0" xSize="16" ySize="16" />
      <DstRect xOff="0" yOff="0" xSize="16" ySize="16" />
    </SimpleSource>
    <ComplexSource>
      <SourceFilename relativeToVRT="1">parts/b.tif</SourceFilename>
      <SourceBand>{band}</SourceBand>
      <SrcRect xOff="0" yOff="0" xSize="16" ySize="16" />
      <DstRect xOff="16" yOff="0" xSize="16" ySize="16" />
      <ScaleOffset>1</ScaleOffset><ScaleRatio>2</ScaleRatio>
      <NODATA>7</NODATA>
    </ComplexSource>
  </VRTRasterBand>
"""


def vrt_samples() -> list[dict]:
    def text(part):
        bands = (VRT_BAND.format(band=k, name=name.capitalize(), part=part) for k, name in enumerate(RGB, 1))
        return (VRT_HEAD + "".join(bands) + "</VRTDataset>").encode()

    parts = {"parts/a.tif": tif(values((3, SIDE, SIDE))), "parts/b.tif": tif(values((3, SIDE, SIDE)), compress="lzw")}
    inner = {"inner.vrt": text("parts/a.tif")}
    return [{"a.vrt": text("parts/a.tif"), **parts}, {"a.vrt": text("inner.vrt"), **inner, **parts}]


def mask_samples() -> list[dict]:
    kinds = [{}, {"compress": "deflate"}, {"tiled": True, "blockxsize": 16, "blockysize": 16, "compress": "deflate"}]
    return [{"source.tif": tif(values((1, SIDE, SIDE))), "mask.tif": label(**options)} for options in kinds]


def map_samples() -> list[dict]:
    prob, plane = values((3, SIDE, SIDE)).astype(np.float16) / 250, values((SIDE, SIDE))
    beside = {"valid": plane > 50, "target": plane % 3}
    return [{"a.npz": npz(prob=prob, **beside)}, {"a.npz": npz(logit=plane.astype(np.float16) / 9 - 8, **beside)}]
