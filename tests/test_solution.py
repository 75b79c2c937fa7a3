"""The two files that are handed in, run as the platform runs them: no package of ours, no network, nothing writable."""

import ast
import json
import os
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
import rasterio
import tifffile
import torch
from rasterio.transform import Affine

from common.datasets.glacier_files import BANDS, read_rows, read_tile
from common.datasets.inputs import model_input
from common.engine.predict import predict
from common.errors import InputError
from common.models.segmenter import Segmenter
from common.outputs.mask_sets import MapKeeper
from common.outputs.masks import read_probs
from common.outputs.solution import solution_source, write_solution
from common.tasks.segmentation_post import apply_post

VALUES = (0, 85, 170, 255)
VIEWS = ["identity", "rot90", "hflip+scale0.75"]
SETTINGS = {"thresholds": ["0.3", "0.25", "0.25", "0.2"], "min_area": [12, 5, 3], "fill_holes": 6}
POST = {"thresholds": [0.3, 0.25, 0.25, 0.2], "morphology": {"min_area": [12, 5, 3], "fill_holes": 6}, "views": VIEWS}
PLATFORM = {"argparse", "builtins", "collections", "copy", "cv2", "dataclasses", "inspect", "numpy", "pathlib", "re",
            "segmentation_models_pytorch", "sys", "tifffile", "torch", "__future__"}  # fmt: skip
MODEL = {"arch": "unet", "encoder": "mobilenet_v2", "channels": 6, "classes": 4, "decoder": [32, 16, 16, 16, 16]}
RUN = """
import contextlib, importlib.util, json, socket, sys
def refuse(*_, **__):
    raise OSError("no network here")
socket.socket.connect = socket.create_connection = socket.getaddrinfo = refuse
import numpy as np
import torch
torch.set_num_threads(1)
def load(folder):
    spec = importlib.util.spec_from_file_location("solution", f"{folder}/solution.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["solution"] = module
    spec.loader.exec_module(module)
    return module
def keep(name, call, *args, **named):
    with open(f"{out}/{name}.txt", "w") as said, contextlib.redirect_stderr(said):
        np.savez(f"{out}/{name}.npz", **call(*args, **named))
home, out, data = sys.argv[1:]
"""
END = """
assert not {"common", "rasterio", "numba", "albumentations", "skimage"} & set(sys.modules), sorted(sys.modules)
"""
CALLS = """
one = load(f"{home}/one/solution")
bands = {f"Band{k}": f"{data}/Band{k}" for k in range(1, 6)}
keep("folder", one.maskgeration, data, f"{out}/a")
keep("dict", one.maskgeration, bands, f"{out}/b")
keep("model", one.maskgeration, {**bands, "label": f"{data}/label"}, f"{home}/one/solution/model.pth")
colours = dict(zip(("blue", "green", "red", "swir1", "thermal"), bands.values()))
keep("colours", one.maskgeration, imagepath=colours, out_dir=None)
assert one.main(["--imagepath", data, "--output", f"{out}/c"]) == 0
assert one.main(["--data", data, "--masks", "nowhere", "--out", f"{out}/d"]) == 0
keep("broken", one.maskgeration, f"{home}/broken", f"{out}/broken")
try:
    one.maskgeration({"Band1": f"{data}/Band1"}, None)
except one.InputError as error:
    print("refused:", error)
keep("whole", load(f"{home}/whole").maskgeration, data, f"{out}/whole")
keep("small", load(f"{home}/small").maskgeration, data, f"{out}/small")
"""
READ_ONLY = """
import os
fixed = load(f"{home}/mounted")
os.chdir(f"{home}/mounted")
keep("fixed-model", fixed.maskgeration, data, f"{home}/mounted/model.pth")
keep("fixed-folder", fixed.maskgeration, data, f"{home}/mounted/masks")
"""


def make_spec(seed=0, **model):
    rng = np.random.default_rng(seed)
    return {
        "task": "glacier",
        "family": "segmentation",
        "outputs": ["background", "glacier", "debris", "lake"],
        "bands": list(BANDS),
        "inputs": [*BANDS, "ndsi"],
        "scaling": {"scale": "log", "indices": ["ndsi"], "texture": None},
        "mean": [*(10 + rng.normal(0, 0.1, 5)).tolist(), 0.2],
        "std": [0.5, 0.5, 0.5, 0.6, 0.4, 0.3],
        "label_map": {"0": 0, "85": 1, "170": 2, "255": 3},
        "model": MODEL | {"dropout": 0.1} | model,
    }


def make_model(spec, seed=0):
    """A model at random whose normalisation fits the tiles and whose classes share them."""
    torch.manual_seed(seed)
    model = Segmenter(**spec["model"])
    images = torch.stack([torch.from_numpy(model_input(make_tile(seed), spec)[0]) for seed in (1, 3)])
    norms = [module for module in model.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    with torch.no_grad():
        for module in norms:
            module.momentum = None  # the mean over the batches seen, here of one
        model(images)
        head = model.eval().net.segmentation_head[0]
        head.weight *= 3 / model(images).std()
        head.bias -= model(images).mean((0, 2, 3))
    return model


def write_tile(folder, name, values, **options):
    """The five files of a tile, as the competition has them; values: float32 (5,H,W)."""
    for band, (place, pixels) in zip(
        ("B2", "B3", "B4", "B6", "B10"), zip(BANDS.values(), values, strict=True), strict=True
    ):
        path = folder / place / name.format(band=band)
        path.parent.mkdir(parents=True, exist_ok=True)
        frame = {"driver": "GTiff", "height": pixels.shape[0], "width": pixels.shape[1], "count": 1, "nodata": 0}
        transform = Affine(30, 0, 567945, 0, -30, 3771855)
        with rasterio.open(path, "w", **frame, dtype="float32", crs="EPSG:32643", transform=transform, **options) as f:
            f.write(pixels, 1)


def make_tile(seed, height=96, width=80):
    """Raw numbers of the real range with structure at several scales, and a corner without data."""
    rng = np.random.default_rng(seed)
    tile = np.zeros((5, height, width), np.float32)
    for step in (32, 8, 2):
        coarse = rng.random((5, height // step + 2, width // step + 2))
        tile += coarse.repeat(step, 1).repeat(step, 2)[:, :height, :width].astype(np.float32) * step**0.5
    tile = 4000 + tile * np.array([3000, 3000, 3000, 1500, 2500], np.float32)[:, None, None]
    tile[:, :20, :30] = 0
    return tile


@pytest.fixture(scope="module")
def tiles(tmp_path_factory):
    """A folder of band folders with both styles of names, a compression tifffile alone may not read, and odd files."""
    folder = tmp_path_factory.mktemp("tiles") / "Test"
    write_tile(folder, "{band}_{band}_masked_02_07.tif", make_tile(1))
    write_tile(folder, "{band}_{band}_masked_03_11.tif", make_tile(2, 70, 101), compress="lzw")
    write_tile(folder, "img001.tif", make_tile(3), compress="deflate", tiled=True, blockxsize=64, blockysize=64)
    (folder / "Band1" / "notes.txt").write_text("not a tile")
    (folder / "label").mkdir()
    return folder


def infer_masks(folder, models, specs, tmp_path, views):
    """{id: raw mask} by the path of infer.py: engine.predict, stored maps, their mean, apply_post."""
    rows, masks = read_rows(folder, require_labels=False), {}
    for row in rows.itertuples():
        sums = []
        for model, spec in zip(models, specs, strict=True):
            image, valid = model_input(read_tile(row.path), spec)
            there = torch.from_numpy(valid)[None]
            batch = {"image": torch.from_numpy(image)[None], "valid": there, "data": there, "id": [row.id],
                     "target": torch.zeros(1, *valid.shape, dtype=torch.int64), "size": [valid.shape],
                     "labelled": False}  # fmt: skip
            keep = None if len(models) > 1 else MapKeeper(4, tmp_path / "prob")
            answer = predict([model], [batch], views=views, device=torch.device("cpu"), keep=keep,
                             to_pred=lambda _, logits: {"prob": logits.softmax(1)})  # fmt: skip
            sums.append((answer, batch))
        if len(models) > 1:
            mean = {"prob": torch.from_numpy(np.stack([answer["prob"][0] for answer, _ in sums]))}
            MapKeeper(4, tmp_path / "prob")(sums[0][1], mean)
        frame = rows[rows["id"] == row.id].assign(prob=str(tmp_path / "prob" / f"{row.id}.npz"))
        masks[row.id] = np.array(VALUES, np.uint8)[
            apply_post(frame, None, SETTINGS, values={4: VALUES})["mask"].iloc[0]
        ]
    return masks


def run_solution(home, out, data, code, *, python=sys.executable):
    """Calls in a process of its own that sees no package of ours: -I leaves out PYTHONPATH and the script's folder."""
    script = out / "run.py"
    script.write_text(RUN + code + END)
    done = subprocess.run([str(python), "-I", "-B", str(script), str(home), str(out), str(data)], cwd=out,
                          capture_output=True, text=True, timeout=300)  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done


def kept(out, name):
    with np.load(out / f"{name}.npz") as file:
        return dict(file)


def assert_same(masks, wanted):
    assert list(masks) == list(wanted)
    for name, mask in masks.items():
        assert mask.dtype == np.uint8
        np.testing.assert_array_equal(mask, wanted[name], err_msg=name)


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def one_fold(home, tiles):
    """Masks of infer.py's path for one float32 fold with views, thresholds and morphology; its solution is written."""
    spec = make_spec(attention="scse")
    model = make_model(spec)
    facts = write_solution(home / "one" / "solution", [(spec, model.state_dict())], **POST)
    assert not facts["half"] and facts["folds"] == 1 and facts["bytes"] == facts["model"].stat().st_size
    return infer_masks(tiles, [model], [spec], home / "one", VIEWS)


@pytest.fixture(scope="module")
def two_folds(home, tiles):
    """The same for two folds with statistics of their own, of a model that needs most of the copied code.

    Their solution is written twice, the second time with too little room for float32.
    """
    specs = [make_spec(seed, attention="cse", stem="full") for seed in (3, 4)]
    models = [make_model(spec, seed) for seed, spec in enumerate(specs)]
    with torch.no_grad():
        models[1].net.encoder.features[0][1].running_var[0] = 1e6  # more than float16 holds
    checkpoints = [(spec, model.state_dict()) for spec, model in zip(specs, models, strict=True)]
    whole = write_solution(home / "whole", checkpoints, **POST)
    small = write_solution(home / "small", checkpoints, **POST, limit_mb=whole["bytes"] / 1e6 * 0.7)
    assert (whole["half"], small["half"], small["folds"]) == (False, True, 2)
    assert small["bytes"] < 0.6 * whole["bytes"]
    return infer_masks(tiles, models, specs, home / "two", VIEWS)


@pytest.fixture(scope="module")
def mounted(home, one_fold):
    """The first solution's folder mounted read-only (rights alone do not bind root); else why it cannot be."""
    place = home / "mounted"
    place.mkdir()
    for step in (["--bind", str(home / "one" / "solution"), str(place)], ["-o", "remount,ro,bind", str(place)]):
        done = subprocess.run(["mount", *step], capture_output=True, text=True)
        if done.returncode:
            subprocess.run(["umount", str(place)], capture_output=True)
            yield done.stderr.strip()
            return
    yield place
    subprocess.run(["umount", "--lazy", str(place)], check=True)


@pytest.fixture(scope="module")
def broken(home, tiles):
    """The tiles and some that cannot be used: NaN, a band missing, a band that is no TIFF, an id that is taken."""
    folder = shutil.copytree(tiles, home / "broken")
    write_tile(folder, "img002.tif", np.full((5, 48, 40), np.nan, np.float32))
    write_tile(folder, "img003.tif", make_tile(5))
    write_tile(folder, "img004.tif", make_tile(5))
    (folder / "Band4" / "img003.tif").unlink()
    (folder / "Band5" / "img004.tif").write_bytes(b"II*\0 broken")
    shutil.copy(folder / "Band1" / "img001.tif", folder / "Band1" / "z_001.tif")
    return folder


@pytest.fixture(scope="module")
def answered(home, tiles, one_fold, two_folds, mounted, broken, tmp_path_factory):
    """(folder of what was answered, stdout): every call of these tests, in one process, as starting one is slow."""
    out = tmp_path_factory.mktemp("out")
    code = CALLS + (READ_ONLY if isinstance(mounted, Path) else "")
    return out, run_solution(home, out, tiles, code).stdout


def test_the_text_is_of_python_39_and_of_the_platforms_packages():
    text = solution_source()
    tree = ast.parse(text, feature_version=(3, 9))
    names = [alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names]
    names += [node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    assert {name.split(".")[0] for name in names} <= PLATFORM
    first = [node for node in tree.body if isinstance(node, ast.ImportFrom)][0]
    assert first.module == "__future__", "annotations such as X | None are evaluated without it"
    assert "import timm" not in text and "common." not in text.replace("common.py", "")
    defined = [node.name for node in tree.body if isinstance(node, (ast.FunctionDef, ast.ClassDef))]
    assert len(defined) == len(set(defined))
    from common.datasets import inputs

    for line in Path(inputs.__file__).read_text().split("def model_input")[1].split("def ")[0].strip().splitlines():
        assert line in text


def test_masks_of_both_naming_styles_equal_those_of_inference(answered, one_fold, tiles):
    """With every call style, from another folder than the solution's."""
    out, _ = answered
    assert len(np.unique(np.concatenate([mask.ravel() for mask in one_fold.values()]))) == 4
    for name in ("folder", "dict", "model", "colours"):
        assert_same(kept(out, name), one_fold)
    sources = {row.id: Path(row.path) for row in read_rows(tiles, require_labels=False).itertuples()}
    for place in ("a", "b", "c", "d", "masks"):
        assert {path.name for path in (out / place).iterdir()} == {path.name for path in sources.values()}
        for name, source in sources.items():
            with rasterio.open(out / place / source.name) as mask, rasterio.open(source) as band:
                assert (mask.crs, mask.transform, mask.dtypes) == (band.crs, band.transform, ("uint8",))
                np.testing.assert_array_equal(mask.read(1), one_fold[name])


def test_a_read_only_disk_returns_the_masks(answered, mounted, one_fold):
    if not isinstance(mounted, Path):
        pytest.skip(f"nothing can be mounted read-only here: {mounted}")
    for name in ("fixed-model", "fixed-folder"):
        assert_same(kept(answered[0], name), one_fold)
        assert "masks are returned, not saved" in (answered[0] / f"{name}.txt").read_text()


def test_several_folds_are_averaged(answered, two_folds):
    assert len(np.unique(np.concatenate([mask.ravel() for mask in two_folds.values()]))) == 4
    assert_same(kept(answered[0], "whole"), two_folds)


def test_float16_storage_keeps_the_masks(answered, two_folds):
    """The share of the spec is for trained models; one at random has far more pixels between two classes."""
    halved = kept(answered[0], "small")
    same = np.concatenate([(halved[name] == mask).ravel() for name, mask in two_folds.items()])
    assert 0.99 < same.mean() < 1


def test_too_many_folds_are_refused_with_the_number_that_fits(tmp_path):
    spec = make_spec()
    state = make_model(spec).state_dict()
    half = sum(t.numel() * (2 if t.is_floating_point() and t.ndim > 1 else t.itemsize) for t in state.values())
    limit = (3.5 * half + 200_000) / 1e6
    with pytest.raises(InputError, match=r"5 folds take \d+ MB even as float16, \d+ are allowed: 3 would fit"):
        write_solution(tmp_path, [(spec, state)] * 5, limit_mb=limit)
    assert not list(tmp_path.iterdir())
    facts = write_solution(tmp_path, [(spec, state)] * 3, limit_mb=limit)
    assert facts["half"] and facts["bytes"] <= limit * 1e6


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"model": MODEL | {"arch": "upernet"}}, "arch upernet is not known to work with smp 0.3.4"),
        ({"model": MODEL | {"encoder": "tu-convnext_tiny"}}, "encoder tu-convnext_tiny is not known"),
        ({"scaling": {"scale": "raw", "indices": [], "texture": {"band": "swir1"}}}, "texture bands need numba"),
        ({"label_map": {"0": 0, "85": 1, "255": 3}}, "the label map has no value for debris"),
    ],
)
def test_what_the_platform_cannot_run_is_refused(tmp_path, change, said):
    with pytest.raises(InputError, match=said):
        write_solution(tmp_path, [(make_spec() | change, {})])
    assert not list(tmp_path.iterdir())


def test_checkpoints_of_other_classes_are_not_mixed(tmp_path):
    with pytest.raises(InputError, match="outputs differ"):
        write_solution(tmp_path, [(make_spec(), {}), (make_spec() | {"outputs": ["background", "glacier"]}, {})])
    with pytest.raises(InputError, match="no checkpoint"):
        write_solution(tmp_path, [])


def test_a_broken_tile_becomes_background_and_is_named(answered, one_fold):
    """On the platform one bad file must not cost the masks of all others."""
    out, stdout = answered
    masks, said = kept(out, "broken"), (out / "broken.txt").read_text()
    assert "no folder of Band2 (green)" in stdout
    for name, shape in (("002", (48, 40)), ("003", (96, 80)), ("004", (96, 80))):
        assert masks.pop(name).tolist() == np.zeros(shape, int).tolist()
    for word in ("tile 002: holds NaN", "tile 003: no file in Band4", "Band5/img004.tif"):
        assert word in said
    assert "z_001.tif is tile 001 as img001.tif is" in said
    assert_same(masks, one_fold)


def test_no_data_is_background_in_maps_and_masks(one_fold, tiles, home):
    """Without data the output is background whatever the thresholds; the maps say which pixels these are."""
    for row in read_rows(tiles, require_labels=False).itertuples():
        nodata = ~(read_tile(row.path) != 0).any(0)
        assert nodata.sum() == 600 and not one_fold[row.id][nodata].any()
        prob = read_probs(home / "one" / "prob" / f"{row.id}.npz", 4)
        assert (prob[0, nodata] == 1).all() and not prob[1:, nodata].any()


@pytest.fixture(scope="session")
def platform_python(tmp_path_factory):
    """A Python with the platform's packages: LANDFOLD_PLATFORM_PYTHON, else made by pip; a skip with the reason."""
    if os.environ.get("LANDFOLD_PLATFORM_PYTHON"):
        return Path(os.environ["LANDFOLD_PLATFORM_PYTHON"])
    folder = tmp_path_factory.mktemp("platform") / "venv"
    base = shutil.which("python3.9") or sys.executable
    packages = ["torch==2.0.1", "torchvision==0.15.2", "numpy<2", "segmentation-models-pytorch==0.3.4", "tqdm",
                "opencv-python-headless", "pillow", "scikit-learn", "tifffile"]  # fmt: skip
    for step in ([base, "-m", "venv", str(folder)], [str(folder / "bin/pip"), "install", "-q", *packages]):
        done = subprocess.run(step, capture_output=True, text=True)
        if done.returncode:
            pytest.skip(f"the platform's packages cannot be installed here: {done.stderr.strip()[-200:]}")
    return folder / "bin" / "python"


@pytest.mark.soak
@pytest.mark.parametrize(
    "model",
    [
        {"encoder": "resnet34", "attention": "scse", "decoder": [256, 128, 64, 32, 16]},
        {"encoder": "mobilenet_v2", "attention": "cse", "stem": "full"},
        {"encoder": "tu-maxvit_rmlp_pico_rw_256"},
        {"arch": "unetplusplus", "encoder": "resnet18"},
        {"arch": "manet", "encoder": "vgg11_bn", "stem": "full"},
        {"arch": "fpn", "encoder": "efficientnet-b0", "decoder": [256, 128, 64, 32, 16]},
        {"arch": "deeplabv3plus", "encoder": "resnet18", "decoder": [256, 128, 64, 32, 16]},
        {"arch": "linknet", "encoder": "resnet18", "stem": "full", "decoder": [256, 128, 64, 32, 16]},
        {"arch": "pspnet", "encoder": "resnet18", "decoder": [256, 128, 64, 32, 16]},
        {"arch": "pan", "encoder": "resnet18", "decoder": [256, 128, 64, 32, 16]},
        {"encoder": "tu-resnet18"},
    ],
    ids=lambda model: " ".join(map(str, list(model.values())[:2])),
)
def test_on_the_platforms_own_versions(platform_python, tiles, tmp_path, model):
    """torch 2.0.1, smp 0.3.4, numpy below 2: weights load strictly and the masks are those of today's versions."""
    spec = make_spec(**model)
    net = make_model(spec)
    write_solution(tmp_path / "solution", [(spec, net.state_dict())], **POST)
    wanted = infer_masks(tiles, [net], [spec], tmp_path, VIEWS)
    (tmp_path / "out").mkdir()
    code = """
    import segmentation_models_pytorch as smp
    keep("masks", load(f"{home}/solution").maskgeration, data, f"{out}/masks")
    print(json.dumps([torch.__version__, smp.__version__, np.__version__]))
    """
    done = run_solution(tmp_path, tmp_path / "out", tiles, textwrap.dedent(code), python=platform_python)
    versions = json.loads(done.stdout.splitlines()[-1])
    assert versions[0].startswith("2.0.") and versions[1] == "0.3.4" and versions[2].startswith("1.")
    masks = kept(tmp_path / "out", "masks")
    same = np.concatenate([(masks[name] == mask).ravel() for name, mask in wanted.items()])
    assert same.mean() > 0.9999
    assert {tifffile.imread(path).dtype for path in (tmp_path / "out" / "masks").iterdir()} == {np.dtype("uint8")}
