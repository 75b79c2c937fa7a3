import math

import numpy as np
import pytest
import torch
import torch.multiprocessing as multiprocessing

from common.errors import InputError
from common.losses.reduce import all_sum, global_mean, world_size
from common.losses.regression import HUBER_DELTA, LOSSES, SMOOTH_BETA, build_loss, resolve_weights
from common.models.heads import RegressionHeads, head_scale

OUTPUTS = ("Dry_Green_g", "Dry_Dead_g", "Dry_Clover_g", "GDM_g", "Dry_Total_g")
HEAVY = np.array([0.1, 0.1, 0.1, 0.2, 0.5])
SCALE = np.array([25.0, 12.0, 7.0, 33.0, 45.0])


def make(kind="mse", **changes):
    return build_loss(**{"kind": kind, "outputs": OUTPUTS, "scale": SCALE.tolist(), **changes})


def numbers(batch=6, seed=0, missing=0.0):
    rng = np.random.default_rng(seed)
    target = rng.gamma(1.5, 20, (batch, 5)) * (rng.random((batch, 5)) > 0.3)
    value = rng.gamma(2, 15, (batch, 5))
    return value, target, rng.random((batch, 5)) >= missing


def batch_of(target, valid, **more):
    target = torch.where(torch.tensor(valid), torch.tensor(target, dtype=torch.float32), torch.nan)
    return {"target": target, "valid": torch.tensor(valid), **more}


def tensors(**arrays):
    return {key: torch.tensor(value, dtype=torch.float32) for key, value in arrays.items()}


def r2_score(target, pred, sample_weight=None):
    from sklearn.metrics import r2_score  # not at the top: the worker of the last test imports this file

    return r2_score(target, pred, sample_weight=sample_weight)


ELEMENT = {
    "mse": lambda e: e**2,
    "smooth-l1": lambda e: np.where(abs(e) < SMOOTH_BETA, 0.5 * e**2 / SMOOTH_BETA, abs(e) - SMOOTH_BETA / 2),
    "huber": lambda e: np.where(abs(e) < HUBER_DELTA, 0.5 * e**2, HUBER_DELTA * (abs(e) - HUBER_DELTA / 2)),
}


@pytest.mark.parametrize("kind", sorted(ELEMENT))
@pytest.mark.parametrize("missing", [0.0, 0.4])
def test_pointwise_losses_are_plain_weighted_means(kind, missing):
    value, target, valid = numbers(missing=missing)
    weight = HEAVY * valid
    expected = (weight * ELEMENT[kind]((value - target) / SCALE)).sum() / weight.sum()
    out = make(kind, target_weights="total-heavy")(tensors(value=value), batch_of(target, valid))
    assert out["loss"].item() == pytest.approx(expected, rel=1e-5)
    assert float(out["main"]) == pytest.approx(expected, rel=1e-5) and not out["main"].requires_grad


def test_r2_loss_is_the_metric_of_the_batch():
    value, target, valid = numbers(20, missing=0.3)
    weight = (HEAVY * valid)[valid]
    expected = r2_score(target[valid], value[valid], sample_weight=weight)
    out = make("r2", target_weights="total-heavy")(tensors(value=value), batch_of(target, valid))
    assert 1 - out["loss"].item() == pytest.approx(expected, rel=1e-5)


def test_r2_loss_of_a_batch_without_spread_is_finite():
    value = torch.full((3, 5), 12.0, requires_grad=True)
    out = make("r2")({"value": value}, {"target": torch.full((3, 5), 10.0), "valid": torch.ones(3, 5, dtype=bool)})
    assert out["loss"].item() == pytest.approx(4.0)
    out["loss"].backward()
    assert value.grad.isfinite().all()


def test_log_targets_are_compared_in_log_space_and_r2_in_grams():
    value, target, valid = numbers()
    names, column = ["Dry_Clover_g"], 2
    value[:, column] = np.log1p(value[:, column])
    head, scale = target.copy(), SCALE.copy()
    head[:, column], scale[column] = np.log1p(target[:, column]), np.log1p(SCALE[column])
    out = make("mse", log_targets=names)(tensors(value=value), batch_of(target, valid))
    assert out["loss"].item() == pytest.approx((((value - head) / scale) ** 2).mean(), rel=1e-5)
    grams = value.copy()
    grams[:, column] = np.expm1(value[:, column])
    out = make("r2", log_targets=names)(tensors(value=value), batch_of(target, valid))
    assert 1 - out["loss"].item() == pytest.approx(r2_score(target.ravel(), grams.ravel()), rel=1e-5)


def test_two_part_learns_presence_from_all_and_amount_from_the_present():
    value, target, valid = numbers(missing=0.2)
    logits = np.random.default_rng(1).normal(size=(6, 2))
    settings = {"two_part": ["Dry_Clover_g", "Dry_Dead_g"]}
    columns = [2, 1]
    amount = valid.copy()
    amount[:, columns] &= target[:, columns] > 0
    main = (((value - target) / SCALE) ** 2)[amount].mean()
    prob = 1 / (1 + np.exp(-logits))
    present = target[:, columns] > 0
    cross = -np.where(present, np.log(prob), np.log(1 - prob))[valid[:, columns]].mean()
    out = make(**settings)(tensors(value=value, nonzero=logits), batch_of(target, valid))
    assert float(out["main"]) == pytest.approx(main, rel=1e-5)
    assert float(out["nonzero"]) == pytest.approx(cross, rel=1e-5)
    assert out["loss"].item() == pytest.approx(main + cross, rel=1e-5)
    grams = value.copy()
    grams[:, columns] *= prob
    out = make("r2", **settings)(tensors(value=value, nonzero=logits), batch_of(target, valid))
    assert 1 - float(out["main"]) == pytest.approx(r2_score(target[valid], grams[valid]), rel=1e-5)


def test_gaussian_likelihood():
    value, target, valid = numbers(missing=0.2)
    log_var = np.random.default_rng(2).normal(3, 1, (6, 5))
    out = make(uncertainty=True)(tensors(value=value, log_var=log_var), batch_of(target, valid))
    variance = np.exp(log_var)
    density = -np.log(np.exp(-((value - target) ** 2) / (2 * variance)) / np.sqrt(2 * math.pi * variance))
    expected = (density - np.log(SCALE) - 0.5 * math.log(2 * math.pi))[valid].mean()
    assert float(out["nll"]) == pytest.approx(expected, rel=1e-4)
    assert out["loss"].item() == pytest.approx(float(out["main"] + out["nll"]), rel=1e-5)


def test_constraint_is_zero_on_the_identities_and_counts_grams_off_them():
    green, dead, clover = np.random.default_rng(3).gamma(2, 10, (3, 7))
    value = np.stack([green, dead, clover, green + clover, green + clover + dead], 1)
    valid = np.ones((7, 5), bool)
    loss = make(constraint_weight=0.5)
    assert float(loss(tensors(value=value), batch_of(value, valid))["constraint"]) == pytest.approx(0, abs=1e-10)
    wrong = value + np.array([0, 0, 0, 6.6, 0])
    out = loss(tensors(value=wrong), batch_of(value, valid))
    expected = ((6.6 / 33) ** 2 + (6.6 / 45) ** 2) / 2
    assert float(out["constraint"]) == pytest.approx(expected, rel=1e-4)
    assert out["loss"].item() == pytest.approx(float(out["main"]) + 0.5 * expected, rel=1e-4)
    logged = wrong.copy()
    logged[:, 4] = np.log1p(wrong[:, 4])
    out = make(constraint_weight=0.5, log_targets=["Dry_Total_g"])(tensors(value=logged), batch_of(value, valid))
    assert float(out["constraint"]) == pytest.approx(expected, rel=1e-4), "also behind a log head"


def test_auxiliary_cross_entropy_takes_soft_labels_and_skips_unknown_rows():
    value, target, valid = numbers(4)
    rng = np.random.default_rng(4)
    logits = {"state": rng.normal(size=(4, 4)), "month": rng.normal(size=(4, 10))}
    labels = {"state": rng.dirichlet(np.ones(4), 4), "month": np.eye(10)[[1, 2, 3, 4]]}
    labels["state"][2] = 0
    batch = batch_of(target, valid, aux=tensors(**labels))
    out = make(aux_weights={"state": 3, "month": 5})({**tensors(value=value), "aux": tensors(**logits)}, batch)
    terms = {}
    for name in logits:
        log_prob = np.log(np.exp(logits[name]) / np.exp(logits[name]).sum(1, keepdims=True))
        rows = labels[name].sum(1) > 0
        terms[name] = -(labels[name] * log_prob).sum(1)[rows].mean()
        assert float(out[f"aux_{name}"]) == pytest.approx(terms[name], rel=1e-5)
    assert out["loss"].item() == pytest.approx(float(out["main"]) + 3 * terms["state"] + 5 * terms["month"], rel=1e-5)


def test_distillation_trains_the_teacher_first_then_guides():
    value, target, valid = numbers()
    loss = make(distill_weight=0.7, distill_warmup=2)
    out = {
        key: torch.tensor(v, dtype=torch.float32, requires_grad=True)
        for key, v in (("value", value), ("teacher", value + 3))
    }
    first = loss(out, batch_of(target, valid, epoch=1))
    first["loss"].backward()
    assert out["value"].grad.abs().max() == 0, "weight zero, but a gradient for every parameter"
    assert first["loss"].item() == pytest.approx((((value + 3 - target) / SCALE) ** 2).mean(), rel=1e-5)
    teacher_grad = out["teacher"].grad.clone()
    out["teacher"].grad = None
    second = loss(out, batch_of(target, valid, epoch=2))
    second["loss"].backward()
    guidance = ((3 / SCALE) ** 2).mean()
    assert float(second["guidance"]) == pytest.approx(guidance, rel=1e-5)
    expected = float(second["main"]) + float(second["teacher"]) + 0.7 * guidance
    assert second["loss"].item() == pytest.approx(expected, rel=1e-5)
    assert out["value"].grad.abs().max() > 0
    assert torch.equal(out["teacher"].grad, teacher_grad), "the teacher does not learn from its pupil"


def test_heads_without_a_term_still_get_a_gradient():
    value, target, valid = numbers(3)
    out = {key: leaf.requires_grad_() for key, leaf in tensors(value=value, teacher=value, log_var=value).items()}
    out["aux"] = {"state": torch.randn(3, 4, requires_grad=True)}
    result = make()(out, batch_of(target, valid))
    assert result["loss"].item() == result["main"].item()
    result["loss"].backward()
    for leaf in (out["teacher"], out["log_var"], out["aux"]["state"]):
        assert float(leaf.grad.abs().max()) == 0


FULL = {"uncertainty": True, "two_part": ["Dry_Dead_g"], "constraint_weight": 0.1, "log_targets": ["Dry_Clover_g"]}
FULL |= {"aux_weights": {"state": 2.0}, "distill_weight": 0.5, "distill_warmup": 0}


def full_case(batch=4, seed=0, dtype=torch.float64):
    rng = np.random.default_rng(seed)
    value, target, valid = numbers(batch, seed, missing=0.2)
    value[:, 2] = np.log1p(value[:, 2])
    raw = {"value": value, "log_var": rng.normal(3, 0.5, (batch, 5)), "nonzero": rng.normal(size=(batch, 1))}
    raw |= {"teacher": value * 1.1, "aux": rng.normal(size=(batch, 4))}
    raw = {key: torch.tensor(v, dtype=dtype) for key, v in raw.items()}
    return raw, batch_of(target, valid, epoch=1, aux={"state": torch.eye(4)[torch.arange(batch) % 4]})


def as_outputs(raw):
    return {**raw, "aux": {"state": raw["aux"]}}


@pytest.mark.parametrize("kind", sorted(LOSSES))
def test_gradients_equal_finite_differences(kind):
    """Float32 inside, so central differences with a step that float32 resolves."""
    raw, batch = full_case()
    loss = make(kind, **FULL)
    leaves = {key: v.clone().requires_grad_(True) for key, v in raw.items()}
    loss(as_outputs(leaves), batch)["loss"].backward()
    for key in ("value", "log_var", "nonzero", "aux"):
        for index in [(0, 0), (2, raw[key].shape[1] - 1)]:
            values = []
            for step in (0.02, -0.02):
                moved = {k: v.clone() for k, v in raw.items()}
                moved[key][index] += step
                values.append(float(loss(as_outputs(moved), batch)["loss"]))
            numeric = (values[0] - values[1]) / 0.04
            assert float(leaves[key].grad[index]) == pytest.approx(numeric, rel=0.05, abs=2e-4), (key, index)


@pytest.mark.parametrize("kind", sorted(LOSSES))
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_outputs_stay_finite(kind, dtype):
    raw, batch = full_case(64)
    raw = {key: (v * (50 if key in ("teacher",) else 1)).to(dtype) for key, v in raw.items()}
    raw["value"][:, [0, 3, 4]] = 3000.0  # its square overflows float16
    leaves = {key: v.requires_grad_(True) for key, v in raw.items()}
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = make(kind, **FULL)(as_outputs(leaves), batch)
    assert out["loss"].dtype == torch.float32 and out["loss"].isfinite()
    out["loss"].backward()
    assert all(leaf.grad.isfinite().all() for leaf in leaves.values())


@pytest.mark.parametrize("kind", sorted(LOSSES))
def test_no_valid_entry_at_all_gives_zero_with_gradient(kind):
    raw, batch = full_case()
    batch["valid"][:] = False
    batch["target"][:] = torch.nan
    leaves = {key: v.clone().requires_grad_(True) for key, v in raw.items()}
    out = make(kind, **(FULL | {"constraint_weight": 0.0, "aux_weights": {}}))(as_outputs(leaves), batch)
    assert out["loss"].item() == 0
    out["loss"].backward()
    assert float(leaves["value"].grad.abs().max()) == 0


@pytest.mark.parametrize("kind", sorted(LOSSES))
def test_a_masked_entry_gets_no_gradient_and_a_nan_target_is_not_hidden(kind):
    value, target, valid = numbers()
    valid[2, 3] = False
    leaf = torch.tensor(value, dtype=torch.float32, requires_grad=True)
    batch = batch_of(target, valid)
    make(kind)({"value": leaf}, batch)["loss"].backward()
    assert leaf.grad[2, 3] == 0 and (leaf.grad != 0).sum() == 29
    batch["valid"][2, 3] = True
    assert not make(kind)({"value": leaf}, batch)["loss"].isfinite(), "a valid NaN must stop the run"


def test_target_weights():
    assert resolve_weights("equal", OUTPUTS) == [0.2] * 5
    assert resolve_weights("total-heavy", OUTPUTS[::-1]) == pytest.approx(HEAVY[::-1].tolist())
    assert resolve_weights(["total-heavy"], OUTPUTS) == pytest.approx(HEAVY.tolist())
    assert resolve_weights(["1", "0", "0", "0", "3"], OUTPUTS) == [0.25, 0, 0, 0, 0.75]


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"kind": "l3"}, ["--loss l3", "huber"]),
        ({"target_weights": "heavy"}, ["--target-weights heavy", "total-heavy"]),
        ({"target_weights": [1, 2]}, ["--target-weights", "5 numbers"]),
        ({"target_weights": [0, 0, 0, 0, 0]}, ["--target-weights"]),
        ({"target_weights": [1, 1, 1, 1, -1]}, ["--target-weights"]),
        ({"scale": [1, 1, 1, 1, 0]}, ["scale", "above zero"]),
        ({"outputs": ("a", "b"), "scale": None, "constraint_weight": 1.0}, ["--constraint-weight", "a, b"]),
        ({"outputs": ("a", "b"), "scale": None, "target_weights": "total-heavy"}, ["--target-weights"]),
    ],
)
def test_wrong_settings_name_option_and_remedy(changes, words):
    with pytest.raises(InputError) as caught:
        make(**changes)
    assert all(word in str(caught.value) for word in words) and "\n" not in str(caught.value)


def test_alone_a_sum_is_itself():
    value = torch.tensor([1.0, 2.0], requires_grad=True)
    assert world_size() == 1 and all_sum(value) is value
    mean = global_mean(torch.tensor([1.0, float("nan"), 5.0]), torch.tensor([1.0, 0.0, 3.0]))
    assert float(mean) == 4.0


def tiny_case():
    """A small trunk under the real heads: the worker imports no timm, which takes longer than the test."""
    torch.manual_seed(0)
    scale, options = head_scale(SCALE, [False, False, True, False, False]), {"uncertainty": True, "two_part": 1}
    heads = RegressionHeads(8, scale, aux={"state": 4}, distill=True, **options)
    _, batch = full_case(6)
    batch["valid"][4:] = False
    batch["valid"][5, 4] = True
    batch["target"][5, 4] = 30.0
    batch["image"] = torch.randn(6, 3)
    return torch.nn.Sequential(torch.nn.Linear(3, 8), torch.nn.GELU(), heads), batch


def take(batch, rows):
    part = {key: value[rows] for key, value in batch.items() if isinstance(value, torch.Tensor)}
    return {**part, "epoch": batch["epoch"], "aux": {"state": batch["aux"]["state"][rows]}}


def gradients(model, kind, batch):
    model.zero_grad()
    loss = make(kind, target_weights="total-heavy", **FULL)(model(batch["image"]), batch)["loss"]
    loss.backward()
    return loss.item(), [p.grad.clone() for p in model.parameters()]


def one_of_two(rank, folder):
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    model, batch = tiny_case()
    rows = slice(0, 4) if rank == 0 else slice(4, 6)  # other sizes, other numbers of valid entries
    results = {}
    for kind in sorted(LOSSES):
        loss, grads = gradients(model, kind, take(batch, rows))
        for grad in grads:  # what DistributedDataParallel does, without its ten seconds of imports
            torch.distributed.all_reduce(grad)
            grad /= 2
        results[kind] = (loss, grads)
    torch.save(results, f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


def test_two_processes_equal_one(tmp_path):
    multiprocessing.start_processes(one_of_two, args=(str(tmp_path),), nprocs=2, start_method="fork")
    results = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2)]
    model, batch = tiny_case()
    for kind in sorted(LOSSES):
        loss, expected = gradients(model, kind, batch)
        assert math.isfinite(loss) and all(g.abs().max() > 0 for g in expected)
        for rank in range(2):
            assert results[rank][kind][0] == pytest.approx(loss, rel=1e-5), kind
            for mine, other in zip(expected, results[rank][kind][1], strict=True):
                assert torch.allclose(mine, other, rtol=1e-3, atol=1e-5 * float(mine.abs().max()) + 1e-7), kind
