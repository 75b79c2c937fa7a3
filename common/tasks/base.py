"""What a competition is, to the four scripts: names, defaults and small functions. Nothing here does the work."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd
import torch


@dataclass
class Prepared:
    """What training one fold needs of the data: datasets, how to batch them, and a part that is frozen and shared.

    external: None, or {"prefix", "file", "sha256"} of a frozen part kept once per run (engine/checkpoint.py);
    restore() puts that part back into the model when training is over. said: lines to be shown before training;
    facts: plain values about the data that finished.json keeps for the report.
    """

    train: torch.utils.data.Dataset
    valid: torch.utils.data.Dataset | None
    collate: Callable
    init_worker: Callable | None = None
    external: dict | None = None
    restore: Callable[[], None] = lambda: None
    said: list[str] = field(default_factory=list)
    facts: dict = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Task:
    """A competition. `settings` is the dict of resolved options of the calling script, `rows` a table with a line per
    image (id, path, group and the task's own columns), `spec` the settings inside a checkpoint (plain types).

    What has a value here is what most competitions can do without.
    """

    name: str
    slug: str
    family: str
    outputs: tuple[str, ...]
    bands: tuple[str, ...]
    markers: dict[str, tuple[str, ...]]  # "train" and "test": files that tell the data folder
    defaults: dict
    demo_defaults: dict
    schemes: tuple[str, ...]  # fold schemes, the default first
    demo_version: int

    # the data
    add_arguments: Callable  # (parser, script): the options that belong to the task
    cut: Callable[..., None] = lambda settings, inside: None  # rasters that make_folds.py is given -> tiles in --data
    make_demo: Callable[[Path], dict]  # fills a folder in the competition's format, returns its facts
    read_rows: Callable[[Path, dict], pd.DataFrame]  # (data, settings): the training rows
    read_test: Callable[[Path], pd.DataFrame]  # the rows to be predicted: id and path, nothing else is promised
    read_truth: Callable[[Path], pd.DataFrame]  # (table or folder): rows with targets, without their images
    make_folds: Callable[..., tuple[np.ndarray, np.ndarray]]  # (rows, scheme=, folds=, seed=, …) -> (fold, group)
    fold_options: Callable[[dict], dict] = lambda settings: {}  # what else make_folds takes
    check_folds: Callable[..., list[str]] = lambda rows, fold, folds_csv, settings: []  # lines; or they are refused
    describe_folds: Callable[..., str]  # (rows, fold, group): the balance, to be printed
    check_data: Callable[..., list[str]] = lambda rows: []  # findings, a line each
    study_data: Callable[..., list[str]]  # (rows, test, fold, settings, adversarial=, duplicates=): slower findings
    one_folder: bool = False  # training and test rows are files of one folder, and an id means one of them
    dropped_ids: Callable[[dict], list[str]] = lambda settings: []  # ids that read_rows leaves out on purpose
    target_columns: Callable[[pd.DataFrame], tuple]  # the columns of the rows that folds.csv keeps beside the fold

    # the model
    run_name: Callable[[dict], str]  # (settings): default folder under runs/
    make_spec: Callable[[pd.DataFrame, dict], dict]  # (training rows, settings)
    build_model: Callable[[dict], torch.nn.Module]
    load_weights: Callable[..., str]  # (model, spec, settings): what was loaded, in a line
    prepare: Callable[..., Prepared]  # (model, train rows, valid rows or None, spec, settings, run folder, device)
    plan: Callable[..., tuple[list[dict], list]]  # (model, settings) -> (parameter groups, stages)
    build_loss: Callable[[dict, dict], Callable]  # (spec, settings) -> loss(outputs, batch) -> {"loss": …}
    open_training: Callable[..., torch.utils.data.Dataset]  # (rows, spec, settings): augmented
    open_rows: Callable[..., torch.utils.data.Dataset]  # (rows, spec, settings, on_bad=): nothing random
    collate: Callable
    init_worker: Callable | None = None

    # predictions
    units: str  # of the predictions, for people
    bad_answer: str  # what an unreadable image gets instead of a prediction, for people
    to_pred: Callable  # (model, outputs) -> {"pred": tensor, …}
    reads: Callable[[dict], dict] = lambda spec: {}  # what of a spec decides how rows are read
    keep: Callable = lambda spec, settings, folder: None  # engine.predict's `keep`, for predictions that are maps
    make_frame: Callable[..., pd.DataFrame]  # (engine.predict's answer, spec, rows with truth or None): a line per id
    score: Callable[[pd.DataFrame, pd.DataFrame], dict]  # (rows, frame) -> {"score": …}
    say_epoch: Callable[[dict], list[str]] = lambda record: []  # lines beside an epoch's, from its log record
    tracked: dict[str, str] = field(default_factory=dict)  # key of a log record -> its name for --mlflow
    experiment: str = ""  # of --mlflow (default: the task's name)
    read_set: Callable[[Path], pd.DataFrame]  # a prediction set, out-of-fold or test
    read_run: Callable[[Path], pd.DataFrame]  # the out-of-fold set of a run folder
    write_set: Callable[[Path, str, pd.DataFrame], Path]  # (folder, "oof", "pred" or "train", set)
    truth_of: Callable[[pd.DataFrame], pd.DataFrame]  # rows as an out-of-fold set itself knows them
    mean_sets: Callable[[dict, Path], pd.DataFrame]  # ({name: set}, folder for its maps): their mean
    concat: Callable[[list], pd.DataFrame]  # sets of different rows as one
    fit_post: Callable[..., dict]  # (rows, frame, settings of ensemble.py or nothing): learnt from out-of-fold sets
    apply_post: Callable[..., pd.DataFrame]  # (frame, post or None, settings with the folder that data was read from)
    write: Callable[..., Path]  # (frame, data, folder): the validated file or folder that is handed in
    validate: Callable[[Path, Path], None]  # (data, folder): InputError where what lies there cannot be handed in
    score_hidden: Callable = lambda frame, data: []  # (final frame, data): lines on truth that a demo set hides
    exports: dict[str, Callable] = field(default_factory=dict)  # option of infer.py -> writer of the models
    map_scenes: Callable[..., bool] | None = None  # (paths, models, post, views, settings, machine, folder) -> damaged

    # ensembles
    blends: tuple[str, ...]  # kinds of blend, the default first
    judge: Callable[..., dict]  # (rows, {name: frame}, settings): blend, honest scores and what a report needs
    blend: Callable[..., pd.DataFrame]  # (blend, {name: frame}, folder for its maps)
    published: dict[str, dict[str, float]] = field(default_factory=dict)  # others' results, beside ours in --compare
    gates: dict[str, dict[str, float]] = field(default_factory=dict)  # level -> {score's name: what is needed}
    # (rows, facts, settings): scores that stand beside ours, by name, and what a report shows of them besides
    baselines: Callable[..., tuple[dict, dict]] = lambda rows, facts, settings: ({}, {})
    report: Callable[..., Path]  # (path, judgement and that, members, scores beside, settings): report.html
    compare: Callable[..., pd.DataFrame]  # (rows, {name: frame}, settings): runs side by side
    check_jobs: Callable[[dict], None] = lambda settings: None  # InputError for options that ensemble.py's job ignores
    jobs: dict[str, Callable] = field(default_factory=dict)  # option of ensemble.py -> (rows, sets, runs, settings)
    group_column: str = "group"  # what strangers' predictions are judged by
    draw: dict = field(default_factory=dict)  # "sheet", "samples", "curve": pictures of inputs, predictions, a fold
