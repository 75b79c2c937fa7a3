"""Mapping a scene: what stitching and tracing cost beside the model, and peak memory whatever the scene's size.

    python benchmarks/mapping.py                 # share of a U-Net's time on a drawn scene, memory at two sizes
    python benchmarks/mapping.py --only memory   # or --only share
The share is of the main thread's time, measured inside one run: the model, everything else until the last strip is
stored (reading that the thread did not hide, blending, the side store), and tracing polygons of as large a mask.
Memory is that of a process of its own per size, with a model that does nothing and pixels drawn window by window; it
grows with the width of a scene (open rows: about 12 KB a column), not with its height.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import cv2
import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from benchmarks.side_by_side import Beside, print_table
from common.datasets.scenes import open_scene
from common.engine.device import set_threads
from common.engine.tiling import predict_scene

WINDOW, MEAN, STD = 512, 100.0, 40.0
BANDS = ("red", "green", "blue")
MOST_SHARE = 0.1  # of the model's time, that stitching and tracing may take


class Timed(torch.nn.Module):
    """A model and the seconds that were spent in it."""

    def __init__(self, net):
        super().__init__()
        self.net, self.seconds, self.windows = net, 0.0, 0

    def forward(self, image):
        start = time.perf_counter()
        logits = self.net(image.contiguous(memory_format=torch.channels_last))
        if logits.device.type == "cuda":
            torch.cuda.synchronize()
        self.seconds += time.perf_counter() - start
        self.windows += len(image)
        return logits


class Nothing(torch.nn.Module):
    """Two outputs per pixel for no work."""

    def forward(self, image):
        return image[:, :2]


def to_values(_model, logits):
    return torch.sigmoid(logits[:, 1:].float() - logits[:, :1].float())


def draw_scene(path: Path, side: int) -> Path:
    """A GeoTIFF of side x side: three bytes a pixel, texture at several scales, a corner without data."""
    import rasterio
    from rasterio.transform import from_origin

    draws = np.random.default_rng(0)
    tile = np.zeros((3, side, side), np.float32)
    for scale in (1, 8, 64):
        small = draws.standard_normal((side // scale, side // scale, 3), np.float32)
        tile += cv2.resize(small, (side, side), interpolation=cv2.INTER_LINEAR).transpose(2, 0, 1) * 25
    tile = np.clip(tile + MEAN, 1, 255).astype(np.uint8)
    tile[:, : side // 8, : side // 8] = 0
    profile = {"driver": "GTiff", "height": side, "width": side, "count": 3, "dtype": "uint8", "tiled": True,
               "compress": "deflate", "crs": "EPSG:32608", "transform": from_origin(5e5, 7.7e6, 3, 3)}  # fmt: skip
    with rasterio.open(path, "w", **profile) as file:
        file.write(tile)
        file.descriptions = BANDS
    return path


def reader(scene):
    def read(window):
        tile = scene.read(window.y, window.x, window.side, window.side, size=(WINDOW, WINDOW))
        valid = (tile != 0).any(axis=0)
        return (tile - MEAN) / STD * valid, valid

    return read


def trace_blobs(side: int, scene) -> tuple[float, int]:
    """(seconds, polygons) of tracing smooth noise with 1 % of its pixels in blobs: an untrained network has none."""
    from common.post.polygons import trace

    noise = np.random.default_rng(0).standard_normal((side, side), np.float32)
    prob = cv2.GaussianBlur(noise, (0, 0), 4)
    mask = prob > np.quantile(prob, 0.99)
    strips = ((y, mask[y : y + 256], prob[y : y + 256]) for y in range(0, side, 256))
    start = time.perf_counter()
    table = trace(strips, transform=scene.transform, crs=scene.crs)
    return time.perf_counter() - start, len(table)


def measure_share(side: int, device: torch.device, amp, batch_size: int, folder: Path) -> None:
    import segmentation_models_pytorch as smp

    torch.manual_seed(0)
    model = Timed(smp.Unet("resnet34", encoder_weights=None, classes=2).to(memory_format=torch.channels_last))
    settings = {"to_values": to_values, "device": device, "amp": amp, "batch_size": batch_size, "key": {}}
    with open_scene(draw_scene(folder / "scene.tif", side), BANDS) as scene:
        warm = predict_scene([model], reader(scene), WINDOW, WINDOW, store=folder / "warm", **settings)
        warm.close()
        model.seconds, model.windows = 0.0, 0
        start = time.perf_counter()
        result = predict_scene([model], reader(scene), side, side, store=folder / "store", **settings)
        seconds = time.perf_counter() - start
        trace_blobs(256, scene)  # compiles
        traced, polygons = trace_blobs(side, scene)
    result.close()
    rest = seconds - model.seconds
    print(f"scene of {side}x{side}, U-Net of ResNet34 on {device}, {amp or 'fp32'}: {model.windows} windows")
    print(f"model {model.seconds:.2f} s; stitching and store {rest:.2f} s ({rest / model.seconds:.1%} of the model's);"
          f" tracing {polygons} polygons {traced:.2f} s ({traced / model.seconds:.1%})")  # fmt: skip
    what, beside = f"of mapping {side}x{side}: ", "the time in smp's U-Net of ResNet34"
    print_table([Beside(what + "stitching and side store", beside, rest, model.seconds),
                 Beside(f"{what}tracing {polygons} polygons", beside, traced, model.seconds)])  # fmt: skip
    assert rest + traced < MOST_SHARE * model.seconds, "stitching and tracing take too large a share"


def measure_memory(side: int, folder: Path) -> None:
    """Prints {"base", "mapped", "peak"} in GB of this process: before the map, with the last strip stored, and when
    GeoTIFF and polygons are written."""

    def read(window):
        draws = np.random.default_rng(window.index)
        return draws.random((3, WINDOW, WINDOW), np.float32), np.ones((WINDOW, WINDOW), bool)

    peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6  # noqa: E731
    base = peak()
    result = predict_scene([Nothing()], read, side, side, to_values=to_values, store=folder / "store", key={},
                           device=torch.device("cpu"), spread=True, progress=f"{side}x{side}")  # fmt: skip
    mapped = peak()
    polygons = write_map(result, side, folder)
    result.close()
    print(json.dumps({"base": base, "mapped": mapped, "peak": peak(), "polygons": polygons}))


def write_map(result, side: int, folder: Path) -> int:
    """GeoTIFF and polygons of the highest thousandth of a map; how many polygons."""
    from rasterio.transform import from_origin

    from common.outputs.scene_files import write_raster
    from common.post.polygons import trace, write_polygons

    place = {"crs": "EPSG:32608", "transform": from_origin(5e5, 7.7e6, 3, 3)}
    limit = np.quantile(next(result.strips())[1][0], 0.999)
    table = trace(((y, values[0] > limit, values[0]) for y, values, _ in result.strips()), **place)
    write_polygons(folder / "map", table, place["crs"])
    names = ("probability", "spread")
    write_raster(folder / "map.tif", result.strips, height=side, width=side, names=names, **place)
    return len(table)


def compare_memory(sides: list[int], limit: float) -> None:
    """A process per size. AssertionError: the largest takes more than `limit` GB."""
    rows = []
    for side in sides:
        command = [sys.executable, __file__, "--only", "one-size", "--memory-sizes", str(side)]
        out = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)
        print(f"{side}x{side}: peak {out['peak']:.2f} GB, of which {out['base']:.2f} GB before the map began; "
              f"{out['mapped']:.2f} GB until the last strip, then GeoTIFF and {out['polygons']} polygons")  # fmt: skip
        pixels = 2 * 4 * side**2 / 1e9  # what smp's user holds: the float32 outputs of two classes, all of the scene
        rows.append(Beside(f"peak memory of mapping {side}x{side}", "the scene's outputs held whole (computed)",
                           out["peak"], pixels, "GB", note=f"{out['base']:.2f} GB of it before the map"))  # fmt: skip
        assert out["peak"] < limit
    print_table(rows)


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=("share", "memory", "one-size"), help="one part (one-size: used by memory)")
    parser.add_argument("--side", type=int, default=2048, help="side of the scene of the share")
    parser.add_argument("--memory-sizes", type=int, nargs="+", default=[5000, 20000], help="sides of scenes")
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--bf16", action="store_true")
    args = parser.parse_args(argv)
    set_threads()
    with tempfile.TemporaryDirectory() as folder:
        if args.only == "one-size":
            measure_memory(args.memory_sizes[0], Path(folder))
            return
        if args.only != "memory":
            amp = torch.bfloat16 if args.bf16 else None
            measure_share(args.side, torch.device(args.device), amp, args.batch_size, Path(folder))
        if args.only != "share":
            compare_memory(args.memory_sizes, limit=1.5)


if __name__ == "__main__":
    main()
