"""The colour scales, for dark and for light ground.

Nine anchors each, at equal steps of lightness in OKLab (Ottosson 2020), so that equal steps of weight look equally
large, also to the colour-blind and in grey print. In between, sRGB is interpolated.
"""

# Weight 0 is a dark stage, weight 1 stands in the limelight.
STAGE = ("#0e1218", "#172940", "#114661", "#036871", "#118a7a", "#44ab7b", "#73cb77", "#ace768", "#effe77")

# Weight 0 is white paper, weight 1 is deep ink.
PAPER = ("#ffffff", "#d3e9c7", "#98d3a4", "#52bc9b", "#0b9d9d", "#087999", "#215492", "#253476", "#1d1b4e")

# The nearest to STAGE among the 256 colours of xterm; converting one by one would turn its dark end into a bright blue.
STAGE_256 = (233, 235, 237, 23, 29, 35, 77, 155, 227)

RGB = tuple[int, int, int]


def mix(scale: tuple[str, ...], weight: float) -> RGB:
    """The colour of a weight in [0, 1] on a scale of anchors."""
    place = min(max(weight, 0.0), 1.0) * (len(scale) - 1)
    index = min(int(place), len(scale) - 2)
    low, high, part = _channels(scale[index]), _channels(scale[index + 1]), place - index
    red, green, blue = (round(a + (b - a) * part) for a, b in zip(low, high, strict=True))
    return red, green, blue


def _channels(colour: str) -> RGB:
    return int(colour[1:3], 16), int(colour[3:5], 16), int(colour[5:7], 16)
