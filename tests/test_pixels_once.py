"""Every pixel of a raster once, of tiles that overlap."""

import numpy as np
import pandas as pd

from common.post.pixels_once import counts_once, own_pixels


def table(places, side=8, raster="a") -> pd.DataFrame:
    return pd.DataFrame([(raster, y, x, side, side) for y, x in places],
                        columns=["raster", "y", "x", "height", "width"])  # fmt: skip


def covered(rows: pd.DataFrame) -> dict[str, np.ndarray]:
    """{raster: how often each pixel is given}."""
    times = {name: np.zeros((64, 64), int) for name in rows["raster"]}
    for index, own in own_pixels(rows):
        line = rows.iloc[index]
        part = times[line["raster"]][line["y"] : line["y"] + line["height"], line["x"] : line["x"] + line["width"]]
        part += 1 if own is None else own
    return times


def test_pixels_come_once_in_any_order_and_all_of_them_do():
    rng = np.random.default_rng(0)
    places = [(y, x) for y in range(0, 40, 4) for x in range(0, 40, 4)] + [(3, 41), (37, 5)]
    rows = pd.concat([table(places), table([(0, 0), (5, 2)], 11, "b")], ignore_index=True)
    for seed in range(5):
        mixed = rows.sample(frac=1, random_state=rng.integers(1000) + seed).reset_index(drop=True)
        wanted = {name: np.zeros((64, 64), int) for name in ("a", "b")}
        for line in mixed.to_dict("records"):
            wanted[line["raster"]][line["y"] : line["y"] + line["height"], line["x"] : line["x"] + line["width"]] = 1
        found = covered(mixed)
        assert all((found[name] == wanted[name]).all() for name in wanted)


def test_few_tiles_are_enough_where_they_overlap_by_half():
    rows = table([(y, x) for y in range(0, 57, 4) for x in range(0, 57, 4)])
    assert len(list(own_pixels(rows))) == 64 < len(rows) / 3


def test_tiles_apart_touching_of_unknown_place_or_of_other_rasters_are_whole():
    apart = table([(0, 0), (0, 8), (8, 0)])
    unknown = table([(-1, -1), (-1, -1)], -1, "")
    other = table([(0, 0)], raster="b")
    for rows in (apart, unknown, pd.concat([apart, other]), pd.DataFrame({"id": ["a", "b"]})):
        assert list(own_pixels(rows)) == [(k, None) for k in range(len(rows))]


def test_places_before_the_raster_s_first_pixel_are_places():
    found = dict(own_pixels(table([(-4, -4), (0, 0)])))
    assert found[0] is None and not found[1][:4, :4].any() and found[1].sum() == 48


def test_the_same_tile_twice_is_given_once():
    rows = table([(0, 0), (0, 0)])
    assert list(own_pixels(rows)) == [(0, None)]


def test_counts_are_of_own_pixels_and_whole_tiles_are_not_counted_again():
    rows, asked = table([(0, 0), (4, 0), (20, 0)]), []

    def recount(index, own):
        asked.append(index)
        return np.full((2, 2), own.sum())

    counts = np.arange(12).reshape(3, 2, 2)
    assert (counts_once(rows, counts, recount) == counts[0] + counts[2] + 32).all() and asked == [1]
