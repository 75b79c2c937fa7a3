import json
import math

import numpy as np
import pytest
import torch

from common.errors import InputError
from common.models.backbone import normalisation
from common.models.fusion import FUSIONS, AttentionPool
from common.models.heads import interval
from common.models.stereo import StereoRegressor, cut_cells

OUTPUTS = ("Dry_Green_g", "Dry_Dead_g", "Dry_Clover_g", "GDM_g", "Dry_Total_g")
SCALE = [25.0, 12.0, 7.0, 33.0, 45.0]
AUX = {"state": 4, "month": 10, "species": 8}
SIZE = 32


def make(seed=0, **changes):
    torch.manual_seed(seed)
    settings = {"backbone": "test_vit", "outputs": OUTPUTS, "cell_size": SIZE, "scale": SCALE, **changes}
    return StereoRegressor(**json.loads(json.dumps(settings))).eval()


def wake(module, seed=1):
    """Random values in place of the zeros that some layers start with."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return module


def photo(batch=2, rows=2, cols=2, seed=0):
    return torch.rand(batch, 2, 3, rows * SIZE, cols * SIZE, generator=torch.Generator().manual_seed(seed))


def test_cells_are_cut_row_by_row_half_by_half():
    image = photo(2, 2, 3)
    cells, k = cut_cells(image, (2, 3)), 0
    for b in range(2):
        for half in range(2):
            for r in range(2):
                for c in range(3):
                    expected = image[b, half, :, r * SIZE : (r + 1) * SIZE, c * SIZE : (c + 1) * SIZE]
                    assert torch.equal(cells[k], expected)
                    k += 1
    assert k == len(cells)


@pytest.mark.parametrize(
    "backbone, pool, blocks, width",
    [
        ("test_vit", "cls", (), 64),
        ("test_vit", "mean", (), 64),
        ("test_vit", "cls+mean", (), 128),
        ("test_vit", "cls", (1, 3, 5), 192),
        ("test_vit", "cls+mean", (0, 2), 256),
        ("test_vit2", "cls", (), 64),
        ("test_vit3", "mean", (), 96),
        ("test_convnext", "cls", (), 64),
        ("test_convnext", "cls", (1, 3), 96),
        ("test_resnet", "mean", (), 96),
    ],
)
def test_one_backbone_call_and_every_parameter_learns(backbone, pool, blocks, width):
    model, calls = make(backbone=backbone, pool=pool, blocks=blocks, cell_size=SIZE), []
    model.backbone.register_forward_hook(lambda module, inputs, output: calls.append((inputs[0].shape, output.shape)))
    features = model.embed(photo(3))
    assert features.shape == (3, 2, 4, width)
    assert calls == [((24, 3, SIZE, SIZE), (24, width))]
    wake(model.fusion)
    out = model.heads(features)
    assert out["value"].shape == (3, 5) and out["value"].dtype == torch.float32
    out["value"].sum().backward()
    assert [name for name, p in model.named_parameters() if p.grad is None] == []


@pytest.mark.parametrize(
    "backbone, size", [("vit_small_patch14_reg4_dinov2.lvd142m", 28), ("vit_small_patch16_dinov3", 32)]
)
def test_models_of_the_competition(backbone, size):
    model = make(backbone=backbone, cell_size=size, blocks=(0, 1), grid=(1, 2))
    image = torch.rand(1, 2, 3, size, 2 * size)
    assert model.embed(image).shape == (1, 2, 2, 768)
    assert len(model.backbone.net.blocks) == 2
    mean, std = normalisation(backbone)
    assert mean == pytest.approx([0.485, 0.456, 0.406]) and std == pytest.approx([0.229, 0.224, 0.225])


def test_class_token_and_mean_are_what_timm_gives():
    model, x = make(pool="cls+mean"), torch.rand(3, 3, SIZE, SIZE)
    net = model.backbone.net
    tokens = net.forward_features(x)
    joined = torch.cat([net.forward_head(tokens, pre_logits=True), tokens[:, 1:].mean(1)], -1)
    assert torch.allclose(model.backbone(x), joined, atol=1e-6)
    last = make(blocks=(5,))
    assert torch.allclose(last.backbone(x), tokens[:, 0], atol=1e-5), "the last block alone is the ordinary output"
    assert torch.equal(make(backbone="test_convnext").backbone(x), make(backbone="test_convnext").backbone.net(x))


def test_film_modulates_each_half_by_the_other():
    film = wake(FUSIONS["film"](6))
    left, right = torch.randn(2, 4, 6), torch.randn(2, 3, 6)
    new_left, new_right = film(left, right)
    for new, x, other in ((new_left, left, right), (new_right, right, left)):
        gamma, beta = np.split(film.net(other.mean(1)).detach().numpy(), 2, axis=1)
        expected = x.numpy() * (1 + gamma[:, None]) + beta[:, None]
        np.testing.assert_allclose(new.detach().numpy(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", sorted(FUSIONS))
def test_fusion_starts_as_identity_then_reads_the_other_half(name):
    fusion = FUSIONS[name](12)
    left, right = torch.randn(2, 4, 12), torch.randn(2, 4, 12)
    for new, old in zip(fusion(left, right), (left, right), strict=True):
        assert torch.equal(new, old)
    wake(fusion)
    first = fusion(left, right)
    moved = right.clone()
    moved[0, 2] += torch.randn(12)
    second = fusion(left, moved)
    assert not torch.allclose(first[0][0], second[0][0]), "the left half must see the right one"
    assert torch.equal(first[0][1], second[0][1]), "but not another photo's"
    swapped = fusion(right, left)
    assert torch.allclose(swapped[0], first[1]) and torch.allclose(swapped[1], first[0]), "shared between directions"


@pytest.mark.parametrize("name", ["film", "concat"])
def test_fusion_modulates_a_cell_by_the_other_half_alone(name):
    """A cell's new value must not depend on the other cells of its own half."""
    fusion = wake(FUSIONS[name](12))
    left, right = torch.randn(1, 4, 12), torch.randn(1, 4, 12)
    before, _ = fusion(left, right)
    left = left.clone()
    left[0, 3] += torch.randn(12)
    after, _ = fusion(left, right)
    assert torch.equal(before[0, :3], after[0, :3]) and not torch.equal(before[0, 3], after[0, 3])


def test_cross_attention_equals_plain_formula():
    fusion = wake(FUSIONS["cross-attention"](8))
    left, right = torch.randn(1, 3, 8), torch.randn(1, 2, 8)
    attention, heads = fusion.attention, fusion.attention.num_heads
    project = [fusion.norm(x) for x in (left, right, right)]
    weights, biases = attention.in_proj_weight.chunk(3), attention.in_proj_bias.chunk(3)
    q, k, v = [
        (x @ w.T + b).reshape(1, -1, heads, 8 // heads).transpose(1, 2)
        for x, w, b in zip(project, weights, biases, strict=True)
    ]
    mixed = torch.softmax(q @ k.transpose(-1, -2) / math.sqrt(8 // heads), -1) @ v
    expected = left + attention.out_proj(mixed.transpose(1, 2).reshape(1, 3, 8))
    assert torch.allclose(fusion(left, right)[0], expected, atol=1e-5)


def test_attention_pool_is_a_weighted_mean_without_order():
    pool, cells = wake(AttentionPool(10)), torch.randn(2, 5, 10)
    weights = pool.weights(cells)
    assert torch.allclose(weights.sum(1), torch.ones(2)) and weights.std() > 0.01
    expected = (weights[..., None] * cells).sum(1)
    assert torch.allclose(pool(cells), expected, atol=1e-6)
    assert torch.allclose(pool(cells[:, [3, 1, 4, 0, 2]]), expected, atol=1e-6)


def test_swapped_halves_swap_the_features_and_change_the_masses():
    model, image = wake(make()), photo()
    assert torch.allclose(model.embed(image.flip(1)), model.embed(image).flip(1), atol=1e-5)
    assert not torch.allclose(model(image)["value"], model(image.flip(1))["value"], rtol=1e-3)


def test_stored_features_give_what_the_image_gives():
    model, image = make(uncertainty=True), photo()
    direct, stored = model(image), model(model.embed(image).detach())
    assert all(torch.equal(direct[key], stored[key]) for key in ("value", "log_var"))
    half = model(model.embed(image).half())["value"]
    assert half.dtype == torch.float32 and torch.allclose(half, direct["value"], rtol=1e-2)


def test_heads_start_at_the_typical_mass_and_are_never_negative():
    model = make(log_targets=["Dry_Clover_g"])
    pred = model.to_grams(model(photo(4)))["pred"]
    assert torch.allclose(pred.mean(0), torch.tensor(SCALE), rtol=0.3)
    assert (model.to_grams(wake(model)(photo(8)))["pred"] >= 0).all()
    spread = torch.exp(0.5 * make(uncertainty=True)(photo(4))["log_var"]).mean(0)
    assert torch.allclose(spread, 0.5 * torch.tensor(SCALE), rtol=0.3), "and the deviation at half of it"
    out = {"value": torch.rand(2, 5)}
    assert torch.equal(make().to_grams(out)["pred"], out["value"]), "without log targets the value is in grams"


def test_log_is_inverted_before_the_two_part_probability():
    model = make(log_targets=["Dry_Dead_g", "Dry_Total_g"], two_part=["Dry_Dead_g", "Dry_Clover_g"])
    value = torch.tensor([[3.0, 2.0, 5.0, 7.0, 4.0]])
    logits = torch.tensor([[0.4, -1.0]])
    p = 1 / (1 + np.exp(-logits.numpy()[0]))
    expected = [3.0, p[0] * (math.exp(2) - 1), p[1] * 5.0, 7.0, math.exp(4) - 1]
    pred = model.to_grams({"value": value.half(), "nonzero": logits.half()})["pred"]
    assert pred.dtype == torch.float32
    np.testing.assert_allclose(pred[0].numpy(), expected, rtol=1e-3)


def test_interval_equals_quantiles_of_draws():
    rng = np.random.default_rng(0)
    value, log_var, logit = [40.0, 2.0, 6.0], [math.log(25.0), math.log(0.09), math.log(4.0)], 1.1
    log_mask = torch.tensor([False, True, False])
    lo, hi = interval(
        torch.tensor([value]), torch.tensor([log_var]), torch.tensor([[logit]]), log_mask, two_part=[2], coverage=0.9
    )
    draws = np.array(value) + np.exp(np.array(log_var) / 2) * rng.standard_normal((400_000, 3))
    draws[:, 1] = np.expm1(draws[:, 1])
    draws[:, 2] *= rng.random(len(draws)) < 1 / (1 + math.exp(-logit))
    low, high = np.quantile(draws, [0.05, 0.95], axis=0)
    np.testing.assert_allclose(lo[0].numpy(), np.maximum(low, 0), rtol=0.01, atol=0.02)
    np.testing.assert_allclose(hi[0].numpy(), high, rtol=0.01)
    rare = interval(torch.tensor([[5.0]]), torch.zeros(1, 1), torch.tensor([[-4.0]]), torch.tensor([False]), [0])
    assert [float(bound) for bound in rare] == [0.0, 0.0], "zero with 98 % of probability"


def test_interval_reaches_the_output():
    model = make(uncertainty=True, two_part=["Dry_Dead_g"], log_targets=["Dry_Total_g"])
    grams = model.to_grams(model(photo()))
    assert set(grams) == {"pred", "lo", "hi"}
    assert (grams["lo"] <= grams["pred"]).all() and (grams["pred"] <= grams["hi"]).all() and (grams["lo"] >= 0).all()
    assert set(make().to_grams(make()(photo()))) == {"pred"}


@pytest.mark.parametrize("distill", [False, True])
def test_auxiliary_heads_and_teacher_do_not_touch_predictions(distill):
    model, image = make(aux=AUX, distill=distill, uncertainty=True, two_part=["Dry_Dead_g"]), photo()
    before_out, before = model(image), model.to_grams(model(image))
    parts = [model.head.aux] + ([model.head.teacher] if distill else [])
    for part in parts:
        wake(part)
    after_out, after = model(image), model.to_grams(model(image))
    assert all(torch.equal(before[key], after[key]) for key in before)
    assert not torch.equal(before_out["aux"]["state"], after_out["aux"]["state"])
    assert {name: tuple(logits.shape) for name, logits in after_out["aux"].items()} == {
        n: (2, k) for n, k in AUX.items()
    }
    bare = {key: value for key, value in after_out.items() if key not in ("aux", "teacher")}
    assert torch.equal(model.to_grams(bare)["pred"], before["pred"]), "outputs without metadata heads are enough"


def test_teacher_reads_soft_auxiliary_outputs_without_training_them():
    model = make(aux=AUX, distill=True)
    out = model(photo())
    out["teacher"].sum().backward()
    assert all(p.grad is None for p in model.head.aux.parameters())
    assert model.trunk[1].weight.grad is not None
    wake(model.head.aux)
    assert not torch.equal(model(photo())["teacher"], out["teacher"])


def test_frozen_backbone_rests():
    model = make(backbone="test_resnet").train()
    model.freeze_backbone(True)
    before = {key: value.clone() for key, value in model.backbone.state_dict().items()}
    model.train()
    assert model.training and model.fusion.training and not model.backbone.net.training and not model.backbone.training
    features = model.embed(photo())
    assert not features.requires_grad
    model.heads(features)["value"].sum().backward()
    assert all(p.grad is None for p in model.backbone.parameters()) and model.trunk[1].weight.grad is not None
    assert all(torch.equal(before[key], value) for key, value in model.backbone.state_dict().items()), (
        "batch statistics"
    )
    model.freeze_backbone(False)
    assert model.backbone.net.training and model.embed(photo()).requires_grad
    model.eval()
    model.freeze_backbone(True)
    model.freeze_backbone(False)
    assert not model.backbone.net.training, "thawing in eval mode stays in eval mode"


def covered(model, groups):
    owned = [id(p) for group in groups for p in group["params"]]
    assert len(owned) == len(set(owned)), "no parameter twice"
    trainable = {id(p) for p in model.parameters() if p.requires_grad}
    assert set(owned) == trainable
    return {id(p): group for group in groups for p in group["params"]}


@pytest.mark.parametrize("backbone", ["test_vit", "test_convnext", "test_resnet"])
def test_parameter_groups(backbone):
    model = make(backbone=backbone)
    rates = {"lr": 1e-3, "backbone_lr": 1e-5, "weight_decay": 0.05}
    owner = covered(model, model.param_groups(**rates))
    for name, parameter in model.named_parameters():
        group = owner[id(parameter)]
        assert group["part"] == model.part_of(name)
        assert group["lr"] == (1e-5 if name.startswith("backbone.") else 1e-3)
        special = name.rsplit(".", 1)[-1] in ("cls_token", "pos_embed")
        assert group["weight_decay"] == (0.05 if parameter.ndim > 1 and not special else 0.0), name
    torch.optim.AdamW(model.param_groups(**rates))
    model.freeze_backbone(True)
    assert {group["part"] for group in model.param_groups(**rates)} == {"head"}
    covered(model, model.param_groups(**rates))


def test_layer_decay_and_partial_unfreezing():
    model = make().train()
    rates = {"lr": 1e-3, "backbone_lr": 1e-4, "weight_decay": 0.1}
    groups = model.param_groups(**rates, layer_decay=0.5)
    covered(model, groups)
    lr = {group["name"]: group["lr"] for group in groups}
    assert lr["backbone.blocks.5"] == pytest.approx(1e-4) and lr["backbone.blocks.3"] == pytest.approx(2.5e-5)
    assert lr["backbone.stem"] == pytest.approx(1e-4 * 0.5**6) and lr["head"] == 1e-3
    groups = model.param_groups(**rates, layer_decay=0.5, unfreeze_blocks=2)
    covered(model, groups)
    names = {group["name"].removesuffix(".no_decay") for group in groups if group["part"] == "backbone"}
    assert names == {"backbone.blocks.4", "backbone.blocks.5"}
    model.train()
    net = model.backbone.net
    assert not net.blocks[3].training and net.blocks[4].training and net.norm.weight.requires_grad
    model(photo())["value"].sum().backward()
    assert net.blocks[3].mlp.fc1.weight.grad is None and net.blocks[4].mlp.fc1.weight.grad is not None
    model.freeze_backbone(True)
    assert not any(p.requires_grad for p in model.backbone.parameters())
    model.freeze_backbone(False)
    covered(model, groups)
    assert not net.blocks[3].training and net.blocks[4].training, "a stage that thaws leaves the lower blocks alone"
    covered(model, model.param_groups(**rates))


def test_hash_tells_backbones_apart():
    model = make()
    assert model.backbone_hash() == make().backbone_hash()
    assert model.backbone_hash() != make(seed=1).backbone_hash()
    assert model.backbone_hash() != make(pool="mean").backbone_hash(), "other features of the same weights"
    first = model.backbone_hash()
    wake(model.head)
    assert model.backbone_hash() == first
    with torch.no_grad():
        model.backbone.net.norm.bias[0] += 1e-6
    assert model.backbone_hash() != first


def test_half_precision_autocast_keeps_grams_in_float32():
    model, image = make(uncertainty=True), photo()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = model(image)
    assert all(out[key].dtype == torch.float32 and out[key].isfinite().all() for key in ("value", "log_var"))
    assert torch.allclose(out["value"], model(image)["value"], rtol=0.1)


def test_rebuilt_from_plain_settings():
    settings = {"backbone": "test_vit", "outputs": list(OUTPUTS), "cell_size": SIZE, "grid": [1, 2], "scale": SCALE}
    settings |= {"aux": AUX, "two_part": ["Dry_Dead_g"], "log_targets": ["GDM_g"], "fusion": "concat", "distill": True}
    first = StereoRegressor(**settings).eval()
    second = StereoRegressor(**json.loads(json.dumps(settings))).eval()
    second.load_state_dict(first.state_dict())
    image = photo(1, 1, 2)
    assert torch.equal(first.to_grams(first(image))["pred"], second.to_grams(second(image))["pred"])


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"backbone": "test_vitt"}, ["--backbone test_vitt", "test_vit"]),
        ({"pool": "max"}, ["--pool", "cls+mean"]),
        ({"backbone": "test_convnext", "pool": "cls+mean"}, ["--pool", "class token"]),
        ({"blocks": (2, 6)}, ["--blocks", "0 to 5"]),
        ({"fusion": "sum"}, ["--fusion", "film"]),
        ({"cell_size": 40}, ["--cell-size 40", "16"]),
        ({"log_targets": ["Clover"]}, ["--log-targets", "Dry_Clover_g"]),
        ({"scale": [1.0, 0, 1, 1, 1]}, ["scale", "above zero"]),
        ({"distill": True}, ["--distill", "--use-aux-heads"]),
    ],
)
def test_wrong_settings_name_option_and_remedy(changes, words):
    with pytest.raises(InputError) as caught:
        make(**changes)
    assert all(word in str(caught.value) for word in words) and "\n" not in str(caught.value)


def test_image_of_another_size_is_refused():
    with pytest.raises(InputError, match="grid 2 x 2"):
        make()(photo(1, 2, 3))
