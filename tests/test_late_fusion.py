"""Two encoders joined by residual cross-modality attention: against a slow version, at its start, its weights."""

import numpy as np
import pytest
import timm
import torch
from shaken_models import shaken
from torch.nn import functional as F

from common.errors import InputError
from common.models.encoder_weights import load_encoder
from common.models.late_fusion import CrossModality, relative_places, together, windows
from common.models.segmenter import Segmenter
from common.models.transfer import init_from

BANDS = ("ndvi", "red", "green", "blue", "relative_elevation")
LATE = {"fusion": "late", "rgb": (1, 2, 3), "channels": 5, "classes": 2}
SMALL = {"encoder": "resnet18", "decoder": (32, 16, 16)}
OUTPUTS = ("background", "slump")


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def slow_attention(join, x, other):
    """Pixel by pixel: who lies in its window, what it asks of each, the weighted mean of what they answer."""
    side, heads = join.window, join.heads
    batch, channels, height, width = x.shape
    out = x.clone()
    for b in range(batch):
        for i in range(height):
            for j in range(width):
                top, left = i // side * side, j // side * side
                places = [
                    (r, c) for r in range(top, min(top + side, height)) for c in range(left, min(left + side, width))
                ]
                asked = join.query(join.norm(x[b, :, i, j])).view(heads, -1)
                told = [join.answer(join.norm_other(other[b, :, r, c])).chunk(2) for r, c in places]
                rows = [(i - r + side - 1) * (2 * side - 1) + j - c + side - 1 for r, c in places]
                found = []
                for h in range(heads):
                    keys = torch.stack([key.view(heads, -1)[h] for key, _ in told])
                    values = torch.stack([value.view(heads, -1)[h] for _, value in told])
                    bias = join.relative_position_bias_table[rows, h]
                    weights = F.softmax(keys @ asked[h] / keys.shape[1] ** 0.5 + bias, 0)
                    found.append(weights @ values)
                out[b, :, i, j] += join.gamma * join.project(torch.cat(found))
    return out


@pytest.mark.parametrize("width, other, size", [(24, 10, (5, 7)), (64, 64, (4, 8)), (8, 3, (1, 2))])
def test_attention_equals_a_slow_version(width, other, size):
    join = shaken(CrossModality(width, other, window=4))
    assert join.heads == max(1, width // 32)
    x, seen = noise(2, width, *size), noise(2, other, *size, seed=1)
    with torch.no_grad():
        torch.testing.assert_close(join(x, seen), slow_attention(join, x, seen), rtol=1e-4, atol=1e-5)


def test_windows_and_back():
    x = noise(2, 3, 16, 24)
    cut = windows(x, 8)
    assert cut.shape == (12, 64, 3)
    assert torch.equal(cut[4].T.reshape(3, 8, 8), x[0, :, 8:16, 8:16])
    assert torch.equal(together(cut, (16, 24), 8), x)
    places = relative_places(3)
    assert len(places.unique()) == 25 and (places.diagonal() == places[0, 0]).all()
    assert places[0, 8] == (0 - 2 + 2) * 5 + (0 - 2 + 2) and places[8, 0] == 24


def test_at_the_start_each_pixel_looks_at_its_own_place():
    join = CrossModality(32, 32)
    table = join.relative_position_bias_table[:, 0].view(15, 15)
    assert table.argmax() == 7 * 15 + 7 and table[7, 8] == -0.5 and table[5, 7] == -2
    weights = F.softmax(join.relative_position_bias_table[join.pairs][..., 0], 1)
    assert (weights.argmax(1) == torch.arange(64)).all()


@pytest.mark.parametrize("arch", ["unet", "unetplusplus", "fpn", "deeplabv3plus"])
def test_training_starts_from_the_model_that_sees_red_green_and_blue_alone(arch):
    """gamma is 0: the logits are those of the early model of the first encoder and the decoder; its gradient is not."""
    model = Segmenter(arch=arch, encoder="resnet18", **LATE)
    alone = Segmenter(arch=arch, encoder="resnet18", channels=3, classes=2)
    state = {key.replace("net.encoder.photo.", "net.encoder."): value for key, value in model.state_dict().items()
             if ".rest." not in key and ".join." not in key}  # fmt: skip
    alone.load_state_dict(state, strict=True)
    image = noise(2, 5, 64, 64)
    with torch.no_grad():
        assert torch.equal(model.eval()(image), alone.eval()(image[:, [1, 2, 3]]))
    model.train()(image).square().mean().backward()
    gammas = {name: p for name, p in model.named_parameters() if name.endswith("gamma") and p.requires_grad}
    assert all(p.grad.abs().sum() > 0 for p in gammas.values())
    first = model.net.encoder.rest.conv1.weight
    assert first.shape[1] == 2 and not first.grad.any(), "nothing of the second encoder is heard yet"
    with torch.no_grad():
        for p in gammas.values():
            p -= 0.5
    model.zero_grad()
    model(image).square().mean().backward()
    assert first.grad.any()
    with torch.no_grad():
        other = image.clone()
        other[:, 0] += 1
        assert not torch.equal(model.eval()(image), model(other)), "ndvi is seen by now"


def test_which_levels_are_joined():
    for arch, used in (("unet", "12345"), ("fpn", "2345"), ("deeplabv3plus", "25")):
        model = Segmenter(arch=arch, encoder="resnet18", **LATE)
        assert sorted(model.net.encoder.used) == list(used)
        assert {name for name, p in model.named_parameters() if ".join." in name and p.requires_grad} == {
            name for name, _ in model.named_parameters() if any(f".join.{level}." in name for level in used)
        }
    full = Segmenter(**SMALL, **LATE, stem="full").eval()
    assert full.full.stem[0].in_channels == 5
    assert torch.isfinite(full(noise(1, 5, 40, 33))).all()


def test_groups_of_parameters_and_a_frozen_encoder():
    model = Segmenter(**SMALL, **LATE)
    parts = {name: model.part_of(name) for name, _ in model.named_parameters()}
    assert {part for name, part in parts.items() if ".photo." in name or ".rest." in name} == {"backbone"}
    assert {part for name, part in parts.items() if ".join." in name or "decoder" in name} == {"head"}
    tables = {id(p) for name, p in model.named_parameters() if "bias_table" in name or name.endswith("gamma")}
    groups = model.param_groups(lr=1, backbone_lr=1, weight_decay=0.1)
    assert not tables & {id(p) for g in groups if g["weight_decay"] for p in g["params"]}
    model.freeze_backbone()
    model.train()(noise(2, 5, 32, 32)).sum().backward()
    grads = {name for name, p in model.named_parameters() if p.grad is not None}
    assert grads and {parts[name] for name in grads} == {"head"} and any(".join." in name for name in grads)


@pytest.mark.parametrize("name", ["resnet18", "tu-test_resnet"])
def test_both_encoders_get_the_weights(tmp_path, name):
    """The first one the kernels of red, green and blue as they are, the second one their mean for every band."""
    source = shaken(timm.create_model(name.removeprefix("tu-"), pretrained=False))
    torch.save(source.state_dict(), tmp_path / "a.pth")
    model = Segmenter(encoder=name, **LATE)
    said = load_encoder(model, tmp_path / "a.pth", bands=BANDS)
    file = source.state_dict()
    stem = next(key for key, value in file.items() if value.ndim == 4)
    photo, rest = (getattr(model.net.encoder, part).state_dict() for part in ("photo", "rest"))
    here = next(key for key, value in photo.items() if value.ndim == 4)
    assert torch.equal(photo[here], file[stem])
    torch.testing.assert_close(rest[here], file[stem].mean(1, keepdim=True).expand(-1, 2, -1, -1))
    assert all(torch.equal(photo[key], rest[key]) for key in photo if key != here)
    assert "red, green, blue by name" in said and "to ndvi, relative_elevation" in said


def test_init_from_a_model_of_red_green_and_blue_begins_as_that_model():
    source = shaken(Segmenter(**SMALL, channels=3, classes=2))
    model = Segmenter(**SMALL, **LATE).eval()
    said = init_from(
        model, source.state_dict(), bands=BANDS, outputs=OUTPUTS,
        source_bands=("blue", "green", "red"), source_outputs=OUTPUTS,
    )  # fmt: skip
    image = noise(1, 5, 32, 48)
    with torch.no_grad():
        image = image.double()
        torch.testing.assert_close(model.double()(image), source.double()(image[:, [3, 2, 1]]))
    assert "red green blue by name" in said and "net.encoder.rest" in said


def test_init_from_a_late_model_of_other_bands():
    source = shaken(Segmenter(**SMALL, **LATE))
    bands = ("red", "green", "blue", "nir", "ndvi")
    model = Segmenter(**SMALL, **{**LATE, "rgb": (0, 1, 2)})
    said = init_from(
        model, source.state_dict(), bands=bands, outputs=OUTPUTS, source_bands=BANDS, source_outputs=OUTPUTS
    )
    own, theirs = model.state_dict(), source.state_dict()
    stem = "net.encoder.rest.conv1.weight"
    assert torch.equal(own[stem][:, 1], theirs[stem][:, 0]) and not own[stem][:, 0].any()
    assert all(torch.equal(own[key], theirs[key]) for key in own if key != stem)
    assert "stem of the others: ndvi by name, nir at zero" in said and "relative_elevation of the checkpoint" in said


@pytest.mark.parametrize(
    "settings, says",
    [
        ({"rgb": None}, "needs red, green and blue among the bands"),
        ({"rgb": (0, 1, 1)}, "needs red, green and blue"),
        ({"rgb": (0, 1, 5)}, "needs red, green and blue"),
        ({"rgb": (0, 1, 2), "channels": 3}, "needs a band beside red, green and blue"),
        ({"fusion": "middle"}, "--fusion middle: choose one of early, late"),
    ],
)
def test_what_cannot_be_fused_is_said(settings, says):
    with pytest.raises(InputError, match=says):
        Segmenter(**SMALL, **{**LATE, **settings})


def test_half_precision_gives_nearly_the_same():
    join = shaken(CrossModality(64, 32))
    x, other = noise(1, 64, 16, 16), noise(1, 32, 16, 16, seed=1)
    with torch.no_grad():
        exact = join(x, other)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            rough = join(x, other)
    assert rough.dtype == torch.float32
    assert np.abs((rough - exact).numpy()).max() < 0.02 * (exact - x).abs().max() + 1e-3
