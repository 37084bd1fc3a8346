"""Several pictures as one."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

_BACKGROUND, _TEXT = (24, 24, 24), (230, 230, 230)
_STRIP = 18  # pixels above each tile, for its title


def contact_sheet(panels: Sequence[tuple[str, np.ndarray]], max_tiles: int = 16, max_side: int = 640) -> np.ndarray:
    """The first ``max_tiles`` pictures in a grid that is about square, each under its title.

    Args:
        panels: (title, (H, W, 3) uint8); sizes may differ. At least one.
        max_side: pixels; a larger tile is scaled down to it.

    Returns:
        (H', W', 3) uint8.
    """
    tiles = []
    for title, picture in panels[:max_tiles]:
        tile = Image.fromarray(picture)
        tile.thumbnail((max_side, max_side), Image.Resampling.BILINEAR)
        tiles.append((title, tile))
    width = max(tile.width for _, tile in tiles)
    height = max(tile.height for _, tile in tiles) + _STRIP
    columns = math.ceil(math.sqrt(len(tiles)))
    sheet = Image.new("RGB", (columns * width, math.ceil(len(tiles) / columns) * height), _BACKGROUND)
    font = ImageFont.load_default()
    for index, (title, tile) in enumerate(tiles):
        x, y = index % columns * width, index // columns * height
        sheet.paste(tile, (x, y + _STRIP))
        strip = Image.new("RGB", (width, _STRIP), _BACKGROUND)  # cuts a title that is wider than its tile
        ImageDraw.Draw(strip).text((3, 3), title, fill=_TEXT, font=font)
        sheet.paste(strip, (x, y))
    return np.asarray(sheet)
