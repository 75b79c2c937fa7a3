"""What is known about the five masses, applied in grams after the model: GDM = Green + Clover, Total = GDM + Dead.

The order is fixed: derive Dead, reconcile with the identities, clamp. Log targets are inverted before any of it.
"""

from itertools import product

import numpy as np
from sklearn.covariance import LedoitWolf

from common.errors import InputError

OUTPUTS = ("Dry_Green_g", "Dry_Dead_g", "Dry_Clover_g", "GDM_g", "Dry_Total_g")
GREEN, DEAD, CLOVER, GDM, TOTAL = range(5)
# Column j: what one gram of Green, Dead or Clover adds to each of the five outputs.
SUMMING = np.array([[1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 0, 1], [1, 1, 1]], np.float64)
FORMAT = "landfold-physics-1"
DEAD_TOLERANCE = 0.15  # of Total: how far the parts may be off before `derive` replaces Dead
HEADROOM = 1.1  # times the training maximum: the upper clamp
LEAST_ROWS = 10  # fewer residuals than this say nothing about a 5 x 5 covariance


def derive_dead(pred: np.ndarray, *, dead: str = "derive", always_correct_dead: bool = False) -> np.ndarray:
    """Copy of pred (n, 5) with Dead = relu(Total - GDM) where the three parts miss Total by more than 15 % of it.

    dead: a key of DEADS; always_correct_dead replaces Dead in every row, whatever `dead` says.
    """
    if dead not in DEADS:
        raise InputError(f"--dead {dead}: choose one of {', '.join(DEADS)}")
    pred = np.array(pred, np.float64)
    parts = pred[:, GREEN] + pred[:, DEAD] + pred[:, CLOVER]
    where = DEADS[dead](np.abs(pred[:, TOTAL] - parts), np.abs(pred[:, TOTAL]))
    where = np.ones_like(where) if always_correct_dead else where
    pred[where, DEAD] = np.maximum(pred[where, TOTAL] - pred[where, GDM], 0)
    return pred


DEADS = {
    "none": lambda miss, total: np.zeros(len(miss), bool),
    "derive": lambda miss, total: miss > DEAD_TOLERANCE * total,
}


def project(pred: np.ndarray, covariance: np.ndarray | None = None) -> np.ndarray:
    """Nearest (n, 5) to pred with both identities and Green, Dead, Clover at or above zero.

    Nearest in e' inv(covariance) e, in grams when None. Exact, not a projection followed by a cut at zero: for each of
    the 8 sets of parts that may be above zero the free optimum is linear in pred; the best one that is feasible is the
    solution of the quadratic programme.
    """
    pred = np.asarray(pred, np.float64)
    inverse = np.eye(5)
    if covariance is not None:
        # The ridge keeps residuals that obey the identities already (a singular covariance) invertible.
        inverse = np.linalg.inv(covariance + 1e-9 * max(np.trace(covariance), 1e-9) * np.eye(5))
    best = np.full(len(pred), np.inf)
    parts = np.zeros((len(pred), 3))
    for free in product([False, True], repeat=3):
        summing = SUMMING[:, free]
        candidate = np.zeros_like(parts)
        if any(free):
            solve = np.linalg.solve(summing.T @ inverse @ summing, summing.T @ inverse)
            candidate[:, free] = pred @ solve.T
        rest = pred - candidate @ SUMMING.T
        distance = np.einsum("ni,ij,nj->n", rest, inverse, rest)
        better = (candidate >= 0).all(1) & (distance < best)
        best[better], parts[better] = distance[better], candidate[better]
    return parts @ SUMMING.T


def fitted_covariance(post: dict | None, kind: str) -> np.ndarray:
    """The (5, 5) residual covariance that fit_post stored for `kind`; InputError where there is none."""
    if not post or not (post.get("covariance") or {}).get(kind):
        remedy = "fit it (ensemble.py --fit-post) or use --reconcile ols"
        raise InputError(f"--reconcile {kind}: post.json lacks the covariance of at least {LEAST_ROWS} rows; {remedy}")
    return np.asarray(post["covariance"][kind], np.float64)


# Each takes pred (n, 5) after derive_dead and what fit_post returned.
RECONCILES = {
    "none": lambda pred, post: pred,
    "ols": lambda pred, post: project(pred),
    "shrunk": lambda pred, post: project(pred, fitted_covariance(post, "shrunk")),
    "mint": lambda pred, post: project(pred, fitted_covariance(post, "mint")),
}
FITTED = ("shrunk", "mint")  # these need a covariance


def fit_post(
    target: np.ndarray, pred: np.ndarray, *, valid=None, dead: str = "none", always_correct_dead: bool = False
) -> dict:
    """What post-processing learns from out-of-fold predictions, as plain JSON.

    target, pred: (n, 5) grams, valid: (n, 5) bool. Keys: `maximum` and `median` of the training targets per output;
    `covariance` of the residuals of whole rows after derive_dead with these settings: `mint` the sample covariance
    (Wickramasuriya, Athanasopoulos, Hyndman 2019, minimum trace), `shrunk` Ledoit and Wolf's (2004) towards a multiple
    of the identity, which is where plain projection lies; `shrinkage` its share. Covariances are None below 10 rows.
    """
    target, pred = np.asarray(target, np.float64), np.asarray(pred, np.float64)
    if target.ndim != 2 or target.shape[1] != 5 or pred.shape != target.shape:
        raise InputError(f"post-processing: target {target.shape} and pred {pred.shape} must both be (rows, 5)")
    valid = np.ones(target.shape, bool) if valid is None else np.asarray(valid, bool)
    known = np.where(valid, target, np.nan)
    if not valid.any(0).all() or not np.isfinite(target[valid]).all() or not np.isfinite(pred).all():
        raise InputError("post-processing: needs a known, finite target in every column and finite predictions")
    whole = valid.all(1)
    residual = (target - derive_dead(pred, dead=dead, always_correct_dead=always_correct_dead))[whole]
    covariance = {"shrunk": None, "mint": None}
    shrinkage = None
    if len(residual) >= LEAST_ROWS:
        shrunk = LedoitWolf().fit(residual)
        shrinkage = float(shrunk.shrinkage_)
        covariance = {"shrunk": shrunk.covariance_.tolist(), "mint": np.cov(residual.T).tolist()}
    return {
        "format": FORMAT,
        "outputs": list(OUTPUTS),
        "rows": int(whole.sum()),
        "maximum": np.nanmax(known, 0).tolist(),
        "median": np.nanmedian(known, 0).tolist(),
        "dead": "always" if always_correct_dead else dead,
        "covariance": covariance,
        "shrinkage": shrinkage,
    }


def check_post(post: dict | None, *, reconcile: str, dead: str, always_correct_dead: bool) -> None:
    """InputError where `post` is not of fit_post, or its covariance is of residuals with other Dead settings."""
    if reconcile not in RECONCILES:
        raise InputError(f"--reconcile {reconcile}: choose one of {', '.join(RECONCILES)}")
    if post is None:
        return
    if not isinstance(post, dict) or post.get("format") != FORMAT or post.get("outputs") != list(OUTPUTS):
        raise InputError(f"post.json: not what this version fits ({FORMAT}); fit it again (ensemble.py --fit-post)")
    wanted = "always" if always_correct_dead else dead
    if reconcile in FITTED and post["dead"] != wanted:
        raise InputError(f"post.json: fitted with --dead {post['dead']}, not {wanted}; fit it again or use the same")


def apply_post(
    pred: np.ndarray,
    post: dict | None = None,
    *,
    dead: str = "none",
    always_correct_dead: bool = False,
    reconcile: str = "ols",
) -> np.ndarray:
    """pred (n, 5) grams -> post-processed (n, 5): derive Dead, reconcile, clamp to [0, 1.1 x training maximum].

    post: of fit_post; None is "uncalibrated": no upper clamp, and `shrunk` and `mint` are refused. A row at the upper
    clamp may break the identities, all others keep what reconciliation gave. InputError on non-finite predictions:
    fill those of unreadable images first.
    """
    check_post(post, reconcile=reconcile, dead=dead, always_correct_dead=always_correct_dead)
    pred = np.asarray(pred, np.float64)
    if pred.ndim != 2 or pred.shape[1] != 5:
        raise InputError(f"post-processing: pred is {pred.shape}, needs (rows, 5)")
    if not np.isfinite(pred).all():
        raise InputError(f"post-processing: {(~np.isfinite(pred)).any(1).sum()} rows are not finite; fill them first")
    pred = derive_dead(pred, dead=dead, always_correct_dead=always_correct_dead)
    pred = RECONCILES[reconcile](pred, post)
    return np.clip(pred, 0, HEADROOM * np.asarray(post["maximum"]) if post else None)


def fill_unreadable(pred: np.ndarray, post: dict | None) -> tuple[np.ndarray, np.ndarray]:
    """Copy of pred (n, 5) whose rows that are not finite hold the training medians, and the (n,) mask of those rows."""
    pred = np.array(pred, np.float64)
    bad = ~np.isfinite(pred).all(1)
    if bad.any() and not post:
        raise InputError(f"{bad.sum()} images without a prediction and no post.json with medians to fill them")
    if bad.any():
        pred[bad] = post["median"]
    return pred, bad
