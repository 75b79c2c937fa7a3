"""A set of predictions that is there and a call that is refused: nothing of the set is touched."""

import pandas as pd
import tiny_data
from test_on_nan import moon, train  # noqa: F401

from common.engine.runs import read_makers


def test_a_call_that_is_refused_leaves_the_set_whole(moon, capsys):  # noqa: F811
    """The data is not the run's any more: that is known before anything is predicted."""
    train(moon)
    words = ("--runs", "runs/one", "--fold", "0", "--rows", "oof", "--device-type", "cpu", "--workers", "0")
    assert tiny_data.call("infer", *words, cwd=moon) == 0
    made = read_makers(moon / "preds" / "one")
    table = moon / "data" / "train.csv"
    pd.read_csv(table)[1:].to_csv(table, index=False)
    assert tiny_data.call("infer", *words, cwd=moon) == 2 and "belongs to other data" in capsys.readouterr().err
    assert read_makers(moon / "preds" / "one") == made and made[0]["run"] == "one"
