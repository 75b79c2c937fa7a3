import os
import pickle

import pytest
import timm
import torch
from safetensors.torch import save_file

from common.errors import InputError
from common.models import weights as weights_module
from common.models.backbone import Backbone
from common.models.weights import find_weights, load_backbone, read_weights

VIT = "test_vit.r160_in1k"


def trained(name, seed=3, **kwargs):
    """A timm model with its classifier and values that no other construction has."""
    torch.manual_seed(seed)
    model = timm.create_model(name, pretrained=False, **kwargs).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model


@pytest.fixture
def no_network(monkeypatch):
    def refuse(*args, **kwargs):
        raise OSError("no network in this test")

    monkeypatch.setattr(weights_module, "reachable", lambda address: False)
    monkeypatch.setattr(weights_module, "hf_hub_download", refuse)
    monkeypatch.setattr(timm.models, "load_state_dict_from_hf", refuse)


@pytest.mark.parametrize("suffix", [".safetensors", ".pth", ".bin"])
@pytest.mark.parametrize(
    "name, size", [("test_vit", 160), ("test_convnext", 64), ("test_resnet", 64), ("test_vit2", 160)]
)
def test_every_tensor_arrives(tmp_path, name, size, suffix):
    source, path = trained(name), tmp_path / f"file{suffix}"
    (save_file if suffix == ".safetensors" else torch.save)(source.state_dict(), path)
    backbone = Backbone(name, cell_size=size).eval()
    assert load_backbone(backbone, path) == str(path)
    for key, value in backbone.net.state_dict().items():
        assert torch.equal(value, source.state_dict()[key]), key
    image = torch.rand(2, 3, size, size)
    expected = source.forward_head(source.forward_features(image), pre_logits=True)
    assert torch.allclose(backbone(image), expected, atol=1e-6)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda s: {"state_dict": s, "epoch": 3},
        lambda s: {"model": {f"module.{k}": v for k, v in s.items()}},
        lambda s: {f"_orig_mod.module.{k}": v for k, v in s.items()},
        lambda s: {"teacher": {**{f"backbone.{k}": v for k, v in s.items()}, "dino_head.mlp.weight": torch.ones(2, 2)}},
        lambda s: {f"model.backbone.{k}": v for k, v in s.items()},
    ],
)
def test_wrappers_and_prefixes_come_off(tmp_path, wrap):
    source = trained("test_vit")
    torch.save(wrap(source.state_dict()), tmp_path / "w.pth")
    backbone = Backbone("test_vit", cell_size=160)
    load_backbone(backbone, tmp_path / "w.pth")
    assert torch.equal(backbone.net.blocks[2].attn.qkv.weight, source.blocks[2].attn.qkv.weight)


def test_a_prefix_is_removed_as_a_whole():
    """str.strip would eat letters of the name itself: `model.` + `mode` is not `de`."""
    state = {"model.mode.weight": 1, "model.lemo.bias": 2}
    assert weights_module.strip_prefixes(state, {"mode.weight"}) == {"mode.weight": 1, "lemo.bias": 2}
    kept = {"model.weight": 1}
    assert weights_module.strip_prefixes(kept, {"model.weight"}) == kept


def test_position_embeddings_are_resized_to_the_cells(tmp_path):
    source = trained("test_vit")  # 160 px, 10 x 10 patches
    save_file(source.state_dict(), tmp_path / "w.safetensors")
    backbone = Backbone("test_vit", cell_size=96)
    load_backbone(backbone, tmp_path / "w.safetensors")
    old, new = source.pos_embed.detach(), backbone.net.pos_embed.detach()
    assert new.shape == (1, 1 + 36, 64) and torch.equal(new[:, 0], old[:, 0]), "the class token's own stays"
    grid = old[:, 1:].reshape(1, 10, 10, 64).permute(0, 3, 1, 2)
    expected = torch.nn.functional.interpolate(grid, (6, 6), mode="bicubic", antialias=True)
    assert torch.allclose(new[:, 1:], expected.permute(0, 2, 3, 1).reshape(1, 36, 64), atol=1e-5)


def dinov2_file(path):
    """A file as Facebook publishes DINOv2: other names, embeddings of another grid, a mask token."""
    small = {"patch_size": 14, "embed_dim": 32, "depth": 2, "num_heads": 2, "init_values": 1e-5}
    torch.manual_seed(5)
    source = timm.models.VisionTransformer(img_size=98, num_classes=0, reg_tokens=4, no_embed_class=True, **small)
    state = source.state_dict()
    state["register_tokens"] = state.pop("reg_token")
    state["mask_token"] = torch.zeros(1, 32)
    state["pos_embed"] = torch.cat([torch.zeros(1, 1, 32), state["pos_embed"]], 1)
    torch.save(state, path)
    return source, small


def test_files_of_the_authors_are_converted(tmp_path):
    source, small = dinov2_file(tmp_path / "dinov2_tiny_reg4_pretrain.pth")
    backbone = Backbone("test_vit", cell_size=160)
    backbone.name = "dinov2 as published"
    backbone.net = timm.models.VisionTransformer(img_size=42, num_classes=0, reg_tokens=4, no_embed_class=True, **small)
    load_backbone(backbone, tmp_path / "dinov2_tiny_reg4_pretrain.pth")
    assert torch.equal(backbone.net.reg_token, source.reg_token)
    assert backbone.net.pos_embed.shape == (1, 9, 32)
    assert torch.equal(backbone.net.blocks[1].ls1.gamma, source.blocks[1].ls1.gamma)


def test_blocks_cut_off_need_no_weights_but_the_rest_does(tmp_path):
    for name, size in (("test_vit", 160), ("test_convnext", 64)):
        source = trained(name)
        save_file(source.state_dict(), tmp_path / f"{name}.safetensors")
        backbone = Backbone(name, cell_size=size, blocks=(0, 1))
        load_backbone(backbone, tmp_path / f"{name}.safetensors")
        assert all(torch.equal(value, source.state_dict()[key]) for key, value in backbone.net.state_dict().items())


def saved(tmp_path, change, name="test_vit"):
    state = trained(name).state_dict()
    change(state)
    torch.save(state, tmp_path / "w.pth")
    return tmp_path / "w.pth"


@pytest.mark.parametrize(
    "change, words",
    [
        (lambda s: s.pop("blocks.3.mlp.fc1.weight"), ["lacks blocks.3.mlp.fc1.weight"]),
        (lambda s: s.update({"film.weight": torch.ones(2)}), ["film.weight", "--init"]),
        (lambda s: s.update({"blocks.6.norm1.weight": torch.ones(64)}), ["blocks.6.norm1.weight"]),
        (lambda s: s.update({"norm.weight": torch.ones(65)}), ["norm.weight (65,) for (64,)"]),
        (lambda s: s.clear(), ["no tensors"]),
    ],
)
def test_partial_files_are_refused_by_name_and_nothing_is_loaded(tmp_path, change, words):
    backbone = Backbone("test_vit", cell_size=160)
    before = {key: value.clone() for key, value in backbone.net.state_dict().items()}
    with pytest.raises(InputError) as caught:
        load_backbone(backbone, saved(tmp_path, change))
    assert all(word in str(caught.value) for word in words + ["w.pth"]) and "\n" not in str(caught.value)
    assert all(torch.equal(before[key], value) for key, value in backbone.net.state_dict().items())


def test_surplus_of_the_list_is_let_pass(tmp_path):
    extra = {"mask_token": torch.ones(1, 96), "head_dist.weight": torch.ones(1), "projectors.0.weight": torch.ones(1)}
    path = saved(tmp_path, lambda s: s.update(extra), "test_resnet")
    load_backbone(Backbone("test_resnet", cell_size=64), path)


class Malicious:
    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return os.mkdir, (str(self.mark),)


@pytest.mark.parametrize("writer", [torch.save, lambda obj, path: path.write_bytes(pickle.dumps(obj))])
def test_a_malicious_pickle_is_refused_and_not_executed(tmp_path, writer):
    path, mark = tmp_path / "evil.pth", tmp_path / "executed"
    writer({"state_dict": {"a": torch.ones(1)}, "more": Malicious(mark)}, path)
    with pytest.raises(InputError) as caught:
        load_backbone(Backbone("test_vit", cell_size=160), path)
    assert not mark.exists()
    assert "evil.pth" in str(caught.value) and "refused" in str(caught.value) and "\n" not in str(caught.value)
    torch.load(path, weights_only=False) if writer is torch.save else pickle.loads(path.read_bytes())
    assert mark.exists(), "the same file does execute where it is loaded carelessly"


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
@pytest.mark.parametrize("content", [b"", b"half a file", b"PK\x03\x04broken"])
def test_damaged_files(tmp_path, suffix, content):
    path = tmp_path / f"w{suffix}"
    path.write_bytes(content)
    with pytest.raises(InputError) as caught:
        read_weights(path)
    assert path.name in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "place",
    [
        "test_vit.safetensors",
        "test_vit.r160_in1k.pth",
        "test_vit-r160_in1k.bin",
        "timm-test-vit-r160-in1k/pytorch/default/1/model.safetensors",
        "someone/test_vit/pytorch_model.bin",
    ],
)
def test_auto_finds_a_file_by_its_name_or_folder(tmp_path, place):
    for decoy in ("test_vit2.safetensors", "my_test_vit_run/model.safetensors", "test_vit/readme.txt"):
        (tmp_path / decoy).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / decoy).touch()
    assert find_weights(VIT, [tmp_path / "absent", tmp_path]) is None
    path = tmp_path / place
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    assert find_weights(VIT, [tmp_path / "absent", tmp_path]) == path
    assert find_weights("test_vit", [tmp_path]) == path, "without the tag timm's default one is meant"


def test_order_of_the_search(tmp_path):
    for folder in ("first", "second"):
        (tmp_path / folder).mkdir()
        for name in ("test_vit.pth", "test_vit.safetensors", "test_vit.r160_in1k.bin"):
            (tmp_path / folder / name).touch()
    found = find_weights(VIT, [tmp_path / "second", tmp_path / "first"])
    assert found == tmp_path / "second" / "test_vit.r160_in1k.bin", "the full name before the name without tag"
    found.unlink()
    assert find_weights(VIT, [tmp_path / "second"]).name == "test_vit.safetensors"


def test_auto_none_and_nothing_found(tmp_path, no_network):
    source = trained("test_vit")
    save_file(source.state_dict(), tmp_path / "test_vit.safetensors")
    backbone = Backbone(VIT, cell_size=160)
    assert "random" in load_backbone(backbone, "none")
    assert not torch.equal(backbone.net.cls_token, source.cls_token)
    assert load_backbone(backbone, "auto", search=[tmp_path]).endswith("test_vit.safetensors")
    assert torch.equal(backbone.net.cls_token, source.cls_token)
    with pytest.raises(InputError) as caught:
        load_backbone(backbone, "auto", search=[tmp_path / "weights"])
    message = str(caught.value)
    assert "https://huggingface.co/timm/test_vit.r160_in1k/resolve/main/model.safetensors" in message
    assert str(tmp_path / "weights" / f"{VIT}.safetensors") in message and "--weights none" in message
    assert "\n" not in message
    with pytest.raises(InputError, match="no pretrained weights"):
        load_backbone(Backbone("test_vit_relpos", cell_size=160), "auto")


def test_download_fills_the_backbone_where_there_is_a_network(monkeypatch):
    source = trained("test_vit")
    monkeypatch.setattr(weights_module, "reachable", lambda address: True)
    asked = []
    monkeypatch.setattr(
        timm.models,
        "load_state_dict_from_hf",
        lambda hub, weights_only: asked.append((hub, weights_only)) or source.state_dict(),
    )
    backbone = Backbone("test_vit", cell_size=160)
    assert "huggingface.co" in load_backbone(backbone, "auto")
    assert asked == [("timm/test_vit.r160_in1k", True)] and torch.equal(backbone.net.cls_token, source.cls_token)


def test_folders_given_by_hand(tmp_path):
    source = trained("test_vit")
    with pytest.raises(InputError, match="no such file or folder"):
        load_backbone(Backbone(VIT, cell_size=160), tmp_path / "absent")
    with pytest.raises(InputError, match="holds no"):
        load_backbone(Backbone(VIT, cell_size=160), tmp_path)
    save_file(source.state_dict(), tmp_path / "model.safetensors")
    backbone = Backbone(VIT, cell_size=160)
    assert load_backbone(backbone, tmp_path) == str(tmp_path / "model.safetensors"), "the only file there"
    torch.save({}, tmp_path / "other.pth")
    with pytest.raises(InputError, match=r"model.safetensors, other.pth; none is named test_vit"):
        load_backbone(backbone, tmp_path)


def test_building_never_downloads(monkeypatch, no_network):
    monkeypatch.setattr(weights_module, "download", lambda *a: pytest.fail("tried to download"))
    Backbone(VIT, cell_size=160)
    assert load_backbone(Backbone(VIT, cell_size=160), "none")
