"""A map of probabilities takes a few times the memory of its file's numbers, and no more than LIMITS says."""

import tracemalloc

import numpy as np
import pytest

from common.datasets.limits import LIMITS
from common.errors import InputError
from common.outputs.masks import both_of, read_probs


@pytest.mark.parametrize("name, shape", [("prob", (4, 16, 17)), ("logit", (32, 33))])
def test_a_map_of_too_many_values_is_refused(tmp_path, monkeypatch, name, shape):
    np.savez_compressed(tmp_path / "a.npz", **{name: np.zeros(shape, bool)})
    monkeypatch.setitem(LIMITS, "map", (1024, *LIMITS["map"][1:]))
    with pytest.raises(InputError, match="values .* in a map, where at most 1,024"):
        read_probs(tmp_path / "a.npz")


def test_logits_become_probabilities_in_place(tmp_path):
    logit = np.linspace(-20, 20, 1024 * 512, dtype=np.float16).reshape(1024, 512)
    np.savez_compressed(tmp_path / "a.npz", logit=logit)
    tracemalloc.start()
    prob = read_probs(tmp_path / "a.npz")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    wide = logit.astype(np.float32)
    np.testing.assert_array_equal(prob, np.stack([1 / (1 + np.exp(sign * wide)) for sign in (1, -1)]))
    assert peak < 16 * logit.size
    np.testing.assert_allclose(both_of(wide).sum(0), 1, rtol=1e-6)
