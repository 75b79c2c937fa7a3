"""A fifth competition as its author would write it: a reader, a recipe, a writer. The tests run it; nothing ships it.

Predict brightness and slope of 8 x 8 grey tiles in .npy files, judged by plain R2; visits are held together.
"""

import json
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import nn

from common.engine.schedule import Stage
from common.errors import InputError
from common.files import atomic_write
from common.tasks.base import Prepared, Task

OUTPUTS = ("brightness", "slope")


def make_demo(folder: Path, count: int = 40, tests: int = 5) -> dict:
    rng = np.random.default_rng(0)
    (folder / "tiles").mkdir(parents=True)
    lines = []
    for k in range(count + tests):
        light, slope = rng.uniform(0, 4), rng.uniform(-1, 1)
        tile = light + slope * np.linspace(-1, 1, 8)[:, None] + rng.normal(0, 0.05, (8, 8))
        np.save(folder / "tiles" / f"t{k}.npy", tile.astype(np.float32))
        lines.append({"id": f"t{k}", "visit": f"v{k % 8}", "brightness": light, "slope": slope})
    table = pd.DataFrame(lines)
    table[:count].to_csv(folder / "train.csv", index=False)
    table[count:][["id"]].to_csv(folder / "test.csv", index=False)
    atomic_write(folder / "demo.json", json.dumps({"best": 0.99}))
    return {"best": 0.99}


# the reader


def read_table(path: Path) -> pd.DataFrame:
    table = pd.read_csv(path)
    return table.assign(path=[str(path.parent / "tiles" / f"{name}.npy") for name in table["id"]])


def read_rows(data: Path, settings: dict) -> pd.DataFrame:
    return read_table(data / "train.csv")


class Tiles(torch.utils.data.Dataset):
    def __init__(self, rows: pd.DataFrame, noise: float = 0.0, on_bad: str = "error"):
        self.rows, self.noise, self.on_bad = rows.reset_index(drop=True), noise, on_bad

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, key) -> dict:
        epoch, index = key
        row = self.rows.iloc[index]
        bad = not Path(row["path"]).is_file()
        if bad and self.on_bad == "error":
            raise InputError(f"{row['path']}: tile is missing; complete the folder")
        tile = np.zeros((8, 8), np.float32) if bad else np.load(row["path"])
        tile = tile + self.noise * np.random.default_rng([epoch, index]).normal(size=tile.shape)
        target = torch.tensor([row.get(name, np.nan) for name in OUTPUTS], dtype=torch.float32)
        known = torch.isfinite(target)
        return {"image": torch.tensor(tile[None], dtype=torch.float32), "target": torch.nan_to_num(target),
                "valid": known, "id": row["id"], "bad": bad}  # fmt: skip


def collate(samples: list[dict]) -> dict:
    stacked = {name: torch.stack([sample[name] for sample in samples]) for name in ("image", "target", "valid")}
    return stacked | {name: [sample[name] for sample in samples] for name in ("id", "bad")}


def make_folds(rows: pd.DataFrame, *, scheme, folds, seed):
    visits = rows["visit"].to_numpy(str)
    number = np.unique(visits, return_inverse=True)[1]
    return (number + seed) % (folds or 4), visits


# the recipe


class Line(nn.Module):
    def __init__(self, hidden: int):
        super().__init__()
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(64, hidden), nn.Dropout(0.1), nn.Linear(hidden, len(OUTPUTS)))

    def forward(self, image):
        return {"value": self.net(image)}


def add_arguments(parser, script: str) -> None:
    if script == "train":
        parser.add_argument_group("moon").add_argument("--hidden", type=int, default=8, help="width of the layer")


def make_spec(rows: pd.DataFrame, settings: dict) -> dict:
    return {"task": "moon", "outputs": list(OUTPUTS), "hidden": settings["hidden"], "views": ["identity", "hflip"],
            "median": [float(rows[name].median()) for name in OUTPUTS]}  # fmt: skip


def prepare(model, train_rows, valid_rows, spec, settings, run, device) -> Prepared:
    return Prepared(Tiles(train_rows, 0.05), None if valid_rows is None else Tiles(valid_rows), collate)


def plan(model, settings: dict):
    group = {"params": list(model.parameters()), "lr": settings["lr"], "part": "all", "weight_decay": 0.0}
    return [group], [Stage(settings["epochs"], {}, settings["warmup_epochs"])]


def loss(outputs: dict, batch: dict) -> dict:
    error = (outputs["value"].float() - batch["target"]) ** 2
    return {"loss": error[batch["valid"]].mean()}


# predictions and the writer


def make_frame(predicted: dict, spec: dict, rows: pd.DataFrame | None = None) -> pd.DataFrame:
    values = predicted["pred"].mean(axis=0)
    values[np.array(predicted["bad"], bool)] = spec["median"]
    frame = pd.DataFrame(values, columns=list(OUTPUTS)).assign(id=predicted["id"])[["id", *OUTPUTS]]
    if rows is not None:
        truth = rows.set_index("id").loc[frame["id"], list(OUTPUTS)].to_numpy()
        frame[[f"true_{name}" for name in OUTPUTS]] = truth
    return frame


def score(rows: pd.DataFrame, frame: pd.DataFrame) -> dict:
    truth = rows.set_index("id").loc[frame["id"], list(OUTPUTS)].to_numpy()
    return {
        "score": float(
            1 - ((truth - frame[list(OUTPUTS)]) ** 2).to_numpy().sum() / ((truth - truth.mean(0)) ** 2).sum()
        )
    }


def read_set(path: Path) -> pd.DataFrame:
    path = Path(path) / "pred.csv" if Path(path).is_dir() else Path(path)
    if not path.is_file():
        raise InputError(f"{path}: no predictions there; run infer.py first")
    return pd.read_csv(path)


def mean_sets(sets: dict, folder=None) -> pd.DataFrame:
    frames = list(sets.values())
    values = np.mean([frame[list(OUTPUTS)].to_numpy() for frame in frames], axis=0)
    return frames[0].assign(**dict(zip(OUTPUTS, values.T, strict=True)))


def write(frame: pd.DataFrame, data: Path, folder: Path) -> Path:
    wanted = pd.read_csv(data / "test.csv")
    path = atomic_write(folder / "moon.csv", wanted.merge(frame[["id", *OUTPUTS]], on="id").to_csv(index=False))
    validate(data, folder)
    return path


def validate(data: Path, folder: Path) -> None:
    path, wanted = folder / "moon.csv", pd.read_csv(data / "test.csv")["id"]
    if not path.is_file() or list(pd.read_csv(path)["id"]) != list(wanted):
        raise InputError(f"{path}: not a line for each of the {len(wanted)} ids of test.csv; predict them all")


def judge(rows: pd.DataFrame, sets: dict, settings: dict) -> dict:
    mean = mean_sets(sets)
    known = {name: score(rows, frame)["score"] for name, frame in sets.items()}
    reached = score(rows, mean)["score"]
    blend = {
        "format": "landfold-blend-1",
        "kind": "mean",
        "members": list(sets),
        "weights": [1 / len(sets)] * len(sets),
    }
    return {"scores": {"fitted": reached, "honest": reached}, "members": known, "interval": None, "honest": mean,
            "blend": blend | {"dropped": {}, "post": {"top": 4.0}}, "gains": pd.DataFrame(), "tables": {}}  # fmt: skip


def report(path, judgement, members, beside, settings) -> Path:
    return atomic_write(path, f"<h1>{judgement['scores']['honest']:.4f}</h1>")


TASK = Task(
    name="moon",
    slug="moon-tiles",
    family="stereo",
    outputs=OUTPUTS,
    bands=("grey",),
    markers={"train": ("train.csv", "tiles"), "test": ("test.csv",)},
    defaults={"epochs": 9},
    demo_defaults={"epochs": 12, "lr": 3e-2, "workers": 0},
    schemes=("visits",),
    demo_version=1,
    add_arguments=add_arguments,
    make_demo=make_demo,
    read_rows=read_rows,
    read_test=lambda data: read_table(data / "test.csv"),
    read_truth=lambda path: pd.read_csv(path),
    make_folds=make_folds,
    describe_folds=lambda rows, fold, group: f"{len(rows)} tiles in {len(set(group))} visits",
    study_data=lambda rows, test, fold, settings, **_: [],
    run_name=lambda settings: f"moon-{settings['hidden']}-s{settings['seed']}",
    make_spec=make_spec,
    build_model=lambda spec: Line(spec["hidden"]),
    load_weights=lambda model, spec, settings: "no weights",
    prepare=prepare,
    plan=plan,
    build_loss=lambda spec, settings: loss,
    open_training=lambda rows, spec, settings: Tiles(rows, 0.05),
    open_rows=lambda rows, spec, settings, on_bad="error": Tiles(rows, on_bad=on_bad),
    collate=collate,
    to_pred=lambda model, outputs: {"pred": outputs["value"]},
    make_frame=make_frame,
    score=score,
    read_set=read_set,
    read_run=lambda run: pd.concat([pd.read_csv(path) for path in sorted(Path(run).glob("fold*/oof.csv"))]),
    write_set=lambda folder, kind, frame: atomic_write(folder / f"{kind}.csv", frame.to_csv(index=False)),
    target_columns=lambda rows: OUTPUTS,
    units="grey levels",
    bad_answer="nothing",
    blends=("greedy", "mean"),
    truth_of=lambda frame: frame[["id"]].assign(**{name: frame[f"true_{name}"] for name in OUTPUTS}),
    mean_sets=mean_sets,
    concat=partial(pd.concat, ignore_index=True),
    fit_post=lambda rows, frame, settings=None: {"top": float(rows["brightness"].max())},
    apply_post=lambda frame, post, settings: frame.assign(
        brightness=frame["brightness"].clip(upper=post["top"] if post else None)
    ),
    write=write,
    validate=validate,
    judge=judge,
    blend=lambda blend, sets, folder: mean_sets(sets),
    report=report,
    compare=lambda rows, sets, settings: pd.DataFrame(
        [{"set": name, **score(rows, frame)} for name, frame in sets.items()]
    ),
    group_column="visit",
)
