"""What a file may ask for. Headers are read first and judged by this table before memory is taken for what they say.

A file of 200 bytes can declare 10^10 pixels or a block of 16 GB, and a decoder takes the memory before it finds that
nothing follows. With these limits no single file takes more than about 4 GiB, whatever it says; what is not held whole
(scenes, read by window) has limits on its blocks only.
"""

import os
import stat
from pathlib import Path

from common.errors import InputError

# name: (most, what is counted, remedy)
LIMITS = {
    "photo bytes": (2**27, "bytes in a photo", "save it as a JPEG of fewer pixels"),
    "photo": (2**26, "pixels in a photo", "make it smaller"),
    "scans": (100, "scans in a progressive JPEG", "save it again"),
    "tile": (2**27, "values (bands x pixels) in a tile", "cut it into smaller tiles"),
    "label": (2**29, "pixels in a raster that is held whole", "cut it into tiles, or give only the area that is used"),
    "array": (2**30, "bytes in an array", "split it into tiles, or store it in a smaller type of number"),
    "map": (2**28, "values (classes x pixels) in a map", "cut the tiles smaller and predict again"),
    "bands": (4096, "bands in a raster", "write those that are used into a file of their own (gdal_translate -b)"),
    "side": (2**22, "pixels along a side of a raster", "cut it into several rasters"),
    "block": (2**28, "bytes in one block of a raster", "gdal_translate it with -co TILED=YES -co INTERLEAVE=BAND"),
    "blocks": (2**26, "blocks in a raster", "write it tiled, in blocks of 256 or 512: gdal_translate -co TILED=YES"),
    "vrt": (2**24, "bytes of XML beside or in a raster", "gdal_translate what it shows to a GeoTIFF"),
    "parts": (20_000, "files in a .vrt", "split it, or gdal_translate what it shows to a GeoTIFF"),
    "nested": (3, ".vrt files within each other", "gdal_translate the inner ones to GeoTIFFs"),
}  # fmt: skip


def within(path: str | Path, name: str, found: int) -> None:
    """InputError where a file asks for more than LIMITS[name]."""
    most, what, remedy = LIMITS[name]
    if found > most:
        raise InputError(f"{path}: {found:,} {what}, where at most {most:,} are taken; {remedy}")


def check_file(path: str | Path) -> int:
    """Bytes of a regular file (a link to one too). FileNotFoundError; OSError for a folder, a pipe, a device: what
    waits for a writer or never ends is not opened."""
    state = os.stat(path)
    if not stat.S_ISREG(state.st_mode):
        raise OSError("it is no regular file")
    return state.st_size
