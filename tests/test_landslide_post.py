"""What is fitted out of fold and what is done to test tiles are the same: bands' statistics, CRF, morphology."""

import argparse
import json
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from tiny_landslide import BANDS, call

from common.engine.learnt import read_post
from common.metrics.ordinal import cohens_kappa
from common.metrics.segmentation import counts_of
from common.tasks import TASKS, crf_options

PLAIN = ("--no-report", "--no-baselines")
GIVEN = ("--task", "landslide", "--data", "data")


def post_of(home, run: str = "one") -> dict:
    return json.loads((home / f"runs/{run}/post.json").read_text())


def test_judge_and_post_know_the_same_bands(hills_copy, monkeypatch):
    """Of tiles that a fold trains on, which test rows and unused ones are not; a judgement that has no use for them
    does not read any."""
    words = ("ensemble", "--runs", "one", *PLAIN, "--thresholds", "argmax")
    used, refiner = [], crf_options.refiner

    def watched(paths, post, *rest):
        used.append(post)
        return refiner(paths, post, *rest)

    monkeypatch.setattr(crf_options, "refiner", watched)
    call(hills_copy, *words, "--crf", "--save-blend", "blend.json")
    blend, post = json.loads((hills_copy / "blend.json").read_text()), post_of(hills_copy)
    assert list(post["bands"]) == list(BANDS)
    assert blend["post"]["bands"] == post["bands"] == used[0]["bands"]
    monkeypatch.setattr(crf_options, "band_statistics", None)
    call(hills_copy, *words)


def test_a_mean_of_runs_has_the_guide_of_each(hills_copy):
    """Thresholds are fitted on the mean, statistics of bands are those of the rows, which are the same."""
    learnt = {}
    for words in (("one",), ("one", "two")):
        task = TASKS["landslide"]
        learnt[words] = read_post([hills_copy / "runs" / name for name in words], task)
    one, both = learnt.values()
    assert both["bands"] == one["bands"] and set(both) == set(one)
    assert both["thresholds"] != one["thresholds"]


def test_the_guide_is_of_the_first_bands_that_were_trained_on():
    """Also where a tile has other bands first, as in scenes; what is read is asked for by name."""
    parser = argparse.ArgumentParser()
    crf_options.add_crf_options(parser)
    settings = vars(parser.parse_args(["--crf"]))
    asked = []

    def read_tile(path, bands):
        asked.append(list(bands))
        return np.ones((len(bands), 8, 8), np.float32)

    source = SimpleNamespace(read_tile=read_tile)
    post = {"bands": dict.fromkeys(("soil", "slope", "ndvi", "elevation"), [0.0, 1.0])}
    refined = crf_options.refiner({"t": "not_read.tif"}, post, settings, source)("t")
    for prob in (0.5, 0.5, 0.4):
        refined(
            np.array([prob, 1 - prob], np.float32)[:, None, None] * np.ones((2, 8, 8), np.float32),
            np.ones((8, 8), bool),
        )
    assert asked == [["soil", "slope", "ndvi"]], "and read once, however often it is asked"


def applied(home, *words, out: str) -> dict:
    call(home, "ensemble", "--preds", "preds", "--blend", "blend.json", *GIVEN, "--thresholds", "fitted", "--out", out,
         *words)  # fmt: skip
    return {path.stem: path.read_bytes() for path in (home / out / "masks").iterdir()}


def test_a_blend_is_applied_as_it_was_judged(hills_copy, capsys):
    """CRF, its numbers and morphology; a call that says otherwise is followed, and told so."""
    home = hills_copy
    call(home, "infer", "--runs", "one", "--workers", "0", "--out", "preds")
    crf = ("--crf", "--crf-bands", "slope", "soil", "--crf-iterations", "3", "--bilateral-srgb", "20")
    post = ("--min-area", "12", "--fill-holes", "9")
    call(home, "ensemble", "--runs", "one", *PLAIN, "--thresholds", "fitted", *crf, *post, "--save-blend", "blend.json")
    capsys.readouterr()
    masks = applied(home, out="as")
    said = capsys.readouterr().out
    assert "as the blend was judged: " in said and "not as it was judged" not in said
    assert (
        "crf on" in said and "crf-bands slope soil" in said and "crf-iterations 3" in said and "min-area 12 12" in said
    )
    assert masks == applied(home, *crf, *post, out="again")
    assert "not as it was judged" not in capsys.readouterr().out
    plain = applied(home, "--no-crf", "--min-area", "0", "--fill-holes", "0", out="plain")
    said = capsys.readouterr().out
    assert "not as it was judged: min-area 0 (then: 12 12), fill-holes 0 (then: 9), crf off (then: on)" in said
    call(home, "ensemble", "--preds", "preds", *GIVEN, "--thresholds", *map(str, json.loads((home / "blend.json")
         .read_text())["post"]["thresholds"]), "--out", "never")  # fmt: skip
    assert plain == {path.stem: path.read_bytes() for path in (home / "never/masks").iterdir()} != masks
    assert applied(home, "--crf-iterations", "8", out="more") != masks
    assert "crf-iterations 8 (then: 3)" in capsys.readouterr().out


def test_gates_are_refused_where_nothing_is_judged(hills_home, capsys):
    for words in (("--compare",), ("--fit-post",)):
        call(hills_home, "ensemble", "--runs", "one", *words, "--gates", "v3", code=2)
        assert f"--gates v3: does nothing with {words[0]}" in capsys.readouterr().err
    call(
        hills_home, "ensemble", "--preds", "runs/one", "--task", "landslide", "--data", "data", "--gates", "v3", code=2
    )
    assert "--gates v3: does nothing with --preds" in capsys.readouterr().err


def test_a_comparison_has_the_score_of_the_judgement(hills_copy):
    """The same seed, thresholds and morphology: the kappa of compare.csv is that of the judged masks."""
    words = ("--runs", "one", "--min-area", "30", "--seed", "5", *PLAIN)
    call(hills_copy, "ensemble", *words, "--out", "judged")
    call(hills_copy, "ensemble", *words, "--compare", "--out", "compared")
    counts = counts_of(pd.read_csv(hills_copy / "judged/oof_counts.csv"), 3).sum(0)
    line = pd.read_csv(hills_copy / "compared/compare.csv").iloc[0]
    assert line["kappa"] == pytest.approx(cohens_kappa(counts), abs=1e-12)
