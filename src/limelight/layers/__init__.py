"""Layers: the parts that models are built from. What attends in here calls `limelight.attend` or `limelight.look`."""

from limelight.layers.additive import BahdanauAttention
from limelight.layers.dropout import Dropout
from limelight.layers.feedforward import FeedForward
from limelight.layers.grouped import GroupedQueryAttention
from limelight.layers.luong import LuongAttention
from limelight.layers.memory_attention import MemoryAttention
from limelight.layers.multihead import MultiHeadAttention
from limelight.layers.positions import SinusoidalPositions, sinusoidal
from limelight.layers.recurrent import BidirectionalEncoder, RecurrentStack

__all__ = [
    "BahdanauAttention",
    "BidirectionalEncoder",
    "Dropout",
    "FeedForward",
    "GroupedQueryAttention",
    "LuongAttention",
    "MemoryAttention",
    "MultiHeadAttention",
    "RecurrentStack",
    "SinusoidalPositions",
    "sinusoidal",
]
