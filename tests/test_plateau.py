"""The learning rate that falls when the score stands still, against torch's own scheduler; killed and resumed."""

import io
import json

import pytest
import torch
from test_engine_resume import Killed, same
from test_loop import make_trainer

from common.engine.checkpoint import load_checkpoint
from common.engine.schedule import Plateau, Stage, set_lr

SCORES = (0.1, 0.4, 0.3, 0.2, 0.35, 0.3, 0.2, 0.5, 0.1, 0.1)  # patience 1: falls after the 4th, 6th and 10th epoch


def by_torch(scores, factor: float, patience: int, lr: float) -> list[float]:
    """The rate after each score, from the scheduler on an optimizer of its own."""
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=lr)
    scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, mode="max", factor=factor, patience=patience)
    rates = []
    for score in scores:
        scheduler.step(score)
        rates.append(optimizer.param_groups[0]["lr"])
    return rates


def random_scores(seed: int, count: int = 60) -> list[float]:
    generator = torch.Generator().manual_seed(seed)
    return (0.7 * (1 - torch.exp(-torch.arange(count) / 9)) + 0.05 * torch.randn(count, generator=generator)).tolist()


@pytest.mark.parametrize("factor, patience", [(0.5, 5), (0.5, 0), (0.1, 2), (0.9, 8)])
@pytest.mark.parametrize("seed", [0, 1])
def test_the_rate_falls_as_torchs_does(factor, patience, seed):
    scores, plateau, factors = random_scores(seed), Plateau(factor, patience), []
    for score in scores:
        plateau.step(score)
        factors.append(plateau.factor)
    wanted = by_torch(scores, factor, patience, lr=1e-1)
    for got, rate in zip(factors, wanted, strict=True):
        if rate > 1e-7:  # below, torch's smallest step stops the one rate and not the other
            assert got * 1e-1 == pytest.approx(rate, rel=1e-12)
    assert len(set(factors)) > 2, "a rate that never falls would prove nothing"


def test_an_epoch_that_nothing_validated_does_not_count():
    one, other = Plateau(0.5, 1), Plateau(0.5, 1)
    for score in (0.5, None, 0.4, None, None, 0.3):
        one.step(score)
    for score in (0.5, 0.4, 0.3):
        other.step(score)
    assert one.state_dict() == other.state_dict() and one.factor == 0.5


def test_the_state_goes_through_a_file_at_any_moment():
    scores = random_scores(3, 30)
    whole = Plateau(0.5, 2)
    for count, score in enumerate(scores):
        resumed, file = Plateau(0.5, 2), io.BytesIO()
        torch.save(whole.state_dict(), file)
        file.seek(0)
        resumed.load_state_dict(torch.load(file, weights_only=True))
        whole.step(score)
        resumed.step(score)
        assert resumed.state_dict() == whole.state_dict(), count
    assert whole.factor < 0.3


def test_the_factor_scales_every_group_after_the_warm_up():
    weights = [torch.nn.Parameter(torch.zeros(1)) for _ in range(2)]
    groups = [{"params": [weights[0]], "lr": 1.0, "lr0": 1.0, "part": "head"},
              {"params": [weights[1]], "lr": 0.1, "lr0": 0.1, "part": "backbone"}]  # fmt: skip
    optimizer, stages, plateau = torch.optim.SGD(groups), [Stage(10, {"head": 3.0}, 2.0)], Plateau(0.25, 0)
    rates = lambda: [group["lr"] for group in optimizer.param_groups]  # noqa: E731
    assert set_lr(optimizer, stages, 0, 0, 4, plateau) == pytest.approx(3 * 0.125)
    set_lr(optimizer, stages, 1, 3, 4, plateau)
    assert rates() == pytest.approx([3.0, 0.1])
    set_lr(optimizer, stages, 9, 3, 4, plateau)
    assert rates() == pytest.approx([3.0, 0.1]), "no cosine"
    plateau.step(0.5)
    plateau.step(0.5)
    set_lr(optimizer, stages, 5, 0, 4, plateau)
    assert rates() == pytest.approx([0.75, 0.025])
    set_lr(optimizer, [Stage(10, {})], 0, 0, 4, plateau)
    assert rates() == pytest.approx([0.25, 0.025]), "without a warm-up it holds from the first step"


def trainer_of(folder, **more):
    options = {"stages": [Stage(10, {}, 0.5)], "scores": SCORES, "plateau": Plateau(0.5, 1), "ema_decay": 0.9}
    return make_trainer(folder, **options | more)


def dies_after(epoch: int):
    def on_epoch(trainer, record, improved):
        if record["epoch"] == epoch:
            raise Killed

    return on_epoch


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    trainer_of(folder).run()
    return folder


def log_of(folder) -> list[dict]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def test_the_log_tells_the_falling_rate(whole):
    rates = [line["lr"] for line in log_of(whole)]
    assert rates == pytest.approx([0.01] * 4 + [0.005] * 2 + [0.0025] * 4)
    assert load_checkpoint(whole / "last.pt")["plateau"]["factor"] == 0.125, "the tenth score counted too"


@pytest.mark.parametrize("deaths, save_every", [((1, 2, 3, 4, 5, 6, 7, 8, 9), 1), ((4, 6), 1), ((5, 7), 2)])
def test_killed_and_resumed_it_ends_with_the_same_bytes(tmp_path, whole, deaths, save_every):
    for epoch in deaths:
        trainer = trainer_of(tmp_path, on_epoch=dies_after(epoch), save_every=save_every)
        trainer.resume()
        with pytest.raises(Killed):
            trainer.run()
    trainer = trainer_of(tmp_path, save_every=save_every)
    trainer.resume()
    assert trainer.next_epoch == deaths[-1] - deaths[-1] % save_every
    trainer.run()
    for name in ("last.pt", "best.pt"):
        one, other = load_checkpoint(tmp_path / name), load_checkpoint(whole / name)
        assert all(same(one[key], other[key]) for key in set(one) | set(other)), name
    assert [line["lr"] for line in log_of(tmp_path)] == [line["lr"] for line in log_of(whole)]


def test_a_run_without_a_plateau_keeps_its_cosine(tmp_path, whole):
    trainer_of(tmp_path, plateau=None).run()
    assert load_checkpoint(tmp_path / "last.pt")["plateau"] is None
    assert [line["lr"] for line in log_of(tmp_path)] != [line["lr"] for line in log_of(whole)]
