"""A fold as a run of MLflow: parameters, metrics of every epoch, artifacts; read back by its own client and page."""

import contextlib
import json
import math
import shutil
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

from common.engine.runs import THIS_CALL
from common.errors import InputError
from common.files import atomic_write
from common.text_files import read_json

LOCAL = "sqlite:///runs/mlflow.db"  # --mlflow without an address
NOTE = "mlflow.json"  # in the fold's folder: which run of MLflow it is, so that a resumed fold goes on in it
ALWAYS = "sec"  # a metric that every epoch has
AT_ONCE = 100  # parameters in a call to the store
KEPT = "; what is trained is kept, --resume goes on"
MOST = 6000  # characters of a parameter that every store of MLflow takes


def open_client(uri: str):
    """MLflow's client for a store. InputError where MLflow is not installed or the store cannot be opened."""
    try:
        from mlflow import MlflowClient
    except ImportError as error:
        raise InputError("--mlflow: MLflow is not installed; pip install mlflow, or leave the option out") from error
    if uri.startswith("sqlite:///"):
        path = Path(uri.removeprefix("sqlite:///")).resolve()  # MLflow keeps stores open by name, whatever the folder
        path.parent.mkdir(parents=True, exist_ok=True)
        uri = f"sqlite:///{path}"
    return MlflowClient(tracking_uri=uri)


@contextlib.contextmanager
def named_errors(uri: str, remedy: str = ""):
    """InputError for whatever a store raises: MLflow wraps errors of databases and servers in families of its own."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        raise InputError(f"--mlflow {uri}: {(str(error).splitlines() or [type(error).__name__])[0]}{remedy}") from error


class Experiment:
    """One fold in an MLflow store. As a context, it marks the run as failed or killed where the block ends so."""

    def __init__(self, uri: str, experiment: str, name: str, folder: Path, parameters: Mapping):
        self.uri, self.folder = uri, folder
        with named_errors(uri):
            self.client = open_client(uri)
            self.run = self.begin(uri, experiment, name)
            self.describe(parameters)
            self.logged = {metric.step for metric in self.client.get_metric_history(self.run, ALWAYS)}

    def __enter__(self):
        return self

    def __exit__(self, kind, error, trace) -> None:
        if kind is not None and issubclass(kind, (Exception, KeyboardInterrupt)):
            with contextlib.suppress(Exception):  # the error that ended the block is the one to be told
                self.client.set_terminated(self.run, "KILLED" if kind is KeyboardInterrupt else "FAILED")

    def begin(self, uri: str, experiment: str, name: str) -> str:
        """The id of the fold's run: that of a fold which goes on, else a new one."""
        note = self.folder / NOTE
        if note.is_file() and (self.folder / "last.pt").is_file():
            known = read_json(note, remedy="remove it, the fold then gets a run of its own")
            if known.get("uri") == uri and "run" in known:
                self.client.update_run(known["run"], status="RUNNING")
                return known["run"]
        found = self.client.get_experiment_by_name(experiment)
        if found is None:
            place = (Path("runs") / "mlflow-artifacts").resolve().as_uri() if uri.startswith("sqlite:") else None
            number = self.client.create_experiment(experiment, artifact_location=place)
        else:
            number = found.experiment_id
        run = self.client.create_run(number, run_name=name).info.run_id
        atomic_write(note, json.dumps({"uri": uri, "run": run}) + "\n")
        return run

    def describe(self, parameters: Mapping) -> None:
        """Store the parameters. Those of a run that goes on stay as it began: MLflow lets none be changed."""
        from mlflow.entities import Param

        known = self.client.get_run(self.run).data.params
        new = [Param(key, str(parameters[key])[:MOST]) for key in sorted(parameters) if key not in {*known, *THIS_CALL}]
        for first in range(0, len(new), AT_ONCE):
            self.client.log_batch(self.run, params=new[first : first + AT_ONCE])

    def log(self, history: list[Mapping], names: Mapping[str, str]) -> None:
        """The numbers of the epochs that the store does not have yet, by their own names or those of `names`.

        A kill between last.pt and the store leaves an epoch out, one between two last.pt has one trained again.
        """
        from mlflow.entities import Metric

        for record in history:
            if record["epoch"] in self.logged:
                continue
            numbers = {names.get(key, key): float(value) for key, value in record.items()
                       if isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
                       and key not in ("epoch", "step")}  # fmt: skip
            now, epoch = int(time.time() * 1000), record["epoch"]
            with named_errors(self.uri, KEPT):
                self.client.log_batch(self.run, metrics=[Metric(key, v, now, epoch) for key, v in numbers.items()])
            self.logged.add(epoch)

    def close(self, artifacts: Mapping[str, Path]) -> None:
        """Store the artifacts {name: file} and end the run."""
        with named_errors(self.uri, KEPT):
            for name, path in artifacts.items():
                if path.is_file():
                    with tempfile.TemporaryDirectory() as folder:  # an artifact is named after its file
                        self.client.log_artifact(self.run, str(shutil.copy(path, Path(folder) / name)))
            self.client.set_terminated(self.run)
