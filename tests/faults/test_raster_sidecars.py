"""What lies beside a raster, or in its tags, has GDAL open no other file: GDAL looks at both without being asked."""

import numpy as np
import pytest
import rasterio

from common.datasets.rasters import open_checked
from common.errors import InputError

AUX = '<PAMDataset><Metadata domain="{}"><MDI key="{}">{}</MDI></Metadata></PAMDataset>'
POINTERS = [("OVERVIEWS", "OVERVIEW_FILE"), ("overviews", "overview_file"), ("GEOLOCATION", "X_DATASET"),
            ("GEOLOCATION", "Y_DATASET")]  # fmt: skip


def write(path, tags=None, **options):
    transform = rasterio.Affine(3, 0, 4e5, 0, -3, 7e6)
    with rasterio.open(path, "w", driver="GTiff", width=64, height=64, count=1, dtype="uint8", crs="EPSG:32608",
                       transform=transform, **options) as file:  # fmt: skip
        file.write(np.ones((1, 64, 64), np.uint8))
        for domain, values in (tags or {}).items():
            file.update_tags(ns=domain, **values)
    return path


@pytest.mark.parametrize("domain, key", POINTERS)
@pytest.mark.parametrize("suffix", ["", ".ovr", ".msk"])
def test_metadata_that_names_another_file_is_refused(tmp_path, domain, key, suffix):
    """An address in OVERVIEW_FILE is called as soon as overviews are counted."""
    path = write(tmp_path / "a.tif")
    beside = write(tmp_path / f"a.tif{suffix}")
    aux = tmp_path / f"{beside.name}.aux.xml"
    for named in (":::BASE:::b.vrt", "/vsicurl/http://127.0.0.1:1/b.tif"):
        aux.write_text(AUX.format(domain, key, named))
        with pytest.raises(InputError, match=f"{beside.name}: its metadata or its .aux.xml names another file"):
            open_checked(path)
    aux.write_text(AUX.format(domain, "OTHER", "b.vrt"))
    open_checked(path).close()
    aux.unlink()
    write(beside, {domain: {key: "b.vrt"}})
    with pytest.raises(InputError, match="names another file"):
        open_checked(path)


def test_an_overview_of_an_overview_is_judged_too(tmp_path):
    path = write(tmp_path / "a.tif")
    write(tmp_path / "a.tif.ovr")
    write(tmp_path / "a.tif.ovr.ovr")
    open_checked(path).close()
    (tmp_path / "a.tif.ovr.ovr").write_text('<VRTDataset rasterXSize="9" rasterYSize="9"></VRTDataset>')
    with pytest.raises(InputError, match="a.tif.ovr.ovr: GDAL would read it"):
        open_checked(path)
