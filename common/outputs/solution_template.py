"""Glacier masks from trained U-Nets: `maskgeration(imagepath, out_dir)` and `main()`; the weights are in model.pth.

Needs torch, numpy, opencv, tifffile and segmentation-models-pytorch; no network, and no disk that can be written.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import cv2
import numpy as np
import segmentation_models_pytorch as smp
import tifffile
import torch

from common.datasets.glacier_files import BANDS, SUFFIXES, tile_id
from common.datasets.inputs import model_input
from common.engine.tta import apply_view, invert_view
from common.errors import InputError
from common.models.segmenter import Segmenter
from common.outputs.masks import geo_tags, write_mask
from common.post.morphology import finish_mask

MODEL_FILE = "model.pth"


def find_bands(imagepath: str | Path | dict) -> dict[str, Path]:
    """{"Band1": folder, …} from a folder of band folders, from one that holds such a folder, or from a dict."""
    if isinstance(imagepath, dict):
        given = {str(name).lower(): Path(folder) for name, folder in imagepath.items()}
    else:
        root = Path(imagepath)
        if not root.is_dir():
            raise InputError(f"{root}: no such folder; give the folder that holds {', '.join(BANDS.values())}")
        given = {path.name.lower(): path for path in sorted(root.iterdir()) if path.is_dir()}
        if not any(name.lower() in given for name in BANDS.values()):
            deeper = [path for path in given.values() if (path / "Band1").is_dir()]
            given = {path.name.lower(): path for path in deeper[0].iterdir()} if len(deeper) == 1 else given
    for colour, name in BANDS.items():
        if name.lower() not in given and colour not in given:
            raise InputError(f"{imagepath}: no folder of {name} ({colour}); there are {', '.join(sorted(given))}")
    return {name: given.get(name.lower(), given.get(colour)) for colour, name in BANDS.items()}


def list_tiles(folder: Path) -> dict[str, Path]:
    """{id: file} of a band folder, sorted by id; what has no id or an id that is taken is left out, and said."""
    found = {}
    for path in sorted(path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES):
        if path.name.startswith("."):
            continue
        try:
            key = tile_id(path)
        except InputError as error:
            print(f"left out: {error}", file=sys.stderr)
            continue
        if key in found:
            print(f"left out: {path} is tile {key} as {found[key].name} is", file=sys.stderr)
        else:
            found[key] = path
    return dict(sorted(found.items()))


def read_band(path: Path) -> np.ndarray:
    """float32 (H,W) of a TIFF; a compression that tifffile lacks here is left to OpenCV. ValueError if unreadable."""
    try:
        band = tifffile.imread(path)
    except Exception as error:
        band = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
        if band is None:
            raise ValueError(f"{path}: cannot be read ({error})") from error
    band = np.asarray(band, np.float32)
    band = band[0] if band.ndim == 3 and len(band) == 1 else band
    if band.ndim != 2:
        raise ValueError(f"{path}: not one band, but {band.shape}")
    return band


def read_bands(key: str, files: dict[str, dict[str, Path]]) -> np.ndarray:
    """float32 (5,H,W) of a tile; ValueError saying which file is missing, unreadable or of another size."""
    missing = [name for name in files if key not in files[name]]
    if missing:
        raise ValueError(f"tile {key}: no file in {', '.join(missing)}")
    bands = [read_band(files[name][key]) for name in files]
    if len({band.shape for band in bands}) > 1:
        raise ValueError(f"tile {key}: bands of different sizes {[band.shape for band in bands]}")
    if not np.isfinite(bands).all():
        raise ValueError(f"tile {key}: holds NaN or infinite pixels")
    return np.stack(bands)


def take_list(net: torch.nn.Module) -> None:
    """Let an smp model of before 0.4 take the encoder's features as a list, as later ones do."""
    if tuple(int(part) for part in smp.__version__.split(".")[:2]) < (0, 4):
        decode = net.decoder.forward
        net.decoder.forward = lambda features: decode(*features)


def load_models(path: Path, device: torch.device) -> tuple[dict, list]:
    """(settings, models in eval mode) from the file of weights, every one filled completely."""
    if not path.is_file():
        raise InputError(f"{path}: no such file; keep {MODEL_FILE} beside solution.py")
    content = torch.load(path, map_location="cpu", weights_only=True)
    models = []
    for fold in content["folds"]:
        model = Segmenter(**{**fold["spec"]["model"], "dropout": 0.0, "drop_path": 0.0})
        take_list(model.net)
        model.load_state_dict(fold["state_dict"], strict=True)
        models.append(model.float().eval().to(device))
    return content, models


@torch.no_grad()
def predict_fold(model, spec: dict, tile: np.ndarray, views: list[str], device) -> tuple[torch.Tensor, np.ndarray]:
    """(probabilities (K,H,W), mean over the views, valid (H,W)) of one model for a raw tile (C,H,W)."""
    image, valid = model_input(tile, spec)
    batch = torch.from_numpy(image)[None].to(device)
    total = None
    for view in views:
        prob = torch.softmax(model(apply_view(view, batch)).float(), dim=1)
        prob = invert_view(view, prob, tuple(batch.shape[-2:]))
        total = prob if total is None else total + prob
    return (total / len(views))[0], valid


def predict_tile(tile: np.ndarray, content: dict, models: list, device) -> np.ndarray:
    """Raw mask values, uint8 (H,W), of a raw tile: mean of the folds, float16 as predictions are stored, finished."""
    probs = []
    for fold, model in zip(content["folds"], models):  # noqa: B905  (Python 3.9)
        prob, valid = predict_fold(model, fold["spec"], tile, content["views"], device)
        probs.append(prob)
    prob = torch.stack(probs).mean(0).cpu().numpy()
    prob = np.where(valid, prob, np.eye(len(prob), 1)[:, :, None]).astype(np.float16).astype(np.float32)
    mask = finish_mask(prob, valid, thresholds=content["thresholds"], **content["morphology"])
    return np.asarray(content["values"], np.uint8)[mask]


def empty_mask(key: str, files: dict[str, dict[str, Path]]) -> np.ndarray:
    """Background of the size of the first band that can be read, 512x512 where none can."""
    for found in files.values():
        try:
            return np.zeros(read_band(found[key]).shape, np.uint8)
        except (KeyError, ValueError, OSError):
            continue
    return np.zeros((512, 512), np.uint8)


def save_mask(folder: Path, source: Path, mask: np.ndarray) -> bool:
    """Whether the mask could be written under the name of its first band, with its georeference."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        try:
            with tifffile.TiffFile(source) as file:
                tags = geo_tags(file.pages[0])
        except Exception:
            tags = []
        write_mask(folder / source.name, mask, tags)
    except OSError as error:
        print(f"{folder}: masks are returned, not saved ({error})", file=sys.stderr)
        return False
    return True


def find_places(out_dir: str | Path | None) -> tuple[Path, Path]:
    """(file of weights, folder for the masks): the second argument is either, the platform gives the former."""
    beside = Path(__file__).resolve().parent / MODEL_FILE
    if out_dir is None:
        return beside, Path("masks")
    path = Path(out_dir)
    if path.is_file() or path.suffix in (".pth", ".pt"):
        return (path if path.is_file() else beside), Path("masks")
    return beside, path


def maskgeration(imagepath, out_dir=None) -> dict[str, np.ndarray]:
    """{tile id: mask uint8 (H,W)} of raw values, saved too where that is possible.

    imagepath: a folder of band folders (Band1 … Band5) or a dict {band: folder}; out_dir: a folder for the masks, or
    the path of the file of weights (masks then go to ./masks). A tile that cannot be read becomes background, and
    that is said.
    """
    bands = find_bands(imagepath)
    weights, folder = find_places(out_dir)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    content, models = load_models(weights, device)
    files = {name: list_tiles(path) for name, path in bands.items()}
    masks, writable = {}, True
    for key, source in files["Band1"].items():
        try:
            masks[key] = predict_tile(read_bands(key, files), content, models, device)
        except (ValueError, OSError) as error:
            print(f"{error}; its mask is background", file=sys.stderr)
            masks[key] = empty_mask(key, files)
        writable = writable and save_mask(folder, source, masks[key])
    print(f"{len(masks)} masks" + (f" in {folder}" if writable and masks else ""))
    return masks


def main(argv=None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--imagepath", "--data", dest="imagepath", required=True, help="folder of band folders")
    parser.add_argument("--masks", help="accepted, not used: folder of labels")
    parser.add_argument("--output", "--out", dest="output", help="folder for the masks, or the file of weights")
    args = parser.parse_args(argv)
    maskgeration(args.imagepath, args.output)
    return 0


if __name__ == "__main__":
    sys.exit(main())
