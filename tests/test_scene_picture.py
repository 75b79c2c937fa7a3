"""The picture of a scene, read in pieces: the same whatever they are, and none of them large."""

import numpy as np
import pytest

from common.datasets.scenes import resample
from common.outputs import scene_picture
from common.outputs.tile_pictures import false_colour


class Drawn:
    """A scene of an array (C,H,W), continued by no data; keeps how many pixels each read has taken."""

    bands = ("red", "green", "blue")

    def __init__(self, tile):
        self.tile, self.taken = tile, []
        self.height, self.width = tile.shape[1:]

    def read(self, y, x, height, width, *, size):
        self.taken.append(height * width)
        part = np.zeros((3, height, width), np.float32)
        known = self.tile[:, y : y + height, x : x + width]
        part[:, : known.shape[1], : known.shape[2]] = known
        return resample(part, size)


@pytest.mark.parametrize("piece", [(512, 8192), (20, 33), (1, 1)])
def test_pieces_make_the_whole(monkeypatch, piece):
    tile = np.random.default_rng(0).integers(1, 255, (3, 101, 152)).astype(np.float32)
    tile[:, :30, :40] = 0
    monkeypatch.setattr(scene_picture, "PIECE", piece)
    picture, factor = scene_picture.overview(Drawn(tile), 40)
    padded = np.pad(tile, [(0, 0), (0, 3), (0, 0)])
    assert factor == 4
    np.testing.assert_array_equal(picture, false_colour(resample(padded, (26, 38)), Drawn.bands))


@pytest.mark.parametrize("shape", [(40, 60_000), (30_000, 50), (3, 400_000)])
def test_no_piece_is_large(shape):
    """A wide scene is read in pieces of at most 512 x 8192 pixels."""
    scene = Drawn(np.broadcast_to(np.float32(7), (3, *shape)))
    picture, factor = scene_picture.overview(scene, scene_picture.MOST)
    assert max(scene.taken) <= 512 * 8192
    assert picture.shape == (-(-shape[0] // factor), -(-shape[1] // factor), 3)
