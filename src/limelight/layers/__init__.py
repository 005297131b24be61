"""Layers: the parts that models are built from. What attends in here calls `limelight.attend` or `limelight.look`."""

from limelight.layers.additive import BahdanauAttention
from limelight.layers.blocks import Residual, TransformerDecoderLayer, TransformerEncoderLayer
from limelight.layers.coverage import CoverageAttention, coverage_loss
from limelight.layers.dropout import Dropout
from limelight.layers.feedforward import FeedForward
from limelight.layers.grouped import GroupedQueryAttention
from limelight.layers.local import LocalAttention, LocalMonotonicAttention, LocalPredictiveAttention
from limelight.layers.location import LocationAttention
from limelight.layers.luong import LuongAttention
from limelight.layers.memory_attention import MemoryAttention
from limelight.layers.multihead import MultiHeadAttention
from limelight.layers.norm import RMSNorm, make_norm
from limelight.layers.positions import LearnedPositions, SinusoidalPositions, sinusoidal
from limelight.layers.recurrent import BidirectionalEncoder, RecurrentStack, UnrolledStack
from limelight.layers.rotary import RotaryPositions
from limelight.layers.rotary_scaling import (
    DynamicNTKScaling,
    LinearScaling,
    Llama3Scaling,
    LongRoPEScaling,
    NTKScaling,
    RotaryScaling,
    YarnScaling,
)
from limelight.layers.shaw import ShawAttention, relative_attention

__all__ = [
    "BahdanauAttention",
    "BidirectionalEncoder",
    "CoverageAttention",
    "Dropout",
    "DynamicNTKScaling",
    "FeedForward",
    "GroupedQueryAttention",
    "LearnedPositions",
    "LinearScaling",
    "Llama3Scaling",
    "LocalAttention",
    "LocalMonotonicAttention",
    "LocalPredictiveAttention",
    "LocationAttention",
    "LongRoPEScaling",
    "LuongAttention",
    "MemoryAttention",
    "MultiHeadAttention",
    "NTKScaling",
    "RMSNorm",
    "RecurrentStack",
    "Residual",
    "RotaryPositions",
    "RotaryScaling",
    "ShawAttention",
    "SinusoidalPositions",
    "TransformerDecoderLayer",
    "TransformerEncoderLayer",
    "UnrolledStack",
    "YarnScaling",
    "coverage_loss",
    "make_norm",
    "relative_attention",
    "sinusoidal",
]
