"""Weights on windows for a wanted share of every class: how near one can come, and the most even way to come there."""

import numpy as np
from scipy.optimize import linprog, minimize

GIVE = 0.01  # how much more than the least possible deviation the best attainable shares may have, for rare classes
RESTARTS = 30
PRECISE = {"maxiter": 3000, "maxfun": 6000, "ftol": 1e-14, "gtol": 1e-7, "maxcor": 30}
PRESSURE = 12.0  # largest multiplier of a boost: where it and the target disagree, the target wins


def nearest_shares(counts: np.ndarray, target: np.ndarray, *, give: float = GIVE, windows: int = 1) -> np.ndarray:
    """(K,) shares nearest to `target` that weights on rows of counts (n, K) can show: the largest deviation within
    `give` of the least possible; in that room, the least sum of shortfalls, each as a part of its target, so that a
    rare class is not given up for a little less of a common one. No row has more than 1/windows of the pixels. Two
    linear programmes over the rows' share vectors."""
    counts = counts[counts.sum(axis=1) > 0]
    shares = counts / counts.sum(axis=1, keepdims=True)
    price = np.divide(1.0, target, out=np.zeros(len(target)), where=target > 0)
    limit = 1 / min(windows, len(shares))
    near = np.argsort(np.abs(shares - target).sum(axis=1), kind="stable")[: max(32, windows)]
    used = np.unique(np.concatenate([near, shares.argmax(axis=0), shares.argmin(axis=0)]))
    found, largest, used = _solve_shares(shares, target, used, limit, (0 * price, 1.0, None))
    return _solve_shares(shares, target, used, limit, (price, 1e-6, largest + give))[0] if give else found


def _solve_shares(shares, target, used, limit: float, aims):
    """Shares (K,), their largest deviation, and the rows in use, at the least cost. aims: price of the shortfalls (K,),
    cost of the largest deviation, its limit. A row has at most `limit` of the pixels; rows are added to those in use
    while one of the others has a negative reduced cost."""
    k, (price, cost_largest, largest) = len(target), aims
    none, one = np.zeros((k, k)), np.ones((k, 1))
    bound = np.concatenate([target, -target, -target])
    for _ in range(200):
        now = shares[used].T
        cost = np.concatenate([np.zeros(len(used)), price, [cost_largest]])
        rows = np.block([[now, none, -one], [-now, none, -one], [-now, -np.eye(k), 0 * one]])
        whole = np.concatenate([np.ones(len(used)), np.zeros(k + 1)])[None]
        bounds = [(0, limit)] * len(used) + [(0, None)] * k + [(0, largest)]
        done = linprog(cost, rows, bound, whole, [1.0], bounds=bounds, method="highs")
        dual = done.ineqlin.marginals.reshape(3, k)
        reduced = -(shares @ (dual[0] - dual[1] - dual[2]) + done.eqlin.marginals[0])
        reduced[used] = 0.0
        fresh = np.argsort(reduced, kind="stable")[:32]
        fresh = fresh[reduced[fresh] < -1e-9]
        if not len(fresh):
            break
        used = np.union1d(used, fresh)
    return now @ done.x[: now.shape[1]], done.x[-1], used


def spread_weights(counts, start, *, near, held, wish) -> np.ndarray:
    """(n,) weights of least relative entropy to `start` whose shares are between the two vectors `near` (None: any) and
    whose draws hold each boost as often as `wish`. By the dual problem, with a multiplier for each inequality."""
    labelled = counts.sum(axis=1)
    rows = [wish - held]
    if near is not None:
        below, above = np.outer(labelled, near[0]), np.outer(labelled, near[1])
        # in parts of each class's own share: the multiplier of a rare class is then as large as any other
        scale = labelled.max() * np.maximum(near[1], 1e-6)
        rows += [(counts - above) / scale, (below - counts) / scale]
    rows = np.concatenate(rows, axis=1)
    bounds = [(0, PRESSURE if j < held.shape[1] else None) for j in range(rows.shape[1])]

    def weights(multiplier):
        exponent = -(rows @ multiplier)
        peak = exponent.max()
        return start * np.exp(exponent - peak), peak

    def dual(multiplier):
        weight, peak = weights(multiplier)
        total = weight.sum()
        return np.log(total) + peak, -(weight @ rows) / total

    if not rows.shape[1]:
        return start
    multiplier = np.zeros(rows.shape[1])
    for _ in range(RESTARTS):  # a line search may give up where the dual is flat; a fresh start goes on
        done = minimize(dual, multiplier, jac=True, bounds=bounds, method="L-BFGS-B", options=PRECISE)
        still = np.abs(done.x - multiplier).max() <= 1e-6 * (1 + np.abs(done.x).max())
        multiplier = done.x
        if still or "PROJECTED GRADIENT" in str(done.message):
            break
    weight, _ = weights(multiplier)
    return weight / weight.sum()
