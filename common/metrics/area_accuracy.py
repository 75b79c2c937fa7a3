"""Accuracy of a map and areas of its classes, estimated from a sample of pixels drawn class by class of the map."""

from typing import NamedTuple

import numpy as np

from common.errors import InputError

NORMAL = 1.959964  # standard errors on either side that hold 95 %


class Estimate(NamedTuple):
    """Values with standard errors and 95 % intervals (cut at 0 and 1); nan where the sample does not tell."""

    value: np.ndarray
    error: np.ndarray
    low: np.ndarray
    high: np.ndarray


class AreaAccuracy(NamedTuple):
    overall: Estimate  # () share of the area that is mapped right
    users: Estimate  # (K,) of what is mapped as the class, how much is it (precision)
    producers: Estimate  # (K,) of what is the class, how much is mapped so (recall)
    share: Estimate  # (K,) share of the area that is the class in truth
    mapped: np.ndarray  # (K,) share of the area that is mapped as the class


def olofsson(counts, mapped_area) -> AreaAccuracy:
    """Olofsson et al. 2014 (Remote Sensing of Environment 148), equations 1 to 11.

    counts (K,K) [true, pred]: the sample, one pixel each; mapped_area (K,): area or pixels of every class of the map
    in any unit (areas of the truth are `share` times its sum). The sample is taken for a random one within each mapped
    class: of neighbouring pixels, which resemble each other, the intervals come out too narrow. A class that is mapped
    but not in the sample leaves all but the other classes' users unknown (nan), one single pixel the errors.
    InputError for shapes that do not fit, negative numbers or no area.
    """
    sample, area = np.asarray(counts, np.float64).T, np.asarray(mapped_area, np.float64)  # the paper's [map, truth]
    if sample.ndim != 2 or sample.shape != (len(sample), len(sample)) or area.shape != (len(sample),):
        raise InputError(f"area accuracy: counts {sample.shape} and areas {area.shape}; (K,K) and (K,) are needed")
    if not (sample.min() >= 0 and area.min() >= 0 and 0 < area.sum() < np.inf and np.isfinite(sample).all()):
        raise InputError("area accuracy: counts and areas must be from 0 up, and some area above it")
    drawn, weight = sample.sum(1), area / area.sum()
    with np.errstate(invalid="ignore", divide="ignore"):
        within = np.where(weight[:, None] > 0, sample / drawn[:, None], 0.0)  # p of the truth in a mapped class
        noise = np.where(weight[:, None] > 0, within * (1 - within) / (drawn - 1)[:, None], 0.0)  # its variance
        share = weight @ within
        right = np.diagonal(within)
        users, users_noise = np.where(weight > 0, right, np.nan), np.diagonal(noise)
        producers = weight * right / share
        # equation 7, the areas as shares of their sum
        others = (weight[:, None] ** 2 * noise).sum(0) - weight**2 * users_noise
        producers_noise = (weight**2 * (1 - producers) ** 2 * users_noise + producers**2 * others) / share**2
        return AreaAccuracy(
            overall=estimate(weight @ right, weight**2 @ users_noise),
            users=estimate(users, np.where(weight > 0, users_noise, np.nan)),
            producers=estimate(producers, producers_noise),
            share=estimate(share, weight**2 @ noise),
            mapped=weight,
        )


def estimate(value, variance) -> Estimate:
    value, error = np.asarray(value, np.float64), np.sqrt(np.asarray(variance, np.float64))
    return Estimate(value, error, np.clip(value - NORMAL * error, 0, 1), np.clip(value + NORMAL * error, 0, 1))
