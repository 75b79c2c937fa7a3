"""Scikit-learn heads on a table of features: ridge, support vectors, Gaussian process, extremely random trees.

A fitted head is kept as its training table and settings, plain tensors that load without executing anything, and is
fitted again when it is loaded: with a few hundred rows that takes less than a second, and every fit is deterministic.
"""

import warnings
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from sklearn.decomposition import PCA
from sklearn.ensemble import ExtraTreesRegressor
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import RBF, ConstantKernel, DotProduct, WhiteKernel
from sklearn.model_selection import GroupKFold
from sklearn.svm import SVR

from common.errors import InputError

CLASSICAL_VERSION = 1
WEIGHTS = (0.1, 0.1, 0.1, 0.2, 0.5)
# Standardised features beyond this are cut: a photo of an unseen kind must not be extrapolated without bound.
CLIP = 4.0
ALPHAS = tuple(float(a) for a in np.geomspace(0.01, 30, 25))
PROBES = 8
CHOICES = ("evidence", "groups")

FORWARD = {"none": lambda y: y, "sqrt": lambda y: np.sqrt(np.maximum(y, 0)), "log1p": lambda y: np.log1p(y.clip(0))}
# Predictions in log grams are cut at 400 g, over twice the largest mass, before they are inverted.
INVERSE = {
    "none": lambda p: p,
    "sqrt": lambda p: np.maximum(p, 0) ** 2,
    "log1p": lambda p: np.expm1(np.clip(p, 0, np.log1p(400))),
}


@dataclass(frozen=True)
class Scaler:
    """Standardisation of features, and where asked their principal components (whitened)."""

    mean: np.ndarray
    scale: np.ndarray
    pca: PCA | None

    def __call__(self, x: np.ndarray) -> np.ndarray:
        z = np.clip((x - self.mean) / self.scale, -CLIP, CLIP)
        return self.pca.transform(z) if self.pca else z


def fit_scaler(x: np.ndarray, components: int, seed: int) -> Scaler:
    """components: number of principal components, 0 for none; cut to what the rows allow."""
    deviation = x.std(0)
    scale = np.where(deviation > 1e-9 * (1 + np.abs(x.mean(0))), deviation, 1.0)
    plain = Scaler(x.mean(0), scale, None)
    count = min(components, len(x) - 1, x.shape[1])
    if not components:
        return plain
    return Scaler(plain.mean, scale, PCA(count, whiten=True, svd_solver="full", random_state=seed).fit(plain(x)))


def grouped_parts(groups: np.ndarray, seed: int, repeats: int = 2, parts: int = 5) -> list[tuple]:
    """(fit rows, held-out rows) of a grouped cross-validation inside the training rows; none with a single group."""
    count = min(parts, len(np.unique(groups)))
    if count < 2:
        return []
    folds = [GroupKFold(count, shuffle=True, random_state=seed + repeat) for repeat in range(repeats)]
    splits = [split for fold in folds for split in fold.split(groups, groups=groups)]
    return [(fit, held) for fit, held in splits if len(fit) > 2]


def ridge_path(a: np.ndarray, y: np.ndarray, b: np.ndarray, alphas) -> np.ndarray:
    """Ridge predictions (alphas, rows of b, K) from one eigendecomposition; the penalty is alpha times the columns."""
    centre, mean = a.mean(0), y.mean(0)
    a, b = a - centre, b - centre
    values, vectors = np.linalg.eigh(a @ a.T)
    values, left, right = np.maximum(values, 0), b @ a.T @ vectors, vectors.T @ (y - mean)
    return np.stack([left @ (right / (values + alpha * a.shape[1])[:, None]) + mean for alpha in alphas])


def evidence(a: np.ndarray, y: np.ndarray, alphas) -> np.ndarray:
    """Log marginal likelihood (alphas,) of standardised targets under y ~ N(0, s (a a' / columns + alpha)), all
    targets with one s, which is profiled out: ridge regression as a Gaussian process (MacKay 1992)."""
    a, scale = a - a.mean(0), y.std(0)
    z = (y - y.mean(0)) / np.where(scale > 1e-9, scale, 1)
    values, vectors = np.linalg.eigh(a @ a.T / a.shape[1])
    energy = ((vectors.T @ z) ** 2).sum(1)
    found = []
    for alpha in alphas:
        variance = np.maximum(values, 0) + alpha
        size = max((energy / variance).sum() / z.size, 1e-12)
        found.append(-0.5 * (z.size * np.log(size) + z.shape[1] * np.log(variance).sum()))
    return np.array(found)


def grouped_score(x, y, groups, seed, params, alphas) -> np.ndarray:
    """Minus the weighted squared error in grams (alphas,) of a grouped cross-validation; zeros with a single group."""
    forward, inverse, errors = FORWARD[params["targets"]], INVERSE[params["targets"]], np.zeros(len(alphas))
    for fit, held in grouped_parts(groups, seed):
        scaler = fit_scaler(x[fit], params["components"], seed)
        for k, z in enumerate(ridge_path(scaler(x[fit]), forward(y[fit]), scaler(x[held]), alphas)):
            errors[k] += ((np.maximum(inverse(z), 0) - y[held]) ** 2 @ target_weights(y)).sum()
    return -errors


def fit_ridge(x, y, groups, seed, params) -> Callable:
    """Ridge regression; the penalty as given, or the one of the best evidence or grouped cross-validated score.

    Evidence is the default: on 91 photos in 23 groups the grouped choice jumped between .04 and 1.6 and cost .06.
    """
    scaler, inverse, alpha = fit_scaler(x, params["components"], seed), INVERSE[params["targets"]], params["alpha"]
    scaled, z = scaler(x), FORWARD[params["targets"]](y)
    if not alpha:
        by_groups = params["choose"] == "groups"
        scores = grouped_score(x, y, groups, seed, params, ALPHAS) if by_groups else evidence(scaled, z, ALPHAS)
        alpha = ALPHAS[int(scores.argmax())]
    return lambda rows: inverse(ridge_path(scaled, z, scaler(rows), (alpha,))[0])


def target_weights(y: np.ndarray) -> np.ndarray:
    """The metric's weights where the targets are its five, else equal ones."""
    return np.array(WEIGHTS) if y.shape[1] == len(WEIGHTS) else np.full(y.shape[1], 1 / y.shape[1])


def fit_each_target(x, y, seed, params, make) -> Callable:
    """One scikit-learn regressor per target on standardised features and standardised (transformed) targets."""
    scaler, z = fit_scaler(x, params["components"], seed), FORWARD[params["targets"]](y)
    mean, scale = z.mean(0), np.maximum(z.std(0), 1e-9)
    scaled = scaler(x)
    fitted = [make(scaled.shape[1]).fit(scaled, (z[:, k] - mean[k]) / scale[k]) for k in range(y.shape[1])]

    def predict(rows):
        together = np.stack([one.predict(scaler(rows)) for one in fitted], 1)
        return INVERSE[params["targets"]](together * scale + mean)

    return predict


def fit_svr(x, y, groups, seed, params) -> Callable:
    """Support vector regression, RBF kernel; gamma is in units of 1 / columns."""

    def make(columns):
        # the usual tolerance of 1e-3 leaves .2 % to the order of the arithmetic: a refit would not repeat
        return SVR(C=params["c"], gamma=params["gamma"] / columns, epsilon=params["epsilon"], tol=1e-7)

    return fit_each_target(x, y, seed, params, make)


def fit_gp(x, y, groups, seed, params) -> Callable:
    """Gaussian process, linear plus RBF kernel and noise; kernel sizes by marginal likelihood."""

    def make(columns):
        wide = (1e-3, 1e3)
        kernel = ConstantKernel(0.5 / columns, wide) * DotProduct(0, "fixed")
        if params["rbf"]:
            kernel += ConstantKernel(0.5, wide) * RBF(columns**0.5, (0.1 * columns**0.5, 30 * columns**0.5))
        return GaussianProcessRegressor(kernel + WhiteKernel(0.5, (0.02, 3.0)), random_state=seed)

    with warnings.catch_warnings():
        # A kernel size at its bound is an answer (no such component), not a failure.
        warnings.filterwarnings("ignore", module="sklearn.gaussian_process")
        return fit_each_target(x, y, seed, params, make)


def fit_extratrees(x, y, groups, seed, params) -> Callable:
    """Extremely random trees on all targets together: predictions stay inside the range of the training masses."""
    trees = ExtraTreesRegressor(
        params["trees"], min_samples_leaf=params["leaf"], max_features=params["share"], random_state=seed
    )
    scaler = fit_scaler(x, params["components"], seed)
    trees.fit(scaler(x), FORWARD[params["targets"]](y))
    return lambda rows: INVERSE[params["targets"]](trees.predict(scaler(rows)).reshape(len(rows), -1))


HEADS = {"ridge": fit_ridge, "svr": fit_svr, "gp": fit_gp, "extratrees": fit_extratrees}
# Masses are skewed with many zeros: on the 91 photos the square root gained .01 to .04 for all but the trees.
COMMON = {"targets": "sqrt", "components": 0}
DEFAULTS = {
    "ridge": {**COMMON, "alpha": 0.0, "choose": "evidence"},
    "svr": {**COMMON, "c": 10.0, "gamma": 0.1, "epsilon": 0.1},
    "gp": {**COMMON, "rbf": True},
    "extratrees": {**COMMON, "targets": "none", "trees": 300, "leaf": 3, "share": 0.3},
}


@dataclass(frozen=True)
class ClassicalHead:
    """A fitted head: kind, settings, the table it was fitted on, and the function that predicts."""

    kind: str
    x: np.ndarray
    y: np.ndarray
    groups: np.ndarray
    seed: int
    params: dict
    function: Callable

    def predict(self, x) -> np.ndarray:
        """(n, D) features -> (n, K) grams, float64, at or above zero."""
        x = np.asarray(x, np.float64)
        if x.ndim != 2 or x.shape[1] != self.x.shape[1]:
            raise InputError(f"--head {self.kind}: fitted on {self.x.shape[1]} features a row, given shape {x.shape}")
        return np.maximum(self.function(x), 0)

    def state(self) -> dict:
        """Plain values and tensors that `from_state` turns into this head again, with some of its own predictions."""
        return {
            "version": CLASSICAL_VERSION,
            "kind": self.kind,
            "seed": self.seed,
            "params": dict(self.params),
            "x": torch.from_numpy(self.x.copy()),
            "y": torch.from_numpy(self.y.copy()),
            "groups": torch.from_numpy(self.groups.copy()),
            "probe": torch.from_numpy(self.predict(self.x[:PROBES])),
        }

    @classmethod
    def from_state(cls, state: dict) -> "ClassicalHead":
        """The head fitted again; warns where another scikit-learn makes it predict otherwise than it did."""
        if state.get("version") != CLASSICAL_VERSION:
            raise InputError(f"--head {state.get('kind')}: stored by another version of this code; train it again")
        x, y, groups = (state[name].numpy() for name in ("x", "y", "groups"))
        head = fit_head(state["kind"], x, y, groups=groups, seed=state["seed"], params=state["params"])
        off = np.abs(head.predict(x[:PROBES]) - state["probe"].numpy()).max()
        if off > 1e-3 * (1 + np.abs(state["probe"].numpy()).max()):
            warnings.warn(f"{head.kind} head predicts up to {off:.3g} g otherwise than when it was saved", stacklevel=2)
        return head


def fit_head(kind: str, x, y, *, groups=None, seed: int = 0, params: dict | None = None) -> ClassicalHead:
    """Fit a head of HEADS on features x (n, D) and masses y (n, K) in grams.

    groups (n,): any labels that a choice by cross-validation keeps together (default: each row by itself).
    params overrides DEFAULTS[kind]; "targets" is none, sqrt or log1p; "components" > 0 reduces the features to that
    many principal components. Equal rows, groups and seed give equal heads.
    InputError: unknown kind or setting, values that are not finite, fewer than 5 rows.
    """
    if kind not in HEADS:
        raise InputError(f"--head {kind}: unknown; choose one of {', '.join(HEADS)}")
    unknown = sorted(set(params or {}) - set(DEFAULTS[kind]))
    if unknown:
        raise InputError(f"--head {kind}: no setting {unknown[0]}; it has {', '.join(DEFAULTS[kind])}")
    settings = {**DEFAULTS[kind], **(params or {})}
    if settings["targets"] not in FORWARD:
        raise InputError(f"--head {kind}: targets {settings['targets']}; choose one of {', '.join(FORWARD)}")
    if settings.get("choose") not in (None, *CHOICES):
        raise InputError(f"--head {kind}: choose {settings['choose']}; it is one of {', '.join(CHOICES)}")
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    if x.ndim != 2 or y.ndim != 2 or len(x) != len(y) or len(x) < 5:
        raise InputError(f"--head {kind}: needs at least 5 rows of features and targets, given {x.shape} and {y.shape}")
    for name, table in (("features", x), ("targets", y)):
        if not np.isfinite(table).all():
            raise InputError(f"--head {kind}: row {int((~np.isfinite(table)).any(1).argmax())} has {name} not finite")
    names = np.arange(len(x)) if groups is None else np.asarray(groups)
    numbers = np.unique(names, return_inverse=True)[1].astype(np.int64)
    return ClassicalHead(kind, x, y, numbers, seed, settings, HEADS[kind](x, y, numbers, seed, settings))


def pool_features(features) -> np.ndarray:
    """Stored features (n, 2, N, D) -> (n, D): the mean over halves and cells, in float64."""
    return np.asarray(features, np.float64).mean((1, 2))
