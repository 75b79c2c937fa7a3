"""Blends of prediction sets: plain mean, non-negative weights, greedy selection; saved as JSON and applied by name.

Everything is fitted on sums of products per group of rows ("moments"), never on rows again, so that a refit without a
group or on a bag of groups costs microseconds.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
from scipy.optimize import nnls

from common.errors import InputError
from common.files import atomic_write
from common.metrics.regression import WEIGHTS, checked
from common.outputs.predictions import listed
from common.text_files import read_json

FORMAT = "landfold-blend-1"
BAGS, STEPS = 300, 25
SHARED_PULL = 0.03  # of the mean square of a member: how strongly per-target weights are drawn to the shared ones
ZERO = 1e-9

Moments = dict[str, np.ndarray]


def group_moments(preds, target, groups, *, weights=WEIGHTS, valid=None) -> Moments:
    """Weighted sums over the rows of every group: {"pp": (g, k, m, m), "py": (g, k, m), "yy", "y", "n": (g, k)}.

    preds: (m, n, k) and target (n, k) grams; groups: (n,), in sorted order; weights: (k,); valid: (n, k) bool.
    """
    preds = np.asarray(preds, np.float64)
    if preds.ndim != 3 or preds.shape[1:] != np.shape(target) or not len(preds):
        raise InputError(
            f"blend: predictions {preds.shape} must be (members, rows, targets) of target {np.shape(target)}"
        )
    groups = np.asarray(groups).astype(str)
    if groups.shape != preds.shape[1:2]:
        raise InputError(f"blend: {len(groups)} groups for {preds.shape[1]} rows; give one group per row")
    for pred in preds:
        y, _, weight = checked(target, pred, weights, valid)
    names, code = np.unique(groups, return_inverse=True)
    order = np.argsort(code, kind="stable")
    starts = np.searchsorted(code[order], np.arange(len(names)))
    y, weight, p = y[order], weight[order], np.moveaxis(preds[:, order], 0, -1)
    p = np.where(weight[..., None] > 0, p, 0)

    def sums(values):
        return np.add.reduceat(values, starts, axis=0)

    weighted = weight[..., None] * p
    return {
        "pp": sums(weighted[..., :, None] * p[..., None, :]),
        "py": sums(weighted * y[..., None]),
        "yy": sums(weight * y**2),
        "y": sums(weight * y),
        "n": sums(weight),
    }


def member_errors(moments: Moments) -> np.ndarray:
    """(m,) weighted squared error of every member."""
    total = {name: values.sum(0) for name, values in moments.items()}
    squares = np.einsum("tmm->tm", total["pp"])
    return (squares - 2 * total["py"] + total["yy"][:, None]).sum(0)


def sound_members(moments: Moments) -> np.ndarray:
    """(m,) bool: members with less weighted squared error than a constant per target; all of them if none has.

    The constant of a group is the mean of the other groups (of all rows where there is one group), so that members
    scored on groups they never saw are not held to more than a constant could do there.
    """
    yy, y, n = moments["yy"], moments["y"], moments["n"]
    others = [values.sum(0) - (values if len(values) > 1 else 0) for values in (y, n)]
    mean = others[0] / np.maximum(others[1], ZERO)
    sound = member_errors(moments) < (yy - 2 * mean * y + mean**2 * n).sum()
    return sound if sound.any() else np.ones_like(sound)


def solve_weights(square: np.ndarray, cross: np.ndarray) -> np.ndarray:
    """Non-negative a (m,) that minimises a' square a - 2 cross' a, by scipy's nnls on the Cholesky factor."""
    size = len(square)
    jitter = 1e-10 * max(np.trace(square) / size, ZERO)
    factor = np.linalg.cholesky(square + jitter * np.eye(size))
    return nnls(factor.T, np.linalg.solve(factor, cross))[0]


def fit_mean(moments: Moments, seed: int) -> np.ndarray:
    """(m,) equal weights that add to one."""
    members = moments["pp"].shape[-1]
    return np.full(members, 1 / members)


def fit_weights(moments: Moments, seed: int) -> np.ndarray:
    """(m,) non-negative weights of least weighted squared error among those that add to one, times `scale_of`."""
    square, cross = moments["pp"].sum((0, 1)), moments["py"].sum((0, 1))
    # a heavy row that asks for a sum of one; scaling afterwards makes it exact
    heavy = 1e4 * np.trace(square) / len(square)
    chosen = solve_weights(square + heavy, cross + heavy)
    chosen = chosen / max(chosen.sum(), ZERO)
    return scale_of(chosen, moments) * chosen


def scale_of(chosen: np.ndarray, moments: Moments) -> float:
    """The factor that fits the blend `chosen` (m,) best, drawn to 1 by as much as it is uncertain.

    Members under-predict alike (all the published sets do, by about 1 g of Total), and a factor makes up for it. But
    with few groups it is one heavy group that sets it: on 91 photos a free factor cost .04 leaving groups out. So its
    distance from 1 is multiplied by 1 - variance / distance^2 (positive-part James and Stein 1961; the variance from
    the jackknife over groups).
    """
    against = np.einsum("gtm,m->g", moments["py"], chosen)
    own = np.einsum("gtmn,m,n->g", moments["pp"], chosen, chosen)
    count = len(own)
    free = against.sum() / max(own.sum(), ZERO)
    if count < 2:
        return 1.0
    without = (against.sum() - against) / np.maximum(own.sum() - own, ZERO)
    variance = (count - 1) / count * ((without - without.mean()) ** 2).sum()
    return float(1 + (free - 1) * max(0.0, 1 - variance / max((free - 1) ** 2, ZERO)))


def fit_per_target(moments: Moments, seed: int) -> np.ndarray:
    """(m, k) non-negative weights per target, drawn to the shared ones by a ridge (.8629 against .8621 without)."""
    shared = fit_weights(moments, seed)
    columns = []
    for square, cross in zip(moments["pp"].sum(0), moments["py"].sum(0), strict=True):
        pull = SHARED_PULL * np.trace(square) / len(square) + ZERO
        columns.append(solve_weights(square + pull * np.eye(len(square)), cross + pull * shared))
    return np.stack(columns, 1)


def greedy_counts(errors: np.ndarray, steps: int) -> np.ndarray:
    """(b, m) shares of greedy selection with replacement (Caruana 2004) under b error matrices (b, m, m).

    errors[b, i, j] = sum of products of the errors of members i and j; the mean of the picks has the quadratic form of
    their counts. Of every path the length of least error is kept.
    """
    bags, members = errors.shape[:2]
    each = np.arange(bags)
    own = np.einsum("bmm->bm", errors)
    counts, against = np.zeros((bags, members)), np.zeros((bags, members))
    total, least = np.zeros(bags), np.full(bags, np.inf)
    best = counts.copy()
    for step in range(1, steps + 1):
        after = total[:, None] + 2 * against + own
        pick = after.argmin(1)
        total = after[each, pick]
        against += errors[each, pick]
        counts[each, pick] += 1
        better = total / step**2 < least * (1 - ZERO)
        least[better] = total[better] / step**2
        best[better] = counts[better] / step
    return best


def fit_greedy(moments: Moments, seed: int) -> np.ndarray:
    """(m,) greedy selection on bags of groups drawn with replacement, averaged, times `scale_of`."""
    square, cross = moments["pp"].sum(1), moments["py"].sum(1)
    errors = square - cross[:, :, None] - cross[:, None, :] + moments["yy"].sum(1)[:, None, None]
    groups = len(errors)
    drawn = np.random.default_rng(seed).multinomial(groups, np.full(groups, 1 / groups), BAGS).astype(np.float64)
    chosen = greedy_counts(np.tensordot(drawn, errors, 1), STEPS).mean(0)
    return scale_of(chosen, moments) * chosen


BLENDS = {"mean": fit_mean, "weights": fit_weights, "per-target": fit_per_target, "greedy": fit_greedy}


def fit_members(moments: Moments, kind: str, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Weights (m,) or (m, k) of the blend `kind` and the (m,) mask of sound members; all others weigh exactly 0.

    The rule for broken members is one for all kinds: who is no better than a constant takes no part.
    """
    if kind not in BLENDS:
        raise InputError(f"--blend {kind}: choose one of {', '.join(BLENDS)}")
    sound = sound_members(moments)
    inside = moments | {"pp": moments["pp"][..., sound, :][..., sound], "py": moments["py"][..., sound]}
    fitted = BLENDS[kind](inside, seed)
    weights = np.zeros((len(sound), *fitted.shape[1:]))
    weights[sound] = np.where(fitted > ZERO, fitted, 0)
    return weights, sound


def combine(preds: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """preds (m, n, k) and weights (m,) or (m, k) -> (n, k)."""
    weights = weights if weights.ndim == 2 else np.repeat(weights[:, None], preds.shape[2], 1)
    return np.einsum("mnk,mk->nk", preds, weights)


def fit_blend(
    preds, target, groups, kind: str, seed: int = 0, *, members: Sequence[str], weights=WEIGHTS, valid=None
) -> dict:
    """A blend of m prediction sets as plain JSON: format, kind, members, weights (m,) or (m, k), dropped, seed.

    preds: (m, n, k), target: (n, k) grams, before post-processing; groups: (n,), what the greedy bags draw; members: m
    names; dropped: {name: score} of the members no better than a constant, which weigh 0.
    """
    if len(members) != len(preds) or len(set(members)) != len(members):
        raise InputError(f"blend: {len(preds)} sets need as many different names, got {listed(members)}")
    moments = group_moments(preds, target, groups, weights=weights, valid=valid)
    fitted, sound = fit_members(moments, kind, seed)
    total = {name: moments[name].sum() for name in ("yy", "y", "n")}
    spread = total["yy"] - total["y"] ** 2 / total["n"]
    scores = 1 - member_errors(moments) / spread if spread > 0 else np.full(len(sound), np.nan)
    return {
        "format": FORMAT,
        "kind": kind,
        "members": list(members),
        "weights": fitted.tolist(),
        "dropped": {name: float(score) for name, score, ok in zip(members, scores, sound, strict=True) if not ok},
        "rows": len(target),
        "groups": len(moments["n"]),
        "seed": int(seed),
    }


def used_members(blend: dict, given: Iterable[str]) -> dict[str, np.ndarray]:
    """{member: its weight or weights} of those that weigh anything; `given` are the names of what is to be blended.

    InputError where one of them is not given, a given one is no member, or nothing weighs anything.
    """
    weights, given = np.asarray(blend["weights"], np.float64), list(given)
    used = {name: weight for name, weight in zip(blend["members"], weights, strict=True) if np.any(weight)}
    missing = [name for name in used if name not in given]
    surplus = [name for name in given if name not in blend["members"]]
    for names, fault in ((missing, "lacks members"), (surplus, "has sets the blend does not know")):
        if names:
            members = ", ".join(blend["members"])
            raise InputError(f"blend: what is to be blended {fault}: {listed(names)}; its members are {members}")
    if not used:
        raise InputError("blend: all its weights are zero; fit it again")
    return used


def apply_blend(blend: dict, preds: Mapping[str, np.ndarray]) -> np.ndarray:
    """The blend (n, k) of {member: (n, k)} before post-processing.

    The names must be the blend's; only members of weight 0 may be absent. InputError otherwise.
    """
    weights, used = np.asarray(blend["weights"], np.float64), used_members(blend, preds)
    stack = np.stack([np.asarray(preds[name], np.float64) for name in used])
    if weights.ndim == 2 and stack.shape[2] != weights.shape[1]:
        raise InputError(f"blend: weights for {weights.shape[1]} targets, predictions have {stack.shape[2]}")
    return combine(stack, np.stack(list(used.values())))


def save_blend(path: str | Path, blend: dict) -> Path:
    """Write a blend of fit_blend (further keys are kept) as JSON, atomically, after the checks of load_blend."""
    return atomic_write(path, json.dumps(checked_blend(blend, path), indent=1, allow_nan=False) + "\n")


def load_blend(path: str | Path) -> dict:
    """Read a saved blend; InputError naming the file where it is not one."""
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path}: no such file; save a blend first (ensemble.py --save-blend)")
    return checked_blend(read_json(path, wanted=None, remedy="save the blend again"), path)


def checked_blend(blend: dict, path: str | Path) -> dict:
    """`blend` itself if format, kind, members and weights are those of a blend; InputError naming `path` else."""
    if not isinstance(blend, dict) or blend.get("format") != FORMAT:
        raise InputError(f"{path}: not a blend of this version ({FORMAT}); fit it again (ensemble.py --save-blend)")
    members = blend.get("members")
    if str(blend.get("kind")) not in BLENDS or not isinstance(members, list) or not members:
        raise InputError(f"{path}: kind or members are missing or unknown; fit the blend again")
    if len(set(map(str, members))) != len(members):
        raise InputError(f"{path}: members occur more than once: {listed(members)}; fit the blend again")
    try:
        weights = np.asarray(blend.get("weights"), np.float64)
    except (TypeError, ValueError):
        weights = np.zeros(0)
    if weights.ndim not in (1, 2) or len(weights) != len(members) or not (np.isfinite(weights) & (weights >= 0)).all():
        raise InputError(f"{path}: needs one weight at or above zero per member ({len(members)}); fit the blend again")
    return blend
