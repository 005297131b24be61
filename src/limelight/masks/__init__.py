"""Masks: who may attend to whom. True means *may attend*; `&`, `|` and `~` combine them."""

from limelight.masks.band import band
from limelight.masks.block import Block
from limelight.masks.causal import causal
from limelight.masks.dense import dense
from limelight.masks.interval import interval
from limelight.masks.lengths import lengths
from limelight.masks.protocol import Mask
from limelight.masks.segments import segments
from limelight.masks.window import window

__all__ = ["Block", "Mask", "band", "causal", "dense", "interval", "lengths", "segments", "window"]
