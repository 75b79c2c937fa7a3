"""What is fitted out of fold and what is done to test tiles are the same: bands' statistics, CRF, morphology."""

import json

from tiny_landslide import BANDS, call

from common.tasks import crf_options

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
