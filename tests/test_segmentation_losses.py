"""Segmentation losses against libraries and slow formulas; finite and zero where they should be."""

import math

import numpy as np
import pytest
import torch
import torch.multiprocessing as multiprocessing
from torch.nn import functional as F

from common.errors import InputError
from common.losses.segmentation import LOSSES, PHASES, RAMP, build_loss, ramp_share, resolve_parts
from common.losses.segmentation_terms import border_weights

NAMES = ("ground", "ice", "rubble", "water")
ALL = dict.fromkeys(LOSSES, 1.0)


def make(loss, classes=4, **changes):
    return build_loss(**{"loss": loss, "outputs": NAMES[:classes], "ramp": {}, **changes})


def scene(classes=4, size=24, seed=0, missing=0.2):
    """Logits that are partly right, blocks of classes, scattered no data, some of it in whole rows."""
    rng = np.random.default_rng(seed)
    target = rng.integers(0, classes, (3, size // 4, size // 4)).repeat(4, 1).repeat(4, 2)
    valid = rng.random(target.shape) >= missing
    valid[0, :2] = missing == 0
    logits = rng.normal(0, 1.5, (3, classes, size, size)) + 1.5 * np.eye(classes)[target].transpose(0, 3, 1, 2)
    logits = torch.tensor(logits, dtype=torch.float32, requires_grad=True)
    return logits, {"target": torch.tensor(np.where(valid, target, 0)), "valid": torch.tensor(valid), "epoch": 0}


def pixels(logits, batch):
    """Probabilities (n, K) in float64 and classes (n,) of the valid pixels, as NumPy."""
    values = logits.detach().double().permute(0, 2, 3, 1)[batch["valid"]].numpy()
    prob = np.exp(values - values.max(1, keepdims=True))
    return prob / prob.sum(1, keepdims=True), batch["target"][batch["valid"]].numpy()


def ignoring(batch):
    return torch.where(batch["valid"], batch["target"], -100)


def perfect(batch, classes=4, margin=200.0):
    hot = F.one_hot(batch["target"], classes).permute(0, 3, 1, 2)
    return (margin * hot - margin / 2).requires_grad_()


@pytest.mark.parametrize("classes", [2, 3, 4])
def test_cross_entropy_is_that_of_torch(classes):
    logits, batch = scene(classes)
    expected = F.cross_entropy(logits, ignoring(batch))
    out = make("cross-entropy", classes)(logits, batch)
    assert torch.allclose(out["loss"], expected, rtol=1e-5)
    (mine,) = torch.autograd.grad(out["loss"], logits, retain_graph=True)
    (theirs,) = torch.autograd.grad(expected, logits)
    assert torch.allclose(mine, theirs, atol=1e-8)


def test_focal_loss_is_that_of_torchvision_for_two_classes():
    from torchvision.ops import sigmoid_focal_loss

    logits, batch = scene(2)
    known = batch["target"][batch["valid"]].float()
    score = (logits[:, 1] - logits[:, 0])[batch["valid"]]
    for gamma in (0.0, 2.0, 3.0):
        expected = sigmoid_focal_loss(score, known, alpha=0.7, gamma=gamma, reduction="mean")
        out = make("focal", 2, focal_alpha=(0.3, 0.7), focal_gamma=gamma)(logits, batch)
        assert torch.allclose(out["loss"], expected, rtol=1e-4)


@pytest.mark.parametrize("alpha, gamma", [(None, 2.0), ((0.08, 0.27, 0.45, 0.20), 3.0), ((0, 0, 0, 1), 0.5)])
def test_focal_loss_is_its_formula(alpha, gamma):
    logits, batch = scene()
    prob, target = pixels(logits, batch)
    right = prob[np.arange(len(target)), target]
    weight = np.array(alpha or (1, 2, 3, 4))[target]
    expected = (weight * (1 - right) ** gamma * -np.log(right)).mean()
    out = make("focal", focal_alpha=alpha, focal_gamma=gamma)(logits, batch)
    assert out["loss"].item() == pytest.approx(expected, rel=1e-5)


def smp_losses():
    import segmentation_models_pytorch.losses as losses  # not at the top: the worker of a test imports this file

    return losses


@pytest.mark.parametrize("classes", [2, 3, 4])
def test_dice_and_tversky_are_those_of_smp(classes):
    logits, batch = scene(classes)
    smp = smp_losses()
    expected = smp.DiceLoss("multiclass", ignore_index=-100)(logits, ignoring(batch))
    assert torch.allclose(make("dice", classes)(logits, batch)["loss"], expected, rtol=1e-5)
    # smp's alpha is the weight of false positives, its beta that of false negatives: the other way round than here.
    expected = smp.TverskyLoss("multiclass", ignore_index=-100, alpha=0.2, beta=0.9)(logits, ignoring(batch))
    assert torch.allclose(make("tversky", classes, tversky=(0.9, 0.2))(logits, batch)["loss"], expected, rtol=1e-5)


def test_the_letters_of_tversky_are_those_of_the_house():
    """alpha weighs what is missed, beta what is wrongly found; by default misses weigh more."""
    target = torch.zeros(1, 4, 5, dtype=torch.long)
    target[:, :2] = 1
    batch = {"target": target, "valid": torch.ones_like(target, dtype=torch.bool)}
    few, many = (torch.arange(20).view(1, 4, 5) < limit for limit in (5, 15))
    for prediction, hits, missed, wrong in ((few, 5, 5, 0), (many, 10, 0, 5)):
        logits = perfect({"target": prediction.long()}, 2)
        for alpha, beta in ((0.7, 0.3), (0.2, 0.9)):
            expected = 1 - (hits + 1) / (hits + alpha * missed + beta * wrong + 1)
            out = make("tversky", 2, tversky=(alpha, beta), foreground=True)(logits, batch)
            assert out["loss"].item() == pytest.approx(expected, rel=1e-5)
            if alpha == 0.7:
                assert make("tversky", 2, foreground=True)(logits, batch)["loss"] == out["loss"]


@pytest.mark.parametrize("classes", [2, 4])
def test_the_foreground_is_the_classes_after_the_first_absent_ones_too(classes):
    logits, batch = scene(classes)
    for gone in (None, classes - 1):
        if gone is not None:
            batch["target"][batch["target"] == gone] = 0
        prob, target = pixels(logits, batch)
        hot = np.eye(classes)[target]
        hit, row, column = (prob * hot).sum(0), hot.sum(0), prob.sum(0)
        for name, alpha, beta in (("dice", 0.5, 0.5), ("tversky", 0.3, 0.6)):
            index = (hit + 1) / (hit + alpha * (row - hit) + beta * (column - hit) + 1)
            out = make(name, classes, tversky=(alpha, beta), foreground=True)(logits, batch)
            assert out["loss"].item() == pytest.approx(1 - index[1:].mean(), rel=1e-5)


@pytest.mark.parametrize("name", ["dice", "tversky"])
def test_a_batch_without_the_foreground_punishes_what_is_found(name):
    logits, batch = scene(2)
    batch["target"][:] = 0
    loss = make(name, 2, foreground=True)
    out = loss(logits, batch)["loss"]
    (grad,) = torch.autograd.grad(out, logits)
    assert 0.5 < out < 1 and (grad[:, 1][batch["valid"]] > 0).all() and (grad[:, 1][~batch["valid"]] == 0).all()
    assert loss(perfect(batch, 2), batch)["loss"] == 0
    nothing = {**batch, "valid": torch.zeros_like(batch["valid"])}
    assert loss(logits, nothing)["loss"] == 0


SOFT = ("cross-entropy", "focal", "dice", "tversky")


def soft_scene(seed=0):
    logits, batch = scene(2, seed=seed)
    draws = np.random.default_rng(seed).uniform(0, 0.5, batch["target"].shape)
    soft = np.where(batch["target"] == 1, 1 - draws, draws)
    return logits, {**batch, "soft": torch.tensor(soft, dtype=torch.float32)}


@pytest.mark.parametrize("seed", [0, 1])
def test_soft_labels_are_shares_of_the_two_classes(seed):
    logits, batch = soft_scene(seed)
    prob, _ = pixels(logits, batch)
    share = batch["soft"][batch["valid"]].double().numpy()
    share = np.stack([1 - share, share], 1)
    found = {name: make(name, 2, focal_alpha=[0.2], focal_gamma=1.5, tversky=(0.4, 0.8))(logits, batch)["loss"].item()
             for name in SOFT}  # fmt: skip
    assert found["cross-entropy"] == pytest.approx(-(share * np.log(prob)).sum(1).mean(), rel=1e-5)
    focal = -np.array([0.8, 0.2]) * share * (1 - prob) ** 1.5 * np.log(prob)
    assert found["focal"] == pytest.approx(focal.sum(1).mean(), rel=1e-5)
    hit, row, column = (prob * share).sum(0), share.sum(0), prob.sum(0)
    for name, alpha, beta in (("dice", 0.5, 0.5), ("tversky", 0.4, 0.8)):
        index = hit / (hit + alpha * (row - hit) + beta * (column - hit))
        assert found[name] == pytest.approx(1 - index.mean(), rel=1e-5)


@pytest.mark.parametrize("foreground", [False, True])
@pytest.mark.parametrize("name", LOSSES)
def test_soft_labels_of_nought_and_one_are_hard_ones(name, foreground):
    logits, batch = scene(2)
    hard = {**batch, "soft": torch.where(batch["valid"], batch["target"].float(), torch.nan)}
    loss = make(name, 2, foreground=foreground)
    values = [loss(logits, one)["loss"] for one in (batch, hard)]
    grads = [torch.autograd.grad(value, logits)[0] for value in values]
    assert values[0].item() == pytest.approx(values[1].item(), rel=1e-5)
    assert torch.allclose(*grads, rtol=1e-3, atol=1e-8)
    other = loss(logits, soft_scene()[1])["loss"].item()
    assert (other != pytest.approx(values[0].item(), rel=1e-3)) == (name in SOFT)


@pytest.mark.parametrize("name", SOFT)
def test_soft_labels_in_half_precision_and_at_extremes(name):
    logits, batch = soft_scene()
    half = (logits.detach() * 8).to(torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        out = make(name, 2)(half, {**batch, "soft": batch["soft"].half()})["loss"]
    expected = make(name, 2)(half.float(), {**batch, "soft": batch["soft"].half().float()})["loss"]
    assert out.dtype == torch.float32 and out.item() == pytest.approx(expected.item(), rel=1e-5)
    extreme = torch.where(logits > 1, 60000.0, -60000.0).requires_grad_()
    make(name, 2)(extreme, batch)["loss"].backward()
    assert extreme.grad.isfinite().all()


def test_the_cross_entropy_of_soft_labels_is_least_at_the_labels():
    _, batch = soft_scene()
    soft = batch["soft"].clamp(0.01, 0.99)
    best = torch.stack([torch.zeros_like(soft), torch.logit(soft)], 1).requires_grad_()
    (grad,) = torch.autograd.grad(make("cross-entropy", 2)(best, {**batch, "soft": soft})["loss"], best)
    assert grad.abs().max() < 1e-8


def test_one_focal_alpha_is_the_weight_of_the_second_of_two():
    logits, batch = scene(2)
    one, two = (make("focal", 2, focal_alpha=alpha)(logits, batch)["loss"] for alpha in ([0.25], (0.75, 0.25)))
    assert one == two != make("focal", 2)(logits, batch)["loss"]


def test_soft_labels_of_more_classes_are_refused():
    logits, batch = scene(3)
    with pytest.raises(InputError, match="soft labels are for 2 outputs, not for 3"):
        make("dice", 3)(logits, {**batch, "soft": batch["target"].float()})


def test_dice_of_an_absent_class_is_left_out_of_the_mean():
    logits, batch = scene()
    batch["target"][batch["target"] == 2] = 1
    prob, target = pixels(logits, batch)
    hot = np.eye(4)[target]
    dice = 2 * (prob * hot).sum(0) / (prob.sum(0) + hot.sum(0))
    assert dice[2] == 0
    assert make("dice")(logits, batch)["loss"].item() == pytest.approx(1 - dice[[0, 1, 3]].mean(), rel=1e-5)


def slow_mcc_loss(prob, target, phi) -> float:
    """Covariance form: the correlation of one-hot truth and (focally sharpened) probabilities over pixels."""
    hot = np.eye(prob.shape[1])[target]
    right = (prob * hot).sum(1, keepdims=True)
    wrong = prob * (1 - hot) * (1 - right) ** phi
    pred = wrong + hot * (1 - wrong.sum(1, keepdims=True))
    means = hot.mean(0), pred.mean(0)
    over = ((hot - means[0]) * (pred - means[1])).mean(0).sum()
    return 1 - over / math.sqrt((1 - (means[0] ** 2).sum()) * (1 - (means[1] ** 2).sum()))


@pytest.mark.parametrize("phi", [0.0, 0.7, 2.0])
@pytest.mark.parametrize("classes", [2, 3, 4])
def test_mcc_loss_is_its_formula(classes, phi):
    logits, batch = scene(classes)
    expected = slow_mcc_loss(*pixels(logits, batch), phi)
    assert make("mcc", classes, mcc_phi=phi)(logits, batch)["loss"].item() == pytest.approx(expected, rel=1e-5)


def test_mcc_loss_of_two_classes_is_that_of_smp():
    logits, batch = scene(2, missing=0)
    expected = smp_losses().MCCLoss()(logits.softmax(1)[:, 1], batch["target"].float())
    assert make("mcc", 2, mcc_phi=0.0)(logits, batch)["loss"].item() == pytest.approx(expected.item(), rel=1e-4)


@pytest.mark.parametrize("classes", [2, 4])
def test_mcc_loss_of_a_hard_prediction_is_that_of_sklearn(classes):
    from sklearn.metrics import matthews_corrcoef

    logits, batch = scene(classes)
    pred = logits.argmax(1)
    expected = 1 - matthews_corrcoef(batch["target"][batch["valid"]], pred[batch["valid"]])
    for phi in (0.0, 0.7):  # a confident error counts whole whatever phi is
        out = make("mcc", classes, mcc_phi=phi)(perfect({"target": pred}, classes), batch)
        assert out["loss"].item() == pytest.approx(expected, rel=1e-5)


def test_mcc_loss_keeps_its_digits_for_one_pixel_of_a_class():
    target = torch.zeros(1, 1000, 1000, dtype=torch.long)
    target[0, 3, 4] = 1
    batch = {"target": target, "valid": torch.ones_like(target, dtype=torch.bool)}
    logits = torch.where(F.one_hot(target, 2).permute(0, 3, 1, 2) == 1, torch.tensor(0.0), -16.0)
    logits[0, 0, 3, 4] = -2  # .88 at the pixel itself, and as much as a tenth of it spread over the others
    expected = slow_mcc_loss(*pixels(logits, batch), 0.0)
    assert 0.05 < expected < 0.2
    assert make("mcc", 2, mcc_phi=0.0)(logits, batch)["loss"].item() == pytest.approx(expected, abs=1e-3)


def slow_border_weights(target, valid, pairs, width, border=3.0, pair=5.0):
    weight = np.ones(target.shape)
    height, columns = target.shape
    for y, x in np.ndindex(target.shape):
        around = (slice(max(0, y - width), y + width + 1), slice(max(0, x - width), x + width + 1))
        others = set(target[around][valid[around]]) - {target[y, x]}
        if valid[y, x] and others:
            named = any({target[y, x], other} == set(names) for other in others for names in pairs)
            weight[y, x] = pair if named else border
    return weight


@pytest.mark.parametrize("width", [1, 2])
def test_boundary_loss_is_its_formula(width):
    logits, batch = scene()
    target, valid = batch["target"].numpy(), batch["valid"].numpy()
    weight = np.stack([slow_border_weights(t, v, [(1, 2)], width) for t, v in zip(target, valid, strict=True)])
    assert {1.0, 3.0, 5.0} == set(weight[valid])
    hot = (F.one_hot(batch["target"], 4).bool() & batch["valid"][..., None]).permute(0, 3, 1, 2)
    mine = border_weights(hot, border_weight=3.0, pair_weight=5.0, pairs=[(1, 2)], width=width)
    assert (mine.numpy() == weight)[valid].all()
    element = F.cross_entropy(logits, batch["target"], reduction="none").detach().numpy()
    expected = (weight * element)[valid].sum() / weight[valid].sum()
    out = make("boundary", border_pairs=[("rubble", "ice")], border_width=width)(logits, batch)
    assert out["loss"].item() == pytest.approx(expected, rel=1e-5)


def test_the_edge_of_no_data_is_no_border():
    target = torch.ones(1, 8, 8, dtype=torch.long)
    valid = torch.ones(1, 8, 8, dtype=torch.bool)
    valid[:, :, 4:] = False
    target[~valid] = 0
    logits = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    batch = {"target": target, "valid": valid}
    assert torch.allclose(make("boundary")(logits, batch)["loss"], make("cross-entropy")(logits, batch)["loss"])


@pytest.mark.parametrize("classes", [2, 3, 4])
@pytest.mark.parametrize("name", LOSSES)
def test_zero_at_a_perfect_prediction_and_above_elsewhere(name, classes):
    logits, batch = scene(classes)
    sure = perfect(batch, classes)
    out = make(name, classes)(sure, batch)
    out["loss"].backward()
    assert out["loss"].item() == pytest.approx(0, abs=1e-6) and sure.grad.isfinite().all()
    assert make(name, classes)(logits, batch)["loss"].item() > 0.05


@pytest.mark.parametrize("name", LOSSES)
def test_each_loss_can_be_learnt_from(name):
    logits, batch = scene()
    before = (logits.argmax(1) == batch["target"])[batch["valid"]].float().mean().item()
    loss = make(name)
    optimizer = torch.optim.Adam([logits], 0.1)
    for _ in range(60):
        optimizer.zero_grad()
        loss(logits, batch)["loss"].backward()
        optimizer.step()
    after = (logits.argmax(1) == batch["target"])[batch["valid"]].float().mean().item()
    assert before < 0.8 and after > 0.99


@pytest.mark.parametrize("name", LOSSES)
def test_absent_classes_and_one_class_alone_are_finite(name):
    logits, batch = scene()
    for gone in ((3,), (2, 3), (1, 2, 3), (0, 1, 2)):
        left = min({0, 1, 2, 3} - set(gone))
        kept = torch.where(torch.isin(batch["target"], torch.tensor(gone)), left, batch["target"])
        kept = torch.where(batch["valid"], kept, 0)
        (grad,) = torch.autograd.grad(make(name)(logits, {**batch, "target": kept})["loss"], logits)
        assert grad.isfinite().all()
        if name != "mcc" or len(gone) < 3:  # a correlation with one class is not defined
            assert grad.abs().max() > 0


@pytest.mark.parametrize("name", LOSSES)
def test_nothing_valid_is_zero_with_a_gradient_of_zero(name):
    logits, batch = scene()
    batch = {**batch, "valid": torch.zeros_like(batch["valid"])}
    loss = make(name)(logits, batch)["loss"]
    loss.backward()
    assert loss.item() == 0 and (logits.grad == 0).all()


@pytest.mark.parametrize("name", LOSSES)
def test_a_pixel_that_is_not_valid_has_no_say(name):
    logits, batch = scene()
    loss = make(name)(logits, batch)["loss"]
    loss.backward()
    outside = ~batch["valid"].unsqueeze(1).expand_as(logits)
    assert (logits.grad[outside] == 0).all()
    assert (logits.grad[~outside] != 0).float().mean() > 0.99
    broken = torch.where(outside, torch.nan, logits.detach()).requires_grad_()
    other = {**batch, "target": torch.where(batch["valid"], batch["target"], 3)}
    again = make(name)(broken, other)["loss"]
    again.backward()
    assert again.item() == loss.item() and torch.equal(broken.grad, logits.grad)


@pytest.mark.parametrize("name", LOSSES)
def test_a_valid_nan_is_not_hidden(name):
    logits, batch = scene()
    spot = tuple(int(i) for i in batch["valid"].nonzero()[0])
    broken = logits.detach().clone()
    broken[spot[0], 1, spot[1], spot[2]] = torch.nan
    assert not make(name)(broken, batch)["loss"].isfinite()


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16])
def test_half_precision_logits_are_computed_in_float32(name, kind):
    logits, batch = scene()
    half = (logits.detach() * 8).to(kind).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        out = make(name)(half, batch)["loss"]
    out.backward()
    expected = make(name)(half.detach().float(), batch)["loss"]
    assert out.dtype == torch.float32 and out.item() == expected.item() and half.grad.isfinite().all()
    extreme = torch.where(logits > 1, 60000.0, -60000.0).to(kind).requires_grad_()
    out = make(name)(extreme, batch)["loss"]
    out.backward()
    assert out.isfinite() and extreme.grad.isfinite().all()


def test_the_gradients_are_those_of_the_numbers():
    """Analytic against a difference quotient along a random direction, for the weighted sum of all parts."""
    logits, batch = scene(missing=0.3)
    loss = make(ALL, border_pairs=[("ice", "rubble")])
    (grad,) = torch.autograd.grad(loss(logits, batch)["loss"], logits)
    direction = torch.randn(logits.shape, generator=torch.Generator().manual_seed(1))
    ahead, behind = (loss(logits.detach() + step * direction, batch)["loss"].item() for step in (0.01, -0.01))
    assert (grad * direction).sum().item() == pytest.approx((ahead - behind) / 0.02, rel=5e-3)


def test_phases_are_weighted_sums_and_the_boundary_ramps():
    logits, batch = scene()
    parts = {name: make(name)(logits, batch)["loss"].item() for name in LOSSES}
    out = make("A", ramp=RAMP)(logits, batch)
    assert out["loss"].item() == pytest.approx(0.6 * parts["focal"] + 0.4 * parts["dice"], rel=1e-5)
    assert set(out) == {"loss", "focal", "dice"} and not out["dice"].requires_grad
    fixed = 0.25 * parts["focal"] + 0.25 * parts["dice"] + 0.35 * parts["mcc"]
    for epoch, share in ((0, 0.05), (15, 0.525), (30, 1.0), (200, 1.0)):
        out = build_loss(loss="B", outputs=NAMES)(logits, {**batch, "epoch": epoch})
        assert out["loss"].item() == pytest.approx(fixed + 0.15 * share * parts["boundary"], rel=1e-5)
        assert out["boundary"].item() == pytest.approx(parts["boundary"], rel=1e-6)
    assert ramp_share({"mcc": (0.0, 1)}, "mcc", 1) == 1


def test_parts_are_resolved():
    assert resolve_parts("B") == resolve_parts(["B"]) == PHASES["B"] and sum(PHASES["B"].values()) == 1
    assert resolve_parts("dice") == resolve_parts(["dice"]) == resolve_parts(["dice=1"]) == {"dice": 1.0}
    assert resolve_parts(["focal=.6", "dice=.4"]) == resolve_parts({"focal": 0.6, "dice": 0.4}) == PHASES["A"]


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"loss": "C"}, ["--loss C", "A, B", "tversky"]),
        ({"loss": ["focal=.5", "dise=.5"]}, ["--loss focal=.5 dise=.5", "dice"]),
        ({"loss": ["focal=x"]}, ["--loss focal=x"]),
        ({"loss": ["focal=0"]}, ["--loss focal=0", "above zero"]),
        ({"loss": {"focal": math.nan}}, ["--loss"]),
        ({"loss": []}, ["--loss"]),
        ({"focal_alpha": (1, 2)}, ["--focal-alpha", "4 numbers", "water"]),
        ({"focal_alpha": (1, 2, 3, -1)}, ["--focal-alpha"]),
        ({"focal_alpha": (0, 0, 0, 0)}, ["--focal-alpha"]),
        ({"focal_alpha": (0.5,)}, ["--focal-alpha", "4 numbers"]),
        ({"focal_alpha": (1.5,), "outputs": NAMES[:2]}, ["--focal-alpha 1.5", "ice", "0 to 1"]),
        ({"focal_gamma": -1}, ["--focal-gamma -1"]),
        ({"mcc_phi": math.inf}, ["--mcc-phi inf"]),
        ({"border_width": 0}, ["--border-width 0", "at least 1"]),
        ({"border_pairs": [("ice", "slush")]}, ["--border-pairs", "'slush'", "ground"]),
        ({"tversky": (-0.1, 0.7)}, ["--tversky -0.1"]),
    ],
)
def test_wrong_settings_name_option_and_remedy(changes, words):
    with pytest.raises(InputError) as caught:
        build_loss(**{"loss": "dice", "outputs": NAMES, **changes})
    assert all(word in str(caught.value) for word in words) and "\n" not in str(caught.value)


CASES = {
    **{name: {"loss": name, "border_pairs": [("ice", "rubble")]} for name in LOSSES},
    **{f"soft {name}": {"loss": name, "classes": 2, "foreground": name == "dice"} for name in SOFT},
    "foreground": {"loss": "tversky", "foreground": True},
}


def network_and_batch(case):
    classes = CASES[case].get("classes", 4)
    torch.manual_seed(0)
    network = torch.nn.Sequential(
        torch.nn.Conv2d(3, 8, 3, padding=1), torch.nn.GroupNorm(2, 8), torch.nn.GELU(), torch.nn.Conv2d(8, classes, 1)
    )
    _, batch = soft_scene(seed=4) if case.startswith("soft") else scene(seed=4)
    batch["target"][:2][batch["target"][:2] == 3] = 0  # class 3 in the last tile alone, which has little valid
    batch["valid"][2, 6:] = False
    return network, {**batch, "image": torch.randn(3, 3, 24, 24)}


def gradients(network, case, batch):
    network.zero_grad()
    loss = make(**CASES[case])(network(batch["image"]), batch)["loss"]
    loss.backward()
    return loss.item(), [p.grad.clone() for p in network.parameters()]


def one_of_two(rank, folder):
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    rows = slice(0, 2) if rank == 0 else slice(2, 3)  # other sizes, other numbers of valid pixels
    results = {}
    for name in CASES:
        network, batch = network_and_batch(name)
        part = {key: value[rows] for key, value in batch.items() if isinstance(value, torch.Tensor)}
        loss, grads = gradients(network, name, part)
        for grad in grads:  # what DistributedDataParallel does
            torch.distributed.all_reduce(grad)
            grad /= 2
        results[name] = (loss, grads)
    torch.save(results, f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


def test_two_processes_equal_one(tmp_path):
    multiprocessing.start_processes(one_of_two, args=(str(tmp_path),), nprocs=2, start_method="fork")
    results = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2)]
    for name in CASES:
        network, batch = network_and_batch(name)
        loss, expected = gradients(network, name, batch)
        assert math.isfinite(loss) and all(g.abs().max() > 0 for g in expected)
        for rank in range(2):
            assert results[rank][name][0] == pytest.approx(loss, rel=1e-5), name
            for mine, other in zip(expected, results[rank][name][1], strict=True):
                assert torch.allclose(mine, other, rtol=1e-3, atol=1e-4 * float(mine.abs().max())), name
