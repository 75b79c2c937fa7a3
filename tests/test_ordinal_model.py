"""Ordinal heads and spatial attention of the segmenter, for every architecture."""

import json

import numpy as np
import pytest
import torch
from shaken_models import shaken
from torch.nn import functional as F

from common.errors import InputError
from common.losses.segmentation import build_loss
from common.models.ordinal import OrderedBiases, SpatialAttention, start_at_prior
from common.models.segmenter import ARCHS, Segmenter
from common.models.transfer import init_from
from common.ordinal import class_logits

SMALL = {"encoder": "resnet18", "decoder": (32, 16, 16), "channels": 4, "classes": 3}
NAMES = ("low", "medium", "high")
BANDS = ("slope", "elevation", "ndvi", "tpi")
HEADS = (("coral", "bottleneck"), ("corn", "head"))
CASES = [(arch, *HEADS[k % 2]) for k, arch in enumerate(ARCHS) if arch != "mask2former"]
CASES += [("mask2former", "coral", "bottleneck"), ("unet", "corn", "head"), ("dpt", "coral", "bottleneck"),
          ("fpn", "corn", "bottleneck"), ("pspnet", "coral", "head")]  # fmt: skip
CASES = sorted(set(CASES))


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("arch, head, spatial", CASES)
def test_every_architecture_learns_with_a_head_and_attention(arch, head, spatial):
    """Levels of every pixel; a gradient for all that wants one, so that DDP need not look for what is unused."""
    if arch == "mask2former":
        pytest.importorskip("transformers")
    torch.manual_seed(0)
    model = Segmenter(
        arch=arch, encoder="resnet18", channels=4, classes=3, head=head, spatial_attention=spatial
    ).train()
    levels = model(noise(2, 4, 64, 90))
    assert levels.shape == (2, 2, 64, 90) and levels.isfinite().all()
    assert head == "corn" or (levels[:, 0] > levels[:, 1]).all()
    target = torch.randint(0, 3, (2, 64, 90))
    batch = {"target": target, "valid": torch.ones_like(target, dtype=torch.bool), "epoch": 0}
    build_loss(loss=["focal=.7", "dice=.3"], outputs=NAMES, head=head)(levels, batch)["loss"].backward()
    wanting = {name for name, p in model.named_parameters() if p.requires_grad}
    assert wanting == {name for name, p in model.named_parameters() if p.grad is not None}
    assert "spatial.conv.weight" in wanting and model.get_parameter("spatial.conv.weight").grad.abs().max() > 0
    groups = model.param_groups(lr=1.0, backbone_lr=0.1, weight_decay=0.5)
    rate = {id(p): group["lr"] for group in groups for p in group["params"]}
    own = [p for name, p in model.named_parameters() if name.startswith(("ordinal.", "spatial."))]
    assert own and {rate[id(p)] for p in own if p.requires_grad} == {1.0}
    assert len(rate) == len(wanting)


@pytest.mark.parametrize("head", ["coral", "corn"])
@pytest.mark.parametrize("more", [{"fusion": "late", "rgb": (0, 1, 2)}, {"stem": "full"}, {"attention": "scse"}])
def test_heads_go_with_the_other_options(head, more):
    model = Segmenter(**SMALL, head=head, spatial_attention="head", **more).train()
    levels = model(noise(2, 4, 40, 33))
    assert levels.shape == (2, 2, 40, 33)
    levels.square().mean().backward()
    assert all((p.grad is not None) == p.requires_grad for p in model.parameters())


def test_coral_has_one_weight_vector_and_biases_that_fall():
    model = shaken(Segmenter(**SMALL, head="coral"), by=0.3)
    (weight,) = [p for name, p in model.named_parameters() if name.startswith("ordinal.score")]
    assert weight.shape == (1, 16, 3, 3)
    seen = {}
    model.ordinal.register_forward_pre_hook(lambda module, inputs: seen.update(decoded=inputs[0]))
    with torch.no_grad():
        levels = model(noise(1, 4, 32, 32))
        score = F.conv2d(seen["decoded"], weight, padding=1)
    first, steps = (getattr(model.ordinal.levels, name).detach().double().numpy() for name in ("first", "steps"))
    biases = [first, first - np.log1p(np.exp(steps[0]))]
    for k in range(2):
        np.testing.assert_allclose(levels[:, k : k + 1].numpy(), score.numpy() + biases[k], atol=1e-4)
    wild = OrderedBiases(6)
    with torch.no_grad():
        wild.steps.copy_(torch.tensor([-9.0, 3, -1, 0, 8]))
    assert (wild.biases().diff() < 0).all()


@pytest.mark.parametrize("place", ["head", "bottleneck"])
def test_spatial_attention_multiplies_pixels_by_one_factor(place):
    model = shaken(Segmenter(**SMALL, spatial_attention=place), by=0.3)
    plain = Segmenter(**SMALL).eval()
    plain.load_state_dict({k: v for k, v in model.state_dict().items() if not k.startswith("spatial.")}, strict=True)
    x, weight = noise(1, 4, 64, 48), model.spatial.conv.weight.detach().double().numpy()
    assert weight.shape == (1, 2, 7, 7) and model.spatial.conv.bias is None

    def gated(features):
        features = features.detach().double().numpy()
        seen = np.pad(np.stack([features.max(1), features.mean(1)], 1), ((0, 0), (0, 0), (3, 3), (3, 3)))
        windows = np.lib.stride_tricks.sliding_window_view(seen, (7, 7), (2, 3))
        gate = np.einsum("bcyxij,cij->byx", windows, weight[0])
        return torch.tensor(features * np.exp(-np.logaddexp(0, -gate))[:, None], dtype=torch.float32)

    with torch.no_grad():
        features = plain.net.encoder(x)
        if place == "bottleneck":
            features = [*features[:-1], gated(features[-1])]
        decoded = plain.net.decoder(features)
        expected = plain.net.segmentation_head(gated(decoded) if place == "head" else decoded)
        found = model(x)
        assert not torch.allclose(found, plain(x), rtol=1e-2)
    np.testing.assert_allclose(found.numpy(), expected.numpy(), rtol=1e-3, atol=1e-3 * expected.abs().max().item())


def test_the_gate_of_the_attention_is_between_zero_and_one():
    module = SpatialAttention()
    x = noise(2, 5, 9, 9).abs() + 0.1
    share = module(x) / x
    assert ((share > 0) & (share < 1)).all()
    assert torch.allclose(share, share[:, :1].expand_as(share), atol=1e-6)


def test_without_the_options_nothing_changed():
    torch.manual_seed(0)
    plain = Segmenter(**SMALL)
    torch.manual_seed(0)
    said = Segmenter(**SMALL, head="softmax", spatial_attention="none")
    assert plain.ordinal is None and plain.spatial is None
    state = said.state_dict()
    assert list(state) == list(plain.state_dict()) and all(key.startswith("net.") for key in state)
    assert all(torch.equal(state[key], value) for key, value in plain.state_dict().items())


@pytest.mark.parametrize("head", ["coral", "corn"])
def test_rebuilt_from_plain_settings(head):
    settings = {**SMALL, "head": head, "spatial_attention": "bottleneck"}
    model = shaken(Segmenter(**settings), by=0.3)
    again = Segmenter(**json.loads(json.dumps(settings))).eval()
    again.load_state_dict(model.state_dict(), strict=True)
    x = noise(1, 4, 32, 32)
    with torch.no_grad():
        assert torch.equal(model(x), again(x))


@pytest.mark.parametrize("arch", ["unet", "dpt"])
def test_a_new_model_answers_with_the_prior(arch):
    model = Segmenter(arch=arch, encoder="resnet18", channels=4, classes=3).eval()
    last = [m for m in model.net.segmentation_head.modules() if isinstance(m, torch.nn.Conv2d)][-1]
    with torch.no_grad():
        last.weight.zero_()  # what is left are the biases
        for shares in ((0.85, 0.03, 0.12), (0.2, 0.7, 0.1), (0.999, 1e-3, 0.0)):
            start_at_prior(model, shares)
            prob = model(noise(1, 4, 32, 32)).softmax(1)
            np.testing.assert_allclose(prob.mean((0, 2, 3)).numpy(), shares, rtol=1e-3, atol=2e-6)


@pytest.mark.parametrize("classes", [2, 3, 5])
def test_the_biases_of_coral_begin_at_equal_shares(classes):
    levels = OrderedBiases(classes - 1)(torch.zeros(1, 1, 1, 1))
    prob = class_logits(levels, "coral").softmax(1)
    np.testing.assert_allclose(prob.flatten().detach().numpy(), np.full(classes, 1 / classes), atol=1e-6)


@pytest.mark.parametrize("head", ["coral", "corn"])
def test_init_from_a_softmax_model_takes_all_but_the_head_and_says_so(head):
    source, model = shaken(Segmenter(**SMALL), by=0.3), Segmenter(**SMALL, head=head, spatial_attention="head")
    fresh = {key: value.clone() for key, value in model.state_dict().items()}
    names = {"bands": BANDS, "outputs": NAMES, "source_bands": BANDS, "source_outputs": NAMES}
    said = init_from(model, source.state_dict(), **names)
    own, theirs = model.state_dict(), source.state_dict()
    for key, value in own.items():
        assert torch.equal(value, fresh[key] if key.startswith(("ordinal.", "spatial.")) else theirs[key]), key
    assert "not in the checkpoint: ordinal.score" in said and "spatial.conv (1)" in said
    assert "without a place here: net.segmentation_head.0 (2)" in said
    back = Segmenter(**SMALL)
    said = init_from(back, model.state_dict(), **names)
    assert "not in the checkpoint: net.segmentation_head.0 (2)" in said
    same = Segmenter(**SMALL, head=head, spatial_attention="head").eval()
    init_from(same, model.state_dict(), **names)
    x = noise(1, 4, 32, 32)
    with torch.no_grad():
        assert torch.equal(same(x), model.eval()(x))


@pytest.mark.parametrize(
    "settings, words",
    [
        ({"head": "corral"}, "--head corral: choose one of softmax, coral, corn"),
        ({"spatial_attention": "neck"}, "--spatial-attention neck: choose one of none, head, bottleneck"),
        ({"head": "coral", "classes": 1}, "--head coral: 1 class"),
        ({"arch": "mask2former", "spatial_attention": "head"}, "--spatial-attention head: --arch mask2former"),
    ],
)
def test_what_cannot_be_built_names_the_option(settings, words):
    with pytest.raises(InputError, match=words):
        Segmenter(**{"encoder": "resnet18", "channels": 4, "classes": 3, **settings})
