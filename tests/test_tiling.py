"""Scenes by windows: the blend against a plain one over the whole scene, kills at every step, jobs shared."""

import itertools
import json
import os
import signal
import subprocess
import sys
import time
import tracemalloc
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from common.engine import side_store, tiling
from common.engine.side_store import SideStore, claim, lock_of, shared_jobs
from common.engine.tiling import STRIP, plan_windows, predict_scene, window_weights
from common.errors import InputError

ROOT = Path(__file__).resolve().parent.parent
CPU = torch.device("cpu")


class Killed(BaseException):
    """Not an Exception: nothing may catch it, as nothing catches a kill."""


class Local(torch.nn.Module):
    """Logits that depend on the pixel and on its neighbours, so that windows differ where they overlap."""

    def __init__(self, gain=1.0, stop_at=None):
        super().__init__()
        self.gain, self.stop_at, self.calls, self.seen = gain, stop_at, 0, 0

    def forward(self, image):
        self.calls += 1
        if self.calls == self.stop_at:
            raise Killed
        self.seen += len(image)
        blurred = torch.nn.functional.avg_pool2d(image, 5, 1, 2)  # zeros beyond the window: its edge shows
        return self.gain * (image[:, :1] + 3 * blurred[:, 1:2] - 1)


def to_values(_model, logits):
    return torch.sigmoid(logits)


def drawn(height, width, seed=0):
    """(scene float32 (2,H,W), valid bool (H,W)): noise, with a corner and a hole without data."""
    scene = np.random.default_rng(seed).random((2, height, width), np.float32)
    valid = np.ones((height, width), bool)
    valid[: height // 4, : width // 3] = False
    valid[height // 2 : height // 2 + 9, width // 2 :] = False
    return scene * valid, valid


def reader(scene, valid, side):
    """What a task gives: the window of an array, nothing beyond its edges, resampled where the window is larger."""

    def read(window):
        image, known = np.zeros((len(scene), window.side, window.side), np.float32), np.zeros((window.side,) * 2, bool)
        part = np.s_[window.y : window.y + window.side, window.x : window.x + window.side]
        height, width = valid[part].shape
        image[:, :height, :width], known[:height, :width] = scene[(slice(None), *part)], valid[part]
        if window.side == side:
            return image, known
        image = np.stack([cv2.resize(band, (side, side), interpolation=cv2.INTER_AREA) for band in image])
        return image, cv2.resize(known.view(np.uint8), (side, side), interpolation=cv2.INTER_NEAREST).view(bool)

    return read


def mapped(models, scene, valid, store, *, window=64, key=None, **settings):
    return predict_scene(
        models, reader(scene, valid, window), *valid.shape, to_values=to_values, store=store, key=key or {},
        device=CPU, window=window, **settings
    )  # fmt: skip


def whole(result):
    """(values (channels,H,W), valid (H,W)) of a map; its strips follow each other without a gap."""
    strips, row = list(result.strips()), 0
    for y, values, valid in strips:
        assert y == row and values.shape[1] == len(valid)
        assert values.dtype == np.float32 and valid.dtype == bool
        row += len(valid)
    assert row == result.height
    return np.concatenate([s[1] for s in strips], axis=1), np.concatenate([s[2] for s in strips])


def plain_blend(models, scene, valid, *, side, overlap, scales, kind):
    """Values (M,H,W) of every model: sums over the whole scene in float64, windows found and weighed by hand."""
    height, width = valid.shape
    total, weight = np.zeros((len(models), height, width)), np.zeros((height, width))
    for scale in scales:
        large = round(side / scale)
        step = round(large * (1 - overlap))
        starts = [sorted({*range(0, max(1, n - large + 1), step), max(0, n - large)}) for n in (height, width)]
        middle = (np.arange(large) + 0.5) / large
        along = np.sin(np.pi * middle) ** 2 if kind == "hann" else np.exp(-(((middle - 0.5) * 8) ** 2) / 2)
        counts = np.maximum(along[:, None] * along[None], 1e-3)
        for y, x in itertools.product(*starts):
            image, known = reader(scene, valid, side)(tiling.Window(0, y, x, large, scale))
            if not known.any():
                continue
            for index, model in enumerate(models):
                value = to_values(model, model(torch.from_numpy(image[None])))
                value = torch.nn.functional.interpolate(value, size=(large, large), mode="bilinear")[0, 0].numpy()
                rows, columns = min(large, height - y), min(large, width - x)
                part = np.s_[y : y + rows, x : x + columns]
                total[(index, *part)] += (counts * value)[:rows, :columns]
            weight[part] += counts[:rows, :columns]
    return total / np.maximum(weight, 1e-9)


CASES = [
    {"shape": (150, 210)},
    {"shape": (700, 90), "batch_size": 7},
    {"shape": (20, 300)},
    {"shape": (33, 41)},
    {"shape": (64, 64), "overlap": 0.25},
    {"shape": (600, 130), "overlap": 0.0, "weights": "gaussian"},
    {"shape": (560, 190), "scales": (0.5, 1.0), "batch_size": 5},
    {"shape": (300, 200), "scales": (0.25, 2.0), "overlap": 0.7},
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_map_is_the_weighted_mean_over_windows(case, tmp_path):
    case = dict(case)
    scene, valid = drawn(*case.pop("shape"))
    models = [Local(), Local(-0.5)]
    settings = {"overlap": 0.5, "scales": (1.0,), "weights": "hann", **case}
    result = mapped(models, scene, valid, tmp_path / "s", spread=True, **settings)
    values, known = whole(result)
    asked = {"overlap": settings["overlap"], "scales": settings["scales"], "kind": settings["weights"]}
    expected = plain_blend(models, scene, valid, side=64, **asked)
    assert known.shape == valid.shape
    if 1.0 in settings["scales"]:
        np.testing.assert_array_equal(known, valid)
    assert np.allclose(values[0], expected.mean(0) * known, atol=2e-6)
    # two values lie half their difference from their mean, in every window: blended it is at least that of the blends
    difference = np.abs(expected[0] - expected[1]) / 2
    assert (values[1] >= difference * known - 2e-6).all()
    assert not values[:, ~known].any()


def test_spread_is_the_deviation_over_the_models(tmp_path):
    """Models that never cross: their spread may then be blended window by window or after."""
    scene, valid = drawn(130, 150)
    models = [Local(), Local(1.0), Local(1.0)]
    shift = {id(model): value for model, value in zip(models, (0.0, 0.3, -0.1), strict=True)}
    seen = predict_scene(
        models, reader(scene, valid, 64), 130, 150, store=tmp_path / "s", key={}, device=CPU, window=64, spread=True,
        to_values=lambda model, logits: 0 * logits + 0.4 + shift[id(model)]
    )  # fmt: skip
    values, known = whole(seen)
    assert seen.channels == 2
    assert np.allclose(values[0][known], 0.4 + np.mean([0, 0.3, -0.1]), atol=1e-6)
    assert np.allclose(values[1][known], np.std([0, 0.3, -0.1]), atol=1e-6)


@pytest.mark.parametrize("kind", ["hann", "gaussian"])
@pytest.mark.parametrize("scales", [(1.0,), (0.5, 1.0), (0.3, 1.0, 1.7)])
def test_a_constant_stays_that_constant(kind, scales, tmp_path):
    scene, valid = np.ones((2, 333, 275), np.float32), np.ones((333, 275), bool)
    result = predict_scene(
        [Local()], reader(scene, valid, 64), 333, 275, store=tmp_path / "s", key={}, device=CPU, window=64,
        scales=scales, weights=kind, channels=2,
        to_values=lambda model, logits: torch.cat([0 * logits + 0.37, 0 * logits + 0.63], 1)
    )  # fmt: skip
    values, known = whole(result)
    assert known.all()
    assert np.abs(values[0] - 0.37).max() < 1e-6 and np.abs(values[1] - 0.63).max() < 1e-6


def test_views_are_averaged_and_turned_back(tmp_path):
    """A model that knows left from right: with its mirror image the two sides of a window count alike."""

    class Ramp(torch.nn.Module):
        def forward(self, image):
            return torch.linspace(0, 1, image.shape[-1]).expand(len(image), 1, *image.shape[-2:])

    scene, valid = np.ones((2, 64, 64), np.float32), np.ones((64, 64), bool)
    values = {}
    for views in (("identity",), ("identity", "hflip")):
        result = predict_scene([Ramp()], reader(scene, valid, 64), 64, 64, to_values=lambda _m, logits: logits,
                               store=tmp_path / views[-1], key={}, device=CPU, window=64, views=views)  # fmt: skip
        values[views], _ = whole(result)
    assert np.allclose(values[("identity",)][0, 0], np.linspace(0, 1, 64), atol=1e-6)
    assert np.allclose(values[("identity", "hflip")], 0.5, atol=1e-6)


@pytest.mark.parametrize("length", [1, 63, 64, 65, 96, 97, 128, 1000])
@pytest.mark.parametrize("overlap", [0.0, 0.3, 0.5, 0.9])
def test_windows_cover_everything_and_end_with_the_scene(length, overlap):
    windows = plan_windows(length, 80, window=64, overlap=overlap, scales=(1.0, 0.5))
    assert [window.index for window in windows] == list(range(len(windows)))
    assert [window.y for window in windows] == sorted(window.y for window in windows)
    for scale, side in ((1.0, 64), (0.5, 128)):
        ours = [window for window in windows if window.scale == scale]
        seen = np.zeros((max(length, side), max(80, side)), bool)
        for window in ours:
            assert window.side == side
            assert 0 <= window.y <= max(0, length - side) and 0 <= window.x <= max(0, 80 - side)
            seen[window.y : window.y + side, window.x : window.x + side] = True
        assert seen[:length, :80].all()
        starts = sorted({window.y for window in ours})
        assert len(starts) == (1 if length <= side else -(-(length - side) // round(side * (1 - overlap))) + 1)


def test_the_plan_refuses_what_it_cannot_do():
    for settings in ({"overlap": 1.0}, {"overlap": -0.1}, {"scales": (1.0, 1.0)}, {"scales": (0.0,)}, {"scales": ()}):
        with pytest.raises(InputError, match=f"--{next(iter(settings))}"):
            plan_windows(100, 100, **settings)


@pytest.mark.parametrize("kind", ["hann", "gaussian"])
def test_weights_fall_from_the_middle_and_never_under_the_floor(kind):
    weights = window_weights(64, kind)
    assert weights.max() <= 1 and weights[31, 31] > 0.98
    assert weights.min() == np.float32(tiling.FLOOR) and weights[0, 0] == np.float32(tiling.FLOOR)
    for turned in (weights.T, weights[::-1], weights[:, ::-1]):
        np.testing.assert_allclose(weights, turned, atol=1e-7)
    assert (np.diff(weights[31, :32]) >= 0).all() and (np.diff(weights[31, 4:32]) > 0).all()


def test_windows_without_data_never_reach_the_model(tmp_path):
    scene, valid = np.ones((2, 256, 256), np.float32), np.zeros((256, 256), bool)
    valid[200, 200] = True
    model = Local()
    values, known = whole(mapped([model], scene, valid, tmp_path / "s", overlap=0.0))
    assert model.seen == 1
    np.testing.assert_array_equal(known, valid)
    assert values[0, 200, 200] > 0 and np.count_nonzero(values) == 1
    empty = Local()
    values, known = whole(mapped([empty], scene, np.zeros_like(valid), tmp_path / "empty"))
    assert empty.calls == 0 and not known.any() and not values.any()


def test_what_is_no_number_is_refused(tmp_path):
    scene, valid = drawn(64, 64)
    with pytest.raises(InputError, match="--amp off"):
        mapped([Local(float("nan"))], scene, valid, tmp_path / "s")


def test_modes_of_the_models_come_back_and_errors_of_reading_come_through(tmp_path):
    scene, valid = drawn(64, 64)
    model, other = Local().train(), Local().eval()
    mapped([model, other], scene, valid, tmp_path / "s")
    assert model.training and not other.training

    def read(_window):
        raise InputError("scene.tif: gone")

    with pytest.raises(InputError, match=r"scene\.tif: gone"):
        predict_scene([model], read, 64, 64, to_values=to_values, store=tmp_path / "t", key={}, device=CPU, window=64)


SHAPE, OPTIONS = (900, 140), {"scales": (0.5, 1.0), "batch_size": 3, "spread": True}


class Company(Local):
    """What a window gives depends on how many are predicted with it, as the last digits of real networks do."""

    def forward(self, image):
        return super().forward(image) + 0.1 * len(image)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    """(values, valid, calls of the model) of a map that nobody stopped."""
    model = Company()
    result = mapped([model], *drawn(*SHAPE), tmp_path_factory.mktemp("whole"), **OPTIONS)
    return *whole(result), model.calls


def check_resumed(store, uninterrupted, calls_before: int):
    """Resumes in `store`: same bytes, and no more calls of the model than are missing."""
    model = Company()
    result = mapped([model], *drawn(*SHAPE), store, **OPTIONS)
    values, valid = whole(result)
    assert values.tobytes() == uninterrupted[0].tobytes() and valid.tobytes() == uninterrupted[1].tobytes()
    assert calls_before + model.calls == uninterrupted[2]
    assert not list(store.glob("windows-*"))
    again = Company()
    result = mapped([again], *drawn(*SHAPE), store, **OPTIONS)
    assert again.calls == 0
    for _ in range(2):  # strips may be looked at more than once
        assert whole(result)[0].tobytes() == values.tobytes()
    result.close()
    assert not store.exists()


def test_stopped_at_any_batch_it_ends_with_the_same_bytes(tmp_path, uninterrupted):
    assert uninterrupted[2] > 20
    for stop in range(1, uninterrupted[2] + 1, 3):
        store = tmp_path / str(stop)
        with pytest.raises(Killed):
            mapped([Company(stop_at=stop)], *drawn(*SHAPE), store, **OPTIONS)
        check_resumed(store, uninterrupted, stop - 1)


@pytest.mark.parametrize("moment", ["before", "after", "remove"])
def test_stopped_at_any_file_it_ends_with_the_same_bytes(moment, tmp_path, uninterrupted, monkeypatch):
    """Before or after a file gets its name, and between a strip and the removal of its windows."""
    replace, remove = os.replace, SideStore.remove
    for stop in range(1, 30 if moment != "remove" else 20, 3):
        store, model, done, lost = tmp_path / str(stop), Company(), [], []

        def replaced(source, target, stop=stop, done=done, lost=lost):
            done.append(target)
            if len(done) == stop and moment == "before":
                lost += [target] * target.name.startswith("windows-")
                raise Killed
            replace(source, target)
            if len(done) == stop and moment == "after":
                raise Killed

        def removed(self, name, stop=stop, done=done):
            done.append(name)
            if len(done) == stop:
                raise Killed
            remove(self, name)

        with monkeypatch.context() as patch:
            patch.setattr(SideStore, "remove", removed) if moment == "remove" else patch.setattr(
                os, "replace", replaced
            )
            with pytest.raises(Killed):
                mapped([model], *drawn(*SHAPE), store, **OPTIONS)
        check_resumed(store, uninterrupted, model.calls - len(lost))


LAYOUTS = {"rows": {"batch_size": 8}, "scales": {"batch_size": 7, "scales": (0.5, 1.0)}, "plain": {"overlap": 0.25}}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_stopped_after_any_strip_it_ends_with_the_same_bytes(layout, tmp_path, monkeypatch):
    """Windows that end above the finished rows then share a batch with some that reach below."""
    picture, options, write = drawn(1300, 75), LAYOUTS[layout], SideStore.write
    expected = whole(mapped([Company()], *picture, tmp_path / "whole", **options))
    for stop in range(0, 1300, STRIP):

        def written(self, name, stop=stop, **arrays):
            write(self, name, **arrays)
            if name == tiling.strip_name(stop):
                raise Killed

        with monkeypatch.context() as patch:
            patch.setattr(SideStore, "write", written)
            with pytest.raises(Killed):
                mapped([Company()], *picture, tmp_path / str(stop), **options)
        values, valid = whole(mapped([Company()], *picture, tmp_path / str(stop), **options))
        assert values.tobytes() == expected[0].tobytes() and valid.tobytes() == expected[1].tobytes()


SLOW_JOB = """
import sys; sys.path[:0] = [{root!r}, {tests!r}]
import time, test_tiling as t
class Slow(t.Company):
    def forward(self, image):
        time.sleep(.02)
        return super().forward(image)
t.mapped([Slow()], *t.drawn(*t.SHAPE), sys.argv[1], **t.OPTIONS)
"""


def test_killed_for_real_it_ends_with_the_same_bytes(tmp_path, uninterrupted):
    code = SLOW_JOB.format(root=str(ROOT), tests=str(ROOT / "tests"))
    job = subprocess.Popen([sys.executable, "-c", code, tmp_path / "s"])
    while job.poll() is None and len(list((tmp_path / "s").glob("*.npz"))) < 6:
        time.sleep(0.005)
    job.send_signal(signal.SIGKILL)
    assert job.wait() == -signal.SIGKILL, "it was over before it could be killed"
    model = Company()
    result = mapped([model], *drawn(*SHAPE), tmp_path / "s", **OPTIONS)
    assert whole(result)[0].tobytes() == uninterrupted[0].tobytes()
    assert model.calls < uninterrupted[2] - 3
    result.close()
    assert not (tmp_path / "s").exists()


CHANGES = [{"key": {"model": "b"}}, {"overlap": 0.25}, {"weights": "gaussian"}, {"batch_size": 4}, {"spread": False},
           {"views": ("identity", "hflip")}]  # fmt: skip


@pytest.mark.parametrize("change", CHANGES, ids=str)
def test_another_key_or_setting_starts_over(change, tmp_path):
    scene, valid = drawn(200, 140)
    first = {"key": {"model": "a"}, **OPTIONS}
    mapped([Company()], scene, valid, tmp_path / "s", **first)
    (tmp_path / "s" / "notes.txt").write_text("not ours")
    model, fresh = Company(0.5), Company(0.5)
    values, _ = whole(mapped([model], scene, valid, tmp_path / "s", **first | change))
    expected, _ = whole(mapped([fresh], scene, valid, tmp_path / "fresh", **first | change))
    assert model.calls == fresh.calls > 0
    assert values.tobytes() == expected.tobytes()
    assert (tmp_path / "s" / "notes.txt").exists()


@pytest.mark.parametrize("part", ["strip-00000256", "strip-00000768", "windows-"])
def test_a_damaged_part_is_made_again(part, tmp_path, uninterrupted):
    store = tmp_path / "s"
    if part == "windows-":
        with pytest.raises(Killed):
            mapped([Company(stop_at=15)], *drawn(*SHAPE), store, **OPTIONS)
    else:
        result = mapped([Company()], *drawn(*SHAPE), store, **OPTIONS)
    path = sorted(store.glob(part + "*"))[-1]
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 255
    path.write_bytes(content)
    if part != "windows-":
        with pytest.raises(InputError, match="start the job again"):
            list(result.strips())
    model = Company()
    assert whole(mapped([model], *drawn(*SHAPE), store, **OPTIONS))[0].tobytes() == uninterrupted[0].tobytes()
    assert 0 < model.calls < uninterrupted[2]


def test_a_full_disk_is_one_line_and_costs_nothing_that_was_finished(small_disk):
    scene, valid = drawn(400, 140)
    with pytest.raises(InputError, match="no space left.*start again"):
        mapped([Local()], scene, valid, small_disk / "s", overlap=0.75)
    assert list((small_disk / "s").glob("windows-*")) and not list((small_disk / "s").glob(".tmp-*"))


def test_memory_does_not_grow_with_the_height(tmp_path):
    """Peak of what numpy holds; the model's own memory is torch's."""
    peaks = {}
    for height in (1024, 4096):

        def read(_window):
            return np.ones((1, 64, 64), np.float32), np.ones((64, 64), bool)

        tracemalloc.start()
        result = predict_scene([torch.nn.Identity()], read, height, 256, to_values=lambda _m, image: image,
                               store=tmp_path / "s", key={}, device=CPU, window=64, batch_size=16)  # fmt: skip
        for _ in result.strips():
            pass
        peaks[height] = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peaks[4096] < 1.15 * peaks[1024]
    assert peaks[4096] < 4 * (64 + STRIP) * 256 * 4 * 2


def test_one_process_at_a_time_has_a_claim(tmp_path):
    output = tmp_path / "new" / "map.tif"
    first = claim(output)
    assert first and claim(output) is None
    with first:
        assert claim(output) is None
        assert claim(tmp_path / "new" / "other.tif")
    assert not lock_of(output).exists()
    with claim(output) as second:
        assert second


def test_a_claim_on_a_removed_lock_is_no_claim(tmp_path, monkeypatch):
    """Its holder removes the lock file between our open and our lock: ours is then the lock of no name."""
    import fcntl

    output, flock, seen = tmp_path / "map.tif", fcntl.flock, []

    def late(file, how):
        if not seen:
            seen.append(file)
            lock_of(output).unlink()
        flock(file, how)

    monkeypatch.setattr(fcntl, "flock", late)
    with claim(output):
        assert lock_of(output).exists()
        assert claim(output) is None


HOLDER = """
import sys; sys.path.insert(0, {root!r})
from common.engine.side_store import claim
held = claim(sys.argv[1]); print("held" if held else "none", flush=True); sys.stdin.read()
"""


def test_a_killed_process_frees_its_claim(tmp_path):
    command = [sys.executable, "-c", HOLDER.format(root=str(ROOT)), tmp_path / "map.tif"]
    holder = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert holder.stdout.readline() == "held\n"
    assert claim(tmp_path / "map.tif") is None
    assert not list(shared_jobs([tmp_path / "map.tif"]))
    holder.kill()
    holder.wait()
    assert list(shared_jobs([tmp_path / "map.tif"])) == [0]
    holder.stdin.close(), holder.stdout.close()


WORKER = """
import sys, time; sys.path.insert(0, {root!r})
from pathlib import Path
from common.engine.side_store import shared_jobs
outputs = [Path(sys.argv[1]) / f"{{n}}.tif" for n in range(40)]
print("ready", flush=True); sys.stdin.readline()
for index in shared_jobs(outputs):
    with open(Path(sys.argv[1]) / "log", "a") as log:
        print(index, file=log)
    time.sleep(.002)
    outputs[index].write_text("made")
"""


def test_processes_share_a_list_and_do_nothing_twice(tmp_path):
    (tmp_path / "7.tif").write_text("made before")
    command = [sys.executable, "-c", WORKER.format(root=str(ROOT)), tmp_path]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    workers = [subprocess.Popen(command, **pipes) for _ in range(3)]
    for worker in workers:
        assert worker.stdout.readline() == "ready\n"
    for worker in workers:
        worker.stdin.write("go\n")
        worker.stdin.flush()
    for worker in workers:
        worker.communicate()
        assert worker.returncode == 0
    done = [int(line) for line in (tmp_path / "log").read_text().split()]
    assert sorted(done) == [n for n in range(40) if n != 7]
    assert len(list(tmp_path.glob("*.tif"))) == 40 and not list(tmp_path.glob(".*"))
    with pytest.raises(InputError, match="two inputs"):
        list(shared_jobs([tmp_path / "a.tif", tmp_path / "a.tif"]))


def test_what_another_finished_meanwhile_is_not_done_again(tmp_path, monkeypatch):
    """It ends between our look for the output and our lock."""

    def late(output):
        output.write_text("made by another")
        return claim(output)

    monkeypatch.setattr(side_store, "claim", late)
    assert not list(shared_jobs([tmp_path / "a.tif", tmp_path / "b.tif"]))


def test_a_store_of_an_unreadable_key_starts_over(tmp_path):
    store = SideStore(tmp_path, {"a": 1})
    store.write("part", x=np.arange(3))
    assert list(SideStore(tmp_path, {"a": 1}).read("part")["x"]) == [0, 1, 2]
    for content in ("", "[]", json.dumps({"hash": "other"})):
        SideStore(tmp_path, {"a": 1}).write("part", x=np.arange(3))
        (tmp_path / side_store.KEY).write_text(content)
        assert SideStore(tmp_path, {"a": 1}).read("part") is None
