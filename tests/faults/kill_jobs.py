"""The calls that are killed: a small home for each task and what each of the four scripts is asked to do in it."""

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import tiny_data
import tiny_landslide
import tiny_rts
import tiny_scenes
import tiny_tiles
from forks import call_forked

EPOCHS = 3
SHORT = ("--epochs", str(EPOCHS))
CPU = ("--device-type", "cpu", "--workers", "0")
# what has a state, in three short epochs of both folds
LEARNING = {
    "biomass": (*tiny_data.SMALL, *SHORT, "--two-stage", "--freeze-epochs", "1", "--accumulate", "2", "--lr",
                "1e-3", "--backbone-lr", "1e-4", "--mixup-prob", ".5", "--dropout", ".2", "--ema-decay", ".9"),
    "glacier": (*tiny_tiles.SMALL, *SHORT, "--dropout", ".2", "--schedule", "plateau"),
    "rts": (*tiny_rts.SMALL, *SHORT, "--lr", "5e-3", "--ratio", "1", "3", "--ratio-epochs", "2"),
    "landslide": (*tiny_landslide.SMALL, *SHORT, "--lr", "1e-2", "--oversample-target", ".2"),
}  # fmt: skip
SCHEME = {"biomass": ("--folds", "2", "--adversarial", "--duplicates"), "glacier": ("--folds", "2"), "rts": (),
          "landslide": ("--folds", "2")}  # fmt: skip
VIEWS = {"biomass": ("hflip", "vflip", "swap"), "glacier": ("hflip", "rot90"), "rts": ("hflip",),
         "landslide": ("hflip",)}  # fmt: skip
TASKS = tuple(LEARNING)


def make_data(task: str, home: Path) -> None:
    """home/data in the competition's form, and home/scenes where there is something to map."""
    if task == "biomass":
        tiny_data.make_tiny(home / "data")
    elif task == "glacier":
        tiny_tiles.make_tiles(home / "data", tiles=6)
    elif task == "rts":
        tiny_rts.make_rts(home / "data")
        for k in range(2):
            tiny_scenes.write_scene(home / "scenes" / f"s{k}.tif", tiny_scenes.draw_scene(140, 150, seed=k)[0])
    else:
        tiny_landslide.make_hills(home / "data")
        tiny_landslide.write_rasters(home / "rasters")


def folds_words(task: str) -> tuple:
    return ("--task", task, "--data", "data", *SCHEME[task])


def train_words(task: str, run: str, *more) -> tuple:
    words = LEARNING[task] if task != "biomass" else ("--task", task, *LEARNING[task])
    return (*words, "--data", "data", "--run", run, *more)


def infer_words(task: str, run: str = "one") -> tuple:
    return ("--runs", run, "--data", "data", "--tta", *VIEWS[task], *CPU, "--out", f"preds/{run}")


def after_kill(script: str, home: Path, words: tuple) -> tuple:
    """What one calls after a kill: the same, and of training --resume once the run has begun a fold."""
    begun = list((home / "runs").glob("new/fold*/args.yaml"))
    return (*words, "--resume") if script == "train" and begun else words


@dataclass(frozen=True)
class Job:
    """A call to be killed. needs: what its home holds beside the data: "" (nothing), "folds", "runs" or "preds"."""

    name: str
    task: str
    script: str
    words: tuple
    needs: str = ""
    over: str = ""  # a set that is there already and that the call makes again, by another run
    refused: str = ""  # what a call says that was killed when all was written, and that does nothing a second time


def jobs_of(task: str) -> list[Job]:
    """The jobs of a task: every script, and what it does beside its plain call."""
    jobs = [
        Job("folds", task, "make_folds", folds_words(task)),
        Job("two folds", task, "train", train_words(task, "new"), "folds"),
        Job("test rows", task, "infer", infer_words(task), "runs"),
        Job("blend", task, "ensemble", ("--runs", "one", "two", "--save-blend", "out/blend.json", "--out", "out"),
            "runs"),
        Job("blend of test rows", task, "ensemble", ("--preds", "preds/one", "preds/two", "--data", "data", "--out",
            "out"), "preds"),
        Job("rows of another run", task, "infer", (*infer_words(task, "two")[:-1], "preds/one"), "preds", "preds/one"),
    ]  # fmt: skip
    return jobs + MORE[task]


SCENES = ("--scene", "scenes", *CPU, "--window", "64", "--batch-size", "4", "--out", "maps")
MORE: dict[str, list[Job]] = {
    "biomass": [
        Job("frozen features", "biomass", "train", train_words("biomass", "new", "--freeze-backbone", "--store-views",
            "2", "--no-two-stage"), "folds"),
        Job("ridge", "biomass", "train", train_words("biomass", "new", "--head", "ridge", "--no-two-stage"), "folds"),
    ],
    "glacier": [],
    "rts": [Job("two scenes", "rts", "infer", ("--runs", "one", *SCENES), "runs"),
            Job("calibration", "rts", "ensemble", ("--runs", "one", "--calibrate"), "runs"),
            Job("final test", "rts", "ensemble", ("--runs", "one", "--final-test", "preds/one"), "preds",
                refused="scored before (run one")],
    "landslide": [
        Job("tiles of a raster", "landslide", "make_folds", ("--task", "landslide", "--data", "cut", "--raster",
            "rasters/image.tif", "--dem", "rasters/dem.tif", "--land-cover", "rasters/cover.tif", "--labels",
            "rasters/labels.tif", "--aoi", "rasters/aoi.tif", "--side", "32", "--stride", "16", "--folds", "2")),
    ],
}  # fmt: skip


class Homes:
    """Folders with what a job needs, made once and copied for each trial, times of the files included."""

    def __init__(self, folder: Path, call: Callable = call_forked):
        self.folder, self.call, self.made = Path(folder), call, {}

    def base(self, task: str, needs: str) -> Path:
        if (task, needs) not in self.made:
            home = self.folder / f"{task}-{needs or 'data'}"
            steps = ("", "folds", "runs", "preds")
            if needs:
                shutil.copytree(self.base(task, steps[steps.index(needs) - 1]), home)
                self.add(task, needs, home)
            else:
                make_data(task, home)
            self.made[task, needs] = home
        return self.made[task, needs]

    def add(self, task: str, needs: str, home: Path) -> None:
        calls = {"folds": [("make_folds", folds_words(task))],
                 "runs": [("train", train_words(task, run, "--seed", seed)) for run, seed in
                          (("one", "42"), ("two", "7"))],
                 "preds": [("infer", infer_words(task, run)) for run in ("one", "two")]}[needs]  # fmt: skip
        if task == "rts" and needs == "preds":
            calls.append(("ensemble", ("--runs", "one", "--calibrate")))
        for script, words in calls:
            ended = self.call(home, script, words, said=self.folder / "said.txt")
            if ended.code:
                raise RuntimeError(f"{script}.py {' '.join(words)} ended with {ended.code}: {ended.said[-800:]}")

    def fresh(self, job: Job, name: str) -> Path:
        """A new home for a trial of the job."""
        return shutil.copytree(self.base(job.task, job.needs), self.folder / "trials" / name / "home")
