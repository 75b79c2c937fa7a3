"""Small whole files of every text format and checkpoint that the readers take, and the reader of each.

A format is (name of the file, its bytes, read(path)); what read needs beside it lies in its folder already.
"""

import io
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pyogrio.raw
import rasterio
import shapely
import torch
import yaml
from rasterio.transform import from_origin
from safetensors.torch import save

from common.datasets import biomass_table, folds, glacier_files, pixel_places, regions, rts_files, vectors
from common.engine import runs
from common.engine.checkpoint import build, load_external, load_training
from common.engine.learnt import use_post
from common.engine.tracking import read_log
from common.models.weights import read_weights
from common.outputs import mask_sets, predictions, submission
from common.post import blend
from common.post.physics import fit_post
from common.session import check_trained, demo_facts
from common.settings import parse_settings
from common.tasks import TASKS
from common.text_files import read_json
from train import parser_of

OUTPUTS = biomass_table.OUTPUTS
SQUARE = shapely.to_wkb(np.array([shapely.box(0, 0, 40, 40), shapely.box(60, 60, 90, 90)], object))


def csv(frame: pd.DataFrame) -> bytes:
    return frame.to_csv(index=False).encode()


def biomass_train() -> bytes:
    lines = [(f"ID{k}__{name}", f"train/ID{k}.jpg", "2015/9/4", "Tas", "Clover", ".5", "4", name, k + 1.5)
             for k in range(3) for name in OUTPUTS]  # fmt: skip
    columns = ["sample_id", "image_path", "Sampling_Date", "State", "Species", "Pre_GSHH_NDVI", "Height_Ave_cm",
               "target_name", "target"]  # fmt: skip
    return csv(pd.DataFrame(lines, columns=columns))


def biomass_test() -> bytes:
    lines = [(f"ID{k}__{name}", f"test/ID{k}.jpg", name) for k in range(3) for name in OUTPUTS]
    return csv(pd.DataFrame(lines, columns=["sample_id", "image_path", "target_name"]))


def fold_table() -> bytes:
    ids = [f"t{k}" for k in range(6)]
    return csv(pd.DataFrame({"id": ids, "path": ids, "group": ids, "fold": [0, 1, 0, 1, -1, 0], "slump": 0.25}))


def metadata() -> bytes:
    names = ("Tile_id", "centroid_lat", "centroid_lon", "TrainClass", "RegionName", "UIDs")
    return csv(pd.DataFrame([(f"t{k}", 70.5, -130.25, "Positive", "Banks", "") for k in range(4)], columns=names))


def tiles_table() -> bytes:
    lines = [(f"t{k}", "scene", 0, 32 * k, 32, 32) for k in range(4)]
    return csv(pd.DataFrame(lines, columns=list(pixel_places.COLUMNS)))


def prediction_table() -> bytes:
    made = pd.DataFrame({"id": ["a", "b", "c"], "fold": [0, 1, 0]})
    return csv(made.assign(**{name: [1.5, 2.0, 3.25] for name in OUTPUTS}, true_GDM_g=[1.0, None, 2.0]))


def map_table() -> bytes:
    made = pd.DataFrame({"id": ["a", "b"], "fold": [0, 1], "nodata": [0, 3], "n_0_0": 5, "n_0_1": 1, "n_1_0": 0})
    return csv(made.assign(n_1_1=4, prob=["oof/a.npz", "oof/b.npz"]))


def prepared() -> bytes:
    lines = [(f"s{k}", f"tiles/s{k}.npy", f"labels/s{k}.npy", "s") for k in range(3)]
    return csv(pd.DataFrame(lines, columns=["id", "path", "label", "group"]))


def settings(task) -> bytes:
    made = yaml.safe_dump({"run": "one", "task": task.name, "data": "data", "use": "ema", "epochs": 3} | {
        name: list(value) if isinstance(value, tuple) else value
        for name, value in task.defaults.items() if name in parser_of(task).actions()})  # fmt: skip
    return made.encode()


def saved_blend() -> bytes:
    weights = {"members": ["a", "b"], "weights": [0.25, 0.75], "dropped": {}, "rows": 9, "groups": 3, "seed": 0}
    return json.dumps({"format": blend.FORMAT, "kind": next(iter(blend.BLENDS)), **weights}).encode()


def raster(folder: Path) -> bytes:
    with rasterio.open(folder / "grid.tif", "w", driver="GTiff", width=8, height=8, count=1, dtype="uint8",
                       crs="EPSG:32608", transform=from_origin(4e5, 7.5e6, 3, 3)):  # fmt: skip
        pass
    return (folder / "grid.tif").read_bytes()


def saved_post() -> bytes:
    rng = np.random.default_rng(0)
    green, dead, clover = rng.uniform(1, 40, (3, 30))
    target = np.stack([green, dead, clover, green + clover, green + clover + dead], axis=1)
    return json.dumps(fit_post(target, target + rng.normal(0, 1, target.shape))).encode()


def polygons(driver: str, suffix: str, folder: Path) -> bytes:
    path = folder / f"whole{suffix}"
    pyogrio.raw.write(path, SQUARE, [np.array([1, 2])], ["number"], crs="EPSG:32608", geometry_type="Polygon",
                      driver=driver)  # fmt: skip
    return path.read_bytes()


class Net(torch.nn.Module):
    """The least that a checkpoint can describe."""

    def __init__(self, width: int, names):
        super().__init__()
        self.layers = torch.nn.Sequential(torch.nn.Linear(4, int(width)), torch.nn.Linear(int(width), len(names)))


class TinyTask:
    @staticmethod
    def build_model(spec: dict) -> Net:
        return Net(spec["model"]["width"], spec["outputs"])


def checkpoint_content() -> dict:
    state = Net(8, ["a", "b"]).state_dict()
    spec = {"task": "tiny", "outputs": ["a", "b"], "model": {"width": 8}, "views": ["identity"]}
    header = {"format": 1, "spec": spec, "fold": "0", "args": {"use": "ema", "batch_size": 4}, "folds_hash": "0" * 64}
    return header | {"state_dict": state, "ema": None, "optimizer": {"state": {}}, "epoch": 1, "score": 0.5,
                     "versions": {"torch": "2"}, "git": {"sha": "", "dirty": False}}  # fmt: skip


def torch_bytes(content, **how) -> bytes:
    kept = io.BytesIO()
    torch.save(content, kept, **how)
    return kept.getvalue()


def read_train(path: Path) -> None:
    """train.csv and the predictions that are judged by it."""
    rows = biomass_table.read_rows(path, photos=False)
    biomass_table.aux_targets(rows)


def read_fold_table(path: Path) -> None:
    table = folds.read_folds(path)
    folds.folds_hash(path)
    folds.check_groups(table, path)


def read_metadata(path: Path) -> None:
    files = {f"t{k}": path.parent / "grid.tif" for k in range(4)}
    rows = rts_files.read_metadata(path, files)
    rts_files.add_places(rows.assign(path=[str(files[name]) for name in rows["id"]]), 1000.0)


def read_tiles_table(path: Path) -> None:
    stems = [f"t{k}" for k in range(4)]
    rows = pd.DataFrame({"stem": stems, "path": [str(path.parent / f"images/{stem}.tif") for stem in stems]})
    profile = {"width": 32, "height": 32, "crs": None, "transform": None}
    pixel_places.add_places(rows, [profile] * 4, [path])


def read_map_table(path: Path) -> None:
    """A set of maps, as far as it goes before the maps are opened: nothing may be named outside its folder."""
    frame = mask_sets.read_set(path)
    for name, place in zip(frame["id"], frame["prob"] if "prob" in frame else frame["id"], strict=True):
        assert "/" not in name and Path(place).resolve().is_relative_to(path.parent.parent) or "prob" not in frame


def read_blend(path: Path) -> None:
    rng = np.random.default_rng(0)
    blend.apply_blend(blend.load_blend(path), {name: rng.random((4, 5)) for name in ("a", "b")})


def read_settings_of(task):
    def read(path: Path) -> None:
        check_trained(task, runs.read_settings(path.parent), path)

    return read


def read_config_of(task):
    parser = parser_of(task)  # once: it is large, and every call sets all its defaults again

    def read(path: Path) -> None:
        parse_settings(parser, ["--config", str(path)], [("[task defaults]", task.defaults)])

    return read


def read_post(path: Path) -> None:
    """post.json as infer.py uses it: read, then applied to predictions of its task."""
    frame = pd.DataFrame({"id": ["a", "b"]} | {name: [1.0, 2.0] for name in OUTPUTS})
    how = {"dead": "none", "always_correct_dead": False, "reconcile": "mint", "apply_context_adjustment": False}
    use_post(TASKS["biomass"], frame, read_json(path), how, path)


def read_vector(path: Path) -> None:
    vectors.read_polygons.__wrapped__(path, 0)


def read_checkpoint(path: Path) -> None:
    load_training(path)
    build(path, {"tiny": TinyTask}, use="ema")


def read_slim(path: Path) -> None:
    load_external(path.parent / "fold0" / "last.pt", path.name)


def formats(folder: Path) -> dict[str, tuple[dict[str, bytes], str, Callable]]:
    """{format: ({file: its content}, the one that is read, read(path))}; in `folder` libraries write what they can only
    write to a file."""
    folder.mkdir(parents=True, exist_ok=True)
    beside = {
        "submission.csv": {"asked-whole.csv": biomass_test()},
        "metadata.csv": {"grid.tif": raster(folder)},
        "Shapefile": {f"whole{suffix}": (folder / f"whole{suffix}").read_bytes() for suffix in (".shx", ".dbf", ".prj")
                      if polygons("ESRI Shapefile", ".shp", folder)},
        "frozen backbone": {"fold0/last.pt": b""},
        "prepared tiles": {f"{part}/s{k}.npy": b"-" for part in ("tiles", "labels") for k in range(3)},
    }  # fmt: skip
    return {name: ({file: content, **beside.get(name, {})}, file, read)
            for name, (file, content, read) in whole_files(folder).items()}  # fmt: skip


def whole_files(folder: Path) -> dict[str, tuple[str, bytes, Callable]]:
    """{format: (name of the file, its content, read(path))}."""
    submitted = csv(pd.DataFrame({"sample_id": [f"ID{k}__{n}" for k in range(3) for n in OUTPUTS], "target": 1.5}))
    tensors = {"conv.weight": torch.ones(2, 3), "conv.bias": torch.zeros(2)}
    splits = yaml.safe_dump({"train": ["A", "B"], "val": ["C"], "test": ["D"]}).encode()
    made = {"runs": [{"run": "one", "task": "rts", "folds": ["0"], "folds_hash": "ab"}]}
    done = {"run": "one", "fold": 0, "score": 0.5, "seconds": 3.0, "facts": {"a": 1}}
    found = {
        "train.csv": ("train.csv", biomass_train(), read_train),
        "test.csv": ("test.csv", biomass_test(), lambda path: biomass_table.read_test(path.parent)),
        "submission's test.csv": ("asked.csv", biomass_test(), submission.read_test_table),
        "submission.csv": ("submission.csv", submitted,
                           lambda path: submission.validate_submission(path, path.parent / "asked-whole.csv")),
        "folds.csv": ("folds.csv", fold_table(), read_fold_table),
        "metadata.csv": ("metadata.csv", metadata(), read_metadata),
        "tiles.csv": ("tiles.csv", tiles_table(), read_tiles_table),
        "pred.csv": ("pred.csv", prediction_table(), lambda path: predictions.read_predictions(path, OUTPUTS)),
        "oof_counts.csv": ("set/oof_counts.csv", map_table(), read_map_table),
        "prepared tiles": (glacier_files.PREPARED, prepared(), lambda path: glacier_files.read_prepared(path.parent)),
        "--drop-ids": ("drop.txt", b"ID1\nID2\n", lambda path: biomass_table.dropped_ids({"drop_ids": str(path)})),
        "splits.yaml": ("splits.yaml", splits, regions.read_splits),
        "post.json": ("post.json", saved_post(), read_post),
        "blend.json": ("blend.json", saved_blend(), read_blend),
        "spec.json": ("spec.json", json.dumps(made).encode(), lambda path: runs.read_makers(path.parent)),
        "finished.json": ("finished.json", json.dumps(done).encode(), lambda path: runs.read_finished(path.parent)),
        "demo.json": ("demo.json", b'{"best": 0.9}', lambda path: demo_facts(Folder(path.parent))),
        "log.jsonl": ("log.jsonl", b'{"epoch": 1, "lr": 0.1}\n' * 3, lambda path: read_log(path.parent)),
        "GeoJSON": ("p.geojson", polygons("GeoJSON", ".geojson", folder), read_vector),
        "GeoPackage": ("p.gpkg", polygons("GPKG", ".gpkg", folder), read_vector),
        "Shapefile": ("whole.shp", polygons("ESRI Shapefile", ".shp", folder), read_vector),
        "last.pt": ("last.pt", torch_bytes(checkpoint_content()), read_checkpoint),
        "weights .pth": ("w.pth", torch_bytes({"state_dict": tensors}), read_weights),
        "old weights .pth": ("o.pth", torch_bytes(tensors, _use_new_zipfile_serialization=False), read_weights),
        "weights .safetensors": ("w.safetensors", save(tensors), read_weights),
        "frozen backbone": ("backbone-1.safetensors", save(tensors), read_slim),
    }  # fmt: skip
    for name, task in TASKS.items():
        found[f"args.yaml {name}"] = (f"{name}/args.yaml", settings(task), read_settings_of(task))
        found[f"--config {name}"] = (f"{name}.yaml", settings(task), read_config_of(task))
    return found


class Folder:
    """What demo_facts needs of a source."""

    def __init__(self, path: Path):
        self.path = path
