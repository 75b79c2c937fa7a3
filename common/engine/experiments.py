"""A fold as a run of MLflow: parameters, metrics of every epoch, artifacts; read back by its own client and page."""

import json
import math
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path

from common.errors import InputError
from common.files import atomic_write

LOCAL = "sqlite:///runs/mlflow.db"  # --mlflow without an address
NOTE = "mlflow.json"  # in the fold's folder: which run of MLflow it is, so that a resumed fold goes on in it
MOST = 6000  # characters of a parameter that every store of MLflow takes


def open_client(uri: str):
    """MLflow's client for a store. InputError where MLflow is not installed or the store cannot be opened."""
    try:
        from mlflow import MlflowClient
    except ImportError as error:
        raise InputError("--mlflow: MLflow is not installed; pip install mlflow, or leave the option out") from error
    if uri.startswith("sqlite:///"):
        Path(uri.removeprefix("sqlite:///")).parent.mkdir(parents=True, exist_ok=True)
    return MlflowClient(tracking_uri=uri)


class Experiment:
    """One fold in an MLflow store."""

    def __init__(self, uri: str, experiment: str, name: str, folder: Path, parameters: Mapping):
        self.folder, self.client = folder, open_client(uri)
        try:
            self.run = self.begin(uri, experiment, name)
            for key, value in sorted(parameters.items()):
                self.client.log_param(self.run, key, str(value)[:MOST])
        except Exception as error:  # MLflow wraps the errors of databases and servers in families of its own
            raise InputError(f"--mlflow {uri}: {str(error).splitlines()[0]}") from error

    def begin(self, uri: str, experiment: str, name: str) -> str:
        """The id of the fold's run: that of a fold which goes on, else a new one."""
        note = self.folder / NOTE
        if note.is_file() and (self.folder / "last.pt").is_file():
            known = json.loads(note.read_text())
            if known["uri"] == uri:
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

    def log(self, record: Mapping, names: Mapping[str, str]) -> None:
        """The numbers of an epoch's log record, by their own names or those of `names`."""
        for key, value in record.items():
            if isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value):
                if key not in ("epoch", "step"):
                    self.client.log_metric(self.run, names.get(key, key), float(value), step=record["epoch"])

    def close(self, artifacts: Mapping[str, Path]) -> None:
        """Store the artifacts {name: file} and end the run."""
        for name, path in artifacts.items():
            if path.is_file():
                with tempfile.TemporaryDirectory() as folder:  # an artifact is named after its file
                    self.client.log_artifact(self.run, str(shutil.copy(path, Path(folder) / name)))
        self.client.set_terminated(self.run)
