"""Temperature scaling of a binary classifier, from a histogram of its logits, and how well calibrated it is.

A histogram is (2, bins) of common.metrics.curves: negatives, positives, counts or weights. One temperature changes no
order, so that average precision and everything along the curve stay; what changes is what a probability means.
"""

from collections.abc import Mapping

import numpy as np
import pandas as pd
from scipy.optimize import minimize_scalar
from scipy.special import expit

from common.errors import InputError
from common.metrics.curves import brier, ece, nll, reliability_bins

RANGE = (0.05, 20.0)  # of temperatures tried
FARTHEST = 30.0  # logits beyond have a probability that float64 no longer tells from 0 or 1 by much


def scale(logit, temperature: float):
    """logit / temperature, in the type of `logit` (an array of any shape, or a number): of the calibrated probability.

    Guo et al., On Calibration of Modern Neural Networks (2017), section 4.2.
    """
    return logit / np.asarray(temperature, getattr(logit, "dtype", np.float64))


def threshold_prob(threshold, temperature: float) -> float:
    """The calibrated probability of a threshold given as an uncalibrated logit."""
    return float(expit(np.clip(threshold / temperature, -FARTHEST, FARTHEST)))


def threshold_logit(prob: float, temperature: float) -> float:
    """The uncalibrated logit of a threshold given as a calibrated probability; InputError outside 0 to 1."""
    if not 0 < prob < 1:
        raise InputError(f"threshold {prob}: a calibrated probability between 0 and 1; .5 is the plain one")
    return float(temperature * (np.log(prob) - np.log1p(-prob)))


def fit_temperature(hist) -> float:
    """The temperature of least negative log-likelihood of a histogram (2, bins) of counts or weights.

    In the inverse temperature the likelihood is concave, so that the bounded search finds its one maximum; where a side
    is empty the best temperature is at an end of RANGE and says nothing, so 1 is returned.
    """
    hist = np.asarray(hist, np.float64)
    if not (hist.sum(1) > 0).all():
        return 1.0
    low, high = 1 / RANGE[1], 1 / RANGE[0]
    found = minimize_scalar(
        lambda power: nll(hist, float(np.exp(-power))),
        bounds=(np.log(low), np.log(high)),
        method="bounded",
        options={"xatol": 1e-6},
    )
    return float(np.exp(-found.x))


def stacked(hist, temperature) -> list[tuple[np.ndarray, float]]:
    """[(histogram (2, bins), its temperature)] of one histogram, or of a stack (p, 2, bins) with one or p temperatures;
    those without weight are left out."""
    hist = np.asarray(hist, np.float64)
    hist = hist[None] if hist.ndim == 2 else hist
    each = np.broadcast_to(np.asarray(temperature, np.float64), len(hist))
    return [(one, float(value)) for one, value in zip(hist, each, strict=True) if one.sum() > 0]


def reliability(hist, temperature=1.0, *, bins: int = 15) -> pd.DataFrame:
    """The reliability diagram: a line per part of equal width that holds anything: prob (mean), share (of positives),
    weight. hist, temperature: as `stacked`, each pixel at the temperature of its histogram."""
    total = np.zeros((3, bins))
    for one, value in stacked(hist, temperature):
        mass, prob, share = reliability_bins(one, value, bins=bins)
        total += np.nan_to_num([mass, mass * prob, mass * share])
    weight, said, true = total[:, total[0] > 0]
    return pd.DataFrame({"prob": said / weight, "share": true / weight, "weight": weight})


def calibration_scores(hist, temperature=1.0) -> dict[str, float]:
    """nll (per pixel, nats), brier, ece (15 parts of equal width) and ece_mass (of equal weight); nan of nothing.

    hist, temperature: as `stacked`; of several histograms ece_mass is the mean of theirs by weight, the rest is that of
    all their pixels.
    """
    each = stacked(hist, temperature)
    if not each:
        return dict.fromkeys(("nll", "brier", "ece", "ece_mass"), float("nan"))
    mass = np.array([one.sum() for one, _ in each])
    table = reliability(hist, temperature)
    apart = (table["prob"] - table["share"]).abs()
    return {
        "nll": float(np.average([nll(*one) for one in each], weights=mass)),
        "brier": float(np.average([brier(*one) for one in each], weights=mass)),
        "ece": float(np.average(apart, weights=table["weight"])),
        "ece_mass": float(np.average([ece(*one, equal="mass") for one in each], weights=mass)),
    }


def before_and_after(hist, temperature) -> dict[str, float]:
    """<score>_before and <score>_after of every calibration score, and the temperature (the mean of several)."""
    before, after = calibration_scores(hist), calibration_scores(hist, temperature)
    found = {"temperature": float(np.mean(temperature))}
    for name in before:
        found |= {f"{name}_before": before[name], f"{name}_after": after[name]}
    return found


def calibration_table(left_out: Mapping[str, tuple]) -> pd.DataFrame:
    """A line per part, {part: (its histogram, temperature fitted without it)}: the scores before and after."""
    return pd.DataFrame([{"left out": name, **before_and_after(*found)} for name, found in left_out.items()])
