"""Views of tiles and the maps that come back: an identity model gives its input back, whatever the size."""

from itertools import product

import numpy as np
import pytest
import torch

from common.engine.predict import predict
from common.engine.tta import VIEWS, apply_view, check_views, invert_view

TURNS = ["identity", "hflip", "vflip", "rot90", "rot180", "rot270"]
SCALES = ["scale0.75", "scale1.25"]
BY_NUMPY = {
    "identity": lambda plane: plane,
    "hflip": np.fliplr,
    "vflip": np.flipud,
    "rot90": np.rot90,
    "rot180": lambda plane: np.rot90(plane, 2),
    "rot270": lambda plane: np.rot90(plane, 3),
}
SIZES = [(5, 8), (7, 3), (6, 6)]


def numbered(height: int, width: int) -> torch.Tensor:
    """(1,2,H,W) in which every value is there once."""
    return torch.arange(2.0 * height * width).reshape(1, 2, height, width)


def ramps(height: int, width: int) -> torch.Tensor:
    """(1,2,H,W): row and column of every pixel, which bilinear interpolation keeps but for the border."""
    return torch.stack(torch.meshgrid(torch.arange(float(height)), torch.arange(float(width)), indexing="ij"))[None]


@pytest.mark.parametrize("view", TURNS)
def test_a_turn_is_that_of_numpy(view):
    image = numbered(5, 8)
    seen = apply_view(view, image)[0].numpy()
    np.testing.assert_array_equal(seen, [BY_NUMPY[view](plane) for plane in image[0].numpy()])


@pytest.mark.parametrize("size", SIZES)
def test_turns_and_all_pairs_and_triples_of_them_give_the_input_back(size):
    image = numbered(*size)
    for count in (1, 2, 3):
        for parts in product(TURNS, repeat=count):
            view = "+".join(parts)
            seen = apply_view(view, image)
            assert torch.equal(invert_view(view, seen, size), image), view
            assert torch.equal(invert_view(view, seen), image), f"{view}, size not told"


def test_parts_of_a_view_are_applied_from_left_to_right():
    image = numbered(3, 4)
    seen = apply_view("hflip+rot90", image)[0, 0].numpy()
    np.testing.assert_array_equal(seen, np.rot90(np.fliplr(image[0, 0].numpy())))
    assert not np.array_equal(seen, np.fliplr(np.rot90(image[0, 0].numpy())))


@pytest.mark.parametrize("size", [(40, 64), (33, 50), (41, 39), (31, 30)])
@pytest.mark.parametrize("view", [*SCALES, "rot90+scale0.75", "scale1.25+rot270", "hflip+scale0.75+rot90",
                                  "scale0.75+scale1.25"])  # fmt: skip
def test_a_scale_puts_every_pixel_back_where_it_was(view, size):
    """Rows and columns as values: away from the border a pixel comes back within a fiftieth of a pixel."""
    image = ramps(*size)
    back = invert_view(view, apply_view(view, image), size)
    assert back.shape == image.shape
    torch.testing.assert_close(back[..., 3:-3, 3:-3], image[..., 3:-3, 3:-3], atol=0.02, rtol=0)
    assert (back - image).abs().max() < 1.0


@pytest.mark.parametrize("view, factor", [("scale0.75", 0.75), ("scale1.25", 1.25)])
def test_a_scale_changes_the_size_by_its_factor_and_little_of_a_smooth_picture(view, factor):
    rows, columns = ramps(48, 80)[0]
    image = (torch.sin(rows / 9) * torch.cos(columns / 11))[None, None]
    seen = apply_view(view, image)
    assert seen.shape[-2:] == (48 * factor, 80 * factor)
    assert (invert_view(view, seen, (48, 80)) - image).abs().max() < 0.02
    assert apply_view(view, numbered(1, 2)).shape[-1] >= 1, "a side never vanishes"


class Spike(torch.nn.Module):
    """Sees nothing and says 1 in the upper left corner of what it is shown."""

    def forward(self, image):
        answer = torch.zeros(len(image), 1, *image.shape[-2:])
        answer[..., 0, 0] = 1
        return answer


def run(models, image, views, to_pred=lambda model, outputs: {"prob": outputs}, **more):
    loader = [{"image": part, "id": [f"t{k}"]} for k, part in enumerate(image.split(1))]
    return predict(models, loader, views=views, device=torch.device("cpu"), to_pred=to_pred, **more)


def test_the_mean_over_views_is_taken_upright():
    image = torch.rand(2, 3, 11, 7, generator=torch.Generator().manual_seed(0))
    views = [*TURNS, "hflip+rot90", "vflip+rot270"]
    answer = run([torch.nn.Identity()], image, views)
    np.testing.assert_allclose(answer["prob"][0], image, atol=1e-6)
    assert answer["id"] == ["t0", "t1"] and answer["prob"].shape == (1, 2, 3, 11, 7)
    spikes = run([Spike()], image, TURNS)["prob"][0, 0, 0]
    expected = np.zeros((11, 7))
    # identity; then the corner that each view brings to the upper left
    for row, column in ((0, 0), (0, -1), (-1, 0), (0, -1), (-1, -1), (-1, 0)):
        expected[row, column] += 1 / 6
    np.testing.assert_allclose(spikes, expected, atol=1e-6)


def test_what_has_no_place_is_not_turned_and_keep_sees_what_would_be_returned():
    image = torch.rand(2, 3, 6, 4, generator=torch.Generator().manual_seed(1))
    seen = []

    def to_pred(model, outputs):
        return {"prob": outputs, "mean": outputs.mean((2, 3))}

    def keep(batch, values):
        seen.append(values)
        return {"sum": values["prob"].sum((2, 3, 4))}

    models = [torch.nn.Identity(), torch.nn.ReLU()]
    whole = run(models, image - 0.5, ["identity", "rot90", "hflip"], to_pred)
    np.testing.assert_allclose(whole["mean"][0], (image - 0.5).mean((2, 3)), atol=1e-6)
    np.testing.assert_allclose(whole["prob"][1], (image - 0.5).clamp(min=0), atol=1e-6)
    kept = run(models, image - 0.5, ["identity", "rot90", "hflip"], to_pred, keep=keep)
    assert set(kept) == {"id", "bad", "sum"}
    np.testing.assert_allclose(kept["sum"], whole["prob"].sum((2, 3, 4)), rtol=1e-5)
    assert [value["prob"].shape for value in seen] == [(2, 1, 3, 6, 4)] * 2


def test_the_views_of_tiles_are_all_tested_here():
    assert set(TURNS + SCALES) == set(VIEWS) - {"swap"}
    assert check_views(["rot90", "scale1.25"], TURNS + SCALES) == ["identity", "rot90", "scale1.25"]
