"""Rasters of any size through models that see windows: planning, weighted blending by strips, stops and restarts."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import cv2
import numpy as np
import torch
from tqdm import tqdm

from common.engine.predict import group_shared, mean_over_views
from common.engine.side_store import SideStore
from common.errors import InputError

STRIP = 256  # rows that are finished and stored at a time
FLOOR = 1e-3  # least weight of a pixel of a window, where its middle has 1


@dataclass(frozen=True)
class Window:
    """A square of the scene, in its pixels; the model sees it at `scale` times its resolution."""

    index: int
    y: int
    x: int
    side: int
    scale: float


def offsets(length: int, side: int, overlap: float) -> list[int]:
    """Where windows begin along an axis: a regular step, the last one shifted back to end with the scene."""
    if length <= side:
        return [0]
    step = max(1, round(side * (1 - overlap)))
    return [*range(0, length - side, step), length - side]


def plan_windows(height: int, width: int, *, window=512, overlap=0.5, scales=(1.0,)) -> list[Window]:
    """Windows that cover every pixel at every scale, from top to bottom.

    window: side of what the model sees; a window covers window / scale pixels of the scene, beyond its edges where it
    is smaller. InputError: overlap outside 0 .. .95, scales that are not positive or there twice.
    """
    if not 0 <= overlap <= 0.95:
        raise InputError(f"--overlap {overlap}: from 0 (none) to .95")
    if not scales or min(scales) <= 0 or len(set(scales)) < len(scales):
        raise InputError(f"--scales {' '.join(map(str, scales))}: positive numbers, each once (1 = the resolution)")
    places = []
    for scale in scales:
        side = max(1, round(window / scale))
        columns = offsets(width, side, overlap)
        places += [(y, -scale, x, side) for y in offsets(height, side, overlap) for x in columns]
    return [Window(index, y, x, side, -scale) for index, (y, scale, x, side) in enumerate(sorted(places))]


def _hann(position: np.ndarray) -> np.ndarray:
    return np.sin(np.pi * (position + 0.5)) ** 2


def _gaussian(position: np.ndarray) -> np.ndarray:
    return np.exp(-0.5 * (position / 0.125) ** 2)  # sigma: an eighth of the side, as nnU-Net has it


WEIGHTS = {"hann": _hann, "gaussian": _gaussian}


@lru_cache(maxsize=16)
def window_weights(side: int, kind: str = "hann", floor: float = FLOOR) -> np.ndarray:
    """float32 (side, side): what each pixel of a window counts in the blend; 1 in the middle, never under `floor`."""
    along = WEIGHTS[kind]((np.arange(side) + 0.5) / side - 0.5)
    return np.maximum(np.outer(along, along), floor).astype(np.float32)


class StripBlend:
    """Weighted sums of windows over the open rows of a scene; finished rows leave it from the top.

    Memory: (channels + 1) float32 for (largest side + STRIP) rows of the scene's width.
    """

    def __init__(self, height: int, width: int, channels: int, *, side: int, kind: str, finest: float, begin: int = 0):
        rows = min(height - begin, side + STRIP)
        self.height, self.width, self.kind, self.finest, self.begin = height, width, kind, finest, begin
        self.values = np.zeros((channels, rows, width), np.float32)
        self.weight = np.zeros((rows, width), np.float32)
        self.valid = np.zeros((rows, width), bool)

    def add(self, window: Window, values: np.ndarray, valid: np.ndarray) -> None:
        """values float32 (channels, s, s) and valid bool (s, s) as the model saw the window; nothing of it where it
        lies wholly in rows that have left, as after a restart the company of a window that does not."""
        if window.y + window.side <= self.begin:
            return
        if valid.shape[0] != window.side:
            size = (window.side, window.side)
            values = np.stack([cv2.resize(value, size, interpolation=cv2.INTER_LINEAR) for value in values])
            valid = cv2.resize(valid.view(np.uint8), size, interpolation=cv2.INTER_NEAREST).view(bool)
        top = max(window.y, self.begin)
        bottom, right = min(window.y + window.side, self.height), min(window.x + window.side, self.width)
        of_window = np.s_[top - window.y : bottom - window.y, : right - window.x]
        of_scene = np.s_[top - self.begin : bottom - self.begin, window.x : right]
        weight = window_weights(window.side, self.kind)[of_window]
        for total, value in zip(self.values, values, strict=True):
            total[of_scene] += weight * value[of_window]
        self.weight[of_scene] += weight
        if window.scale == self.finest:  # a coarser view would blur the edge of the data
            self.valid[of_scene] |= valid[of_window]

    def take(self, rows: int) -> tuple[np.ndarray, np.ndarray]:
        """(values float32 (channels, rows, W), valid bool (rows, W)) of the uppermost rows, which leave."""
        valid = self.valid[:rows].copy()
        values = np.zeros((len(self.values), rows, self.width), np.float32)
        np.divide(self.values[:, :rows], self.weight[:rows], out=values, where=valid)
        for array in (*self.values, self.weight, self.valid):
            for row in range(0, len(array), rows):  # piece by piece: a copy of all of it would be memory for nothing
                moved = array[row + rows : row + 2 * rows]
                array[row : row + len(moved)] = moved
            array[-rows:] = 0
        self.begin += rows
        return values, valid


class SceneMap:
    """A predicted scene in its side store, strip by strip."""

    def __init__(self, store: SideStore, height: int, width: int, channels: int):
        self.store, self.height, self.width, self.channels = store, height, width, channels

    def strips(self, begin: int = 0, end: int | None = None) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
        """(first row, values float32 (channels, h, W), valid bool (h, W)) from top to bottom, of those that touch the
        rows begin to end; values are 0 where not valid. May be called more than once."""
        for y in range(begin - begin % STRIP, self.height if end is None else end, STRIP):
            strip = read_strip(self.store, y, self.width)
            if strip is None:
                raise InputError(f"{self.store.folder}: the part at row {y} is gone or damaged; start the job again")
            yield y, *strip

    def close(self) -> None:
        """Remove what was stored: the map has been written."""
        self.store.close()


def strip_name(y: int) -> str:
    return f"strip-{y:08d}"


def read_strip(store: SideStore, y: int, width: int) -> tuple[np.ndarray, np.ndarray] | None:
    part = store.read(strip_name(y))
    return part and (part["values"], np.unpackbits(part["valid"], axis=1, count=width).view(bool))


def finished_rows(store: SideStore, height: int) -> int:
    """Rows from the top whose strips are stored without a gap."""
    for y in range(0, height, STRIP):
        if store.read(strip_name(y)) is None:
            return y
    return height


@dataclass(frozen=True)
class Chunk:
    """Windows that go through the models together, always the same ones: a batch's company moves its last digits."""

    index: int
    windows: list[Window]

    @property
    def name(self) -> str:
        return f"windows-{self.index:08d}"

    @property
    def end(self) -> int:
        return max(window.y + window.side for window in self.windows)


def read_chunk(chunk: Chunk, store: SideStore, read: Callable) -> dict:
    """What is stored of a chunk, or {"kept", "images", "valid"} of its windows with a valid pixel."""
    stored = store.read(chunk.name)
    if stored is not None:
        return stored
    seen = [(position, *read(window)) for position, window in enumerate(chunk.windows)]
    seen = [each for each in seen if each[2].any()]
    kept, images, valid = zip(*seen, strict=True) if seen else ((), (), ())
    return {"kept": np.array(kept, np.int64), "images": images, "valid": np.array(valid, bool)}


def predict_chunk(chunk: Chunk, part: dict, predictor: "Predictor", store: SideStore) -> Iterator[tuple]:
    """Yields (window, values, valid) of every window of a chunk, None and None for one without a valid pixel.

    What is not stored is predicted and stored first.
    """
    if "images" in part:
        values = predictor(part["images"]) if part["images"] else np.zeros(0, np.float32)
        part = {"kept": part["kept"], "values": values, "valid": np.packbits(part["valid"], axis=-1)}
        store.write(chunk.name, **part)
    place = {int(position): order for order, position in enumerate(part["kept"])}
    for position, window in enumerate(chunk.windows):
        if position not in place:
            yield window, None, None
            continue
        values = part["values"][place[position]]
        yield window, values, np.unpackbits(part["valid"][place[position]], axis=-1, count=values.shape[-1]).view(bool)


def read_ahead(chunks: list[Chunk], read: Callable[[Chunk], dict]) -> Iterator[tuple[Chunk, dict]]:
    """Chunks and what `read` gives of them, the next one read by a thread while the caller works."""
    with ThreadPoolExecutor(1) as pool:
        coming = None
        for chunk, following in zip(chunks, [*chunks[1:], None], strict=True):
            part = (coming or pool.submit(read, chunk)).result()
            coming = pool.submit(read, following) if following else None
            yield chunk, part


class Predictor:
    """Models, views and device to one function from images to values."""

    def __init__(self, models, to_values: Callable, views, device, amp, channels: int, spread: bool):
        self.models, self.groups = [model.eval().to(device) for model in models], group_shared(models)
        self.to_pred = lambda model, outputs: {"value": to_values(model, outputs)}
        self.views, self.device, self.amp, self.channels, self.spread = list(views), device, amp, channels, spread

    @torch.inference_mode()
    def __call__(self, images: tuple[np.ndarray, ...]) -> np.ndarray:
        """float32 (n, channels [+ 1], s, s): mean over models and views [, largest spread of a channel over models]."""
        batch = torch.from_numpy(np.stack(images)).to(self.device)
        seen = mean_over_views(self.models, self.groups, batch, self.views, self.to_pred, self.device, self.amp)
        values = seen["value"]
        if values.shape[1:] != (len(batch), self.channels, *batch.shape[-2:]):
            raise ValueError(f"to_values gave {tuple(values.shape[1:])} for images {tuple(batch.shape)}")
        mean = values.mean(0)
        if self.spread:
            spread = (values - mean).square_().mean(0).sqrt_()  # torch.std takes ten times as long over this axis
            mean = torch.cat([mean, spread.amax(1, keepdim=True)], dim=1)
        if not torch.isfinite(mean.sum()):
            raise InputError("a model predicts values that are no numbers; try --amp off")
        return mean.cpu().numpy()


def predict_scene(models: list, read: Callable, height: int, width: int, *, to_values: Callable, store: str | Path,
                  key: dict, device: torch.device, channels=1, window=512, overlap=0.5, scales=(1.0,), weights="hann",
                  views=("identity",), batch_size=4, amp=None, spread=False, progress="") -> SceneMap:  # fmt: skip
    """A scene of height x width pixels through models window by window, blended with `weights`; in bounded memory.

    read(window) -> (image float32 (C, s, s) as the models take it, valid bool (s, s)) with s = `window`, also where the
    window reaches beyond the scene; called in a thread, one call at a time. Windows without a valid pixel are skipped.
    to_values(model, outputs) -> (B, channels, s, s), what is averaged over models, views and windows: probabilities.
    spread adds a channel: the standard deviation over the models.
    store: folder of finished windows and strips. A job that was killed goes on from there and ends with the same bytes;
    key holds what makes the result beside the arguments here (models, scene, bands): another key starts over.
    """
    windows = plan_windows(height, width, window=window, overlap=overlap, scales=scales)
    facts = {"size": [height, width], "channels": channels, "window": window, "overlap": overlap,
             "scales": list(scales), "weights": weights, "views": list(views), "batch_size": batch_size,
             "amp": str(amp), "device": torch.device(device).type, "spread": spread, "models": len(models)}  # fmt: skip
    side_store = SideStore(store, {"key": key, "facts": facts})
    result = SceneMap(side_store, height, width, channels + spread)
    done = finished_rows(side_store, height)
    if done == height:
        return result
    blend = StripBlend(height, width, result.channels, side=max(w.side for w in windows), kind=weights,
                       finest=max(scales), begin=done)  # fmt: skip
    groups = [windows[first : first + batch_size] for first in range(0, len(windows), batch_size)]
    chunks = [Chunk(index, group) for index, group in enumerate(groups)]
    todo = [chunk for chunk in chunks if chunk.end > done]
    for chunk in chunks[: len(chunks) - len(todo)]:  # left by a kill between a strip and its windows' removal
        side_store.remove(chunk.name)
    was_training = [model.training for model in models]
    predictor = Predictor(models, to_values, views, device, amp, channels, spread)
    told = {"desc": progress, "disable": None if progress else True, "leave": False}
    with tqdm(total=len(chunks), initial=len(chunks) - len(todo), **told) as bar:
        blend_chunks(todo, read, predictor, side_store, blend, bar)
    for model, training in zip(models, was_training, strict=True):
        model.train(training)
    return result


def blend_chunks(chunks: list[Chunk], read: Callable, predictor: Predictor, store: SideStore, blend: StripBlend, bar):
    """Add up the windows of the chunks in their order and store strips as their rows are finished."""
    held: list[Chunk] = []
    for chunk, part in read_ahead(chunks, lambda chunk: read_chunk(chunk, store, read)):
        held.append(chunk)
        for window, values, valid in predict_chunk(chunk, part, predictor, store):
            store_strips(store, blend, window.y)
            if values is not None:
                blend.add(window, values, valid)
        for old in [old for old in held if old.end <= blend.begin]:
            store.remove(old.name)
            held.remove(old)
        bar.update()
    store_strips(store, blend, blend.height)
    for old in held:
        store.remove(old.name)


def store_strips(store: SideStore, blend: StripBlend, ready: int) -> None:
    """Store the strips that end at or above row `ready`: every window to come begins at that row or below."""
    while blend.begin < blend.height and (end := min(blend.begin + STRIP, blend.height)) <= ready:
        y = blend.begin
        values, valid = blend.take(end - y)
        store.write(strip_name(y), values=values, valid=np.packbits(valid, axis=1))
