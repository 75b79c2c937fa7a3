"""Susceptibility (mean class as a share of the highest, common/ordinal.py) as probabilities give it, or calibrated.

Calibrated means that of the pixels of one susceptibility the true classes have just that mean. Two ways: an isotonic
curve of the susceptibility itself, or one temperature of the class logits. Both are plain JSON in post.json.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from scipy.optimize import minimize_scalar
from sklearn.isotonic import IsotonicRegression

from common.errors import InputError
from common.ordinal import susceptibility

WAYS = ("raw", "isotonic", "temperature")
BREAKS = (0.33, 0.67)
KNOTS = 64  # of the isotonic curve
RANGE = (0.05, 20.0)  # of temperatures tried
LEAST = 2.0**-24  # the smallest probability that float16 tells from 0


def calibrated(prob: np.ndarray, post: Mapping | None, way: str) -> np.ndarray:
    """float32 (...) susceptibility 0..1 of prob (K, ...), by one of WAYS.

    post: with "isotonic" or "temperature", as the fit functions give them. InputError for another way, or where post
    lacks what is asked.
    """
    if way not in WAYS:
        raise InputError(f"--susceptibility {way}: choose one of {', '.join(WAYS)}")
    if way != "raw" and not (post and way in post):
        raise InputError(
            f"--susceptibility {way}: nothing was fitted for it; give a run whose post.json has it, or take raw"
        )
    if way == "temperature":
        prob = tempered(prob, post["temperature"])
    raw = np.clip(susceptibility(np.asarray(prob, np.float32), 0), 0, 1)
    return raw if way != "isotonic" else apply_isotonic(raw, post["isotonic"])


def apply_isotonic(values: np.ndarray, curve: Mapping) -> np.ndarray:
    """float32: values (...) through the curve {"x", "y"}: straight between the knots, level beyond the first and last.

    InputError where the knots are not a rising curve within 0 to 1.
    """
    x, y = (np.asarray(curve[name], np.float64) for name in "xy")
    rising = len(x) == len(y) > 0 and (np.diff(x) > 0).all() and (np.diff(y) >= 0).all()
    if not rising or y[0] < 0 or y[-1] > 1:
        raise InputError("post.json: isotonic is no rising curve within 0 to 1; make it again")
    return np.interp(values, x, y).astype(np.float32)


def tempered(prob: np.ndarray, temperature: float, axis: int = 0) -> np.ndarray:
    """float32 softmax of log(prob) / temperature along `axis`; InputError for a temperature that is not above 0."""
    if not 0 < temperature < np.inf:
        raise InputError(f"post.json: temperature {temperature}; it must be above 0; make it again")
    logits = np.log(np.maximum(np.asarray(prob, np.float32), np.float32(LEAST))) / np.float32(temperature)
    power = np.exp(logits - logits.max(axis, keepdims=True))
    return power / power.sum(axis, keepdims=True)


def susceptibility_classes(values: np.ndarray, breaks: Sequence[float] = BREAKS) -> np.ndarray:
    """uint8 (...): how many of the breaks each value has reached. InputError where they do not rise within 0 to 1."""
    edges = np.asarray(breaks, np.float64)
    if edges.ndim != 1 or not len(edges) or not (np.diff(edges) > 0).all() or not 0 < edges[0] <= edges[-1] < 1:
        raise InputError(f"--breaks {' '.join(map(str, np.ravel(breaks)))}: give rising numbers between 0 and 1")
    return np.digitize(values, edges).astype(np.uint8)


def fit_isotonic(hist, values) -> dict[str, list[float]]:
    """{"x", "y"}: the rising curve closest to class / (K - 1) by susceptibility (least squares), of KNOTS at most.

    hist: (K, bins) pixels, counts or weights, by true class and susceptibility; values: (bins,) what each bin stands
    for, rising. InputError without any pixel.
    """
    hist, values = np.asarray(hist, np.float64), np.asarray(values, np.float64)
    weight = hist.sum(0)
    held = np.flatnonzero(weight)
    if not len(held):
        raise InputError("isotonic: no pixel with data and label; fit it on labelled tiles")
    share = (np.linspace(0, 1, len(hist)) @ hist)[held] / weight[held]
    model = IsotonicRegression(y_min=0, y_max=1).fit(values[held], share, weight[held])
    x, y = thinned_knots(model.X_thresholds_, model.y_thresholds_, KNOTS)
    return {"x": x.tolist(), "y": y.tolist()}


def thinned_knots(x: np.ndarray, y: np.ndarray, most: int) -> tuple[np.ndarray, np.ndarray]:
    """At most `most` of the knots: the ends, then one at a time where the line through those kept is farthest off."""
    kept = sorted({0, len(x) - 1})
    while len(kept) < min(most, len(x)):
        off = np.abs(np.interp(x, x[kept], y[kept]) - y)
        if off.max() < 1e-4:
            break
        kept = sorted({*kept, int(off.argmax())})
    return x[kept], y[kept]


def fit_temperature(prob: np.ndarray, target: np.ndarray, weight: np.ndarray) -> float:
    """The temperature of the class logits that makes the truth likeliest.

    prob: (n, K); target: (n,) classes; weight: (n,) pixels each stands for. 1 where one class alone occurs: then the
    best one is at an end of RANGE and says nothing. In its inverse the likelihood has one maximum.
    """
    if len(np.unique(target[weight > 0])) < 2:
        return 1.0
    logits = np.log(np.maximum(prob, LEAST)).astype(np.float64)
    right = np.take_along_axis(logits, np.asarray(target)[:, None], 1)[:, 0]
    share = weight / weight.sum()

    def cost(log_temperature: float) -> float:
        scaled = logits * np.exp(-log_temperature)
        top = scaled.max(1)
        total = top + np.log(np.exp(scaled - top[:, None]).sum(1))
        return float(share @ (total - right * np.exp(-log_temperature)))

    found = minimize_scalar(cost, bounds=np.log(RANGE), method="bounded", options={"xatol": 1e-5})
    return float(np.exp(found.x))
