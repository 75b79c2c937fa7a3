"""Photos are read whole or refused with a line that says what to do; stamps are found, grass is left alone."""

import cv2
import numpy as np
import pytest
from PIL import Image

from common.datasets.readers import find_stamp, inpaint_stamp, is_whole_jpeg, read_photo, split_halves
from common.errors import InputError


def meadow(height=1000, width=2000, seed=0) -> np.ndarray:
    draws = np.random.default_rng(seed)
    coarse = cv2.resize(draws.normal(0, 25, (height // 8, width // 8, 3)).astype(np.float32), (width, height))
    return np.clip(coarse + (90, 120, 60), 0, 255).astype(np.uint8)


def save(path, image, **options):
    Image.fromarray(image).save(path, **options)
    return path


def test_photo_is_rgb_and_as_another_decoder_reads_it(tmp_path):
    image = meadow(100, 200)
    assert (read_photo(save(tmp_path / "a.png", image), (100, 200)) == image).all()
    path = save(tmp_path / "a.jpg", image, quality=95)
    other = np.asarray(Image.open(path)).astype(int)
    read = read_photo(path, None)
    assert read.dtype == np.uint8 and np.abs(read - other).mean() < 1
    for progressive in (save(tmp_path / "p.jpg", image, progressive=True), save(tmp_path / "g.jpg", image[..., 0])):
        assert read_photo(progressive, (100, 200)).shape == (100, 200, 3)


def refusal(path, size=(100, 200)) -> str:
    with pytest.raises(InputError) as caught:
        read_photo(path, size)
    message = str(caught.value)
    assert str(path) in message and "\n" not in message
    return message


def test_each_refusal_names_file_and_remedy(tmp_path):
    assert "missing" in refusal(tmp_path / "absent.jpg")
    (tmp_path / "empty.jpg").touch()
    assert "empty" in refusal(tmp_path / "empty.jpg")
    (tmp_path / "text.jpg").write_text("no picture at all")
    assert "cannot be decoded" in refusal(tmp_path / "text.jpg")
    assert "cannot be read" in refusal(tmp_path)
    message = refusal(save(tmp_path / "big.jpg", meadow(120, 200)))
    assert "200x120" in message and "200x100" in message


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"restart_marker_blocks": 4}])
def test_truncated_jpeg_is_refused_at_any_length(tmp_path, options):
    data = save(tmp_path / "a.jpg", meadow(100, 200), **options).read_bytes()
    path = tmp_path / "cut.jpg"
    for keep in [3, 30, *np.linspace(60, len(data) - 1, 25).astype(int), len(data) - 2]:
        path.write_bytes(data[:keep])
        assert "truncated" in refusal(path)
        path.write_bytes(data[:keep] + bytes(4096))  # a copy that reserved its room and stopped
        assert "truncated" in refusal(path)
    path.write_bytes(data + b"maker's notes")
    assert read_photo(path, (100, 200)).shape == (100, 200, 3)


def test_end_marker_of_a_thumbnail_does_not_count(tmp_path):
    data = save(tmp_path / "a.jpg", meadow(100, 200)).read_bytes()
    thumbnail = save(tmp_path / "t.jpg", meadow(16, 16)).read_bytes()
    segment = b"\xff\xe1" + (len(thumbnail) + 2).to_bytes(2, "big") + thumbnail
    whole = data[:2] + segment + data[2:]
    assert is_whole_jpeg(whole) and not is_whole_jpeg(whole[:-500])


def test_truncated_png_is_refused(tmp_path):
    data = save(tmp_path / "a.png", meadow(100, 200)).read_bytes()
    (tmp_path / "a.png").write_bytes(data[: len(data) // 2])
    assert "truncated PNG" in refusal(tmp_path / "a.png")


@pytest.mark.parametrize("width", [200, 201])
def test_halves(width):
    image = meadow(20, width)
    left, right = split_halves(image)
    assert (left == image[:, : width // 2]).all() and (right == image[:, width // 2 :]).all()


STAMPS = [("2015/9/4", (1500, 960), 1.2), ("11/23/2014", (60, 70), 0.9), ("2015 07 08", (1480, 970), 1.6)]


@pytest.mark.parametrize("text, at, scale", STAMPS)
def test_stamp_is_found_and_painted_over(tmp_path, text, at, scale):
    clean = meadow(seed=len(text))
    stamped = clean.copy()
    cv2.putText(stamped, text, at, cv2.FONT_HERSHEY_SIMPLEX, scale, (255, 140, 30), 3, cv2.LINE_AA)
    drawn = (stamped != clean).any(-1)
    stamped = read_photo(save(tmp_path / "s.jpg", stamped, quality=92))
    clean = read_photo(save(tmp_path / "c.jpg", clean, quality=92)).astype(int)
    mask = find_stamp(stamped)
    near = cv2.dilate(drawn.astype(np.uint8), np.ones((15, 15), np.uint8)) > 0
    assert mask[drawn].mean() > 0.95 and mask[~near].sum() == 0
    before = stamped.copy()
    painted = inpaint_stamp(stamped)
    assert (stamped == before).all() and (painted[~mask] == stamped[~mask]).all()
    error_before, error_after = (np.abs(x - clean)[drawn].mean() for x in (stamped.astype(int), painted.astype(int)))
    assert error_after < 0.25 * error_before


def test_a_photo_without_a_stamp_is_not_touched():
    image = meadow()
    image[900:960, 1500:1800] = (255, 140, 30)  # an orange thing, no line of glyphs
    for x in range(100, 1900, 200):  # orange flowers far apart
        cv2.circle(image, (x, 60), 14, (255, 140, 30), -1)
    assert not find_stamp(image).any() and inpaint_stamp(image) is image


@pytest.mark.data
def test_real_photos_are_read_and_have_no_false_stamps(biomass_data):
    for path in sorted((biomass_data / "train").glob("*.jpg"))[:12]:
        image = read_photo(path)
        assert image.shape == (1000, 2000, 3) and not find_stamp(image).any()
