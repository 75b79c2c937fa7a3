"""What a run says while it trains: banner, a line an epoch, TensorBoard, drawn samples, curves."""

from tqdm import tqdm

from common.engine.device import gather_predictions
from common.engine.experiments import Experiment
from common.engine.predict import predict
from common.outputs.curves import write_curves
from common.text_files import parse_json, read_text


def print_banner(header: dict, said: list[str], model, machine, rows: dict, loaders: dict) -> None:
    """Run, fold, device, parameters, rows and batches per split: what one wants to see before waiting."""
    if not machine.main:
        return
    parameters = sum(p.numel() for p in model.parameters())
    args, git, versions = header["args"], header["git"], header["versions"]
    amp = str(machine.amp).removeprefix("torch.") if machine.amp else "fp32"
    print(f"run {args['run']}, fold {header['fold']}, seed {args['seed']}, {said[0]}")
    print(
        f"device {machine.device} ({amp}), {machine.world} process{'es' if machine.world > 1 else ''}, "
        f"{parameters / 1e6:.2f} M parameters; torch {versions.get('torch')}, timm {versions.get('timm')}, "
        f"git {git['sha'] or 'none'}{' + changes' if git['dirty'] else ''}"
    )
    for part, loader in loaders.items():
        groups = rows[part]["group"].nunique()
        print(f"{part}: {len(rows[part])} rows in {groups} groups, {len(loader)} batches of {args['batch_size']}")
    for line in said[1:]:
        print(line)


class Tracker:
    """Follows one fold: validates, prints, draws. Only the first process writes."""

    def __init__(self, folder, settings: dict, task, spec: dict, valid_rows, valid_loader, machine):
        self.folder, self.settings, self.task, self.spec, self.machine = folder, settings, task, spec, machine
        self.valid_rows, self.loader = valid_rows, valid_loader
        self.frame, self.writer, self.experiment = None, None, None
        if settings["tensorboard"] and machine.main:
            from torch.utils.tensorboard import SummaryWriter

            self.writer = SummaryWriter(folder / "tensorboard")
        if settings["mlflow"] and machine.main:
            name = f"{settings['run']}-{folder.name}"
            self.experiment = Experiment(settings["mlflow"], task.experiment or task.name, name, folder, settings)

    def validate(self, model, epoch: int) -> dict:
        """{"score": …} over the validation rows by the inference path; score None where there are none."""
        if self.loader is None:
            return {"score": None}
        device, amp = self.machine.device, self.machine.amp
        keep, to_pred = self.task.keep(self.spec, self.settings, None), self.task.to_pred
        part = predict([model], self.loader, views=["identity"], device=device, to_pred=to_pred, amp=amp, keep=keep)
        part = gather_predictions(part, list(self.valid_rows["id"])) | {"folder": None, "keep": keep}
        self.frame = self.task.make_frame(part, self.spec, self.valid_rows)
        return self.task.score(self.valid_rows, self.frame)

    def epoch(self, trainer, record: dict, improved: bool) -> None:
        if not self.machine.main:
            return
        score = "-" if record["score"] is None else f"{record['score']:.4f}"
        tqdm.write(
            f"epoch {record['epoch']:3d}/{trainer.epochs}  loss {record['train_loss']:.4f}  score {score}  "
            f"lr {record['lr']:.1e}  {record['sec']:.1f} s  {record['images_s']:.0f} images/s  "
            f"waiting {record['wait']:.0%}  {record['gb']:.1f} GB{'  saved best' if improved else ''}"
        )
        for line in self.task.say_epoch(record):
            tqdm.write(f"  {line}")
        if self.writer:
            for key, value in record.items():
                if isinstance(value, (int, float)) and key not in ("epoch", "step"):
                    self.writer.add_scalar(key, value, record["epoch"])
            self.writer.flush()
        if self.experiment:
            self.experiment.log(trainer.history, self.task.tracked)
        every = self.settings["samples_every"]
        if every and self.frame is not None and record["epoch"] % every == 0:
            self.draw(f"epoch{record['epoch']:03d}")

    def draw(self, name: str) -> None:
        """A few validation rows with truth and prediction, into samples/."""
        if "samples" in self.task.draw:
            path = self.folder / "samples" / f"{name}.jpg"
            self.task.draw["samples"](self.frame, self.valid_rows, self.spec, path)
            if self.writer:
                import cv2

                self.writer.add_image("samples", cv2.imread(str(path))[..., ::-1].copy(), dataformats="HWC")

    def close(self, history: list[dict], frame) -> None:
        """Curves of the history and, where the fold was validated, of its out-of-fold set `frame`."""
        if self.writer:
            self.writer.close()
        write_curves(self.folder / "curves.png", history, title=f"{self.settings['run']} {self.folder.name}")
        artifacts = {"best_model.pth": self.folder / "best.pt", "curves.png": self.folder / "curves.png"}
        if "curve" in self.task.draw and frame is not None and "prob" in frame:
            artifacts["pr_curve.png"] = self.task.draw["curve"](frame, self.folder / "pr_curve.png")
        if self.experiment:
            self.experiment.close(artifacts)


def read_log(folder) -> list[dict]:
    path = folder / "log.jsonl"
    lines = read_text(path).splitlines() if path.is_file() else []
    return [parse_json(line, path, remedy="remove that line") for line in lines]
