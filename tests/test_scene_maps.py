"""Scenes mapped by infer.py: rasters, polygons and pictures against what is known of a scene; stops, lists, misuse."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pyogrio
import pytest
import rasterio
import shapely
import tiny_data
import tiny_scenes
import torch
from rasterio.features import rasterize
from rasterio.transform import from_origin
from rasterio.warp import Resampling, reproject, transform_bounds
from skimage.measure import label, regionprops
from tiny_scenes import EDGE, PLACE, POST, Known, infer, save_run, write_scene

from common.datasets.inputs import model_input
from common.datasets.scenes import open_scene
from common.engine import side_store
from common.engine.tta import apply_view, invert_view
from common.models.segmenter import Segmenter
from common.outputs import scene_picture
from common.tasks import scene_jobs, scene_maps, segmentation


@pytest.fixture
def home(tmp_path, monkeypatch) -> Path:
    """A working folder with a run of the known model and scenes/a.tif."""
    monkeypatch.setattr(segmentation, "Segmenter", Known)
    save_run(tmp_path, "known", [{}])
    write_scene(tmp_path / "scenes/a.tif", tiny_scenes.draw_scene()[0])
    return tmp_path


@pytest.fixture
def calls(home, monkeypatch):
    """How often a model has been called since the last time this was asked."""
    log = home / "calls"
    monkeypatch.setenv("STUB_LOG", str(log))

    def count() -> int:
        seen = log.stat().st_size if log.exists() else 0
        log.unlink(missing_ok=True)
        return seen

    return count


def mapped(home: Path, *words, out="out", code=0, run="known", scene="scenes/a.tif") -> Path:
    """The map of the scene, made with these words in the folder `out`."""
    infer(home, "--runs", run, "--scene", scene, "--out", out, *words, code=code)
    return home / out / "scenes" / f"{Path(scene).stem}.tif"


def values_of(path: Path) -> np.ndarray:
    with rasterio.open(path) as file:
        return file.read()


def sigmoid(logit):
    return 1 / (1 + np.exp(-np.asarray(logit, float)))


def known_prob(tile, *, gain=2.0, mean=EDGE, std=10.0) -> np.ndarray:
    """What Known answers to a tile, NaN where there is no data."""
    return np.where((tile != 0).any(0), sigmoid(gain * (tile[0].astype(float) - mean) / std), np.nan)


def polygons(path: Path, **options):
    """(shapes in their CRS, {field: values}) of a vector file."""
    meta, _, geometry, fields = pyogrio.raw.read(path, **options)
    return shapely.from_wkb(geometry), dict(zip(meta["fields"].tolist(), fields, strict=True))


def drawn(shapes, size, place=PLACE) -> np.ndarray:
    return (
        rasterize(list(shapes), out_shape=size, transform=place).astype(bool) if len(shapes) else np.zeros(size, bool)
    )


# what is written


def test_the_map_is_a_valid_cog_on_the_scenes_grid(home):
    cog = pytest.importorskip("rio_cogeo")
    path = mapped(home)
    good, errors, warned = cog.cog_validate(path, strict=True)
    assert good and not errors and not warned
    tile = tiny_scenes.draw_scene()[0]
    with rasterio.open(path) as file:
        assert file.crs.to_string() == tiny_scenes.CRS and file.transform == PLACE and file.dtypes == ("float32",)
        assert file.descriptions == ("slump",) and np.isnan(file.nodata)
        tags = file.tags()
        np.testing.assert_allclose(file.read(1), known_prob(tile), atol=1e-6)
    assert tags["run"] == "known" and tags["bands"] == "red green blue" and tags["damaged"] == "[]"
    assert float(tags["threshold"]) == 0.5 and float(tags["temperature"]) == 1
    assert sorted(p.name for p in path.parent.iterdir()) == ["a.geojson", "a.gpkg", "a.jpg", "a.tif"]


def test_polygons_open_in_their_crs_and_lie_on_the_truth(home):
    geopandas = pytest.importorskip("geopandas")
    path = mapped(home, "--simplify", "0")
    tile, true = tiny_scenes.draw_scene()
    assert (true == (tile[0] > EDGE)).all(), "the drawn scene is not what it says"
    own, everywhere = geopandas.read_file(path.with_suffix(".gpkg")), geopandas.read_file(path.with_suffix(".geojson"))
    assert own.crs.to_epsg() == 32608 and everywhere.crs.to_epsg() == 4326
    np.testing.assert_array_equal(drawn(own.geometry, true.shape), true)
    back = everywhere.to_crs(32608)
    assert shapely.hausdorff_distance(back.union_all(), own.union_all()) < 0.05
    regions = regionprops(label(true, connectivity=2))
    assert len(own) == len(regions) == 3
    np.testing.assert_array_equal(own["pixels"], [r.area for r in sorted(regions, key=lambda r: tuple(r.coords[0]))])
    np.testing.assert_allclose(own["area_m2"], own["pixels"] * 9, rtol=2e-3)  # scale of UTM at its meridian: .9996
    prob = known_prob(tile)
    wanted = [(prob[tuple(r.coords.T)].mean(), prob[tuple(r.coords.T)].max()) for r in regions]
    np.testing.assert_allclose(np.sort(own[["mean_prob", "max_prob"]].to_numpy(), 0), np.sort(wanted, 0), atol=1e-5)


@pytest.mark.parametrize("overlap", ["0", ".5"])
def test_what_lies_across_four_windows_is_one_polygon(home, overlap):
    true = np.zeros((128, 128), bool)
    true[50:80, 45:83] = True  # windows of 64 meet in its middle
    write_scene(home / "scenes/b.tif", np.where(true, 140, 60).astype(np.uint8)[None].repeat(3, 0))
    path = mapped(home, "--overlap", overlap, scene="scenes/b.tif")
    shapes, facts = polygons(path.with_suffix(".gpkg"))
    assert len(shapes) == 1 and facts["pixels"].tolist() == [30 * 38]
    np.testing.assert_array_equal(drawn(shapes, true.shape), true)


def test_a_constant_scene_maps_to_its_constant(home):
    write_scene(home / "scenes/b.tif", np.full((3, 150, 170), 97, np.uint8))
    words = ("--scales", ".5", "1", "--overlap", ".3", "--tta", "hflip", "rot90")
    values = values_of(mapped(home, *words, scene="scenes/b.tif"))
    np.testing.assert_allclose(values, sigmoid(-0.6), atol=1e-6)


def test_the_picture_shows_the_polygons_in_their_place(home, monkeypatch):
    path = mapped(home)
    picture = cv2.imread(str(path.with_suffix(".jpg")))
    assert picture.shape == (200, 230, 3)
    with open_scene(home / "scenes/a.tif", ("red", "green", "blue")) as scene:
        shapes, _ = polygons(path.with_suffix(".gpkg"))
        for most, factor in ((230, 1), (100, 3)):
            monkeypatch.setattr(scene_picture, "LINE", "#ff00ff")
            seen = cv2.imread(str(scene_picture.draw_scene(scene, shapes, home / "p.png", most=most))).astype(int)
            plain = cv2.imread(str(scene_picture.draw_scene(scene, [], home / "q.png", most=most))).astype(int)
            assert seen.shape == (-(-200 // factor), -(-230 // factor), 3)
            rows, columns = np.nonzero(abs(seen - plain).max(-1) > 60)
            lines = shapely.union_all([shapely.boundary(s) for s in shapes])
            x, y = 5e5 + 3 * (columns + 0.5) * factor, 7.6e6 - 3 * (rows + 0.5) * factor
            away = shapely.distance(shapely.points(x, y), lines)
            assert len(rows) > 40 and away.max() <= 3 * factor * (scene_picture.LEAST + 2)
            inside = (rows * factor >= 45) & (rows * factor < 95) & (columns * factor < 100)
            assert away[inside].max() <= 6 * factor, "the large blob's outline is not on its edge"


def test_a_real_segmenter_answers_as_on_a_tile(home, monkeypatch):
    """One window is the scene: the raster is the mean over the views of the model on the standardised tile."""
    monkeypatch.setattr(segmentation, "Segmenter", Segmenter)
    facts = {"arch": "unet", "encoder": "tu-test_byobnet", "channels": 3, "classes": 2, "decoder": [16] * 5}
    torch.manual_seed(3)
    model = Segmenter(**facts).eval()
    save_run(home, "real", [{}], net=(model.state_dict(), facts))
    tile = tiny_scenes.draw_scene(96, 96)[0]
    tile[:, 60:, 40:] = 0
    write_scene(home / "scenes/b.tif", tile)
    values = values_of(mapped(home, "--window", "96", "--tta", "hflip", "scale0.75", run="real", scene="scenes/b.tif"))
    spec = tiny_scenes.SPEC | {"mean": [EDGE] * 3, "std": [10.0] * 3}
    image, valid = model_input(tile.astype(np.float32), spec)
    image, seen = torch.from_numpy(image)[None], []
    with torch.inference_mode():
        for view in ("identity", "hflip", "scale0.75"):
            prob = torch.softmax(model(apply_view(view, image)), dim=1)[:, 1:]
            seen.append(invert_view(view, prob, image.shape[-2:])[0, 0].numpy())
    np.testing.assert_allclose(values[0], np.where(valid, np.mean(seen, 0), np.nan), atol=2e-6)


def test_folds_have_their_own_standardisation_and_a_spread(home):
    save_run(home, "two", [{"mean": 100, "std": 10}, {"mean": 90, "std": 20}])
    path = mapped(home, "--spread", run="two")
    tile = tiny_scenes.draw_scene()[0]
    one, two = known_prob(tile), known_prob(tile, mean=90, std=20)
    with rasterio.open(path) as file:
        assert file.descriptions == ("slump", "spread")
        values = file.read()
    np.testing.assert_allclose(values[0], (one + two) / 2, atol=2e-6)
    np.testing.assert_allclose(values[1], abs(one - two) / 2, atol=2e-6)
    alone = values_of(mapped(home, "--fold", "1", run="two", out="alone"))
    np.testing.assert_allclose(alone[0], two, atol=2e-6)


def test_nodata_and_a_scene_smaller_than_a_window(home):
    tile = tiny_scenes.draw_scene(40, 50)[0]
    tile[:, :10, 30:] = 255
    write_scene(home / "scenes/b.tif", tile, nodata=255)
    values = values_of(mapped(home, "--scales", ".5", "1", scene="scenes/b.tif"))[0]
    empty = (tile == 255).all(0) | (tile == 0).all(0)
    assert empty.any() and not empty.all()
    np.testing.assert_array_equal(np.isnan(values), empty)


# what the options do


def test_bands_by_name_or_number_and_a_scene_without_them(home, capsys):
    tile = tiny_scenes.draw_scene()[0]
    write_scene(home / "scenes/b.tif", tile[[2, 1, 0]], names=("Blue", "GREEN", "red"))
    write_scene(home / "scenes/c.tif", tile, names=("r", "g", "b"))
    by_name = values_of(mapped(home, scene="scenes/b.tif"))
    np.testing.assert_array_equal(by_name, values_of(mapped(home)))
    mapped(home, scene="scenes/c.tif", code=2)
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1 and "no band red, green, blue; there are: 1 r, 2 g, 3 b" in said[0]
    by_number = mapped(home, "--scene-bands", "1", "2", "3", scene="scenes/c.tif")
    np.testing.assert_array_equal(values_of(by_number), by_name)
    mapped(home, "--scene-bands", "1", "2", scene="scenes/c.tif", out="other", code=2)
    assert "2 band numbers for 3 bands" in capsys.readouterr().err


WAYS = {"scales": ("--scales", ".5", "1"), "overlap": ("--overlap", ".25"), "window": ("--window", "96"),
        "weights": ("--window-weights", "gaussian"), "views": ("--tta", "scale0.75")}  # fmt: skip


def test_every_way_to_look_at_a_scene_changes_the_map(home):
    save_run(home, "context", [{"context": 3.0}])
    plain = values_of(mapped(home, run="context"))
    for name, words in WAYS.items():
        other = values_of(mapped(home, *words, run="context", out=name))
        assert np.nanmax(abs(other - plain)) > 0.01, name
        np.testing.assert_array_equal(np.isnan(other), np.isnan(plain))


def prior_raster(home: Path, tile, prior) -> Path:
    """The prior (H,W) on the scene's grid as a raster of degrees, finer than the scene."""
    corner = transform_bounds(tiny_scenes.CRS, "EPSG:4326", *rasterio.transform.array_bounds(*prior.shape, PLACE))
    size = (3 * prior.shape[0], 3 * prior.shape[1])
    place = rasterio.transform.from_bounds(*corner, size[1], size[0])
    out = np.full(size, np.nan, np.float32)
    reproject(prior.astype(np.float32), out, src_transform=PLACE, src_crs=tiny_scenes.CRS, dst_transform=place,
              dst_crs="EPSG:4326", resampling=Resampling.nearest, dst_nodata=np.nan)  # fmt: skip
    with rasterio.open(home / "prior.tif", "w", driver="GTiff", count=1, height=size[0], width=size[1],
                       dtype="float32", crs="EPSG:4326", transform=place, nodata=np.nan) as file:  # fmt: skip
        file.write(out, 1)
    return home / "prior.tif"


def test_a_prior_of_another_crs_confines_or_multiplies(home):
    tile, true = tiny_scenes.draw_scene()
    prior = np.full(true.shape, 0.5)
    prior[:, :100], prior[:, 100:120] = 0.01, 0.3
    path, plain = prior_raster(home, tile, prior), known_prob(tile)
    inner = np.zeros(true.shape, bool)  # away from the steps of the prior and the scene's edge
    for a, b in ((2, 97), (103, 117), (123, 228)):
        inner[2:198, a:b] = True
    limited = mapped(home, "--prior", path, out="limit")
    wanted = np.where(prior < 0.05, np.where(np.isnan(plain), np.nan, 0), plain)
    np.testing.assert_allclose(values_of(limited)[0][inner], wanted[inner], atol=2e-6)
    shapes, _ = polygons(limited.with_suffix(".gpkg"))
    assert len(shapes) == 2, "the blob where the prior is under the limit is still there"
    below = values_of(mapped(home, "--prior", path, "--prior-below", ".4", out="below"))[0]
    assert (below[2:198, 2:117][~np.isnan(plain[2:198, 2:117])] == 0).all()
    odds = values_of(mapped(home, "--prior", path, "--prior-mode", "odds", out="odds"))[0]
    both = plain * prior / (plain * prior + (1 - plain) * (1 - prior))
    np.testing.assert_allclose(odds[inner], both[inner], atol=1e-4)


def test_a_changed_prior_is_another_map(home, capsys):
    tile, true = tiny_scenes.draw_scene()
    path = prior_raster(home, tile, np.full(true.shape, 0.5))
    mapped(home, "--prior", path)
    prior_raster(home, tile, np.full(true.shape, 0.01))
    mapped(home, "--prior", path, code=2)
    assert "is a map of other models or settings" in capsys.readouterr().err


def test_thresholds_and_sizes_change_polygons_and_not_the_probabilities(home, capsys, calls):
    """.999 is what the run was fitted for at 1:500; one blob is a pixel, one of 40 pixels is 360 m2."""
    plain = mapped(home)
    shapes, facts = polygons(plain.with_suffix(".gpkg"))
    assert sorted(facts["pixels"]) == [1, 40, 1600] and calls() > 0
    for name, words, sizes in (
        ("ratio", ("--at-ratio", "500"), None),
        ("threshold", ("--threshold", ".999"), None),
        ("area", ("--min-area", "300"), [40, 1600]),
        ("large", ("--min-area", "400"), [1600]),
        ("blob", ("--min-blob", "2"), [40, 1600]),
        ("simple", ("--simplify", "3"), [1, 40, 1600]),
    ):
        other = mapped(home, *words, out=name)
        np.testing.assert_array_equal(values_of(other), values_of(plain))
        found, facts = polygons(other.with_suffix(".gpkg"))
        if sizes is None:
            true = known_prob(tiny_scenes.draw_scene()[0]) > 0.999
            assert facts["pixels"].sum() == true.sum() != 1641
        else:
            assert sorted(facts["pixels"]) == sizes
        assert shapely.to_wkb(found).tolist() != shapely.to_wkb(shapes).tolist()
    calls()
    mapped(home, "--threshold", ".7", code=2)
    assert "a.tif: is a map of other models or settings; remove it" in capsys.readouterr().err
    (home / "out/scenes/a.tif").unlink()
    again = mapped(home, "--threshold", ".999")
    np.testing.assert_array_equal(values_of(again), values_of(plain))
    assert again.with_suffix(".gpkg").read_bytes() == (home / "threshold/scenes/a.gpkg").read_bytes()


def test_faint_blobs_are_dropped_whole_where_the_run_says_so(home):
    _, plain = polygons(mapped(home, out="plain").with_suffix(".gpkg"))
    low, high = np.sort(plain["mean_prob"])[:2]
    save_run(home, "clean", [{}], post=POST | {"threshold": 0.999, "blob": (low + high) / 2})
    path = mapped(home, run="clean")
    _, facts = polygons(path.with_suffix(".gpkg"))
    kept = plain["mean_prob"] > low
    assert facts["pixels"].tolist() == plain["pixels"][kept].tolist() and facts["id"].tolist() == [1, 2]
    with rasterio.open(path) as file:
        assert float(file.tags()["blob_mean"]) == (low + high) / 2 and float(file.tags()["threshold"]) == 0.5
    _, facts = polygons(mapped(home, "--clean", "pixels", run="clean", out="pixels").with_suffix(".gpkg"))
    assert facts["pixels"].sum() == (known_prob(tiny_scenes.draw_scene()[0]) > 0.999).sum()


def test_a_map_is_calibrated_by_the_temperature(home):
    save_run(home, "hot", [{"gain": 8.0}], post=POST | {"temperature": 4.0, "threshold": 0.7})
    path = mapped(home, run="hot")
    tile, _ = tiny_scenes.draw_scene()
    np.testing.assert_allclose(values_of(path)[0], known_prob(tile), atol=1e-5)
    _, facts = polygons(path.with_suffix(".gpkg"))
    assert facts["pixels"].sum() == (known_prob(tile) > 0.7).sum()


def test_a_threshold_so_near_to_1_that_float32_rounds_it_cuts_as_on_tiles(home):
    """Logits of the scene go beyond 20: the map says 1 there, and its mask is that of the logits."""
    limit = 1 - 1e-10
    save_run(home, "sure", [{"gain": 4.2}], post=POST | {"threshold": limit})
    path = mapped(home, run="sure")
    tile, _ = tiny_scenes.draw_scene()
    logit = 4.2 * (tile[0].astype(float) - EDGE) / 10.0
    wanted = ((logit > np.log(limit) - np.log1p(-limit)) & (tile != 0).any(0)).sum()
    _, facts = polygons(path.with_suffix(".gpkg"))
    assert facts["pixels"].sum() == wanted and 0 < wanted < (values_of(path)[0] == 1).sum()


def test_a_run_without_post_is_mapped_uncalibrated(home, capsys):
    save_run(home, "raw", [{}], post=None)
    path = mapped(home, run="raw")
    assert "uncalibrated" in capsys.readouterr().out
    np.testing.assert_array_equal(values_of(path), values_of(mapped(home, out="known")))
    mapped(home, "--at-ratio", "500", run="raw", out="no", code=2)
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1 and "--at-ratio: nothing was fitted" in said[0]


# labels of a scene


def reference_scores(mask, true, prob, valid, limit) -> tuple[int, int, int]:
    """(matched, predicted, true blobs) by scikit-image and a loop over pairs."""
    said, real = label(mask & valid, connectivity=2), label(true & valid, connectivity=2)
    order = sorted(range(1, said.max() + 1), key=lambda k: -prob[said == k].mean())
    free, hits = set(range(1, real.max() + 1)), 0
    for k in order:
        ious = {t: ((said == k) & (real == t)).sum() / ((said == k) | (real == t)).sum() for t in free}
        best = max(ious, key=ious.get, default=None)
        if best is not None and ious[best] >= limit:
            hits, free = hits + 1, free - {best}
    return hits, said.max(), real.max()


@pytest.mark.parametrize("kind", ["raster", "polygons"])
def test_a_map_is_scored_by_labels_as_it_was_written(home, capsys, kind):
    """Labels are shifted by a few pixels, so that limits of IoU differ; the one-pixel blob is dropped by --min-blob."""
    tile, true = tiny_scenes.draw_scene()
    labels = np.roll(true, (3, 5), (0, 1)).astype(np.uint8)
    labels[110:140, 140:170], labels[121:125, 152:162] = 0, 1  # IoU .43
    labels[180:186, 20:30] = 1  # missed
    if kind == "raster":
        labels[60:75, 60:75] = 255
        truth = write_scene(home / "truth.tif", labels[None], names=(None,))
    else:
        truth = home / "truth.geojson"
        parts = [(shapely.geometry.shape(g), v) for g, v in rasterio.features.shapes(labels, transform=PLACE)]
        shapes = np.array([shape for shape, value in parts if value == 1])
        pyogrio.raw.write(truth, shapely.to_wkb(shapes), [], [], geometry_type="Polygon", crs="EPSG:32608")
    words = ("--min-blob", "2", "--truth", truth)
    mapped(home, *words)
    first = capsys.readouterr().out
    prob = known_prob(tile)
    valid = ~np.isnan(prob) & (labels != 255)
    mask, known = (true & valid), (labels == 1) & valid
    mask[10, 200] = False
    iou = (mask & known).sum() / (mask | known).sum()
    precision, recall = (mask & known).sum() / mask.sum(), (mask & known).sum() / known.sum()
    assert f"pixels: IoU {iou:.3f}, precision {precision:.3f}, recall {recall:.3f}" in first
    known = label(known, connectivity=2)
    known = np.isin(known, [r.label for r in regionprops(known) if r.area >= 2])
    seen = set()
    for limit in (0.1, 0.3, 0.5):
        hits, said, real = reference_scores(mask, known, prob, valid, limit)
        line = f"objects at IoU {limit}: precision {hits / said:.3f} ({hits} of {said}), recall {hits / real:.3f} "
        assert line + f"({hits} of {real})" in first
        seen.add(hits)
    assert len(seen) > 1, "the limits make no difference here: the test shows less than it says"
    mapped(home, *words)
    again = capsys.readouterr().out
    assert "mapped before" in again and first.splitlines()[-4:] == again.splitlines()[-4:]


def test_labels_that_are_of_another_place_or_of_many_scenes(home, capsys):
    write_scene(home / "far.tif", np.zeros((1, 50, 50), np.uint8), names=(None,), place=from_origin(0, 7e6, 3, 3))
    write_scene(home / "scenes/b.tif", tiny_scenes.draw_scene(seed=1)[0])
    mapped(home, "--truth", home / "far.tif", scene="scenes", code=2)
    assert "--truth: is of one scene, 2 are given" in capsys.readouterr().err
    mapped(home, "--truth", home / "far.tif", code=2)
    assert "does not overlap" in capsys.readouterr().err


# damage


def corrupt(path: Path, row: int, column: int) -> None:
    """Overwrite a block of a GeoTIFF with what is no deflate stream."""
    with rasterio.open(path) as file:
        of_row = -(-file.width // 64)
        offset = int(file.tags(1, ns="TIFF").get("x", 0)) or block_offset(path, row * of_row + column)
    with open(path, "r+b") as file:
        file.seek(offset)
        file.write(b"\xff" * 40)


def block_offset(path: Path, index: int) -> int:
    import tifffile

    with tifffile.TiffFile(path) as file:
        return file.pages[0].dataoffsets[index]


LOST = "a.tif: rows 64 to 127, columns 0 to 63 could not be read: no data"


def test_a_corrupt_block_costs_its_pixels_and_is_said_every_time(home, capsys, calls):
    corrupt(home / "scenes/a.tif", 1, 0)
    path = mapped(home, code=3)
    assert LOST in capsys.readouterr().out
    wanted = known_prob(tiny_scenes.draw_scene()[0])
    wanted[64:128, :64] = np.nan
    np.testing.assert_allclose(values_of(path)[0], wanted, atol=1e-6)
    assert calls() > 0
    mapped(home, code=3)
    again = capsys.readouterr().out
    assert LOST in again and "mapped before" in again and calls() == 0
    mapped(home, "--allow-bad-images")


class Stopped(BaseException):
    """Not an Exception: nothing may catch it, as nothing catches a kill."""


def test_damage_is_remembered_by_a_job_that_goes_on(home, monkeypatch, capsys, calls):
    """The windows of the damaged block were finished before the stop and are not read again, though the block could be
    read by now, as on a drive that comes and goes."""
    scene = home / "scenes/a.tif"
    sound = scene.read_bytes()
    corrupt(scene, 1, 0)
    facts = scene.stat()
    plain = mapped(home, code=3, out="plain").read_bytes()
    whole = calls()

    def stop(*_words, **_facts):
        raise Stopped

    with monkeypatch.context() as patch:
        patch.setattr(scene_maps, "write_raster", stop)
        with pytest.raises(Stopped):
            mapped(home)
    assert calls() == whole
    scene.write_bytes(sound)
    os.utime(scene, ns=(facts.st_atime_ns, facts.st_mtime_ns))
    capsys.readouterr()
    path = mapped(home, code=3)
    assert calls() == 0 and LOST in capsys.readouterr().out
    assert path.read_bytes() == plain and not list(path.parent.glob(".*"))


def test_damage_of_another_file_of_that_name_is_forgotten(home, monkeypatch, calls):
    corrupt(home / "scenes/a.tif", 1, 0)
    with monkeypatch.context() as patch:
        patch.setattr(scene_maps, "write_raster", lambda *_words, **_facts: (_ for _ in ()).throw(Stopped()))
        with pytest.raises(Stopped):
            mapped(home)
    write_scene(home / "scenes/a.tif", tiny_scenes.draw_scene()[0])
    calls()
    path = mapped(home)
    assert calls() > 0 and np.isnan(values_of(path)[0][64:128, :64]).sum() == 0


# stops and lists

ENV = os.environ | {"PYTHONPATH": str(Path(tiny_scenes.__file__).parent.parent)}


def start(home: Path, *words, **env) -> subprocess.Popen:
    return subprocess.Popen([sys.executable, tiny_scenes.__file__, "--runs", "known", *words], cwd=home, text=True,
                            env=ENV | env, stdout=subprocess.PIPE, stderr=subprocess.PIPE)  # fmt: skip


@pytest.mark.soak
def test_killed_and_started_again_it_ends_with_the_same_files(home, calls):
    plain = mapped(home, "--spread", out="plain")
    whole = calls()
    words = ("--scene", "scenes/a.tif", "--out", "out", "--spread")
    job = start(home, *words, STUB_SLEEP=".05", STUB_LOG=str(home / "killed"))
    store = home / "out/scenes/.a.parts"
    while job.poll() is None and len(list(store.glob(f"*{side_store.PART}"))) < 5:
        time.sleep(0.005)
    job.send_signal(signal.SIGKILL)
    job.communicate()
    assert job.returncode == -signal.SIGKILL, "it was over before it could be killed"
    assert not (home / "out/scenes/a.tif").exists()
    path = mapped(home, "--spread")
    done, redone = (home / "killed").stat().st_size, calls()
    assert 4 <= done and whole <= done + redone <= whole + 1, "a finished window was predicted again"
    for suffix in (".tif", ".gpkg", ".geojson", ".jpg"):
        assert path.with_suffix(suffix).read_bytes() == plain.with_suffix(suffix).read_bytes(), suffix
    assert len(list(path.parent.iterdir())) == 4


def test_a_stop_before_the_raster_redoes_no_window_and_takes_a_new_threshold(home, monkeypatch, calls):
    with monkeypatch.context() as patch:
        patch.setattr(scene_maps, "write_raster", lambda *_words, **_facts: (_ for _ in ()).throw(Stopped()))
        with pytest.raises(Stopped):
            mapped(home, "--threshold", ".3")
    calls()
    path = mapped(home, "--threshold", ".99")
    assert calls() == 0
    _, facts = polygons(path.with_suffix(".gpkg"))
    assert facts["pixels"].sum() == (known_prob(tiny_scenes.draw_scene()[0]) > 0.99).sum()


def test_a_stop_after_the_raster_leaves_nothing_once_it_is_started_again(home, monkeypatch, capsys, calls):
    corrupt(home / "scenes/a.tif", 1, 0)
    with monkeypatch.context() as patch:
        patch.setattr(side_store.SideStore, "close", lambda _self: (_ for _ in ()).throw(Stopped()))
        with pytest.raises(Stopped):
            mapped(home)
    folder = home / "out/scenes"
    assert {".a.parts", ".a.damaged.json", "a.tif"} <= {path.name for path in folder.iterdir()}
    calls()
    with side_store.claim(folder / "a.tif"):  # somebody has them in hand
        mapped(home, code=3)
        assert (folder / ".a.parts").exists() and (folder / ".a.damaged.json").exists()
    mapped(home, code=3)
    assert capsys.readouterr().out.count("a.tif: mapped before") == 2 and calls() == 0
    assert sorted(path.name for path in folder.iterdir()) == ["a.geojson", "a.gpkg", "a.jpg", "a.tif"]


@pytest.mark.parametrize("killed", [True, False])
def test_a_scene_in_other_hands_is_looked_at_twice(home, monkeypatch, capsys, killed):
    """Its process may be killed while this one maps the next; if not, the last line says that it is missing."""
    write_scene(home / "scenes/b.tif", tiny_scenes.draw_scene(seed=1)[0])
    other, map_scene = side_store.claim(home / "out/scenes/a.tif"), scene_jobs.map_scene

    def meanwhile(path, *words):
        if killed and path.name == "b.tif":
            other.file.close()  # frees the lock and leaves its file, as a kill does
        map_scene(path, *words)

    monkeypatch.setattr(scene_jobs, "map_scene", meanwhile)
    infer(home, "--runs", "known", "--scene", "scenes", "--out", "out")
    last = capsys.readouterr().out.splitlines()[-1]
    assert (home / "out/scenes/b.tif").exists() and (home / "out/scenes/a.tif").exists() == killed
    assert ("1 of 2 scenes are not mapped" in last) != killed
    other.file.close()


def test_a_run_of_large_batches_is_mapped_by_few_windows(home, calls):
    """That of training, found for small crops on another card, may be too much; a number that is given is kept."""
    for fold in (home / "runs/known").glob("fold*/last.pt"):
        content = torch.load(fold, weights_only=False)
        content["args"]["batch_size"] = 64
        torch.save(content, fold)
    mapped(home, "--batch-size", "4", out="four")
    expected = calls()
    words = ("--task", "rts", "--device-type", "cpu", "--amp", "off", "--window", "64", "--scene", "scenes/a.tif")
    assert tiny_data.call("infer", "--runs", "known", *words, "--out", "out", cwd=home) == 0
    assert calls() == expected
    mapped(home, "--batch-size", "64", out="many")
    assert calls() < expected


def test_a_stop_under_other_models_is_no_start(home, monkeypatch, calls):
    save_run(home, "other", [{"gain": 1.0}])
    with monkeypatch.context() as patch:
        patch.setattr(scene_maps, "write_raster", lambda *_words, **_facts: (_ for _ in ()).throw(Stopped()))
        with pytest.raises(Stopped):
            mapped(home, run="other")
    calls()
    values = values_of(mapped(home))
    assert calls() > 0
    np.testing.assert_allclose(values[0], known_prob(tiny_scenes.draw_scene()[0]), atol=1e-6)


@pytest.mark.soak
def test_two_processes_never_map_a_scene_twice(home, calls, capsys):
    mapped(home, out="plain")
    each = calls()
    for k in range(1, 4):
        write_scene(home / f"scenes/{k}.tif", tiny_scenes.draw_scene(seed=k)[0])
    log, targets = home / "both", home / "out/scenes"
    job = start(home, "--scene", "scenes", "--out", "out", STUB_SLEEP=".05", STUB_LOG=str(log))
    while job.poll() is None and not list(targets.glob(".*.lock")):
        time.sleep(0.005)
    infer(home, "--runs", "known", "--scene", "scenes", "--out", "out")
    other, errors = job.communicate()
    assert job.returncode == 0, errors
    own = capsys.readouterr().out
    made = [[name for name in "123a" if f"/{name}.tif, {name}.gpkg" in said] for said in (own, other)]
    assert sorted(made[0] + made[1]) == list("123a") and made[0] and made[1], made
    assert "another process is mapping it" in own and other.count("mapped before") == len(made[0])
    assert log.stat().st_size + calls() == 4 * each
    assert len(list(targets.iterdir())) == 16
    for path in (home / "plain/scenes").iterdir():  # by one process alone
        assert (targets / path.name).read_bytes() == path.read_bytes(), path.name


def test_mapped_before_and_other_models(home, capsys, calls):
    mapped(home)
    calls()
    (home / "scenes").rename(home / "moved")  # another machine may call the folder otherwise
    mapped(home, scene="moved/a.tif")
    assert "a.tif: mapped before" in capsys.readouterr().out and calls() == 0
    save_run(home, "other", [{"gain": 1.0}])
    mapped(home, run="other", scene="moved/a.tif", code=2)
    os.utime(home / "moved/a.tif", (1e9, 1e9))
    mapped(home, scene="moved/a.tif", code=2)
    assert capsys.readouterr().err.count("is a map of other models or settings") == 2 and calls() == 0


OTHER = {"scales": (".5", "1"), "overlap": (".25",), "window": ("96",), "window_weights": ("gaussian",),
         "spread": (), "scene_bands": ("3", "2", "1"), "prior": ("prior.tif",), "prior_mode": ("odds",),
         "prior_below": (".2",), "threshold": (".7",), "at_ratio": ("500",), "clean": ("pixels",), "min_area": ("5",),
         "min_blob": ("2",), "simplify": ("0",), "tta": ("hflip",), "amp": ("bf16",)}  # fmt: skip


def test_no_option_that_decides_reuses_a_map_made_without_it(home, capsys, calls):
    tile = tiny_scenes.draw_scene()[0]
    prior_raster(home, tile, np.full(tile.shape[1:], 0.5))
    mapped(home)
    calls()
    assert set(OTHER) == {*scene_maps.DECIDING, "tta", "amp"}
    for name, words in OTHER.items():
        mapped(home, f"--{name.replace('_', '-')}", *words, code=2)
        assert "is a map of other models or settings" in capsys.readouterr().err, name
    assert calls() == 0


def test_a_damaged_map_in_the_way_is_named(home, capsys):
    path = mapped(home)
    path.write_bytes(b"no tiff")
    mapped(home, code=2)
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1 and str(path.relative_to(home)) in said[0] and "remove it" in said[0]


# misuse: a line, and no model is called


def test_a_map_is_not_written_over_its_scene(home, capsys, calls):
    before = (home / "scenes/a.tif").read_bytes()
    mapped(home, out=".", code=2)
    assert "scenes/a.tif: is a scene itself; give another --out" in capsys.readouterr().err
    assert (home / "scenes/a.tif").read_bytes() == before and calls() == 0


WRONG = {
    "window": (("--window", "16"), "--window 16"),
    "overlap": (("--overlap", "1"), "--overlap 1.0"),
    "scales": (("--scales", "1", "0"), "--scales 1.0 0.0"),
    "area": (("--min-area", "-1"), "--min-area -1.0"),
    "simplify": (("--simplify", "nan"), "--simplify nan"),
    "blob": (("--min-blob", "-3"), "--min-blob -3"),
    "below": (("--prior-below", "5"), "--prior-below 5.0"),
    "holes": (("--fill-holes", "9"), "--fill-holes: is for the masks of tiles"),
    "threshold": (("--threshold", "2"), "--threshold 2"),
    "ratio": (("--at-ratio", "7"), "7"),
    "prior": (("--prior", "none.tif"), "none.tif: not a readable raster"),
}


@pytest.mark.parametrize("name", WRONG)
def test_numbers_and_options_that_make_no_sense(home, capsys, calls, name):
    words, wanted = WRONG[name]
    mapped(home, *words, code=2)
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1 and wanted in said[0] and calls() == 0


def test_what_would_stop_a_list_is_said_before_its_first_scene(home, capsys, calls):
    tile = tiny_scenes.draw_scene()[0]
    good = prior_raster(home, tile, np.full(tile.shape[1:], 0.5))
    cases = {
        "bands": ({"names": ("x", "y", "z")}, ()),
        "no CRS": ({"crs": None}, ("--min-area", "9")),
        "does not overlap": ({"place": from_origin(0, 7e6, 3, 3)}, ("--prior", good)),
    }
    for wanted, (facts, words) in cases.items():
        write_scene(home / "scenes/z.tif", tile, **facts)
        mapped(home, *words, scene="scenes", code=2)
        said = capsys.readouterr().err.splitlines()
        assert len(said) == 1 and wanted.removesuffix("s") in said[0] and calls() == 0


def test_scenes_that_are_not_there_or_share_a_name(home, capsys, calls):
    (home / "empty").mkdir()
    write_scene(home / "more/a.tif", tiny_scenes.draw_scene()[0])
    for words, wanted in ((["none.tif"], "no such file"), (["empty"], "no GeoTIFF in it"),
                          (["scenes", "more"], "scenes/a.tif and more/a.tif would both become a.tif")):  # fmt: skip
        infer(home, "--runs", "known", "--scene", *words, "--out", "out", code=2)
        said = capsys.readouterr().err.splitlines()
        assert len(said) == 1 and wanted in said[0]
    assert calls() == 0


def test_models_that_see_different_bands_are_not_mixed(home, capsys, monkeypatch):
    monkeypatch.setitem(tiny_scenes.SPEC, "bands", ["blue", "green", "red"])
    save_run(home, "other", [{}], post=None)
    infer(home, "--runs", "known", "other", "--scene", "scenes/a.tif", "--out", "out", code=2)
    assert "the models see different bands" in capsys.readouterr().err


def test_a_hidden_file_of_a_folder_is_no_scene(home):
    (home / "scenes/.tmp-a.tif").write_bytes(b"half")
    assert [p.name for p in scene_jobs.list_scenes([home / "scenes"])] == ["a.tif"]


def test_scenes_and_truth_of_the_demo_set(home, capsys, monkeypatch):
    """demo/… is a path inside the drawn set, here one of a scene only."""
    from common import session

    tile, true = tiny_scenes.draw_scene()
    write_scene(home / "drawn/scenes/b.tif", tile)
    write_scene(home / "drawn/hidden/b.tif", true[None].astype(np.uint8), names=(None,))
    monkeypatch.setattr(session, "demo_folder", lambda task, cache: home / "drawn")
    path = mapped(home, "--truth", "demo/hidden/b.tif", scene="demo/scenes/b.tif")
    np.testing.assert_allclose(values_of(path)[0], known_prob(tile), atol=1e-6)
    assert "b.tif against b.tif: pixels: IoU 1.000" in capsys.readouterr().out
