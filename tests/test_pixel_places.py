"""Where tiles lie: tables of several rasters against georeferences, and rasters that names make."""

import pandas as pd
from rasterio.crs import CRS
from rasterio.transform import from_origin

from common.datasets.overlap_folds import pairs_of
from common.datasets.pixel_places import add_places


def profile(x: float, y: float, *, placed=True) -> dict:
    """Of a tile of 8 pixels of 10 m; x, y: upper left corner in pixels."""
    place = from_origin(500_000 + 10 * x, 4_000_000 - 10 * y, 10, 10)
    return {"width": 8, "height": 8, "crs": CRS.from_epsg(32633) if placed else None, "transform": place}


def places_of(tmp_path, lines: list[tuple], profiles: list[dict]) -> pd.DataFrame:
    """lines: (id, raster, y, x) of a tiles.csv."""
    table = pd.DataFrame(lines, columns=["id", "raster", "y", "x"]).assign(height=8, width=8)
    table.to_csv(tmp_path / "tiles.csv", index=False)
    rows = pd.DataFrame({"stem": table["id"], "path": [str(tmp_path / "images" / f"{n}.tif") for n in table["id"]]})
    return add_places(rows, profiles, [tmp_path / "tiles.csv"])


LINES = [("a0", "a", 0, 0), ("a1", "a", 0, 8), ("b0", "b", 0, 0), ("c0", "c", 0, 0)]


def test_rasters_that_share_ground_are_compared(tmp_path, capsys):
    """b begins 12 pixels east of a, over its second tile; c touches it."""
    rows = places_of(tmp_path, LINES, [profile(0, 0), profile(8, 0), profile(12, 0), profile(20, 0)])
    assert rows["raster"].tolist() == ["crs0", "crs0", "crs0", "c"]
    assert (rows["x"] - rows["x"][0]).tolist()[:3] == [0, 8, 12]
    assert pairs_of(rows)[0].tolist() == [[1, 2]]
    assert "tiles.csv: rasters a, b share ground by the georeference" in capsys.readouterr().out


def test_rasters_apart_or_without_a_georeference_stay_as_the_table_says(tmp_path, capsys):
    for k, profiles in enumerate((
        [profile(0, 0), profile(8, 0), profile(16, 0), profile(40, 0)],
        [profile(0, 0), profile(8, 0, placed=False), profile(4, 0), profile(40, 0)],
    )):  # fmt: skip
        (tmp_path / str(k)).mkdir()
        rows = places_of(tmp_path / str(k), LINES, profiles)
        assert rows[["raster", "y", "x"]].values.tolist() == [[raster, y, x] for _, raster, y, x in LINES]
    assert not capsys.readouterr().out


def test_rasters_that_names_make_are_told(capsys):
    names = ["2019_col1_row1", "2020_col1_row1", "2020_col2_row1"]
    rows = pd.DataFrame({"stem": names, "path": names})
    rasters = add_places(rows, [profile(0, 0, placed=False)] * 3, [])["raster"]
    assert rasters.tolist() == ["2019", "2020", "2020"]
    assert "3 tiles are placed by names alone, in 2 rasters (2019, 2020)" in capsys.readouterr().out
    add_places(rows, [profile(0, 0)] * 3, [])
    add_places(rows.iloc[1:], [profile(0, 0, placed=False)] * 2, [])
    assert not capsys.readouterr().out
