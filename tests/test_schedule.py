"""The learning rate as a function of epoch and step, against the formulas written out."""

import math

import pytest
import torch

from common.engine.schedule import Stage, lr_factor, set_lr, stage_at


def test_warm_up_then_half_a_cosine():
    assert lr_factor(0.0, 10, 2) == pytest.approx(0.01) and lr_factor(1.0, 10, 2) == pytest.approx(0.505)
    assert lr_factor(2.0, 10, 2) == pytest.approx(1.0)
    assert lr_factor(6.0, 10, 2) == pytest.approx(0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi / 2)))
    assert lr_factor(10.0, 10, 2) == lr_factor(11.0, 10, 2) == pytest.approx(0.01)
    assert lr_factor(0.0, 10, 0) == pytest.approx(1.0)


def test_stages_follow_each_other():
    stages = [Stage(2, {"backbone": 0.0}), Stage(3, {})]
    assert [stage_at(stages, epoch)[0] for epoch in range(5)] == [0, 0, 1, 1, 1]
    assert [stage_at(stages, epoch)[2] for epoch in range(5)] == [0, 1, 0, 1, 2]
    with pytest.raises(ValueError):
        stage_at(stages, 5)


def test_every_group_has_its_own_rate():
    weights = [torch.nn.Parameter(torch.zeros(1)) for _ in range(2)]
    groups = [{"params": [weights[0]], "lr": 1.0, "lr0": 1.0, "part": "head"},
              {"params": [weights[1]], "lr": 0.1, "lr0": 0.1, "part": "backbone"}]  # fmt: skip
    optimizer = torch.optim.SGD(groups)
    stages = [Stage(1, {"backbone": 0.0, "head": 5.0}), Stage(4, {})]
    assert set_lr(optimizer, stages, 0, 0, 2) == pytest.approx(5 * lr_factor(0.5, 1, 0))
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([5 * lr_factor(0.5, 1, 0), 0])
    set_lr(optimizer, stages, 3, 1, 2)  # two epochs done in the second stage, the second of two steps
    factor = lr_factor(3.0, 4, 0)
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([factor, 0.1 * factor])
