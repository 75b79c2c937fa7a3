"""What a step does, on a model small enough to write the answer down: accumulation, clipping, average, stages."""

import copy

import pytest
import torch
from timm.utils import ModelEmaV3

from common.datasets.sampling import EpochBatches, make_loader
from common.engine.device import Machine
from common.engine.loop import Trainer
from common.engine.schedule import Stage


class Points(torch.utils.data.Dataset):
    """Eleven points on a noisy plane."""

    def __init__(self):
        generator = torch.Generator().manual_seed(0)
        self.x = torch.randn(11, 3, generator=generator)
        self.y = self.x.sum(1, keepdim=True) + torch.randn(11, 1, generator=generator)

    def __len__(self):
        return len(self.x)

    def __getitem__(self, key):
        index = key[1]
        return {"image": self.x[index], "target": self.y[index], "valid": torch.ones(1).bool(), "id": f"p{index}"}


def collate(samples):
    stacked = {name: torch.stack([sample[name] for sample in samples]) for name in ("image", "target", "valid")}
    return stacked | {"id": [sample["id"] for sample in samples]}


def squared(outputs, batch):
    return {"loss": ((outputs - batch["target"]) ** 2).mean()}


class Plane(torch.nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(1)
        self.backbone, self.head = torch.nn.Linear(3, 3), torch.nn.Linear(3, 1)

    def forward(self, x):
        return self.head(self.backbone(x))


def make_trainer(folder, model=None, *, stages=None, batch_size=3, lr=0.01, scores=(0.1, 0.2, 0.3, 0.4), **options):
    model = model or Plane()
    loader = make_loader(Points(), EpochBatches(11, batch_size, seed=5), workers=0, collate=collate)
    groups = [{"params": list(part.parameters()), "lr": lr, "part": name, "weight_decay": 0.0}
              for name, part in (("backbone", model.backbone), ("head", model.head))]  # fmt: skip
    return Trainer(
        model, loader, loss_fn=squared, groups=groups, stages=stages or [Stage(2, {})], folder=folder,
        validate=lambda model, epoch: {"score": scores[epoch]}, header={"spec": {}}, seed=5,
        machine=Machine(torch.device("cpu")), **options,
    )  # fmt: skip


def grads(model):
    return [parameter.grad.clone() for parameter in model.parameters()]


def batches_of_epoch(trainer, epoch):
    trainer.loader.batch_sampler.epoch = epoch
    return list(trainer.loader)


def test_an_accumulated_gradient_is_the_mean_over_its_batches(tmp_path, monkeypatch):
    """Four batches (3 3 3 2 rows), three a step: the first step has three, the second what is left."""
    trainer = make_trainer(tmp_path, accumulate=3, stages=[Stage(1, {})])
    seen, expected = [], []
    original = Trainer.optimizer_step

    def looks(self):
        seen.append((grads(self.model), copy.deepcopy(self.model.state_dict())))
        original(self)

    monkeypatch.setattr(Trainer, "optimizer_step", looks)
    order = batches_of_epoch(trainer, 0)
    trainer.run()
    for group, (_, weights) in zip((order[:3], order[3:]), seen, strict=True):
        model = Plane()
        model.load_state_dict(weights)
        sum(squared(model(batch["image"]), batch)["loss"] for batch in group).div(len(group)).backward()
        expected.append(grads(model))
    for (gradient, _), wanted in zip(seen, expected, strict=True):
        torch.testing.assert_close(gradient, wanted)
    assert trainer.global_step == 2


def test_gradients_are_clipped_to_their_norm(tmp_path, monkeypatch):
    norms = []
    step = torch.optim.AdamW.step

    def looks(self, *words):
        norms.append(torch.stack([p.grad.norm() for g in self.param_groups for p in g["params"]]).norm().item())
        return step(self, *words)

    monkeypatch.setattr(torch.optim.AdamW, "step", looks)
    make_trainer(tmp_path / "free").run()
    free, norms[:] = list(norms), []
    make_trainer(tmp_path / "clipped", grad_clip=0.5).run()
    assert max(free) > 1 and max(norms) == pytest.approx(0.5, rel=1e-4) and len(norms) == len(free) == 8


def test_the_average_is_what_is_validated_and_saved(tmp_path, monkeypatch):
    validated = []
    trainer = make_trainer(tmp_path, ema_decay=0.9)
    twin = ModelEmaV3(copy.deepcopy(trainer.model), decay=0.9, use_warmup=True)
    original = Trainer.optimizer_step

    def looks(self):
        original(self)
        twin.update(self.model, step=self.global_step)

    monkeypatch.setattr(Trainer, "optimizer_step", looks)
    trainer.validate = lambda model, epoch: validated.append(copy.deepcopy(model.state_dict())) or {"score": 0.1}
    trainer.run()
    for key, value in twin.module.state_dict().items():
        assert torch.equal(value, validated[-1][key]) and not torch.equal(value, trainer.model.state_dict()[key])
    content = torch.load(tmp_path / "last.pt", weights_only=True)
    assert torch.equal(content["ema"]["head.weight"], validated[-1]["head.weight"])
    assert torch.equal(content["state_dict"]["head.weight"], trainer.model.head.weight)


def test_a_stage_freezes_a_part_and_the_next_thaws_it(tmp_path):
    stages = [Stage(1, {"backbone": 0.0, "head": 2.0}), Stage(1, {})]
    trainer, ends = make_trainer(tmp_path, stages=stages), []
    start = copy.deepcopy(trainer.model.state_dict())
    wants = []

    def on_epoch(trainer, record, improved):
        ends.append(copy.deepcopy(trainer.model.state_dict()))
        wants.append(trainer.model.backbone.weight.requires_grad)

    trainer.on_epoch = on_epoch
    trainer.run()
    assert wants == [False, True], "a frozen part costs no backward pass and is not in the clipped norm"
    assert torch.equal(ends[0]["backbone.weight"], start["backbone.weight"])
    assert not torch.equal(ends[0]["head.weight"], start["head.weight"])
    assert not torch.equal(ends[1]["backbone.weight"], start["backbone.weight"])


@pytest.mark.parametrize("scores, patience, ended, best", [
    ((0.1, 0.3, 0.2, 0.25), 2, 4, 2), ((0.3, 0.2, 0.2, 0.9), 2, 3, 1), ((0.1, 0.1, 0.1, 0.2), 3, 4, 4),
    ((0.4, 0.3, 0.2, 0.1), 0, 4, 1),
])  # fmt: skip
def test_patience(tmp_path, scores, patience, ended, best):
    trainer = make_trainer(tmp_path, stages=[Stage(4, {})], scores=scores, patience=patience)
    assert [line["epoch"] for line in trainer.run()] == list(range(1, ended + 1))
    assert torch.load(tmp_path / "best.pt", weights_only=True)["epoch"] == best - 1
    assert torch.load(tmp_path / "last.pt", weights_only=True)["next_epoch"] == ended


def test_mean_losses_weigh_every_row_alike(tmp_path):
    trainer = make_trainer(tmp_path, lr=0.0, stages=[Stage(1, {})])
    history = trainer.run()
    points = Points()
    assert history[0]["train_loss"] == pytest.approx(
        ((trainer.model(points.x) - points.y) ** 2).mean().item(), rel=1e-5
    )


def test_last_pt_is_written_every_so_often_and_at_the_end(tmp_path):
    trainer, found = make_trainer(tmp_path, stages=[Stage(3, {})], save_every=2), []
    trainer.on_epoch = lambda *_: found.append((tmp_path / "last.pt").exists())
    trainer.run()
    assert found == [False, True, True]
    assert torch.load(tmp_path / "last.pt", weights_only=True)["next_epoch"] == 3
