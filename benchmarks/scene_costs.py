"""Unit costs of mapping: what a megapixel of a scene takes, model and everything else, in time, memory and bytes.

    python benchmarks/scene_costs.py                              # the baseline's network with random weights
    python benchmarks/scene_costs.py --encoder resnet34 --arch unet
    python benchmarks/scene_costs.py --map maps/rts/scenes/scene.tif   # bytes of a map that a trained model made

The network is timed on windows as infer.py --scene feeds them, on one core; a megapixel takes (1000 / step) ^ 2 of
them, the step being window * (1 - overlap), for each view and fold. Its operations are counted by torch. All else
(reading, blending, the side store, tracing, writing GeoTIFF, polygons and picture) is timed by mapping a drawn scene
with a model that does next to nothing, in this process, on the same core. Beside it, as the ratio says, the network's
own time. Bytes are those of the files of that map, or of --map, whose probabilities are a trained model's.
"""

import argparse
import contextlib
import io
import resource
import statistics
import sys
import tempfile
import time
from pathlib import Path

import cv2
import rasterio
import torch
from torch.utils.flop_counter import FlopCounterMode

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from benchmarks.mapping import BANDS, draw_scene
from benchmarks.side_by_side import Beside, print_table
from common.engine.device import Machine
from common.models.segmenter import Segmenter
from common.post.detection_maps import Cut
from common.tasks.scene_jobs import map_scenes
from common.tasks.scene_maps import DECIDING, kind_of

SPEC = {"bands": list(BANDS), "inputs": list(BANDS), "outputs": ["background", "slump"], "model": {},
        "mean": [100.0] * 3, "std": [40.0] * 3, "label_map": {"0": 0, "1": 1},
        "scaling": {"scale": "raw", "indices": [], "texture": None}}  # fmt: skip


class Cheap(torch.nn.Module):
    """Logits that follow the standardised red, smoothed by half a blob: a map with blobs in it for next to no work."""

    head = "softmax"

    def __init__(self):
        super().__init__()
        self.gain = torch.nn.Parameter(torch.tensor(4.0))

    def forward(self, image):
        logit = self.gain * (torch.nn.functional.avg_pool2d(image[:, :1], 9, 1, 4) - 1.2)
        return torch.cat([torch.zeros_like(logit), logit], dim=1)


def seconds_a_window(net, side: int, batch: int, repeats: int, amp) -> tuple[float, float]:
    """Median (wall, processor) seconds of a window of `side` pixels, after one pass to warm up."""
    image, spent = torch.randn(batch, 3, side, side), []
    with torch.inference_mode(), torch.autocast("cpu", dtype=amp or torch.bfloat16, enabled=amp is not None):
        for _ in range(repeats + 1):
            start, used = time.perf_counter(), time.process_time()
            net(image)
            spent.append(((time.perf_counter() - start) / batch, (time.process_time() - used) / batch))
    return tuple(statistics.median(column) for column in zip(*spent[1:], strict=True))


def operations(net, side: int) -> float:
    """Floating-point operations (a product and a sum are two) of a window."""
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        net(torch.zeros(1, 3, side, side))
    return counter.get_total_flops()


def map_one(side: int, window: int, overlap: float, folder: Path) -> tuple[tuple[float, float], Path]:
    """((wall, processor) seconds, the map) of a drawn scene of side x side by the model that costs next to nothing."""
    settings = dict.fromkeys(DECIDING) | {"scales": [1.0], "overlap": overlap, "window": window, "min_area": 500.0,
                                          "window_weights": "hann", "spread": False, "prior_below": 0.05,
                                          "min_blob": 0, "simplify": 0.5, "fill_holes": 0}  # fmt: skip
    settings |= {"batch_size": 4, "run": "benchmark", "truth": None}
    scene = draw_scene(folder / f"{side}.tif", side)
    kind, machine = kind_of(Cut(1.0, 0.5)), Machine(torch.device("cpu"))
    start, used = time.perf_counter(), time.process_time()
    with contextlib.redirect_stdout(io.StringIO()):
        map_scenes([scene], [(Cheap().eval(), SPEC)], None, ["identity"], settings, machine, folder, kind=kind)
    spent = time.perf_counter() - start, time.process_time() - used
    return spent, folder / "scenes" / f"{side}.tif"


def bytes_of(path: Path) -> tuple[float, dict[str, float]]:
    """(megapixels of a map, {what: megabytes of its files for each of them})."""
    with rasterio.open(path) as file:
        pixels = file.height * file.width / 1e6
    vectors = sum(path.with_suffix(suffix).stat().st_size for suffix in (".gpkg", ".geojson"))
    sizes = {"probability, GeoTIFF with overviews": path.stat().st_size, "polygons, GeoPackage and GeoJSON": vectors,
             "picture": path.with_suffix(".jpg").stat().st_size}  # fmt: skip
    return pixels, {what: size / 1e6 / pixels for what, size in sizes.items()}


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arch", default="unetplusplus")
    parser.add_argument("--encoder", default="efficientnet-b7")
    parser.add_argument("--window", type=int, default=512)
    parser.add_argument("--overlap", type=float, default=0.5)
    parser.add_argument("--views", type=int, default=1)
    parser.add_argument("--folds", type=int, default=1, help="models that are averaged")
    parser.add_argument("--bf16", action="store_true")
    parser.add_argument("--repeats", type=int, default=5, help="timed passes of the network")
    parser.add_argument("--side", type=int, default=3072, help="of the scene that all else is timed on")
    parser.add_argument("--map", type=Path, help="GeoTIFF of a map of infer.py --scene: its bytes instead")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        map_one(512, args.window, args.overlap, Path(folder))  # compiles
        spent, path = map_one(args.side, args.window, args.overlap, Path(folder))
        pixels, sizes = bytes_of(path)
        sizes = bytes_of(args.map)[1] if args.map else sizes
    rest, rest_cpu = (value / pixels for value in spent)
    held = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    net = Segmenter(arch=args.arch, encoder=args.encoder, channels=3, classes=2).eval()
    net = net.to(memory_format=torch.channels_last)
    flops = operations(net, args.window)
    amp = torch.bfloat16 if args.bf16 else None
    wall, cpu = seconds_a_window(net, args.window, 1, args.repeats, amp)
    windows = (1000 / (args.window * (1 - args.overlap))) ** 2 * args.views * args.folds
    name = f"{args.arch} of {args.encoder}, {amp or torch.float32}".replace("torch.", "")
    print(f"{name}: {flops / 1e9:.0f} GFLOP and {wall:.2f} s ({cpu:.2f} s of CPU) a window of {args.window} px")
    print(f"{windows:.1f} windows a megapixel: overlap {args.overlap:g}, {args.views} views, {args.folds} folds")
    took = f"{windows * wall:.1f} s ({windows * cpu:.1f} s of CPU) in the network"
    print(
        f"a megapixel: {windows * flops / 1e12:.2f} TFLOP, {took}, {rest:.2f} s ({rest_cpu:.2f} s of CPU) in all else"
    )
    model = f"smp's {name}, its own time"
    rows = [Beside("a megapixel but for the network", model, rest, windows * wall, cpu=(rest_cpu, windows * cpu)),
            Beside(f"peak memory until a map of {args.side}x{args.side} is written", "", held, unit="GB")]  # fmt: skip
    whose = f"of {args.map}" if args.map else "of the drawn map"
    rows += [Beside(f"bytes of a megapixel: {what}", "", size, unit="MB", note=whose) for what, size in sizes.items()]
    print_table(rows)


if __name__ == "__main__":
    main()
