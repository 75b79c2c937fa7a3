"""Heads that are fitted, not trained: scikit-learn on frozen backbone features or on statistics of the photo.

In the shape of a model, so that prediction, checkpoints and run folders are those of every other model.
"""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from torch import nn

from common.datasets.plant_statistics import PLANT_STATISTICS_VERSION, plant_statistics
from common.errors import InputError
from common.models.backbone import Backbone
from common.models.classical import ClassicalHead, fit_head, pool_features
from common.models.stereo import cut_cells


class ClosedFormRegressor(nn.Module):
    """Features of a photo -> masses, by a head of models/classical.py that `fit_rows` fits once.

    statistics=True: plant statistics of both halves side by side; else a frozen timm backbone on the cells, averaged
    over cells and halves. mean, std: what the images were normalised with, to get the bytes back.
    """

    closed_form = True

    def __init__(self, *, outputs, grid, cell_size, backbone, pool, blocks, kind, statistics, mean, std, seed):
        super().__init__()
        self.outputs, self.grid, self.kind, self.seed = list(outputs), tuple(grid), kind, seed
        self.backbone = None
        if not statistics:
            self.backbone = Backbone(backbone, cell_size=cell_size, pool=pool, blocks=blocks)
            self.backbone.freeze(True)
        self.register_buffer("mean", torch.tensor(mean).view(1, 1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, 1, 3, 1, 1), persistent=False)
        self.head: ClassicalHead | None = None

    def embed(self, image: torch.Tensor) -> torch.Tensor:
        """Image (B,2,3,H,W) -> features (B,D) float32."""
        if self.backbone is not None:
            with torch.no_grad():
                cells = self.backbone(cut_cells(image, self.grid))
            cells = cells.float().reshape(image.shape[0], 2, -1, cells.shape[-1])
            return torch.from_numpy(pool_features(cells.cpu().numpy())).float()
        pixels = ((image * self.std + self.mean) * 255).round().clamp(0, 255).byte().cpu().numpy()
        photos = [np.concatenate(list(pair.transpose(0, 2, 3, 1)), axis=1) for pair in pixels]
        with ThreadPoolExecutor(2) as pool:  # OpenCV and numpy let go of the interpreter for most of it
            return torch.from_numpy(np.stack(list(pool.map(plant_statistics, photos))))

    def heads(self, features: torch.Tensor) -> dict:
        if self.head is None:
            raise InputError(f"--head {self.kind}: not fitted yet; train the fold first")
        return {"value": torch.from_numpy(self.head.predict(features.cpu().numpy()))}

    def forward(self, x: torch.Tensor) -> dict:
        """Images (5 axes) or stored features (2 axes) -> {"value": grams (B,T)}."""
        return self.heads(x if x.ndim == 2 else self.embed(x))

    def features_hash(self) -> str:
        """Equal for two models whose features of the same image are equal."""
        return self.backbone.content_hash() if self.backbone else f"plants-{PLANT_STATISTICS_VERSION}"

    def to_grams(self, outputs: dict) -> dict:
        return {"pred": outputs["value"]}

    def fit_rows(self, loader, groups: dict[str, str], device) -> None:
        """Fit on all rows of a loader. groups: id -> group, kept together where settings are chosen inside."""
        features, targets, ids = [], [], []
        for batch in loader:
            known = batch["valid"].all(dim=1)
            image = batch["image"].to(device)
            features.append((image if image.ndim == 2 else self.embed(image)).cpu()[known])
            targets.append(batch["target"][known])
            ids += [name for name, whole in zip(batch["id"], known.tolist(), strict=True) if whole]
        names = [groups[name] for name in ids]
        x, y = torch.cat(features).numpy(), torch.cat(targets).numpy()
        self.head = fit_head(self.kind, x, y, groups=names, seed=self.seed)

    def get_extra_state(self) -> dict:
        return self.head.state() if self.head else {}

    def set_extra_state(self, state: dict) -> None:
        self.head = ClassicalHead.from_state(state) if state else None
