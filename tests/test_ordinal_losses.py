"""Ordinal losses and label smoothing against coral-pytorch and slow formulas, alone and in the loss of a run."""

import numpy as np
import pytest
import torch
import torch.multiprocessing as multiprocessing

from common.errors import InputError
from common.losses.ordinal import coral_loss, corn_loss, smoothed_shares
from common.losses.segmentation import build_loss
from common.ordinal import class_logits

NAMES = ("calm", "mixed", "rough", "wild")
OWN = {"coral": coral_loss, "corn": corn_loss}


def scene(classes=3, size=12, seed=0, missing=0.2):
    """Raw outputs (B,K-1,H,W) that are partly right and fall with the level, classes, validity."""
    rng = np.random.default_rng(seed)
    target = rng.integers(0, classes, (3, size, size))
    valid = rng.random(target.shape) >= missing
    score = target + rng.normal(0, 1, target.shape)
    levels = 1.5 * (score[:, None] - np.arange(0.5, classes - 1).reshape(1, -1, 1, 1))
    levels = torch.tensor(levels, dtype=torch.float32, requires_grad=True)
    return levels, {"target": torch.tensor(np.where(valid, target, 0)), "valid": torch.tensor(valid), "epoch": 0}


def make(head, classes=3, loss=("focal=.7", "dice=.3"), **changes):
    return build_loss(loss=loss, outputs=NAMES[:classes], head=head, ramp={}, **changes)


def flat(levels, batch):
    return levels.permute(0, 2, 3, 1)[batch["valid"]], batch["target"][batch["valid"]]


def reference(head, levels, batch):
    """The loss of coral-pytorch on the valid pixels, a row each."""
    losses = pytest.importorskip("coral_pytorch.losses")
    rows, known = flat(levels, batch)
    if head == "corn":
        return losses.corn_loss(rows, known, rows.shape[1] + 1)
    return losses.coral_loss(rows, (known[:, None] > torch.arange(rows.shape[1])).float())


@pytest.mark.parametrize("classes", [2, 3, 4])
@pytest.mark.parametrize("head", OWN)
def test_losses_are_those_of_coral_pytorch(head, classes):
    levels, batch = scene(classes)
    mine = OWN[head](levels, batch["target"], batch["valid"])
    theirs = reference(head, levels, batch)
    assert mine.item() == pytest.approx(theirs.item(), abs=1e-6)
    ours, other = (torch.autograd.grad(value, levels)[0] for value in (mine, theirs))
    assert torch.allclose(ours, other, atol=1e-8) and ours.abs().max() > 1e-4


def test_losses_are_their_formulas():
    levels, batch = scene(4)
    rows, known = (part.detach().double().numpy() for part in flat(levels, batch))
    coral, asked = 0.0, []
    for row, label in zip(rows, known, strict=True):
        for k, level in enumerate(row):
            term = np.logaddexp(0, -level if label > k else level)
            coral += term / len(rows)
            asked += [term] if label >= k else []
    assert coral_loss(levels, batch["target"], batch["valid"]).item() == pytest.approx(coral, rel=1e-5)
    assert corn_loss(levels, batch["target"], batch["valid"]).item() == pytest.approx(np.mean(asked), rel=1e-5)


@pytest.mark.parametrize("head", OWN)
def test_gradients_are_those_of_the_numbers(head):
    levels, batch = scene(3, size=3)
    assert torch.autograd.gradcheck(
        lambda x: OWN[head](x, batch["target"], batch["valid"]), levels.detach().double().requires_grad_()
    )


@pytest.mark.parametrize("head", OWN)
def test_what_is_not_valid_has_no_say(head):
    levels, batch = scene()
    loss = OWN[head](levels, batch["target"], batch["valid"])
    (grad,) = torch.autograd.grad(loss, levels)
    outside = ~batch["valid"].unsqueeze(1).expand_as(levels)
    assert (grad[outside] == 0).all() and (grad != 0).any()
    broken = torch.where(outside, torch.nan, levels.detach()).requires_grad_()
    target = torch.where(batch["valid"], batch["target"], 2)
    again = OWN[head](broken, target, batch["valid"])
    again.backward()
    assert again.item() == loss.item() and torch.equal(broken.grad, grad)
    nothing = OWN[head](levels, target, torch.zeros_like(batch["valid"]))
    (grad,) = torch.autograd.grad(nothing, levels)
    assert nothing.item() == 0 and (grad == 0).all()


@pytest.mark.parametrize("head", OWN)
@pytest.mark.parametrize("only", [0, 1, 2])
def test_one_class_alone_is_finite_and_learnt(head, only):
    levels, batch = scene()
    target = torch.full_like(batch["target"], only)
    loss = OWN[head](levels, target, batch["valid"])
    (grad,) = torch.autograd.grad(loss, levels)
    assert loss.item() > 0 and grad.isfinite().all()
    asked = torch.arange(2) <= (only if head == "corn" else 2)
    moved = (grad != 0).any(0).any(-1).any(-1)
    assert moved.tolist() == asked.tolist()
    assert all((grad[:, k] <= 0).all() if only > k else (grad[:, k] >= 0).all() for k in range(2))


@pytest.mark.parametrize("head", OWN)
def test_half_precision_under_autocast_is_computed_in_float32(head):
    levels, batch = scene()
    half = levels.detach().half().requires_grad_()
    extreme = torch.where(levels > 0, 60000.0, -60000.0).half().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        alone = OWN[head](half, batch["target"], batch["valid"])
        whole = make(head)(half, batch)["loss"]
        far = make(head)(extreme, batch)["loss"]
    assert alone.dtype == whole.dtype == torch.float32
    assert alone.item() == OWN[head](half.detach().float(), batch["target"], batch["valid"]).item()
    assert whole.item() == make(head)(half.detach().float(), batch)["loss"].item()
    far.backward()
    assert far.isfinite() and extreme.grad.isfinite().all()


@pytest.mark.parametrize("head", OWN)
def test_the_loss_of_a_run_adds_the_heads_own(head):
    levels, batch = scene()
    out = make(head, ordinal_weight=0.4)(levels, batch)
    assert set(out) == {"loss", "focal", "dice", head}
    own = OWN[head](levels, batch["target"], batch["valid"])
    plain = make("softmax")(class_logits(levels, head), batch)
    assert out[head].item() == own.item() and not out[head].requires_grad
    assert out["loss"].item() == pytest.approx(plain["loss"].item() + 0.4 * own.item(), rel=1e-6)
    assert set(make(head, ordinal_weight=0)(levels, batch)) == {"loss", "focal", "dice"}
    assert torch.equal(make(head).class_logits(levels), class_logits(levels, head))


@pytest.mark.parametrize("head", OWN)
def test_the_loss_of_a_run_can_be_learnt_from(head):
    levels, batch = scene()
    loss = make(head, ordinal_smoothing=0.1)
    start = levels.detach().clone()
    score = torch.zeros_like(start[:, :1]).requires_grad_()
    free = torch.zeros_like(start).requires_grad_()
    biases = torch.tensor([2.0, -2.0]).view(1, 2, 1, 1)
    outputs = (lambda: score + biases) if head == "coral" else (lambda: free)
    optimizer = torch.optim.Adam([score, free], 0.2)
    for _ in range(40):
        optimizer.zero_grad()
        loss(outputs(), batch)["loss"].backward()
        optimizer.step()
    found = class_logits(outputs(), head).argmax(1)
    assert (found == batch["target"])[batch["valid"]].float().mean() > 0.97


def test_smoothed_shares_go_to_the_neighbours():
    hot = torch.eye(4, dtype=torch.bool).T.reshape(1, 4, 2, 2).clone()
    mine = smoothed_shares(hot, 0.2).flatten(2)[0].T
    expected = [[0.8, 0.2, 0, 0], [0.1, 0.8, 0.1, 0], [0, 0.1, 0.8, 0.1], [0, 0, 0.2, 0.8]]
    assert mine.dtype == torch.float32
    np.testing.assert_allclose(mine.numpy(), expected, atol=1e-7)
    hot[..., 1, 1] = False  # not valid
    assert not smoothed_shares(hot, 0.2)[..., 1, 1].any()
    two = torch.tensor([True, False]).reshape(1, 2, 1, 1)
    assert smoothed_shares(two, 0.3).flatten().tolist() == pytest.approx([0.7, 0.3])
    assert torch.equal(smoothed_shares(hot, 0.0), hot.float())


@pytest.mark.parametrize("head", ["softmax", "coral", "corn"])
def test_smoothing_is_the_mean_over_the_labels_that_share_a_pixel(head):
    """Cross-entropy and focal loss are linear in the label: shares of losses of plain labels."""
    levels, batch = scene(4)
    outputs = class_logits(levels, "corn").detach() if head == "softmax" else levels
    for name in ("cross-entropy", "focal"):

        def plain(target, name=name):
            return make(head, 4, (name,), ordinal_weight=0)(outputs, {**batch, "target": target})["loss"].item()

        known, s = batch["target"], 0.3
        edge = (known == 0) | (known == 3)
        down = torch.where(edge, (known == 0) * 1 + (known == 3) * 2, known - 1)
        up = torch.where(edge, (known == 0) * 1 + (known == 3) * 2, known + 1)
        expected = (1 - s) * plain(known) + s / 2 * (plain(down) + plain(up))
        out = make(head, 4, (name,), ordinal_weight=0, ordinal_smoothing=s)(outputs, batch)
        assert out["loss"].item() == pytest.approx(expected, rel=1e-5)


def test_dice_and_tversky_count_the_shares():
    levels, batch = scene(3)
    prob = class_logits(levels, "coral").softmax(1).detach().double()
    hot = (batch["target"].unsqueeze(1) == torch.arange(3).view(1, 3, 1, 1)) & batch["valid"].unsqueeze(1)
    low, middle, high = hot.double().unbind(1)
    share = torch.stack([0.8 * low + 0.1 * middle, 0.2 * low + 0.8 * middle + 0.2 * high, 0.1 * middle + 0.8 * high], 1)
    prob = prob * batch["valid"].unsqueeze(1)
    hit, row, column = (part.sum((0, 2, 3)) for part in (prob * share, share, prob))
    for name, (alpha, beta) in {"dice": (0.5, 0.5), "tversky": (0.7, 0.3)}.items():
        expected = (1 - hit / (hit + alpha * (row - hit) + beta * (column - hit))).mean().item()
        out = make("coral", 3, (name,), ordinal_weight=0, ordinal_smoothing=0.2)(levels, batch)
        assert out["loss"].item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"head": "corral"}, ["--head corral", "coral"]),
        ({"ordinal_smoothing": 1.0}, ["--ordinal-smoothing 1", "below 1"]),
        ({"ordinal_smoothing": -0.1}, ["--ordinal-smoothing"]),
        ({"ordinal_weight": -1}, ["--ordinal-weight -1", "from 0 up"]),
        ({"ordinal_weight": float("nan")}, ["--ordinal-weight nan"]),
    ],
)
def test_wrong_settings_name_option_and_remedy(changes, words):
    with pytest.raises(InputError) as caught:
        build_loss(**{"loss": "dice", "outputs": NAMES[:3], "head": "coral", **changes})
    assert all(word in str(caught.value) for word in words) and "\n" not in str(caught.value)


def test_soft_labels_are_not_smoothed_again():
    levels, batch = scene(2)
    with pytest.raises(InputError, match="--ordinal-smoothing: these labels are soft already"):
        make("coral", 2, ordinal_smoothing=0.1)(levels, {**batch, "soft": torch.rand(batch["target"].shape)})


def half_of_the_rows(rank, world, store, results):
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=world)
    levels, batch = scene(3)
    mine = slice(0, 1) if rank == 0 else slice(1, 3)
    part = levels.detach()[mine].requires_grad_()
    out = make("corn")(part, {**{k: v[mine] for k, v in batch.items() if k != "epoch"}, "epoch": 0})
    coral = coral_loss(part, batch["target"][mine], batch["valid"][mine])
    (out["loss"] + coral).backward()
    results.put((rank, out["loss"].item() + coral.item(), (part.grad / world).tolist()))
    torch.distributed.destroy_process_group()


def test_two_processes_count_as_one(tmp_path):
    context = multiprocessing.get_context("fork")
    results = context.SimpleQueue()
    multiprocessing.start_processes(half_of_the_rows, (2, tmp_path / "store", results), nprocs=2, start_method="fork")
    (_, first, upper), (_, second, lower) = sorted(results.get() for _ in range(2))
    levels, batch = scene(3)
    whole = make("corn")(levels, batch)["loss"] + coral_loss(levels, batch["target"], batch["valid"])
    whole.backward()
    assert first == second == pytest.approx(whole.item(), rel=1e-6)
    assert torch.allclose(torch.tensor(upper + lower), levels.grad, rtol=1e-4, atol=1e-9)
