"""The pictures of the report of a rare class: false blobs, missed ones, best tiles.

facts: as gathered by `detection_report`, with maps (`HonestMaps`) and scan (of `scan_maps`).
"""

from collections.abc import Sequence
from html import escape

import numpy as np

from common.errors import InputError
from common.outputs.detection_blobs import HALF_FOUND, Blob, window_of
from common.outputs.detection_figures import probability, probability_legend, probability_picture
from common.outputs.figures import jpeg_uri
from common.outputs.report import heading, number, paragraph
from common.outputs.segmentation_figures import PANEL_PX, colour_legend, panel, png_uri
from common.outputs.tile_pictures import (
    NODATA,
    class_legend,
    class_picture,
    combinations_of,
    error_names,
    error_picture,
    false_colour,
    shrunk,
)
from common.post.calibration import scale
from common.post.detection_maps import cut_mask


def pictures_section(facts: dict) -> list[str]:
    """The worst false blobs, the largest missed ones and the best tiles as image, truth, probability, error."""
    if facts["pictures"] < 1:
        return [paragraph("Not shown: none were asked for.", kind="why alone")]
    if facts["read_picture"] is None or not facts["bands"]:
        return [paragraph("Not shown: a reader of tiles and the names of their bands were not given.",
                          kind="why alone")]  # fmt: skip
    scan, name = facts["scan"], facts["name"]
    text = (
        "Masks at the honest threshold of the largest balanced IoU. Each image is stretched to its own valid pixels; "
        "the probability is calibrated and coloured by its log-odds. A blob is shown with its surroundings, one a "
        "tile; a best tile whole."
    )
    legends = [
        colour_legend(class_legend(facts["outputs"]) | {NODATA: "no data or ignored"}),
        colour_legend(probability_legend()),
    ]
    blocks = [paragraph(text), *legends, colour_legend(error_names(facts["outputs"]))]
    blocks.append(heading(f"False: surest blobs in tiles without {name}"))
    blocks += [blob_card(facts, blob) for blob in scan["false"]] or [
        paragraph(f"No blob is predicted in the {facts['negatives']} tiles without {name}.", kind="why alone")
    ]
    blocks.append(heading(f"Missed: true blobs of which less than {100 * HALF_FOUND:.0f} % is found"))
    blocks += [blob_card(facts, blob) for blob in scan["missed"]] or [
        paragraph("None missed: of every true blob at least so much is found.", kind="why alone")
    ]
    inside = np.flatnonzero(facts["positive"])
    iou = facts["tiles"].set_index(facts["tiles"]["id"].astype(str)).loc[facts["ids"], "iou"].to_numpy(float)[inside]
    best = inside[np.argsort(-np.nan_to_num(iou), kind="stable")][: facts["pictures"]]
    blocks.append(heading("Best: tiles of the highest IoU"))
    values = dict(zip(inside, iou, strict=True))
    notes = [f"IoU {number(values[place])}" for place in best]
    return blocks + [tile_card(facts, place, note) for place, note in zip(best, notes, strict=True)]


def blob_card(facts: dict, blob: Blob) -> str:
    note = f"{blob.pixels} px, mean probability {probability(blob.prob)}"
    note += f", {number(100 * blob.found, 0)} % found" if facts["positive"][blob.place] else ""
    return tile_card(facts, blob.place, note, blob.box)


def tile_card(facts: dict, place: int, note: str, box: Sequence[int] | None = None) -> str:
    """Panels of a tile, or of the window around a box in it, below its id; a reason where it cannot be read."""
    row = facts["rows"].iloc[place]
    name = str(row["id"])
    try:
        drawing = tile_panels(facts, row, place, box)
    except (InputError, OSError, ValueError) as error:
        drawing = paragraph(f"The tile cannot be shown: {error}", kind="why alone")
    words = f"<span><b>{escape(name)}</b> {escape(str(row['group']))}</span><span>{escape(note)}</span>"
    return f'<div class="card"><div class="identity">{words}</div>{drawing}</div>'


def tile_panels(facts: dict, row, place: int, box: Sequence[int] | None) -> str:
    maps, outputs, bands, name = facts["maps"], facts["outputs"], facts["bands"], str(row["id"])
    logit, valid, target = maps.read(place)
    cut = maps.cut(place, 1)
    pred, odds = cut_mask(logit, valid, cut).astype(np.uint8), scale(logit, cut.temperature)
    tile = np.asarray(facts["read_picture"](row))
    if tile.shape[-2:] != target.shape:
        raise InputError(f"its image is {tile.shape[-2:]}, its map {target.shape}")
    combination = "natural" if "natural" in combinations_of(bands) else next(iter(combinations_of(bands)))
    image = false_colour(tile, bands, combination)
    target = target.astype(np.uint8)
    window = (slice(None), slice(None)) if box is None else window_of(box, target.shape)
    maps_of = {"truth": class_picture(target, outputs, valid)}
    maps_of |= {"probability": probability_picture(odds, valid, NODATA)}
    maps_of |= {"mask": class_picture(pred, outputs, valid), "error": error_picture(target, pred, valid)}
    image = shrunk(image[window], PANEL_PX)
    html = [panel("image", jpeg_uri(image, PANEL_PX), image.shape, f"Tile {name}, image")]
    for words, whole in maps_of.items():
        picture = shrunk(whole[window], PANEL_PX)
        html.append(panel(words, png_uri(picture), picture.shape, f"Tile {name}, {words}"))
    return '<div class="tile">' + "\n".join(html) + "</div>"
