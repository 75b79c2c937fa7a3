"""What a fold leaves in MLflow, read back by MLflow's own client."""

import json
import sys
from pathlib import Path

import pytest
import yaml

from common.engine.experiments import LOCAL, NOTE, Experiment
from common.engine.loop import Trainer
from common.errors import InputError

mlflow = pytest.importorskip("mlflow")
NAMES = {"score": "val_balanced_iou_rts", "precision": "val_balanced_precision", "recall": "val_balanced_recall"}


class Killed(BaseException):
    """Not an Exception: nothing may catch it, as nothing catches a kill."""


def kill_after_log(monkeypatch, epoch: int, before: bool):
    """A kill in this epoch, before or after its numbers went to MLflow; last.pt has them."""
    log = Experiment.log

    def dies(self, history, names):
        if len(history) == epoch and before:
            raise Killed
        log(self, history, names)
        if len(history) == epoch:
            raise Killed

    monkeypatch.setattr(Experiment, "log", dies)


def metrics_of(client, run: str, key: str) -> list[tuple[int, float]]:
    return [(metric.step, metric.value) for metric in client.get_metric_history(run, key)]


@pytest.mark.soak
@pytest.mark.parametrize("before", [pytest.param(True, marks=pytest.mark.soak), False])
def test_a_killed_and_resumed_fold_is_one_run(slumps_empty, monkeypatch, before):
    """Parameters, an entry per metric and epoch, artifacts; experiment and run name; in the store made by default."""
    import tiny_rts

    words = ("--fold", "0", "--epochs", "3", "--mlflow")
    with monkeypatch.context() as patch:
        kill_after_log(patch, 2, before)
        with pytest.raises(Killed):
            tiny_rts.train(slumps_empty, *words, run="tracked")
    fold = tiny_rts.train(slumps_empty, *words, "--resume", "--workers", "1", run="tracked") / "fold0"
    client = mlflow.MlflowClient(tracking_uri=LOCAL.replace("runs", str(slumps_empty / "runs"), 1))
    experiment = client.get_experiment_by_name("rts-segmentation-v2")
    runs = client.search_runs([experiment.experiment_id])
    assert [(run.info.run_name, run.info.status) for run in runs] == [("tracked-fold0", "FINISHED")]
    run = runs[0].info.run_id
    begun = yaml.safe_load((fold / "args.yaml").read_text()) | {"workers": 0}
    assert runs[0].data.params == {key: str(value) for key, value in begun.items()}
    lines = [json.loads(line) for line in (fold / "log.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines] == [1, 2, 3]
    for key in ("train_loss", *NAMES):
        found = metrics_of(client, run, NAMES.get(key, key))
        assert found == [(line["epoch"], pytest.approx(line[key])) for line in lines], key
    assert not {"score", "epoch", "step", "predicts_nothing"} & runs[0].data.metrics.keys()
    artifacts = {item.path: Path(client.download_artifacts(run, item.path)) for item in client.list_artifacts(run)}
    assert {"best_model.pth", "curves.png", "pr_curve.png"} <= artifacts.keys()
    assert artifacts["best_model.pth"].read_bytes() == (fold / "best.pt").read_bytes()
    assert artifacts["pr_curve.png"].read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> str:
    return f"sqlite:///{tmp_path_factory.mktemp('store')}/mlflow.db"


@pytest.fixture
def open_experiment(store, tmp_path, monkeypatch):
    """open(uri=, parameters=) -> Experiment of the fold tmp_path/fold0, in the working folder tmp_path."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "fold0").mkdir()

    def start(uri=store, **parameters):
        return Experiment(uri, "any", f"{tmp_path.name}-fold0", tmp_path / "fold0", parameters)

    return start


def test_parameters_of_any_number_and_length(open_experiment):
    """The options of the call itself are none; what a resumed fold changed stays as it began."""
    many = {f"option{k}": k for k in range(150)} | {"long": "x" * 9000, "list": [1, 2], "nothing": None}
    first = open_experiment(**many, resume=False, force=False)
    (first.folder / "last.pt").touch()
    again = open_experiment(**many | {"option3": 99, "late": 1}, resume=True, force=False)
    assert again.run == first.run
    params = again.client.get_run(again.run).data.params
    assert params == {key: str(value)[:6000] for key, value in many.items()} | {"late": "1"}


def test_an_epoch_is_logged_once_and_only_numbers_are(open_experiment):
    first = open_experiment()
    lines = [{"epoch": k, "step": 5 * k, "sec": 0.5, "score": k / 10, "best": None, "empty": True, "name": "a",
              "odd": float("nan"), "count": 3} for k in (1, 2, 3)]  # fmt: skip
    first.log(lines[:1], NAMES)
    first.log(lines[:2], NAMES)
    (first.folder / "last.pt").touch()
    again = open_experiment()
    again.log(lines[:1], NAMES)  # trained again after a kill
    again.log(lines, NAMES)
    assert metrics_of(again.client, first.run, "val_balanced_iou_rts") == [(1, 0.1), (2, 0.2), (3, 0.3)]
    assert set(again.client.get_run(first.run).data.metrics) == {"sec", "val_balanced_iou_rts", "count"}


def test_a_fold_that_starts_over_or_elsewhere_is_another_run(open_experiment, store, tmp_path):
    first = open_experiment()
    assert json.loads((first.folder / NOTE).read_text()) == {"uri": store, "run": first.run}
    over = open_experiment()  # last.pt is gone: --force took it
    assert over.run != first.run
    (over.folder / "last.pt").touch()
    assert open_experiment().run == over.run
    over.close({"there.txt": over.folder / NOTE, "absent.txt": over.folder / "absent"})
    assert [item.path for item in over.client.list_artifacts(over.run)] == ["there.txt"]
    assert open_experiment().client.get_run(over.run).info.status == "RUNNING"


def test_a_store_that_cannot_be_opened(open_experiment):
    for uri in ("nonsense://there", "sqlite:////proc/none/mlflow.db"):
        with pytest.raises(InputError, match=f"--mlflow {uri}: "):
            open_experiment(uri)


def test_without_mlflow(open_experiment, monkeypatch):
    monkeypatch.setitem(sys.modules, "mlflow", None)
    with pytest.raises(InputError, match="MLflow is not installed; pip install mlflow, or leave the option out"):
        open_experiment()


def test_a_store_that_goes_away(open_experiment, store, monkeypatch):
    """One line that says what is kept, while epochs are logged and at the end."""
    tracked = open_experiment()

    def gone(*_, **__):
        raise ConnectionError("no route\nto the host")

    for name in ("log_batch", "set_terminated"):
        monkeypatch.setattr(tracked.client, name, gone)
    for job in (lambda: tracked.log([{"epoch": 1, "sec": 0.5}], NAMES), lambda: tracked.close({})):
        with pytest.raises(InputError) as said:
            job()
        assert str(said.value) == f"--mlflow {store}: no route; what is trained is kept, --resume goes on"
    assert not tracked.logged
    with pytest.raises(ValueError, match="first"), tracked:
        raise ValueError("first")


@pytest.mark.parametrize(("error", "status", "code"), [(InputError("collapsed"), "FAILED", 2),
                                                      pytest.param(KeyboardInterrupt(), "KILLED", 130,
                                                                   marks=pytest.mark.soak)])  # fmt: skip
def test_a_fold_that_ends_early_is_marked(slumps_empty, monkeypatch, error, status, code):
    """In the second epoch; --resume goes on in the same run, which is finished then."""
    import tiny_rts

    epochs = Trainer.train_epoch

    def ends(self, epoch):
        if epoch == 1:
            raise error
        return epochs(self, epoch)

    call = ("train", "--data", "data", *tiny_rts.SMALL, "--fold", "0", "--epochs", "2", "--run", "early", "--mlflow")
    state = lambda: [run.info.status for run in client.search_runs([number])]  # noqa: E731
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "train_epoch", ends)
        tiny_rts.call(slumps_empty, *call, code=code)
    client = mlflow.MlflowClient(tracking_uri=LOCAL.replace("runs", str(slumps_empty / "runs"), 1))
    number = client.get_experiment_by_name("rts-segmentation-v2").experiment_id
    assert state() == [status]
    tiny_rts.call(slumps_empty, *call, "--resume")
    assert state() == ["FINISHED"]
