"""Every mistake in a call gets an ArgumentError that names argument, rule, value and way out."""

from __future__ import annotations

import pytest
import torch

import limelight
from limelight.contract import accumulation_dtype
from limelight.errors import ArgumentError

Q, K, V = torch.zeros(2, 6, 5, 11), torch.zeros(2, 3, 7, 11), torch.zeros(2, 3, 7, 13)


@pytest.mark.parametrize(
    ("query", "key", "value", "message"),
    [
        (
            Q[0, 0],
            K,
            V,
            r"query must have a head axis: \[..., H, T, D\]; its shape is \[5, 11\].*query.unsqueeze\(-3\)",
        ),
        (Q, K, V.to_sparse(), r"value must be an ordinary tensor, of layout torch.strided; it is torch.sparse_coo"),
        ([1.0], K, V, r"query must be a torch.Tensor \[..., H, T, D\]; it is list"),
        (Q.long(), K, V, r"query must be float16.*torch.int64.*query.float\(\)"),
        (
            Q,
            K.double(),
            V,
            r"key must have the dtype of query, torch.float32; it is torch.float64.*key.to\(query.dtype\)",
        ),
        (Q, K, V.half(), r"value must have the dtype of query"),
        (Q, K.to("meta"), V, r"key must be on the device of query, cpu; it is on meta"),
        (Q, K[:1], V, r"key must have the leading axes of query, \[2\]; they are \[1\].*key.expand"),
        (Q, K[0], V[0], r"key must have the leading axes of query, \[2\]; they are \[\]"),
        (Q, K, V[:, :2], r"same number of heads G; key has 3 and value 2"),
        (Q, K, V[:, :, :6], r"same number of positions S; key has 7 and value 6"),
        (Q[:, :4], K, V, r"G, must divide the heads of query, H; G is 3 and H is 4"),
        (Q, K[:, :0], V[:, :0], r"must divide.*G is 0 and H is 6"),
        (Q[..., :1].expand(2, 6, 5, 2**50), K, V, r"query may have 2\^48 numbers at most.*1125899906842624\]"),
        (Q, K, V[..., :1].expand(2, 3, 7, 2**55), r"value may have 2\^48 numbers at most"),
    ],
)
def test_inputs_that_do_not_fit(query, key, value, message):
    with pytest.raises(ArgumentError, match=message):
        limelight.attend(query, key, value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dropout": 1.0}, r"dropout must be in \[0, 1\).*it is 1.0. Use 0.0"),
        ({"dropout": -0.1}, r"dropout must be in \[0, 1\)"),
        ({"dropout": "0.1"}, r"dropout must be in \[0, 1\).*'0.1'"),
        ({"dropout": 0.1, "seed": -1}, r"seed must be an integer in \[0, 2\^63\).*it is -1"),
        ({"dropout": 0.1, "seed": 0.5}, r"seed must be an integer"),
        ({"score": "dot"}, r"score must be one of limelight.scores.*'dot'.*tile_score"),
        (
            {"mask": torch.ones(5, 7, dtype=torch.bool)},
            r"mask must be one of limelight.masks.*it is Tensor.*dense\(tensor\)",
        ),
        ({"bias": torch.zeros(5, 7, dtype=torch.bool)}, r"bias must be a float tensor.*torch.bool.*limelight.dense"),
        ({"bias": torch.zeros(5, 6)}, r"bias: its shape must broadcast to .* = \[2, 6, 5, 7\]; it is \[5, 6\]"),
        ({"bias": torch.zeros(1, 1, 1, 1, 1)}, r"bias: its shape must broadcast"),
        ({"bias": torch.zeros(7, device="meta")}, r"bias must be on the device of query"),
        ({"sink": torch.zeros(6).bool()}, r"sink must be a float tensor.*torch.bool.*torch.zeros\(H\)"),
        ({"sink": 0.0}, r"sink must be a float tensor.*float"),
        ({"sink": torch.zeros(5)}, r"sink: its shape must broadcast to \[..., H\] = \[2, 6\]; it is \[5\]"),
        ({"sink": torch.zeros(1, 1, 6)}, r"sink: its shape must broadcast"),
        ({"sink": torch.zeros(6, device="meta")}, r"sink must be on the device of query"),
        ({"score": limelight.dot(), "key": torch.zeros(2, 3, 7, 10)}, r"dot: query and key.*query has 11 and key 10"),
    ],
)
def test_options_that_do_not_fit(options, message):
    key = options.pop("key", K)
    with pytest.raises(ArgumentError, match=message):
        limelight.attend(Q, key, V, **options)


def test_argument_errors_are_value_errors():
    with pytest.raises(ValueError, match="dropout"):
        limelight.attend(Q, K, V, dropout=2)


def test_accumulation_is_float32_or_wider():
    assert accumulation_dtype(torch.float64) is torch.float64
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        assert accumulation_dtype(dtype) is torch.float32


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_nested_tensors_are_refused():
    nested = torch.nested.nested_tensor([torch.zeros(6, 5, 11), torch.zeros(6, 4, 11)])
    with pytest.raises(ArgumentError, match=r"query must be an ordinary tensor.*nested.*limelight.lengths"):
        limelight.attend(nested, nested, nested)
