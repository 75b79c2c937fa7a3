"""The order of rows: a pure function of (seed, epoch), the same for one process and for many."""

import numpy as np
import torch
from torch.utils.data import Dataset, Sampler

from common.datasets.workers import Loader


def epoch_order(count: int, seed: int, epoch: int) -> np.ndarray:
    return np.random.default_rng([seed, epoch]).permutation(count)


class EpochBatches(Sampler):
    """Batches of (epoch, index) keys. Rank r of W takes every W-th row of each global batch, so that W processes see
    the rows that one would see. A rank left without a row gets the batch's first as padding: marked by ~index, so that
    it has no weight in a loss, or, without `mark`, as it is: what is predicted twice must be the same both times."""

    def __init__(
        self, count: int, batch_size: int, *, seed: int, shuffle: bool = True, rank: int = 0, world: int = 1, mark=True
    ):
        self.count, self.batch_size, self.seed, self.shuffle = count, batch_size, seed, shuffle
        self.rank, self.world, self.epoch, self.mark = rank, world, 0, mark

    def __len__(self) -> int:
        return -(-self.count // self.batch_size)

    def rows_of(self, step: int) -> int:
        """Rows of a global batch, of all processes together."""
        return min(self.batch_size, self.count - step * self.batch_size)

    def __iter__(self):
        order = epoch_order(self.count, self.seed, self.epoch) if self.shuffle else np.arange(self.count)
        for start in range(0, self.count, self.batch_size):
            rows = order[start : start + self.batch_size]
            mine = rows[self.rank :: self.world]
            keys = [(self.epoch, int(row)) for row in mine]
            yield keys or [(self.epoch, ~int(rows[0]) if self.mark else int(rows[0]))]


class WholeShares(Sampler):
    """Batches of (0, index) keys in the order of the rows, whole: rank r of W takes every W-th. Any number of processes
    then predicts the very same batches, on whose sizes the last digits depend. A rank for which the last step has none
    takes the first of that step once more."""

    def __init__(self, count: int, batch_size: int, *, rank: int = 0, world: int = 1):
        self.count, self.batch_size, self.rank, self.together = count, batch_size, rank, batch_size * world

    def __len__(self) -> int:
        return -(-self.count // self.together)

    def rows_of(self, step: int) -> int:
        """Rows of a step, of all processes together."""
        return min(self.together, self.count - step * self.together)

    def __iter__(self):
        for first in range(0, self.count, self.together):
            own = first + self.rank * self.batch_size
            start = own if own < self.count else first
            yield [(0, row) for row in range(start, min(start + self.batch_size, self.count))]


def as_padding(sample: dict) -> dict:
    """The sample or batch with nothing known in it: neither a target nor an auxiliary label has any weight."""
    sample = dict(sample) | {"valid": torch.zeros_like(sample["valid"])}
    if "aux" in sample:
        sample["aux"] = {name: torch.zeros_like(label) for name, label in sample["aux"].items()}
    return sample


class PaddedDataset(Dataset):
    """A dataset whose key (epoch, ~index) gives the row with nothing valid in it: it has no weight in any loss."""

    def __init__(self, dataset: Dataset):
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, key):
        epoch, index = key
        if index >= 0:
            return self.dataset[(epoch, index)]
        return as_padding(self.dataset[(epoch, ~index)])

    def __getitems__(self, keys: list) -> list[dict]:
        """The samples of a batch, made together by a dataset that can (its images then need no copy)."""
        if hasattr(self.dataset, "__getitems__") and all(index >= 0 for _, index in keys):
            return self.dataset.__getitems__(keys)
        return [self[key] for key in keys]


class WholeBatches:
    """Batches from a dataset that makes them itself (`get_batch(epoch, indices)`), without loader or workers."""

    def __init__(self, dataset, batch_sampler: Sampler):
        self.dataset, self.batch_sampler = dataset, batch_sampler

    def __len__(self) -> int:
        return len(self.batch_sampler)

    def __iter__(self):
        for keys in self.batch_sampler:
            batch = self.dataset.get_batch(keys[0][0], [index if index >= 0 else ~index for _, index in keys])
            yield as_padding(batch) if keys[0][1] < 0 else batch


def make_loader(dataset, batches: Sampler, *, workers: int, collate=None, init_worker=None, pin: bool = False):
    """The loader of a dataset: whole batches where the dataset can make them, else a DataLoader over (epoch, index)."""
    if hasattr(dataset, "get_batch"):
        return WholeBatches(dataset, batches)
    return Loader(
        PaddedDataset(dataset),
        batch_sampler=batches,
        num_workers=workers,
        collate_fn=collate,
        init_worker=init_worker,
        persistent_workers=workers > 0,
        pin_memory=pin,
    )
