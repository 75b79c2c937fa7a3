"""A run that predicts nothing of what is looked for says so and stops; one that begins late, or recovers, goes on."""

import itertools
import json

import pytest
import torch
from test_loop import make_trainer

from common.datasets.sampling import EpochBatches, make_loader
from common.engine.checkpoint import load_checkpoint
from common.engine.schedule import Stage
from common.errors import InputError


def run(folder, found: list[tuple], *, epochs: int, warmup=0.0, resume=False, **options):
    """A trainer that has run: in each epoch (share predicted in training, whether validation saw nothing)."""
    trainer = make_trainer(folder, stages=[Stage(epochs, {}, warmup)], **options)
    loss, shares = trainer.loss_fn, [share for share, _ in found]

    def with_share(outputs, batch):
        share = shares[batch["epoch"]]
        return loss(outputs, batch) | ({} if share is None else {"predicted": torch.tensor(float(share))})

    def validate(model, epoch):
        nothing = found[epoch][1]
        return {"score": 0.1} | ({} if nothing is None else {"predicts_nothing": nothing})

    trainer.loss_fn, trainer.validate = with_share, validate
    if resume:
        trainer.resume()
    trainer.run()
    return trainer


NOTHING, TRAINED, VALIDATED, BOTH = (0, True), (0.01, True), (0, False), (0.01, False)


@pytest.mark.parametrize("limit", [pytest.param(1, marks=pytest.mark.soak), 2, pytest.param(3, marks=pytest.mark.soak)])
def test_it_stops_after_so_many_epochs_in_a_row_and_not_before(tmp_path, limit):
    """Over courses of five epochs, against counting by hand."""
    for number, course in enumerate(itertools.product((NOTHING, TRAINED, VALIDATED), repeat=5)):
        if number % 5:
            continue
        empty = [found == NOTHING for found in course]
        ends = next((k + 1 for k in range(limit - 1, 5) if all(empty[k - limit + 1 : k + 1])), None)
        folder = tmp_path / f"{limit}-{number}"
        if ends is None:
            assert len(run(folder, course, epochs=5, collapse_epochs=limit).history) == 5
            continue
        with pytest.raises(InputError, match=f"^collapsed: for {limit} epochs, to epoch {ends}, no pixel"):
            run(folder, course, epochs=5, collapse_epochs=limit)
        assert load_checkpoint(folder / "last.pt")["next_epoch"] == ends, "what there is, is kept"
        assert len((folder / "log.jsonl").read_text().splitlines()) == ends


def test_an_average_that_begins_late_is_no_collapse(tmp_path):
    """The average answers with nothing for five epochs while the model itself already finds what is looked for."""
    found = [NOTHING, NOTHING, *[TRAINED] * 4, BOTH]
    assert len(run(tmp_path, found, epochs=7, collapse_epochs=3, ema_decay=0.9).history) == 7


@pytest.mark.parametrize("options", [{"collapse_epochs": 0}, {}])
def test_the_stop_can_be_switched_off(tmp_path, options):
    assert len(run(tmp_path, [NOTHING] * 6, epochs=6, **options).history) == 6


def test_what_knows_no_such_numbers_never_collapses(tmp_path):
    """A regression says neither; a full fit has no validation and is judged by what it was trained on."""
    assert len(run(tmp_path / "regression", [(None, None)] * 4, epochs=4, collapse_epochs=2).history) == 4
    assert len(run(tmp_path / "full", [(0.1, None)] * 4, epochs=4, collapse_epochs=2).history) == 4
    with pytest.raises(InputError, match="for 2 epochs, to epoch 2"):
        run(tmp_path / "empty", [(0, None)] * 4, epochs=4, collapse_epochs=2)


def test_a_share_of_one_batch_is_enough(tmp_path):
    """The epoch's share is the mean over its batches: one pixel in one of them is not nothing."""
    trainer = make_trainer(tmp_path, stages=[Stage(3, {})], collapse_epochs=2)
    loss, calls = trainer.loss_fn, itertools.count()
    trainer.loader = make_loader(trainer.loader.dataset.dataset, EpochBatches(11, 3, seed=5), workers=0,
                                 collate=trainer.loader.collate_fn)  # fmt: skip
    share = lambda: torch.tensor(1e-9 * (next(calls) % 4 == 3))  # noqa: E731
    trainer.loss_fn = lambda outputs, batch: loss(outputs, batch) | {"predicted": share()}
    trainer.validate = lambda model, epoch: {"score": 0.1, "predicts_nothing": True}
    assert len(trainer.run()) == 3 and next(calls) == 12


def test_a_collapsed_run_that_is_resumed_stops_at_once(tmp_path):
    """It trains no further epoch, until it is told to go on."""
    with pytest.raises(InputError, match="to epoch 3"):
        run(tmp_path, [NOTHING] * 9, epochs=9, collapse_epochs=3)
    kept = (tmp_path / "last.pt").read_bytes()
    with pytest.raises(InputError, match="for 3 epochs, to epoch 3"):
        run(tmp_path, [NOTHING] * 9, epochs=9, resume=True, collapse_epochs=3)
    assert (tmp_path / "last.pt").read_bytes() == kept
    with pytest.raises(InputError, match="for 5 epochs, to epoch 5"):
        run(tmp_path, [NOTHING] * 9, epochs=9, resume=True, collapse_epochs=5)
    assert len(run(tmp_path, [NOTHING] * 9, epochs=9, resume=True, collapse_epochs=0).history) == 9


@pytest.mark.parametrize(("warmup", "found", "ends"), [(0, (), 3), (1, (), 4), (1.5, (), 5), (4, (), 7), (4, (1,), 4),
                                                       (4, (1, 4), 7), (4, (6,), 9), (9, (), None)])  # fmt: skip
def test_epochs_of_the_warm_up_count_once_something_was_found(tmp_path, warmup, found, ends):
    """found: the epochs, from 1, whose training found something."""
    course = [TRAINED if epoch in found else NOTHING for epoch in range(1, 10)]
    if ends is None:
        assert len(run(tmp_path, course, epochs=9, warmup=warmup, collapse_epochs=3).history) == 9
        return
    with pytest.raises(InputError, match=f"for 3 epochs, to epoch {ends},"):
        run(tmp_path, course, epochs=9, warmup=warmup, collapse_epochs=3)


def test_a_class_that_the_model_never_gives_ends_train(slumps_empty, capsys, monkeypatch):
    """The real task: a head that always says background; the line says what to do; last.pt and the log stay."""
    import tiny_rts

    from common.tasks import segmentation

    prior = segmentation.start_at_prior
    monkeypatch.setattr(segmentation, "start_at_prior", lambda model, shares: prior(model, [1.0, 0.0]))
    words = ("train", "--data", "data", *tiny_rts.SMALL, "--fold", "0", "--epochs", "6", "--lr", "1e-6", "--run", "c")
    tiny_rts.call(slumps_empty, *words, "--collapse-epochs", "2", code=2)
    said = capsys.readouterr().err
    assert "collapsed: for 2 epochs, to epoch 3, no pixel was predicted" in said and "--collapse-epochs 0" in said
    fold = slumps_empty / "runs" / "c" / "fold0"
    lines = [json.loads(line) for line in (fold / "log.jsonl").read_text().splitlines()]
    assert [line["train_predicted"] for line in lines] == [0, 0, 0] and all(line["predicts_nothing"] for line in lines)
    assert (fold / "last.pt").is_file() and not (fold / "finished.json").exists()
    tiny_rts.call(slumps_empty, *words, "--collapse-epochs", "2", "--resume", code=2)
    assert "to epoch 3" in capsys.readouterr().err, "no further epoch"
    tiny_rts.call(slumps_empty, *words, "--collapse-epochs", "0", "--resume")
    assert (fold / "finished.json").is_file()
