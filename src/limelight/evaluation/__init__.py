"""Judging what a model wrote (`quality`) and what it looked at (`alignment`), against what people wrote and linked."""
