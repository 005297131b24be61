"""Normalizers: how the scores of a row become its weights."""

from limelight.normalizers.entmax import entmax15
from limelight.normalizers.protocol import Normalizer, Rows
from limelight.normalizers.sigmoid import sigmoid
from limelight.normalizers.softmax import softmax
from limelight.normalizers.sparsemax import sparsemax

__all__ = ["Normalizer", "Rows", "entmax15", "sigmoid", "softmax", "sparsemax"]
