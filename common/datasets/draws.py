"""Random draws as pure functions of (seed, epoch, index, position): the same in any worker, process or resumed run."""

import random

import numpy as np

SWAP = 1_000
MIX = 1_001


def generator(seed: int, epoch: int, index: int, position: int, part: int = 0) -> np.random.Generator:
    """Generator of one decision: `position` says which (an augmentation's place, SWAP, MIX), `part` which half.

    All five are non-negative integers; different tuples give independent streams (NumPy's SeedSequence).
    """
    return np.random.default_rng((seed, epoch, index, position, part))


def python_random(draws: np.random.Generator) -> random.Random:
    """Generator of the standard library, seeded by the next draw of `draws` (albumentations wants one of each)."""
    return random.Random(int(draws.integers(1 << 62)))
