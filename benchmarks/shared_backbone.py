"""Five folds of heads on one frozen ViT-B, four views: the shared forward path against the plain way.

Plain: the whole model of each fold on each view, 20 backbone passes over every photo. Ours: `engine.predict`, which
runs the frozen backbone once for every distinct view of the image (3: the stereo swap is free) and then all heads.
Both ways run in turn, five times, in one process; the ratio is that of the medians. Weights are random: the speed and
the equality of the two ways do not depend on them.

python benchmarks/shared_backbone.py [--photos 2] [--cell-size 112] [--threads 2]
"""

import argparse
import copy
import sys
import time
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.side_by_side import Beside, print_table
from common.engine.predict import predict
from common.engine.tta import apply_view
from common.models.stereo import StereoRegressor

OUTPUTS = ("Dry_Green_g", "Dry_Dead_g", "Dry_Clover_g", "GDM_g", "Dry_Total_g")
SCALE = [26.6, 12.0, 6.6, 33.3, 45.3]
VIEWS = ["identity", "hflip", "vflip", "swap"]
FOLDS = 5


def make_models(backbone: str, cell_size: int) -> list[StereoRegressor]:
    """One model a fold: equal frozen backbones, each in memory of its own, and heads that differ."""
    torch.manual_seed(0)
    first = StereoRegressor(outputs=OUTPUTS, backbone=backbone, grid=(2, 2), cell_size=cell_size, scale=SCALE)
    models = [first, *(copy.deepcopy(first) for _ in range(FOLDS - 1))]
    for model in models:
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if model.part_of(name) == "head":  # FiLM starts as the identity: a trained one is wanted
                    parameter.add_(0.02 * torch.randn_like(parameter))
        model.freeze_backbone()
        model.eval()
    return models


@torch.inference_mode()
def plain_way(models, loader) -> np.ndarray:
    """Grams (folds, photos, 5): every whole model on every view of every batch, averaged over the views."""
    parts = []
    for batch in loader:
        folds = []
        for model in models:
            grams = [model.to_grams(model(apply_view(view, batch["image"])))["pred"] for view in VIEWS]
            folds.append(torch.stack(grams).mean(0))
        parts.append(torch.stack(folds))
    return torch.cat(parts, 1).numpy()


def shared_way(models, loader) -> np.ndarray:
    """Grams (folds, photos, 5) by the project's one forward path."""
    found = predict(models, loader, views=VIEWS, device=torch.device("cpu"), to_pred=lambda m, o: m.to_grams(o))
    return found["pred"]


def timed(function, *arguments) -> tuple[tuple[float, float], np.ndarray]:
    """((wall, processor) seconds, what the function gives)."""
    started, worked = time.perf_counter(), time.process_time()
    result = function(*arguments)
    return (time.perf_counter() - started, time.process_time() - worked), result


def main(argv=None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--backbone", default="vit_base_patch14_reg4_dinov2.lvd142m")
    parser.add_argument("--photos", type=int, default=2, help="in one batch; 8 cells each")
    parser.add_argument("--cell-size", type=int, default=112)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    models = make_models(args.backbone, args.cell_size)
    image = torch.randn(args.photos, 2, 3, 2 * args.cell_size, 2 * args.cell_size)
    loader = [{"image": image, "id": [f"photo{k}" for k in range(args.photos)]}]
    key = models[0].backbone_hash()
    for model in models:
        assert model.backbone_hash() == key
        model.backbone_key = key
    shared_way(models, loader)
    seconds = {"plain": [], "shared": []}
    for _ in range(args.repeats):
        took, plain = timed(plain_way, models, loader)
        seconds["plain"].append(took)
        took, shared = timed(shared_way, models, loader)
        seconds["shared"].append(took)
    difference = float((np.abs(plain - shared) / np.abs(plain)).max())
    middle = {name: np.median(both, axis=0) for name, both in seconds.items()}
    ratio, of_processor = middle["plain"] / middle["shared"]
    print(f"{args.backbone}, {FOLDS} folds x {len(VIEWS)} views, {args.photos} photos, cells of {args.cell_size} px")
    for name, both in seconds.items():
        walls = [wall for wall, _ in both]
        spread = f"{min(walls):.2f} to {max(walls):.2f}"
        wall, worked = middle[name]
        print(f"{name:7s}{wall:7.2f} s, median of {args.repeats} ({spread}), processor {worked:.2f} s")
    print(f"ratio {ratio:.2f} (target: 6), of processor time {of_processor:.2f}")
    print(f"largest relative difference {difference:.1e} (target: 1e-5)")
    what, (ours, cpu), (theirs, their_cpu) = f"{FOLDS} folds x {len(VIEWS)} views", middle["shared"], middle["plain"]
    print_table([Beside(what, f"timm's {args.backbone}, a pass for each", ours, theirs, cpu=(cpu, their_cpu),
                        note=f"largest relative difference {difference:.1e}")])  # fmt: skip
    return 0 if ratio >= 6 and difference <= 1e-5 else 1


if __name__ == "__main__":
    sys.exit(main())
