"""Class probabilities of ordinal levels against slow formulas in float64; finite at the extremes."""

import numpy as np
import pytest
import torch

from common.errors import InputError
from common.ordinal import HEADS, class_logits, head_outputs, susceptibility


def sigmoid(x):
    return np.exp(-np.logaddexp(0, -np.asarray(x, np.float64)))


def falling(*shape, seed=0, kind=torch.float32):
    """Levels of a CORAL head: a score and biases that fall."""
    rng = np.random.default_rng(seed)
    score = rng.normal(0, 4, (shape[0], 1, *shape[2:]))
    steps = -rng.gamma(1, 1, shape[1]).cumsum().reshape(1, -1, *[1] * len(shape[2:]))
    return torch.tensor(score + steps + 1.0, dtype=kind)


def probabilities(levels, head):
    """(K, ...) from the levels (L, ...) of one image by the definitions."""
    above = sigmoid(levels)
    if head == "corn":
        above = np.cumprod(above, 0)
    edge = np.ones_like(above[:1])
    reached = np.concatenate([edge, above, 0 * edge])
    return reached[:-1] - reached[1:]


@pytest.mark.parametrize("classes", [2, 3, 6])
@pytest.mark.parametrize("head", ["coral", "corn"])
def test_softmax_of_the_class_logits_are_the_probabilities_of_the_levels(head, classes):
    levels = falling(3, classes - 1, 5, 4)
    logits = class_logits(levels, head)
    assert logits.shape == (3, classes, 5, 4) and logits.dtype == torch.float32
    expected = np.stack([probabilities(one, head) for one in levels.numpy()])
    np.testing.assert_allclose(logits.softmax(1).numpy(), expected, atol=1e-6)
    np.testing.assert_allclose(logits.exp().numpy(), expected, atol=1e-6)  # they are normalised already
    assert head_outputs(head, classes) == classes - 1 and head_outputs("softmax", classes) == classes


def test_tiny_probabilities_keep_their_digits():
    levels = torch.tensor([[40.0, 39.0], [-39.0, -40.0], [1e-3, 0.0]]).reshape(3, 2, 1, 1)
    exact = [
        (-40.0, -39.0 + np.log(1 - np.exp(-1)), 0.0),
        (0.0, -39.0 + np.log(1 - np.exp(-1)), -40.0),
        (np.log(0.5 - 2.5e-4), np.log(2.5e-4), np.log(0.5)),
    ]
    np.testing.assert_allclose(class_logits(levels, "coral")[..., 0, 0].numpy(), exact, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("head", ["coral", "corn"])
@pytest.mark.parametrize("levels", [(9e9, -9e9), (9e9, 9e9), (-9e9, -9e9), (np.inf, -np.inf), (0, 0), (-1.0, 1.0)])
def test_finite_with_a_finite_gradient_whatever_the_levels(head, levels):
    levels = torch.tensor(levels, dtype=torch.float32).reshape(1, 2, 1, 1).requires_grad_()
    logits = class_logits(levels, head)
    assert logits.isfinite().all() and logits.softmax(1).sum().item() == pytest.approx(1)
    (grad,) = torch.autograd.grad(logits.log_softmax(1).sum(), levels)
    assert grad.isfinite().all()
    broken = torch.full((1, 2, 1, 1), torch.nan)
    assert class_logits(broken, head).isnan().any()


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16])
def test_half_precision_is_widened_first(head, kind):
    levels = falling(1, 2, 9, 9, kind=kind)
    logits = class_logits(levels, head)
    assert logits.dtype == torch.float32 and torch.equal(logits, class_logits(levels.float(), head))


@pytest.mark.parametrize("head", ["coral", "corn"])
def test_gradients_are_those_of_the_numbers(head):
    levels = falling(2, 3, 2, 2, seed=3, kind=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: class_logits(x, head), levels)


def test_susceptibility_of_tensors_and_arrays():
    prob = np.random.default_rng(0).dirichlet([1, 1, 1], (4, 5)).transpose(0, 2, 1).astype(np.float32)
    expected = 0.5 * prob[:, 1].astype(np.float64) + prob[:, 2]
    for given in (prob, torch.tensor(prob)):
        mine = susceptibility(given, 1)
        assert type(mine) is type(given) and mine.shape == (4, 5)
        np.testing.assert_allclose(np.asarray(mine), expected, atol=1e-6)
    five = np.eye(5, dtype=np.float16)
    np.testing.assert_array_equal(susceptibility(five, -1), [0, 0.25, 0.5, 0.75, 1])
    assert susceptibility(torch.tensor(five), 0).dtype == torch.float32


def test_unknown_heads_and_one_class_are_refused():
    with pytest.raises(InputError, match="--head corral: choose one of softmax, coral, corn"):
        head_outputs("corral", 3)
    with pytest.raises(InputError, match="--head corn: 1 class; at least 2"):
        head_outputs("corn", 1)
