"""The one way a raster file is opened: TIFF, PNG or a plain .vrt of these, judged by its header before pixels are read.

GDAL tells a format by the content of a file and knows a hundred of them. A "tile.tif" may be text that draws pixels
from any other file of the machine, or from an address; a mask beside it too. So the content decides which one driver
may open a file, and of a .vrt only what mosaics need is taken: bands made of files in its own folder or below.
"""

import warnings
import xml.etree.ElementTree as ElementTree
from contextlib import suppress
from math import isfinite
from pathlib import Path

import numpy as np
import rasterio
from rasterio._err import CPLE_BaseError
from rasterio.errors import NotGeoreferencedWarning

from common.datasets.limits import check_file, within
from common.errors import InputError

TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
PNG = b"\x89PNG\r\n\x1a\n"
VRT = b"<VRTDataset"
HEAD = 4096  # bytes; GDAL looks for VRT in the first 1,024
MASKS = (".msk", ".MSK", ".ovr", ".OVR")  # rasters beside a raster, which GDAL opens by itself
BESIDE = (".aux.xml", ".AUX.XML")
REWRITE = "gdal_translate what it shows to a GeoTIFF"
# What gdalbuildvrt and gdal_translate write; what warps, sharpens, computes or reads raw bytes has other elements.
ELEMENTS = {"VRTDataset", "SRS", "GeoTransform", "GCPList", "GCP", "Metadata", "MDI", "VRTRasterBand", "Description",
            "ColorInterp", "ColorTable", "Entry", "NoDataValue", "HideNoDataValue", "UnitType", "Offset", "Scale",
            "CategoryNames", "Category", "Histograms", "HistItem", "HistMin", "HistMax", "BucketCount",
            "IncludeOutOfRange", "Approximate", "HistCounts", "OverviewList", "MaskBand", "BlockXSize", "BlockYSize",
            "SimpleSource", "ComplexSource", "AveragedSource", "NoDataFromMaskSource", "SourceFilename", "SourceBand",
            "SourceProperties", "SrcRect", "DstRect", "NODATA", "ScaleOffset", "ScaleRatio", "UseMaskBand", "Exponent",
            "SrcMin", "SrcMax", "DstMin", "DstMax", "LUT", "ColorTableComponent"}  # fmt: skip
# What GDAL reads of a header when it is asked; a fault there is no RasterioError
LATE = ("colorinterp", "descriptions", "mask_flag_enums", "nodatavals", "scales", "offsets")
DOMAINS = ("", "IMAGE_STRUCTURE", "COLOR_PROFILE", "RPC")  # of metadata in a .vrt
# of metadata whose values name files or addresses, which GDAL opens when it looks for overviews or warps
POINTING = {("OVERVIEWS", "OVERVIEW_FILE"), ("GEOLOCATION", "X_DATASET"), ("GEOLOCATION", "Y_DATASET")}


def open_checked(path: str | Path) -> rasterio.DatasetReader:
    """An open raster whose header is within LIMITS, without a warning about a missing georeference; to be closed.

    RasterioError or OSError: missing, damaged. InputError: asks for too much, complex numbers, a georeference that is
    none, a .vrt that is more than a mosaic of its own folder.
    """
    return open_within(Path(path), Path(path).resolve().parent, set(), 0)


def open_within(path: Path, home: Path, seen: set[Path], depth: int) -> rasterio.DatasetReader:
    """`open_checked` of a part: home: the folder that parts must lie in; seen: the parts so far; depth: of nesting."""
    driver = driver_of(path)
    if driver == "VRT":
        within(path, "nested", depth + 1)
        for part in parts_of(path, home):
            if part not in seen:
                seen.add(part)
                within(path, "parts", len(seen))
                open_part(part, path, home, seen, depth + 1)
    check_beside(path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        # GDAL follows a link to a .vrt by one step, and takes its parts from there
        file = rasterio.open(path.resolve() if driver == "VRT" else path, driver=driver)
    try:
        check_header(path, file)
    except InputError:
        file.close()
        raise
    except CPLE_BaseError as error:
        file.close()
        raise InputError(f"{path}: its header is damaged ({error}); write or download it again") from error
    return file


def open_part(part: Path, whole: Path, home: Path, seen: set[Path], depth: int) -> None:
    try:
        open_within(part, home, seen, depth).close()
    except (rasterio.errors.RasterioError, OSError) as error:
        raise InputError(f"{whole}: its part {part} cannot be read ({error}); restore it or take it out") from error


def driver_of(path: Path) -> str:
    """GDAL's name of the format of a file by its content. OSError: missing, no regular file, or another format."""
    check_file(path)
    with open(path, "rb") as file:
        head = file.read(HEAD)
    if VRT in head:
        return "VRT"
    if head.startswith(TIFF):
        return "GTiff"
    if head.startswith(PNG):
        return "PNG"
    raise OSError("its content is neither TIFF nor PNG nor a .vrt" if head else "it is empty")


def check_beside(path: Path) -> None:
    """InputError where a mask or overview beside a raster is no TIFF within LIMITS, or its .aux.xml is too large."""
    for suffix in MASKS:
        beside = Path(f"{path}{suffix}")
        if beside.exists():
            check_beside(beside)  # an overview may have overviews
            try:
                if driver_of(beside) != "GTiff":
                    raise OSError("it is no TIFF")
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore", NotGeoreferencedWarning)
                    with rasterio.open(beside, driver="GTiff") as file:
                        check_header(beside, file)
            except (rasterio.errors.RasterioError, CPLE_BaseError, OSError) as error:
                raise InputError(f"{beside}: GDAL would read it with {path.name} ({error}); remove it") from error
    for suffix in BESIDE:
        beside = Path(f"{path}{suffix}")
        if beside.exists():
            within(beside, "vrt", check_file(beside))


def check_header(path: Path, file: rasterio.DatasetReader) -> None:
    """InputError where an open file asks for more than LIMITS, holds complex numbers, names other files, or cannot be
    placed."""
    within(path, "bands", file.count)
    check_alone(path, file)
    if not file.count:
        raise InputError(f"{path}: has no band; write or download it again")
    within(path, "side", max(file.shape))
    strange = next((kind for kind in file.dtypes if not is_number(kind)), None)
    if strange:
        raise InputError(f"{path}: holds {strange} values; write real numbers (gdal_translate -ot Float32)")
    whole = file.count if file.tags(ns="IMAGE_STRUCTURE").get("INTERLEAVE") == "PIXEL" else 1
    for (rows, columns), kind in set(zip(file.block_shapes, file.dtypes, strict=True)):
        within(path, "block", rows * columns * np.dtype(kind).itemsize * whole)
        within(path, "blocks", -(-file.height // rows) * -(-file.width // columns))
    check_place(path, file)
    for name in LATE:  # once for faults of what is not read (a mask, overviews), which surface at any later call
        with suppress(CPLE_BaseError):
            getattr(file, name)
    for name in LATE:
        getattr(file, name)


def check_alone(path: Path, file: rasterio.DatasetReader) -> None:
    """InputError where the metadata of an open file, or the .aux.xml beside it, has GDAL open another one."""
    for domain in file.tag_namespaces():  # GDAL knows them in small letters too
        for key, named in file.tags(ns=domain).items():
            if (domain.upper(), key.upper()) in POINTING and named:
                raise InputError(f"{path}: its metadata or its .aux.xml names another file ({key} {named[:120]!r}); "
                                 "remove the .aux.xml, or make a GeoTIFF of its own with gdalwarp")  # fmt: skip


def read_whole(file: rasterio.DatasetReader, numbers: int | list[int]) -> np.ndarray:
    """Raw values (C,H,W) of bands of an open file, or (H,W) of one. InputError: too many to be held."""
    shared = np.dtype(np.result_type(*[file.dtypes[k - 1] for k in np.atleast_1d(numbers)]))
    pixels = file.height * file.width
    if isinstance(numbers, int):
        within(file.name, "label", pixels)
        within(file.name, "array", pixels * shared.itemsize)
    else:
        within(file.name, "tile", len(numbers) * pixels)
    return file.read(numbers)


def is_number(kind: str) -> bool:
    return kind.startswith(("uint", "int", "float")) or kind == "bool"


def check_place(path: Path, file: rasterio.DatasetReader) -> None:
    """InputError where the pixels of an open file have no place or no size: NaN, infinite or 0."""
    t = file.transform
    corners = [value for x in (0, file.width) for y in (0, file.height)
               for value in (t.a * x + t.b * y + t.c, t.d * x + t.e * y + t.f)]  # fmt: skip
    size = t.a * t.e - t.b * t.d
    if not (all(isfinite(value) and abs(value) < 1e15 for value in corners) and isfinite(size) and size != 0):
        raise InputError(f"{path}: its georeference places no pixel ({', '.join(f'{v:g}' for v in t[:6])}); correct it"
                         " (gdal_edit.py -a_ullr) or take it out (gdal_edit.py -unsetgt)")  # fmt: skip


def parts_of(path: Path, home: Path) -> list[Path]:
    """The files that a .vrt is made of. InputError: it is no plain mosaic, or one of them lies outside of `home`."""
    within(path, "vrt", check_file(path))
    content = path.read_bytes()
    if b"<!DOCTYPE" in content or b"<!ENTITY" in content:
        raise InputError(f"{path}: declares entities, which no .vrt needs; {REWRITE}")
    try:
        elements = list(ElementTree.fromstring(content).iter())
    except (ElementTree.ParseError, ValueError, LookupError, RecursionError) as error:
        raise InputError(f"{path}: is no whole .vrt ({error}); write it again (gdalbuildvrt)") from error
    for element in elements:
        check_element(path, element)
    named = dict.fromkeys(place_of(path, element) for element in elements if element.tag == "SourceFilename")
    for part in named:
        if not part.resolve().is_relative_to(home):
            raise InputError(f"{path}: is made of {part}, outside of its folder; move it above its parts, or {REWRITE}")
        if not part.is_file():
            raise InputError(f"{path}: is made of {part}, which is not there; restore it, or {REWRITE}")
    return [part.resolve() for part in named]


def check_element(path: Path, element) -> None:
    """InputError for an element beyond ELEMENTS, or one that an attribute makes something else. GDAL knows names in
    small letters too, so anything but the usual writing is refused."""
    kind = next((value for name, value in element.items() if name.lower() == "subclass"), None)
    domain = next((value for name, value in element.items() if name.lower() == "domain"), "")
    odd = set(element.keys()) - {"relativeToVRT", "shared"} if element.tag == "SourceFilename" else ()
    if element.tag not in ELEMENTS or kind or odd or domain not in DOMAINS:
        what = kind or domain or element.tag
        raise InputError(f"{path}: is more than a mosaic of rasters ({what}); {REWRITE}")


def place_of(path: Path, element) -> Path:
    """The file that a SourceFilename names; beside the .vrt where it says so, as GDAL takes it."""
    name = (element.text or "").strip()
    if not name or name.startswith("/vsi") or "://" in name:
        raise InputError(f"{path}: is made of {name or 'a file without a name'}, no file of its folder; {REWRITE}")
    beside = element.get("relativeToVRT", "0")
    if beside not in ("0", "1"):
        raise InputError(f"{path}: relativeToVRT is {beside}, neither 0 nor 1; {REWRITE}")
    return path.resolve().parent / name if beside == "1" else Path(name)
