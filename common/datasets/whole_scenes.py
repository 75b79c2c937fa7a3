"""Rasters of many named bands to be mapped: a pixel has data where all of the model's bands have, as in tiles."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from common.datasets.band_tiles import fill, missing_pixels, name_bands
from common.datasets.scenes import Scene, find_bands, resampled


class WholeScene(Scene):
    """A Scene by the rules of datasets/band_tiles.py: names of bands, what is missing, and 0 in all bands there and
    nowhere else."""

    def _find_bands(self, numbers: Sequence[int] | None) -> list[int]:
        names = None if numbers else name_bands(self.path, self.file.descriptions)
        return find_bands(self.file, self.bands, numbers, names)

    def _find_colours(self) -> list[int]:
        return []

    def _clean(self, tile: np.ndarray, masked: np.ndarray | None) -> np.ndarray:
        tile, nodata = tile[self._places], [self.nodata[place] for place in self._places]
        return fill(tile, missing_pixels(tile, nodata, masked))

    def _resample(self, tile: np.ndarray, size: tuple[int, int]) -> np.ndarray:
        """As scenes.resample; means of data that cancel out stay data."""
        if tile.shape[1:] == size:
            return tile
        values, valid = resampled(tile, size)
        return fill(values, ~valid[None])


def open_whole_scene(path: str | Path, bands: Sequence[str], *, numbers: Sequence[int] | None = None) -> WholeScene:
    """A raster with the bands that a model wants, by name (or bandN), or by their numbers in the file, from 1.

    A file without names, which has just as many bands, is taken in its order; that is said. InputError: a band is
    missing (names those there are), the file cannot be read.
    """
    return WholeScene(path, bands, numbers)
