"""Memory over many steps: what a step makes is gone after it, and 10,000 of them take no more than 500 do.

The long form prints what this process holds: make soak, or pytest -s -m soak tests/test_long_training.py
"""

import gc
import tracemalloc
import weakref

import pytest
import torch
from test_loop import Points, collate, make_trainer, squared

from common.datasets.sampling import EpochBatches, make_loader
from common.engine.bad_steps import MODES
from common.engine.loop import Trainer
from common.engine.memory import release_memory, used_memory
from common.engine.schedule import Stage

CPU, MB = torch.device("cpu"), 2**20
STEPS_AN_EPOCH = 4  # eleven points in batches of three


def trainer_of(folder, steps: int, **options) -> Trainer:
    """A trainer of so many steps in epochs of four; every epoch is saved and logged."""
    epochs = steps // STEPS_AN_EPOCH
    return make_trainer(folder, stages=[Stage(epochs, {})], scores=[0.1] * epochs, ema_decay=0.9, grad_clip=1.0,
                        **options)  # fmt: skip


def watched(trainer: Trainer) -> list:
    """Weak references to what every step makes: its batch, the answer of the model and its loss."""
    made = []

    def loss(outputs, batch):
        parts = squared(outputs, batch)
        made.extend(map(weakref.ref, (batch["image"], outputs, parts["loss"])))
        return parts

    trainer.loss_fn = loss
    return made


@pytest.mark.parametrize("mode", MODES)
def test_nothing_of_a_step_outlives_it(tmp_path, mode):
    """200 steps; what a step makes is freed at the latest when the next one has made its own."""
    trainer, most = trainer_of(tmp_path, 200, on_nan=mode, spike_factor=1e9, save_every=50), []
    made, original = watched(trainer), trainer.train_step

    def counted(*words):
        parts = original(*words)
        most.append(sum(ref() is not None for ref in made))
        return parts

    trainer.train_step = counted
    trainer.run()
    gc.collect()
    assert len(made) == 600 and max(most) <= 6 and sum(ref() is not None for ref in made) <= 3


def test_python_objects_do_not_pile_up(tmp_path):
    """Between step 100 and step 300 this process makes nothing that stays but the lines of its log."""
    trainer, held = trainer_of(tmp_path, 300, save_every=100), {}

    def look(trainer, record, improved):
        if trainer.global_step in (100, 300):
            gc.collect()
            held[trainer.global_step] = tracemalloc.get_traced_memory()[0]

    trainer.on_epoch = look
    tracemalloc.start()
    try:
        trainer.run()
    finally:
        tracemalloc.stop()
    grown = held[300] - held[100]
    assert grown < 50 * 1500, f"{grown} bytes in 50 epochs"


@pytest.mark.soak
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("mode", MODES)
def test_memory_is_flat_over_ten_thousand_steps(tmp_path, workers, mode):
    """Within 8 MB of what the process held after 500 steps."""
    steps = 10_000
    trainer, held = trainer_of(tmp_path, steps, on_nan=mode, spike_factor=1e9, save_every=250), {}
    trainer.loader = make_loader(Points(), EpochBatches(11, 3, seed=5), workers=workers, collate=collate)

    def look(trainer, record, improved):
        if trainer.global_step in (500, steps):
            gc.collect()
            release_memory(CPU)
            held[trainer.global_step] = used_memory(CPU)

    trainer.on_epoch = look
    trainer.run()
    first, last = held[500], held[steps]
    print(f"memory held with --on-nan {mode}, {workers} workers: {first / MB:.1f} MB after 500 steps, "
          f"{last / MB:.1f} MB after {steps:,}")  # fmt: skip
    assert last - first < 8 * MB
