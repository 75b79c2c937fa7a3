"""Areas by a sample: every pixel once, and of the whole map."""

import numpy as np
import pandas as pd
import pytest
from sklearn import metrics as sk
from test_ordered_judge import COUNTS, NAMES, SETTINGS, SIZE, reads, write_sets

from common.post import ordered_judge
from common.post.ordered_tables import area_table


def test_areas_of_tiles_that_overlap_count_a_pixel_once(tmp_path):
    rows, sets, truths = write_sets(tmp_path)
    judged = ordered_judge.judge(rows, sets, **reads(truths), **SETTINGS)
    place = {"raster": ["a"] * 3 + [""] * 5, "y": [0] * 3 + [-1] * 5, "x": [0, 16, 32] + [-1] * 5,
             "height": [SIZE] * 3 + [-1] * 5, "width": [SIZE] * 3 + [-1] * 5}  # fmt: skip
    found = ordered_judge.judge(rows.assign(**place), sets, **reads(truths), **SETTINGS)
    assert found["metrics"] == judged["metrics"], "the other scores count every tile"
    truth, pred = [], []
    for _, row in found["rows"].iterrows():
        target, valid = truths[row["id"]]
        once = valid & (row["id"] != "t1")  # all of it is in t0 and t2
        truth.append(target[once])
        pred.append(found["read_pred"](row)[once])
    counts = sk.confusion_matrix(np.concatenate(truth), np.concatenate(pred), labels=range(3))
    pd.testing.assert_frame_equal(found["tables"]["area"], area_table(counts, NAMES[3], SETTINGS["seed"]))
    assert not found["tables"]["area"].equals(judged["tables"]["area"])


def test_areas_of_a_map_that_is_labelled_in_part_are_of_the_whole_map():
    mapped = np.array([500_000, 3000, 40_000])
    table = area_table(COUNTS, NAMES[3], seed=0, mapped=mapped).set_index(["estimate", "class"])
    whole = table["all pixels"]
    assert table.loc["share", "mapped"].tolist() == pytest.approx((mapped / mapped.sum()).tolist())
    assert whole["users"].tolist() == pytest.approx((np.diag(COUNTS) / COUNTS.sum(0)).tolist())
    share = COUNTS / COUNTS.sum(0) @ (mapped / mapped.sum())
    assert whole["share"].tolist() == pytest.approx(share.tolist())
