"""How a notebook shows a view: a small picture, cheap at any length."""

from __future__ import annotations

import base64
import math
import struct
import zlib
from html import escape
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from limelight.backends.pooling import pooled
from limelight.errors import StaleViewError

if TYPE_CHECKING:
    from limelight.view.attention import AttentionView

CELLS = 64
"""Cells of the picture, at most, along each side."""

PAIRS = 1 << 20
"""Weights that are computed for it, at most: about a tenth of a second on one core for a dot score."""


@torch.no_grad()
def html(view: AttentionView) -> str:
    """The repr, and the mean over the heads of the first sequence; of a long one, of its last queries and keys."""
    text = f"<div><code>{escape(repr(view))}</code></div>"
    *lead, heads, queries, keys = view.shape
    if not math.prod(view.shape):
        return text
    side = max(1, math.isqrt(PAIRS // heads))
    rows, columns = min(queries, max(side, PAIRS // heads // keys)), min(keys, max(side, PAIRS // heads // queries))
    region = slice(queries - rows, queries), slice(keys - columns, keys)
    try:
        call = view.sound_call()
    except StaleViewError as error:
        return f"{text}<div>{escape(str(error))}</div>"
    block = call.block(slice(0, 1), *region)
    cells = min(CELLS, rows), min(CELLS, columns)
    picture = pooled(call, view.folded_threshold(), block, *cells, "mean")[0].mean(0)
    part = "" if (rows, columns) == (queries, keys) else f"the last {rows:,} queries and {columns:,} keys, "
    first = "the first sequence, " if math.prod(lead) > 1 else ""
    caption = f"{first}{part}mean over {heads} heads; queries down, keys across; black is {picture.max():.2g}"
    data = base64.b64encode(png(picture)).decode()
    scale = max(1, 320 // max(cells))
    style = f"width:{cells[1] * scale}px;height:{cells[0] * scale}px;image-rendering:pixelated;border:1px solid #ccc"
    return f'{text}<img style="{style}" alt="{escape(caption)}" src="data:image/png;base64,{data}"><div>{caption}</div>'


def png(cells: Tensor) -> bytes:
    """A matrix of numbers of at least 0 as a grey PNG, the largest black and 0 white; NaN is white."""
    cells = cells.detach().cpu().double().nan_to_num(0.0)
    most = float(cells.max())
    grey = (255 - 255 * cells / (most if most > 0 else 1.0)).round().to(torch.uint8)
    height, width = grey.shape
    # Each line begins with its filter, 0: none.
    lines = b"".join(b"\0" + bytes(line) for line in grey.tolist())
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(lines)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    )
