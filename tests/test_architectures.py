"""Every architecture and encoder of docs/architectures.md: built at random, run on a tile, learning; its weights."""

import math
import sys
from functools import partial

import numpy as np
import pytest
import segmentation_models_pytorch as smp
import timm
import torch
from timm.models.vision_transformer import Block
from torch import nn

from common.errors import InputError
from common.models import foundation, geo_vit, mask2former, sam3
from common.models.encoder_weights import load_encoder
from common.models.geo_vit import GeoViT
from common.models.segmenter import ARCHS, Segmenter

BANDS = ("ndvi", "red", "green", "blue", "swir1")
PHOTO = ("red", "green", "blue")
TINY = {"width": 64, "depth": 4, "heads": 2}
SWIN, SAM2 = "tu-swin_tiny_patch4_window7_224", "tu-sam2_hiera_tiny"
QUICK = [
    ("unetplusplus", "efficientnet-b0", "early"),
    ("unetplusplus", "efficientnet-b0", "late"),
    ("deeplabv3plus", "resnet18", "early"),
    ("deeplabv3plus", "resnet18", "late"),
    ("unet", "resnet18", "early"),
    ("unet", "tu-efficientnet_b0", "late"),
    ("fpn", "tu-test_byobnet", "early"),
    ("fpn", "tu-test_byobnet", "late"),
    ("segformer", "mit_b0", "early"),
    ("segformer", "mit_b0", "late"),
    ("upernet", "tu-test_convnext", "early"),
    ("dpt", "vit-test_vit", "early"),
    ("dpt", "tu-test_convnext", "late"),
    ("unet", "vit-test_vit", "early"),
    ("fpn", "vit-vit_tiny_patch16_dinov3_qkvb", "early"),
    ("fpn", "vit-prithvi_small", "early"),
    ("dpt", "vit-prithvi_small", "early"),
    ("unet", "vit-satmae_small", "early"),
    ("fpn", "vit-satmae_small", "late"),
    ("fpn", "vit-sam3_small", "early"),
    ("mask2former", "resnet18", "early"),
    ("mask2former", "tu-test_convnext", "late"),
]
LARGE = [
    ("unetplusplus", "vit-test_vit", "early"),
    ("deeplabv3plus", "vit-test_vit", "early"),
    ("upernet", "vit-test_vit", "late"),
    ("unetplusplus", "efficientnet-b7", "early"),
    ("unetplusplus", "efficientnet-b7", "late"),
    ("unet", SWIN, "early"),
    ("upernet", SWIN, "late"),
    ("unet", SAM2, "early"),
    ("fpn", SAM2, "late"),
    ("upernet", "vit-samvit_base_patch16", "early"),
    ("dpt", "vit-samvit_base_patch16", "early"),
    ("dpt", "vit-vit_small_patch14_dinov2", "early"),
    ("upernet", "vit-vit_small_patch14_reg4_dinov2", "early"),
    ("dpt", "vit-vit_small_patch16_dinov3", "early"),
    ("mask2former", SWIN, "early"),
    ("upernet", "vit-prithvi_eo_v1_100m", "early"),
    ("upernet", "vit-satmae_sentinel_base", "early"),
]


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def small_sizes(monkeypatch):
    """The large ones of the same kind in small, and the decoders of DPT and Mask2Former and the pyramid likewise."""
    monkeypatch.setattr(foundation, "PYRAMID", 64)
    monkeypatch.setattr(foundation, "DPT", {"intermediate_channels": (16, 32, 64, 64), "fusion_channels": 32})
    monkeypatch.setitem(geo_vit.GEO, "prithvi_small", {**geo_vit.GEO["prithvi_eo_v2_tiny"], **TINY})
    monkeypatch.setitem(geo_vit.GEO, "satmae_small", {**geo_vit.GEO["satmae_sentinel_base"], **TINY, "group_width": 16})
    small = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 4, "num_attention_heads": 2,
             "window_size": 2, "global_attn_indexes": [1, 3], "pretrain_image_size": 56}  # fmt: skip
    monkeypatch.setitem(sam3.SAM3, "sam3_small", {**sam3.SAM3["sam3"], **small})
    small = {"hidden_dim": 64, "feature_size": 64, "mask_feature_size": 64, "num_queries": 10, "encoder_layers": 2,
             "decoder_layers": 3, "dim_feedforward": 64, "encoder_feedforward_dim": 64}  # fmt: skip
    monkeypatch.setattr(mask2former, "MASK2FORMER", {**mask2former.MASK2FORMER, **small})


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def shaken(model, seed=5):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for value in model.state_dict().values():
            if value.is_floating_point():
                value.add_(torch.randn(value.shape, generator=generator).abs() * 0.05)
    return model.eval()


def build(arch, encoder, fusion="early", channels=5):
    if arch == "mask2former" or "sam3" in encoder:
        pytest.importorskip("transformers")
    return Segmenter(
        arch=arch, encoder=encoder, channels=channels, classes=2, fusion=fusion, rgb=(1, 2, 3)[:channels],
        bands=BANDS if channels == 5 else PHOTO,
    )  # fmt: skip


def check_learns(arch, encoder, fusion, channels):
    """Logits of every pixel; a gradient for all that wants one, and for nothing else; one step that changes them."""
    torch.manual_seed(0)
    model = build(arch, encoder, fusion, channels).train()
    image = noise(2, channels, 64, 90)
    out = model(image)
    assert out.shape == (2, 2, 64, 90) and torch.isfinite(out).all()
    (out[:, 1] - out[:, 0]).square().mean().backward()
    wanting = {name for name, p in model.named_parameters() if p.requires_grad}
    assert wanting == {name for name, p in model.named_parameters() if p.grad is not None}
    assert {model.part_of(name) for name in wanting} == {"backbone", "head"}
    stems = model.stems()
    if "satmae" not in encoder:  # whose groups of bands have a stem each
        assert sorted(channel for seen in stems.values() for channel in seen) == list(range(channels))
    model.eval()
    with torch.no_grad():
        before = model(image)
        for group in model.param_groups(lr=1e-2, backbone_lr=1e-2, weight_decay=0):
            for p in group["params"]:
                p -= 1e-2 * p.grad
        assert not torch.allclose(model(image), before)


@pytest.mark.parametrize("arch, encoder, fusion", QUICK)
def test_built_run_and_learning(arch, encoder, fusion):
    check_learns(arch, encoder, fusion, 5)


@pytest.mark.parametrize("arch, encoder", [("unet", "vit-test_vit"), ("dpt", "vit-test_vit"), ("segformer", "mit_b0")])
def test_of_three_bands(arch, encoder):
    check_learns(arch, encoder, "early", 3)


@pytest.mark.soak
@pytest.mark.parametrize("arch, encoder, fusion", LARGE)
def test_large_ones_built_run_and_learning(arch, encoder, fusion):
    check_learns(arch, encoder, fusion, 5)


@pytest.mark.soak
@pytest.mark.parametrize("arch, encoder, fusion", LARGE)
def test_large_ones_of_three_bands(arch, encoder, fusion):
    check_learns(arch, encoder, "early", 3)


def test_the_table_of_the_docs_names_what_was_run(pytestconfig):
    text = (pytestconfig.rootpath / "docs" / "architectures.md").read_text()
    for arch in ARCHS:
        assert f"`{arch}`" in text, arch
    for _, encoder, _ in (*QUICK, *LARGE):
        if "small" not in encoder or "vit_small" in encoder:
            assert encoder in text, encoder
    for name in geo_vit.GEO:
        assert name.endswith("_small") or name in text, name


@pytest.mark.parametrize("arch", ["unet", "dpt"])
def test_a_plain_vit_gives_timms_maps_and_takes_its_weights(tmp_path, arch):
    source = shaken(timm.create_model("test_vit", pretrained=False, dynamic_img_size=True))
    torch.save(source.state_dict(), tmp_path / "a.pth")
    model = build(arch, "vit-test_vit", channels=3).eval()
    fresh = {key: value.clone() for key, value in model.state_dict().items()}
    said = load_encoder(model, tmp_path / "a.pth", bands=PHOTO)
    assert "red, green, blue by name" in said
    image = noise(1, 3, 64, 96)
    assert len(source.blocks) == 6
    depths = [5] if arch == "unet" else [0, 2, 3, 5]
    with torch.no_grad():
        expected = source.forward_intermediates(image, indices=depths, norm=arch == "unet", intermediates_only=True)
        for mine, theirs in zip(model.net.encoder.maps(image), expected, strict=True):
            assert mine.shape[-2:] == (4, 6) and torch.equal(mine, theirs)
    unchanged = [key for key, value in model.state_dict().items() if torch.equal(value, fresh[key])]
    assert all(not key.startswith("net.encoder.model.blocks") for key in unchanged)
    assert any("pyramid" in key for key in unchanged) or arch == "dpt"


def test_patches_of_fourteen_stand_for_sixteen_pixels():
    model = build("dpt", "vit-vit_small_patch14_dinov2", channels=3).eval()
    seen = []
    model.net.encoder.model.patch_embed.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].shape))
    with torch.no_grad():
        assert model(noise(1, 3, 64, 90)).shape == (1, 2, 64, 90)
    assert seen == [(1, 3, 56, 84)] and model.net.encoder.model.pos_embed.shape[1] == 1 + 37**2


def test_pyramid_has_the_strides_of_a_convolutional_encoder():
    for arch, strides in (("unet", (4, 8, 16, 32)), ("deeplabv3plus", (4, 8, 16, 16))):
        encoder = build(arch, "vit-test_vit").net.encoder
        with torch.no_grad():
            levels = encoder(noise(1, 5, 64, 96))
        assert torch.equal(levels[0], noise(1, 5, 64, 96)) and levels[1].shape == (1, 0, 32, 48)
        assert [level.shape for level in levels[2:]] == [(1, 64, 64 // s, 96 // s) for s in strides]
    frozen = build("unet", "vit-test_vit")
    frozen.freeze_backbone()
    frozen.train()(noise(1, 5, 32, 32)).sum().backward()
    grads = {name.split(".")[2] for name, p in frozen.named_parameters() if p.grad is not None and ".encoder." in name}
    assert grads == {"pyramid"}, "what stands after the transformer is new and learns"


def test_drop_path_is_refused_where_there_is_none():
    with pytest.raises(InputError, match="--drop-path 0.2: vit-sam3_small has no stochastic depth"):
        Segmenter(
            arch="fpn", encoder="vit-sam3_small", channels=3, classes=2, rgb=(0, 1, 2), bands=PHOTO, drop_path=0.2
        )


def test_mask2former_scores_a_class_by_its_queries():
    pytest.importorskip("transformers")
    decoder = shaken(mask2former.QueryDecoder([8, 8, 8, 8], 3))
    levels = [noise(2, 8, 64 // s, 64 // s, seed=s) for s in (4, 8, 16, 32)]
    seen = {}
    decoder.queries.register_forward_hook(lambda module, inputs, output: seen.update(found=output))
    with torch.no_grad():
        logits = decoder([None, None, *levels])
    queries = seen["found"].intermediate_hidden_states[-1].numpy()
    masks = seen["found"].masks_queries_logits[-1].numpy()
    weight, bias = (p.detach().numpy() for p in (decoder.classes.weight, decoder.classes.bias))
    score = np.zeros((2, 3, 16, 16))
    for b in range(2):
        for q in range(10):
            shares = np.exp(weight @ queries[q, b] + bias)
            score[b] += (shares / shares.sum())[:3, None, None] / (1 + np.exp(-masks[b, q]))
    np.testing.assert_allclose(logits.numpy(), np.log(score), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("arch, encoder", [("mask2former", "resnet18"), ("unet", "vit-sam3_small")])
def test_without_transformers_it_is_said(monkeypatch, arch, encoder):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(InputError, match="pip install"):
        Segmenter(arch=arch, encoder=encoder, channels=3, classes=2)


def test_sam3_is_that_of_transformers_and_takes_its_file(tmp_path):
    transformers = pytest.importorskip("transformers")
    settings = sam3.SAM3["sam3_small"]
    theirs = shaken(transformers.Sam3ViTModel(transformers.Sam3ViTConfig(num_channels=3, image_size=1008, **settings)))
    whole = {f"detector_model.vision_encoder.backbone.{key}": v for key, v in theirs.state_dict().items()}
    torch.save({**whole, "detector_model.text_encoder.x": torch.ones(2)}, tmp_path / "sam3.pt")
    model = build("dpt", "vit-sam3_small", channels=3).eval()
    load_encoder(model, tmp_path / "sam3.pt", bands=PHOTO)
    image = noise(1, 3, 1008, 1008)
    with torch.no_grad():
        expected = theirs(image).last_hidden_state
        mine = model.net.encoder.model.forward_intermediates(image, [3])[0]
        torch.testing.assert_close(mine.flatten(2).transpose(1, 2), expected)
        assert model.net.encoder.model.forward_intermediates(image[..., :56, :84], [0, 3])[1].shape == (1, 64, 4, 6)


class AuthorsViT(nn.Module):
    """Prithvi and SatMAE as their authors write them down, for one size of picture: what our maps are compared with."""

    def __init__(self, groups, names, width, depth, heads, patch, grid, group_width, frames):
        super().__init__()
        self.groups, self.grid = groups, grid
        convolution = partial(nn.Conv3d, kernel_size=(1, patch, patch), stride=(1, patch, patch))
        if groups:
            convolution = partial(nn.Conv2d, kernel_size=patch, stride=patch)
            embeds = [nn.ModuleDict({"proj": convolution(len(group), width)}) for group in groups]
            self.patch_embed = nn.ModuleList(embeds)
            self.channel_embed = nn.Parameter(torch.zeros(1, len(groups), group_width))
        else:
            self.patch_embed = nn.ModuleDict({"proj": convolution(len(names), width)})
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + frames * grid**2, width - group_width))
        self.blocks = nn.ModuleList(
            Block(width, heads, 4, qkv_bias=True, norm_layer=partial(nn.LayerNorm, eps=1e-6)) for _ in range(depth)
        )
        self.norm = nn.LayerNorm(width, eps=1e-6)

    def forward(self, image):
        count = self.grid**2
        place = self.pos_embed[:, 1 : 1 + count]
        if self.groups:
            seen = torch.stack(
                [embed["proj"](image[:, list(group)]).flatten(2).transpose(1, 2)
                 for embed, group in zip(self.patch_embed, self.groups, strict=True)], 1
            )  # fmt: skip
            kinds = len(self.groups)
            place = torch.cat([place[:, None].expand(-1, kinds, -1, -1),
                               self.channel_embed[:, :, None].expand(-1, -1, count, -1)], -1)  # fmt: skip
            tokens = (seen + place).flatten(1, 2)
            first = torch.cat([self.pos_embed[:, :1], torch.zeros(1, 1, self.channel_embed.shape[-1])], -1)
        else:
            tokens, first = self.patch_embed["proj"](image[:, :, None]).flatten(2).transpose(1, 2) + place, 0
            first = self.pos_embed[:, :1]
        x = torch.cat([self.cls_token + first, tokens], 1)
        for block in self.blocks:
            x = block(x)
        return self.norm(x)[:, 1:]


def authors_file(path, name, frames):
    """(the authors' model at random, in a file with the wrappers and surplus parts that theirs have)."""
    settings = {"groups": (), "group_width": 0} | geo_vit.GEO[name]
    model = shaken(AuthorsViT(**settings, frames=frames))
    state = {f"encoder.{key}" if frames > 1 else key: value for key, value in model.state_dict().items()}
    torch.save({"model": {**state, "decoder_embed.weight": torch.ones(2, 2), "mask_token": torch.ones(2)}}, path)
    return model


@pytest.mark.parametrize("name, frames", [("prithvi_small", 3), ("satmae_small", 1)])
def test_satellite_encoders_equal_the_authors(tmp_path, name, frames):
    """All the bands they were trained on, in another order, on a picture of the size they were trained on."""
    theirs = authors_file(tmp_path / "a.pt", name, frames)
    settings = geo_vit.GEO[name]
    order = list(np.random.default_rng(0).permutation(len(settings["names"])))
    bands = [settings["names"][i] for i in order]
    model = Segmenter(encoder=f"vit-{name}", channels=len(bands), classes=2, bands=bands).eval()
    said = load_encoder(model, tmp_path / "a.pt", bands=bands)
    assert "mean of" not in said and all(band in said for band in bands)
    side = settings["patch"] * settings["grid"]
    image = noise(1, len(bands), side, side)
    with torch.no_grad():
        expected = theirs(image)
        (mine,) = model.net.encoder.maps(image[:, order])
    kinds = len(settings.get("groups", ())) or 1
    expected = expected.unflatten(1, (kinds, settings["grid"], settings["grid"])).mean(1).permute(0, 3, 1, 2)
    torch.testing.assert_close(mine, expected, rtol=1e-4, atol=1e-5)


def test_satellite_kernels_go_by_name_and_their_mean_to_the_rest(tmp_path):
    theirs = authors_file(tmp_path / "a.pt", "prithvi_small", 3)
    model = build("fpn", "vit-prithvi_small")
    said = load_encoder(model, tmp_path / "a.pt", bands=BANDS)
    kernels = theirs.patch_embed["proj"].weight[:, :, 0]
    own = model.net.encoder.model.patch_embed["proj"].weight
    for i, band in enumerate(BANDS):
        known = geo_vit.HLS.index(band) if band in geo_vit.HLS else None
        torch.testing.assert_close(own[:, i], kernels.mean(1) if known is None else kernels[:, known])
    assert "red, green, blue, swir1 by name" in said and "to ndvi" in said
    groups = GeoViT(5, **geo_vit.GEO["satmae_small"], bands=BANDS).members
    assert groups == {"0": [0, 1, 2, 3], "2": [4]}, "no token of the red edge, which is not there"


def test_positions_of_the_authors_at_random():
    """The tables that the files hold, as MAE and Prithvi compute them: one pixel worked out by hand."""
    table = geo_vit.place_table(16, 3, False)[0].view(-1, 16)
    assert not table[0].any()
    y, x = 1, 2
    row = table[1 + 3 * y + x].tolist()
    rates = [10000 ** -(k / 4) for k in range(4)]
    expected = [f(place * rate) for place in (x, y) for f in (math.sin, math.cos) for rate in rates]
    np.testing.assert_allclose(row, expected, rtol=1e-5, atol=1e-6)
    with_time = geo_vit.place_table(32, 3, True)[0, 1 + 3 * y + x].tolist()
    np.testing.assert_allclose(with_time[24:], [0] * 4 + [1] * 4)
    assert with_time[0] == pytest.approx(math.sin(x)) and with_time[12] == pytest.approx(math.sin(y))


@pytest.mark.parametrize(
    "settings, says",
    [
        ({"encoder": "vit-resnet18"}, "no plain ViT of patches"),
        ({"encoder": "vit-nothing"}, "--encoder vit-nothing"),
        ({"encoder": "tu-vit_tiny_patch16_224"}, "a plain ViT goes by --encoder vit-"),
        ({"encoder": "vit-satmae_small"}, "groups its 3 bands by name"),
        ({"arch": "mask2former", "encoder": "resnet18", "dropout": 0.1}, "--dropout 0"),
    ],
)
def test_what_cannot_be_built_is_said(settings, says):
    with pytest.raises(InputError, match=says):
        Segmenter(channels=3, classes=2, **settings)


def test_weights_that_do_not_fit_are_said(tmp_path):
    model = build("unet", "vit-prithvi_small")
    with pytest.raises(InputError, match="no file for prithvi_small in .* and no download; take it from https"):
        load_encoder(model, "auto", bands=BANDS, search=[tmp_path])
    authors_file(tmp_path / "prithvi_small.pt", "prithvi_small", 3)
    assert "prithvi_small.pt" in load_encoder(model, "auto", bands=BANDS, search=[tmp_path])
    authors_file(tmp_path / "b.pt", "satmae_small", 1)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(InputError, match="lacks patch_embed.proj"):
        load_encoder(model, tmp_path / "b.pt", bands=BANDS)
    state = {"patch_embed.proj.weight": torch.ones(64, 6, 2, 16, 16)}
    torch.save(state, tmp_path / "c.pt")
    with pytest.raises(InputError, match="kernels of blue, green, red, nir, swir1, swir2 are needed"):
        load_encoder(model, tmp_path / "c.pt", bands=BANDS)
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


def test_registering_a_transformer_leaves_smps_own_names_alone():
    before = {name: entry for name, entry in smp.encoders.encoders.items() if not name.startswith("vit-")}
    first, second = build("unet", "vit-test_vit", channels=3), build("unet", "vit-test_vit")
    assert first.net.encoder.model.patch_embed.proj.in_channels == 3
    assert second.net.encoder.model.patch_embed.proj.in_channels == 5
    after = {name: entry for name, entry in smp.encoders.encoders.items() if not name.startswith("vit-")}
    assert before == after
