"""What the values of labels mean when rasters are cut, and to those who read the tiles."""

import numpy as np
import pytest
from raster_files import image, read, write

from common.datasets import landslide_files
from common.datasets.cutting import cut_tiles


def cut(folder, stack, labels, **settings):
    return cut_tiles(stack, labels, folder / "tiles", side=32, stride=16, **settings)


@pytest.mark.parametrize("pixel", [10, 40])  # as it lies, or warped
def test_a_tag_for_no_data_that_is_a_class_takes_nothing_away(tmp_path, capsys, pixel):
    """As GDAL's tools write labels. A map without the value leaves it out."""
    stack, side = write(tmp_path / "area.tif", image(32, 32)), 320 // pixel
    truth = np.resize(np.array([0, 0, 1, 2, 0], np.uint8), (side, side))
    labels = write(tmp_path / "l.tif", truth, pixel=pixel, nodata=0)
    cut(tmp_path, stack, labels)
    path = next((tmp_path / "tiles" / "labels").glob("*.tif"))
    assert np.array_equal(read(path)[0][0], np.kron(truth, np.ones((pixel // 10,) * 2)))
    assert "its 0 is tagged as no data, and taken for class 0" in capsys.readouterr().out
    cut(tmp_path / "b", stack, labels, label_map={1: 0, 2: 1}, least=0.1)
    path = next((tmp_path / "b" / "tiles" / "labels").glob("*.tif"))
    want = np.array([255, 0, 1])[truth]
    assert np.array_equal(read(path)[0][0], np.kron(want, np.ones((pixel // 10,) * 2)))


READ = {
    "two classes and no data": ([0, 1, 255], None, None, {0: 0, 1: 1, 255: 255}),
    "two classes by number": ([5, 7], {5: 0, 7: 1}, {"5": 0, "7": 1}, {0: 0, 1: 1, 255: 255}),
    "the map said once": ([1, 2, 3], {1: 0, 2: 1, 3: 2}, None, {0: 0, 1: 1, 2: 2, 255: 255}),
    "another map, of classes": ([1, 2, 3], {1: 0, 2: 1, 3: 2}, {0: 1, 1: 0, 2: 0, 255: 255}, None),
    "mask": ([0, 255], None, None, {0: 0, 1: 1, 255: 255}),
}


@pytest.mark.parametrize("case", READ)
def test_readers_know_the_classes_of_a_cut(tmp_path, case):
    raw, cut_with, given, want = READ[case]
    stack = write(tmp_path / "area.tif", image(32, 32))
    truth = np.resize(np.array(raw, np.uint8), (32, 32))
    cut(tmp_path, stack, write(tmp_path / "l.tif", truth), label_map=cut_with)
    rows = landslide_files.read_rows(tmp_path / "tiles", label_map=given)
    assert landslide_files.label_map_of(rows, given) == (want or given)
