import json

import numpy as np
import pytest
import segmentation_models_pytorch as smp
import timm
import torch
from shaken_models import shaken

from common.errors import InputError
from common.models import encoder_weights, weights
from common.models.encoder_weights import load_encoder
from common.models.segmenter import ARCHS, Segmenter, reflected
from common.models.transfer import init_from

BANDS = ("blue", "green", "red", "swir1", "thermal")
OUTPUTS = ("background", "glacier", "debris", "lake")
MANY = ("pan", "red", "nir", "swir1", "blue", "thermal", "thermal2", "swir2", "green", "bqa", "ndvi", "ndsi", "ndwi",
        "elevation", "slope")  # fmt: skip
SMALL = {"encoder": "resnet18", "decoder": (32, 16, 16)}  # three of its four stages: quick


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def no_network(monkeypatch):
    def refuse(*args, **kwargs):
        raise OSError("no network in this test")

    monkeypatch.setattr(weights, "reachable", lambda address: False)
    for module, name in (
        (weights, "hf_hub_download"),
        (encoder_weights, "hf_hub_download"),
        (smp.encoders, "hf_hub_download"),
        (timm.models, "load_state_dict_from_hf"),
        (torch.hub, "load_state_dict_from_url"),
    ):
        monkeypatch.setattr(module, name, refuse)


def image(*shape, seed=0):
    """Noise in the memory format that the segmenter computes in: other formats differ in the last digits."""
    noise = torch.randn(*shape, generator=torch.Generator().manual_seed(seed))
    return noise.contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("attention", ["none", "scse"])
def test_plain_unet_is_the_one_of_smp(attention):
    """Key for key and value for value, so that solution.py can rebuild it from smp alone."""
    ours = shaken(Segmenter(encoder="resnet18", attention=attention))
    theirs = smp.Unet(
        "resnet18",
        encoder_weights=None,
        in_channels=5,
        classes=4,
        decoder_attention_type=None if attention == "none" else attention,
    ).eval()
    state = {key.removeprefix("net."): value for key, value in ours.state_dict().items()}
    assert all(key.startswith("net.") for key in ours.state_dict())
    theirs.load_state_dict(state, strict=True)
    x = image(1, 5, 64, 96)
    with torch.no_grad():
        assert torch.equal(ours(x), theirs(x))


def test_cse_multiplies_channels_by_one_factor():
    model = shaken(Segmenter(**SMALL, attention="cse"))
    keys = [key for key in model.state_dict() if "attention" in key]
    assert keys and all(".cSE." in key for key in keys)
    module = model.net.decoder.blocks[0].attention2.attention
    x = image(2, 32, 5, 6)
    first, second = module.cSE[1], module.cSE[3]
    for picture, out in zip(x.double().numpy(), module(x).detach().numpy(), strict=True):
        hidden = np.maximum(first.weight[:, :, 0, 0].detach().double().numpy() @ picture.mean((1, 2))
                            + first.bias.detach().double().numpy(), 0)  # fmt: skip
        gate = second.weight[:, :, 0, 0].detach().double().numpy() @ hidden + second.bias.detach().double().numpy()
        np.testing.assert_allclose(out, picture / (1 + np.exp(-gate))[:, None, None], rtol=1e-5, atol=1e-6)
    scse = Segmenter(**SMALL, attention="scse")
    assert set(model.state_dict()) < set(scse.state_dict())
    idle = {key.removeprefix("net.") for key in keys if "blocks.2.attention1" in key}  # after a skip, that has none
    assert len(keys) == 6 * 4 and idle == {name for name in model.idle if "decoder" in name}


@pytest.mark.parametrize("height, width", [(40, 33), (7, 64), (3, 2), (1, 9)])
def test_any_size_is_padded_by_reflection(height, width):
    model = shaken(Segmenter(**SMALL))
    x = image(2, 5, height, width)
    below, right = -height % 8, -width % 8
    padded = np.pad(x.numpy(), ((0, 0), (0, 0), (0, below), (0, right)), mode="reflect" if height > 1 else "edge")
    if height == 1:
        padded = np.pad(np.repeat(x.numpy(), 8, 2), ((0, 0), (0, 0), (0, 0), (0, right)), mode="reflect")
    assert np.array_equal(reflected(x, 8).numpy(), padded)
    with torch.no_grad():
        out = model(x)
        assert out.shape == (2, 4, height, width)
        assert torch.equal(out, model(torch.from_numpy(padded))[..., :height, :width])


@pytest.mark.parametrize("arch", sorted(ARCHS))
def test_every_architecture_learns_with_all_that_wants_a_gradient(arch):
    """DDP waits for every parameter that wants a gradient; what is idle must change nothing."""
    model = Segmenter(arch=arch, encoder="resnet18", classes=3).train()
    out = model(image(2, 5, 64, 70))
    assert out.shape == (2, 3, 64, 70)
    out.square().mean().backward()
    wanting = {name for name, p in model.named_parameters() if p.requires_grad}
    assert wanting == {name for name, p in model.named_parameters() if p.grad is not None}
    grouped = [p for g in model.param_groups(lr=1, backbone_lr=1, weight_decay=0) for p in g["params"]]
    assert len(grouped) == len(wanting)
    assert (arch == "pspnet") == bool(model.idle)  # its decoder reads three stages only


def test_shorter_decoder_leaves_deep_stages_idle():
    model = shaken(Segmenter(**SMALL))
    assert {name.split(".")[1] for name in model.idle} == {"layer3", "layer4"}
    x = image(1, 5, 32, 32)
    with torch.no_grad():
        before = model(x)
        for name in model.idle:
            model.net.get_parameter(name).add_(1)
        assert torch.equal(model(x), before)
        model.net.encoder.layer2[0].conv1.weight.add_(1)
        assert not torch.equal(model(x), before)
    model.freeze_backbone(False)
    assert not any(model.net.get_parameter(name).requires_grad for name in model.idle)


@pytest.mark.parametrize("encoder, width, stems", [("resnet18", 32, 2), ("vgg11_bn", 64, 1)])
def test_full_stem_joins_features_of_every_pixel(encoder, width, stems):
    model = Segmenter(encoder=encoder, stem="full").eval()
    seen = {}
    model.full.merge.register_forward_pre_hook(lambda module, inputs: seen.update(joined=inputs[0]))
    x = image(1, 5, 32, 64)
    with torch.no_grad():
        model(x)
        assert seen["joined"].shape == (1, 16 + width, 32, 64)
        own = model.full.stem(x) if encoder == "resnet18" else model.net.encoder(x)[0]
        assert torch.equal(seen["joined"][:, 16:], own)
    assert len(model.image_weights()) == stems
    state = model.state_dict()
    assert all(state[name].shape[1] == 5 for name in model.image_weights())


def test_transformer_hybrids_take_any_size():
    for encoder, multiple in (("mit_b0", 32), ("tu-maxvit_rmlp_pico_rw_256", 256)):
        model = Segmenter(encoder=encoder).eval()
        assert model.multiple == multiple
        with torch.no_grad():
            assert model(image(1, 5, 40, 70)).shape == (1, 4, 40, 70)
    tables = [
        name for name, _ in model.named_parameters() if "relative_position_bias_table" in name or "rel_pos" in name
    ]
    plain = [g for g in model.param_groups(lr=1, backbone_lr=1, weight_decay=0.1) if g["weight_decay"]]
    decayed = {id(p) for g in plain for p in g["params"]}
    assert tables and not any(id(model.get_parameter(name)) in decayed for name in tables)


def test_parameter_groups():
    model = Segmenter(**SMALL, stem="full")
    groups = model.param_groups(lr=1e-3, backbone_lr=1e-4, weight_decay=0.05)
    names = {id(p): name for name, p in model.named_parameters()}
    grouped = [names[id(p)] for g in groups for p in g["params"]]
    assert sorted(grouped) == sorted(name for name, p in model.named_parameters() if p.requires_grad)
    for group in groups:
        backbone = group["part"] == "backbone"
        assert group["lr"] == (1e-4 if backbone else 1e-3)
        for p in group["params"]:
            assert names[id(p)].startswith("net.encoder.") == backbone
            assert group["weight_decay"] == (0.05 if p.ndim > 1 else 0)
    model.freeze_backbone()
    assert {g["part"] for g in model.param_groups(lr=1, backbone_lr=1, weight_decay=0)} == {"head"}


def test_frozen_encoder_keeps_weights_and_statistics():
    model = Segmenter(**SMALL)
    model.freeze_backbone()
    model.train()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    model(image(2, 5, 32, 32)).sum().backward()
    after = model.state_dict()
    assert all(torch.equal(before[key], after[key]) for key in after if key.startswith("net.encoder."))
    assert all(p.grad is None for p in model.net.encoder.parameters())
    assert any(not torch.equal(before[key], after[key]) for key in after if "running_mean" in key)
    model.freeze_backbone(False)
    model(image(2, 5, 32, 32)).sum().backward()
    assert model.net.encoder.conv1.weight.grad is not None
    assert not torch.equal(before["net.encoder.bn1.running_mean"], model.state_dict()["net.encoder.bn1.running_mean"])


def test_dropout_and_drop_path():
    x = image(2, 5, 32, 32)
    wet = Segmenter(**SMALL, dropout=0.5).train()
    seen = []
    wet.net.segmentation_head.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    with torch.no_grad():
        wet(x)
        dead = (seen[0] == 0).all((2, 3))
        assert dead.any() and not dead.all()
        wet.eval()
        assert torch.equal(wet(x), wet(x))
    rates = {}
    for rate in (0.0, 0.3):
        torch.manual_seed(0)
        model = Segmenter(encoder="mit_b0", drop_path=rate)
        branches = [m for m in model.net.encoder.modules() if type(m).__name__ == "DropPath"]
        rates[rate] = [branch.drop_prob for branch in branches]
        timms = Segmenter(encoder="tu-test_convnext", drop_path=rate)
        highest = max((m.drop_prob for m in timms.modules() if type(m).__name__ == "DropPath"), default=0.0)
        assert highest == pytest.approx(rate)
    np.testing.assert_allclose(rates[0.3], np.linspace(0, 0.3, 8)[1:], rtol=1e-6)
    assert set(rates[0.0]) == {0.0}  # smp itself has .1 here


def test_rebuilt_from_plain_settings_without_a_network(no_network):
    settings = {**SMALL, "attention": "cse", "stem": "full", "dropout": 0.1, "channels": 7, "classes": 2}
    model = shaken(Segmenter(**settings))
    again = Segmenter(**json.loads(json.dumps(settings))).eval()
    again.load_state_dict(model.state_dict(), strict=True)
    x = image(1, 7, 24, 40)
    with torch.no_grad():
        assert torch.equal(model(x), again(x))
    assert again.backbone_key is None
    Segmenter(encoder="tu-test_resnet")


@pytest.mark.parametrize(
    "settings, says",
    [
        ({"arch": "vnet"}, "--arch vnet: choose one of unet"),
        ({"encoder": "resnet43"}, "resnet34"),
        ({"encoder": "convnext_tiny"}, "tu-convnext_tiny"),
        ({"encoder": "tu-nothing_at_all"}, "--encoder tu-nothing_at_all"),
        ({"attention": "se"}, "--attention se: choose one of none, cse, scse"),
        ({"arch": "fpn", "attention": "cse"}, "--arch fpn has no such choice"),
        ({"stem": "double"}, "--stem double"),
        ({"arch": "deeplabv3plus", "stem": "full"}, "--stem full"),
        ({"arch": "fpn", "decoder": (64, 32, 16)}, "--decoder 64 32 16"),
        ({"decoder": (64, 32)}, "three to five widths"),
        ({"decoder": (64, 32, 8), "attention": "scse"}, "at least 16, got 8"),
        ({"encoder": "resnet18", "drop_path": 0.1}, "tu-resnet18"),
        ({"encoder": "tu-vit_tiny_patch16_224"}, "cannot be built together"),
        ({"encoder": "tu-coatnet_nano_rw_224"}, "one size only"),
        ({"arch": "unetplusplus", "encoder": "mit_b0"}, "cannot be built together"),
    ],
)
def test_what_cannot_be_built_is_said_in_one_line(settings, says):
    with pytest.raises(InputError, match=says) as raised:
        Segmenter(**settings)
    assert "\n" not in str(raised.value)


def test_wrong_number_of_bands():
    with pytest.raises(InputError, match=r"needs \(B,5,H,W\)"):
        Segmenter(**SMALL)(image(1, 3, 32, 32))


@pytest.mark.parametrize(
    "bands", [BANDS, ("thermal", "red", "swir1", "blue", "green"), ("blue", "green", "red"), ("nir", "swir1", "red")]
)
def test_stem_goes_by_band_name(tmp_path, bands):
    source = shaken(timm.create_model("resnet18", pretrained=False))
    torch.save({"state_dict": {f"module.{k}": v for k, v in source.state_dict().items()}}, tmp_path / "a.pth")
    model = Segmenter(encoder="resnet18", channels=len(bands))
    said = load_encoder(model, tmp_path / "a.pth", bands=bands)
    file, own = source.state_dict(), model.net.encoder.state_dict()
    for i, band in enumerate(bands):
        kernel = {"red": file["conv1.weight"][:, 0], "green": file["conv1.weight"][:, 1],
                  "blue": file["conv1.weight"][:, 2]}.get(band, file["conv1.weight"].sum(1) / 3)  # fmt: skip
        torch.testing.assert_close(own["conv1.weight"][:, i], kernel)
        assert band in said
    assert all(torch.equal(own[key], file[key]) for key in own if key != "conv1.weight")
    assert str(tmp_path / "a.pth") in said


@pytest.mark.parametrize("name", ["test_resnet", "test_convnext", "test_efficientnet", "efficientvit_b0"])
def test_encoders_of_timm_give_timms_features(tmp_path, name):
    torch.save(shaken(timm.create_model(name, pretrained=False)).state_dict(), tmp_path / "a.pth")
    reference = timm.create_model(
        name, pretrained=True, pretrained_cfg_overlay={"file": str(tmp_path / "a.pth")}, features_only=True
    ).eval()
    model = Segmenter(encoder=f"tu-{name}", channels=3).eval()
    load_encoder(model, tmp_path / "a.pth", bands=("red", "green", "blue"))
    x = image(1, 3, 64, 64)
    with torch.no_grad():
        ours, theirs = model.net.encoder(x), reference(x)
    for mine, expected in zip(ours[-3:], theirs[-3:], strict=True):
        assert torch.equal(mine, expected)


def test_auto_looks_under_both_names_and_says_what_to_fetch(tmp_path, no_network):
    model = Segmenter(encoder="resnet18")
    with pytest.raises(InputError, match="resnet18.imagenet.safetensors, or say --weights none") as raised:
        load_encoder(model, "auto", bands=BANDS, search=[tmp_path])
    assert "fetch https://huggingface.co/smp-hub/resnet18.imagenet" in str(raised.value)
    with pytest.raises(InputError, match="fetch https://huggingface.co/timm/test_resnet"):
        load_encoder(Segmenter(encoder="tu-test_resnet"), "auto", bands=BANDS, search=[tmp_path])
    state = shaken(timm.create_model("resnet18", pretrained=False)).state_dict()
    for i, name in enumerate(("resnet18.imagenet", "resnet18.a1_in1k", "resnet18")):
        folder = tmp_path / str(i)
        folder.mkdir()
        torch.save({**state, "bn1.bias": state["bn1.bias"] + i}, folder / f"{name}.pth")
        assert str(folder / f"{name}.pth") in load_encoder(model, "auto", bands=BANDS, search=[folder])
        assert torch.equal(model.net.encoder.bn1.bias, state["bn1.bias"] + i)
    before = model.net.encoder.conv1.weight.clone()
    assert load_encoder(model, "none", bands=BANDS) == "random weights"
    assert torch.equal(model.net.encoder.conv1.weight, before)


@pytest.mark.parametrize(
    "change, says",
    [
        (lambda s: {k: v for k, v in s.items() if not k.startswith("layer4.1.")}, "lacks layer4.1.conv1.weight"),
        (lambda s: {**s, "decoder.x.weight": torch.ones(2)}, "decoder.x.weight not of resnet18.*goes to --init"),
        (lambda s: {**s, "conv1.weight": torch.ones(64, 15, 7, 7)}, "its stem has 15 bands, the model 5"),
        (lambda s: {**s, "layer1.0.conv1.weight": torch.ones(2, 2, 3, 3)}, "other shapes than resnet18"),
    ],
)
def test_strange_files_are_refused_and_change_nothing(tmp_path, change, says):
    torch.save(change(timm.create_model("resnet18", pretrained=False).state_dict()), tmp_path / "a.pth")
    model = Segmenter(encoder="resnet18")
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(InputError, match=says):
        load_encoder(model, tmp_path / "a.pth", bands=BANDS)
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


def test_init_from_fifteen_bands_and_three_classes():
    source = shaken(Segmenter(**SMALL, channels=15, classes=3))
    bands, outputs = (*BANDS, "texture"), ("background", "lake", "debris", "glacier")
    model = Segmenter(**SMALL, channels=6, classes=4)
    fresh = {key: value.clone() for key, value in model.state_dict().items()}
    said = init_from(
        model, source.state_dict(), bands=bands, outputs=outputs, source_bands=MANY, source_outputs=OUTPUTS[:3]
    )
    own, theirs = model.state_dict(), source.state_dict()
    stem, head = "net.encoder.conv1.weight", "net.segmentation_head.0"
    for i, band in enumerate(BANDS):
        assert torch.equal(own[stem][:, i], theirs[stem][:, MANY.index(band)])
    assert not own[stem][:, 5].any()
    for i, name in enumerate(outputs):
        for part in ("weight", "bias"):
            other = fresh[f"{head}.{part}"][i] if name == "lake" else theirs[f"{head}.{part}"][OUTPUTS.index(name)]
            assert torch.equal(own[f"{head}.{part}"][i], other)
    rest = [key for key in own if key != stem and not key.startswith(head)]
    assert all(torch.equal(own[key], theirs[key]) for key in rest)
    for words in ("took", "blue green red swir1 thermal by name", "texture at zero", "lake new", "background debris",
                  "nir", "thermal2", "slope of the checkpoint not taken"):  # fmt: skip
        assert words in said, words


def test_init_from_the_same_bands_in_another_order_gives_the_same_logits():
    order = [3, 0, 4, 2, 1]
    source, model = shaken(Segmenter(**SMALL, stem="full")), Segmenter(**SMALL, stem="full").eval()
    bands, outputs = [BANDS[i] for i in order], OUTPUTS[::-1]
    init_from(model, source.state_dict(), bands=bands, outputs=outputs, source_bands=BANDS, source_outputs=OUTPUTS)
    x = image(1, 5, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(model.double()(x.double()[:, order]), source.double()(x.double()).flip(1))


def test_init_from_names_what_found_no_partner():
    source, model = Segmenter(**SMALL, attention="none"), Segmenter(encoder="resnet18", attention="cse")
    fresh = {key: value.clone() for key, value in model.state_dict().items()}
    strange = {**source.state_dict(), "ema.decay": torch.ones(1)}
    said = init_from(model, strange, bands=BANDS, outputs=OUTPUTS, source_bands=["a", "b", "c", "d", "e"])
    own = model.state_dict()
    assert torch.equal(own["net.encoder.conv1.weight"], fresh["net.encoder.conv1.weight"])
    assert torch.equal(own["net.encoder.layer4.1.conv2.weight"], strange["net.encoder.layer4.1.conv2.weight"])
    assert "of other bands or classes: net.encoder.conv1 (1)" in said
    assert "not in the checkpoint: net.decoder.blocks.0.attention1 (4)" in said
    assert "in another shape: net.decoder.blocks.0.conv1 (5)" in said
    assert "without a place here: ema (1)" in said
    other = Segmenter(**SMALL, channels=15, classes=3).state_dict()
    said = init_from(model, other, bands=BANDS, outputs=OUTPUTS)  # nothing known of its names
    assert "net.encoder.conv1 (1)" in said and "net.segmentation_head.0 (2)" in said


def test_init_from_another_architecture_takes_the_encoder():
    source, model = shaken(Segmenter(arch="fpn", encoder="resnet18")), Segmenter(arch="unet", encoder="resnet18")
    names = {"source_bands": BANDS, "source_outputs": OUTPUTS}
    said = init_from(model, source.state_dict(), bands=BANDS, outputs=OUTPUTS, **names)
    own, theirs = model.net.encoder.state_dict(), source.net.encoder.state_dict()
    assert all(torch.equal(own[key], theirs[key]) for key in own)
    assert "in another shape: net.segmentation_head.0 (1)" in said and "other bands or classes" not in said


def test_init_from_refuses_what_is_no_source():
    model, source = Segmenter(**SMALL), Segmenter(**SMALL).state_dict()
    with pytest.raises(InputError, match="nothing of it fits --encoder resnet18"):
        init_from(model, {"backbone.x": torch.ones(1)}, bands=BANDS, outputs=OUTPUTS)
    with pytest.raises(InputError, match="has 5 slices for the names red, green"):
        init_from(model, source, bands=BANDS, outputs=OUTPUTS, source_bands=("red", "green"))
