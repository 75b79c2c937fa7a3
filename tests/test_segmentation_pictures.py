"""What the tasks of the segmentation family share: pictures of tiles, and the study of their pixels."""

import numpy as np
import pandas as pd
import pytest

from common.datasets.folds import TEST, UNUSED
from common.datasets.tiles import Source
from common.tasks import segmentation
from common.tasks.segmentation_data import study_tiles

BANDS = ("red", "green", "blue")
SPEC = {"bands": BANDS, "outputs": ("ground", "slide"), "label_map": {0: 0, 1: 1, 9: 255}}


def draw_tile(name: str) -> np.ndarray:
    """Bands of a tile, of another size each, without data on the left."""
    rng = np.random.default_rng(int(name))
    tile = rng.uniform(50, 200, (3, 40 + int(name), 48)).astype(np.float32)
    tile[:, :, :4] = 0
    return tile


def draw_label(name: str, known: dict) -> np.ndarray:
    label = np.zeros((40 + int(name), 48), np.uint8)
    label[10:20, :20], label[-3:] = 1, known[9]
    return label


SOURCE = Source(read_tile=lambda name, bands: draw_tile(name)[: len(bands)], read_label=draw_label,
                files_of=lambda name: [], size_of=lambda name: (40, 48))  # fmt: skip


@pytest.fixture
def drawn(monkeypatch):
    """What the pictures are given; they are made nevertheless."""
    seen, draw = {}, segmentation.draw_tile_samples

    def look(images, targets, preds, valid, ids, **options):
        seen.update(images=images, targets=targets, preds=preds, valid=valid, ids=ids)
        return draw(images, targets, preds, valid, ids, **options)

    monkeypatch.setattr(segmentation, "draw_tile_samples", look)
    return seen


def test_samples_show_what_is_known_of_tiles_of_any_size(drawn, tmp_path):
    rows = pd.DataFrame({"id": ["a", "b", "c"], "path": ["3", "4", "5"], "label": ["3", "4", "5"]})
    frame = pd.DataFrame({"id": rows["id"]})
    frame.attrs["shown"] = {"c": np.ones((45, 48), np.uint8), "a": np.zeros((43, 48), np.uint8)}
    segmentation.samples(frame, rows, SPEC, tmp_path / "some.png", source=SOURCE)
    assert (tmp_path / "some.png").stat().st_size > 1000
    assert drawn["ids"] == ["a", "c"] and [pred.max() for pred in drawn["preds"]] == [0, 1]
    for valid, target in zip(drawn["valid"], drawn["targets"], strict=True):
        assert not valid[:, :4].any() and not valid[-3:].any() and valid[:-3, 4:].all()
        assert set(np.unique(target)) == {0, 1} and target[10:20, 4:20].all() and not target[-3:].any()


def test_a_curve_is_drawn_where_the_task_has_one():
    given = {"name": "x", "slug": "x", "outputs": ("a", "b"), "bands": BANDS, "source": SOURCE}
    own = dict.fromkeys(("outputs_of", "label_maps", "read_test", "markers", "defaults", "demo_defaults", "schemes",
                         "demo_version", "make_demo", "read_rows", "read_truth", "make_folds", "describe_folds",
                         "study_data", "fit_post", "apply_post", "blends", "judge", "blend", "report",
                         "compare", "validate"))  # fmt: skip
    assert set(segmentation.make_segmentation_task(**given, **own).draw) == {"sheet", "samples"}
    assert segmentation.make_segmentation_task(**given, **own, curve=print).draw["curve"] is print


def study(side, **studies) -> list[str]:
    """Of 60 tiles, those of the test set twice as bright, one in fold 1 a copy of the first."""
    side = np.asarray(side)

    def read_tile(path):
        index = 0 if path == "58" else int(path)
        rng = np.random.default_rng(index)
        return (rng.uniform(50, 200, (3, 64, 64)) * (2 if side[index] == TEST else 1)).astype(np.float32)

    tiles = pd.DataFrame({"id": [f"t{k}" for k in range(60)], "path": [str(k) for k in range(60)]})
    return study_tiles(
        tiles, side, tiles["id"], read_tile, BANDS, **{"adversarial": False, "duplicates": False} | studies
    )


def test_studies_find_what_was_put_there():
    side = [TEST if k % 3 == 2 else k % 3 for k in range(60)]
    assert study(side) == []
    lines = study(side, adversarial=True)
    assert lines[0].startswith("train against test: AUC 1.000")
    assert [line.split(":")[0] for line in lines if "fold" in line] == ["fold 0 against the others",
                                                                       "fold 1 against the others"]  # fmt: skip
    lines = study(side, duplicates=True)
    assert "tiles across folds or in train and test: " in lines[0]
    assert "  t0 (fold 0) and t58 (fold 1): 0 of 64 bits" in lines


def test_without_test_tiles_the_study_says_so():
    lines = study([k % 2 for k in range(60)], adversarial=True)
    assert lines[0].startswith("train against test: not measured, one side has 0 rows")


def test_tiles_left_out_take_no_part():
    side = [k % 2 for k in range(60)]
    side[58] = 1
    assert "t58" in "".join(study(side, duplicates=True))
    side[58] = UNUSED
    assert "t58" not in "".join(study(side, duplicates=True))
    side[2::3] = [TEST] * 20
    side[::7] = [UNUSED] * 9
    lines = study(side, adversarial=True)
    assert lines[0].startswith("train against test: AUC 1.000") and "fold -3" not in "".join(lines)
