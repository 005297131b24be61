import math

import pytest
import torch

from limelight.errors import ArgumentError
from limelight.layers import (
    DynamicNTKScaling,
    GroupedQueryAttention,
    LearnedPositions,
    LinearScaling,
    Llama3Scaling,
    LongRoPEScaling,
    NTKScaling,
    RotaryPositions,
    YarnScaling,
)
from limelight.layers.grouped import append_cache
from limelight.layers.rotary_scaling import Unscaled
from limelight.masks import causal


def turned_by_hand(x, width, base, interleaved):
    """Each pair of x [T, D] as a complex number times e^(i p θ)."""
    found = x.clone()
    for p in range(x.shape[0]):
        for i in range(width // 2):
            one, other = (2 * i, 2 * i + 1) if interleaved else (i, i + width // 2)
            pair = complex(x[p, one], x[p, other]) * complex(
                math.cos(p * base ** (-2 * i / width)), math.sin(p * base ** (-2 * i / width))
            )
            found[p, one], found[p, other] = pair.real, pair.imag
    return found


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("width", [6, 10])
def test_each_pair_turns_by_its_angle(width, interleaved):
    x = torch.randn(2, 3, 11, 10, generator=torch.Generator().manual_seed(1)).double()
    layer = RotaryPositions(width, 100.0, interleaved=interleaved, length=5)
    found = layer(x)
    torch.testing.assert_close(found[1, 2], turned_by_hand(x[1, 2], width, 100.0, interleaved), rtol=0, atol=1e-6)
    assert torch.equal(found[..., width:], x[..., width:])
    assert torch.equal(layer(x[..., 4:, :], start=4), found[..., 4:, :])


def test_scores_depend_on_the_distance_alone():
    layer = RotaryPositions(8)
    query, key = torch.randn(1, 8), torch.randn(1, 8)
    near = layer(query, 3) @ layer(key, 5).T
    torch.testing.assert_close(layer(query, 1003) @ layer(key, 1005).T, near, rtol=0, atol=1e-4)
    assert (layer(query, 3) @ layer(key, 9).T - near).abs() > 1e-3


def test_a_table_that_grew_in_inference_mode_serves_in_training():
    layer = RotaryPositions(6, length=2)
    with torch.inference_mode():
        layer(torch.zeros(7, 6))
    x = torch.ones(7, 6, requires_grad=True)
    layer(x).sum().backward()
    assert x.grad.isfinite().all()
    assert not layer.state_dict()


SCALINGS = {
    "linear": (LinearScaling(4.0), {"factor": 4.0}),
    "yarn": (YarnScaling(8.0, 512), {"factor": 8.0, "original_max_position_embeddings": 512}),
    "yarn exact": (
        YarnScaling(8.0, 512, fast=20.0, slow=2.0, sharpen=1.25, whole=False),
        {
            "factor": 8.0,
            "original_max_position_embeddings": 512,
            "beta_fast": 20.0,
            "beta_slow": 2.0,
            "attention_factor": 1.25,
            "truncate": False,
        },
    ),
    "llama3": (
        Llama3Scaling(8.0, 1024, fast=4.0, slow=1.0),
        {
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 1024,
        },
    ),
    "default": (Unscaled(), {}),
    # Dynamic scaling by 3 at twice the length: 3 · 2 - (3 - 1) = 4 times the base's power.
    "dynamic": (NTKScaling(4.0), {"factor": 3.0}),
}


@pytest.mark.parametrize("name", SCALINGS)
def test_scalings_are_those_of_hugging_face(name):
    transformers = pytest.importorskip("transformers")
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
    from transformers.models.llama import modeling_llama as llama

    scaling, parameters = SCALINGS[name]
    kind = name.split()[0]
    config = transformers.LlamaConfig(
        hidden_size=3 * 32,
        num_attention_heads=3,
        max_position_embeddings=2048,
        rope_parameters={"rope_type": kind, "rope_theta": 5000.0, **parameters},
    )
    found, sharpen = scaling.frequencies(32, 5000.0)
    if kind == "default":
        expected, factor = found.float(), 1.0
    else:
        expected, factor = ROPE_INIT_FUNCTIONS[kind](config, torch.device("cpu"), seq_len=4096)
    torch.testing.assert_close(found.float(), expected, rtol=1e-6, atol=0)
    assert sharpen == pytest.approx(factor)
    # And so are the turned queries.
    x = torch.randn(1, 3, 11, 32)
    angle = torch.arange(11.0)[:, None] * expected
    cos, sin = (torch.cat([one, one], -1)[None] * factor for one in (angle.cos(), angle.sin()))
    theirs, _ = llama.apply_rotary_pos_emb(x, x, cos, sin)
    torch.testing.assert_close(RotaryPositions(32, 5000.0, scaling)(x), theirs, rtol=0, atol=1e-5)


def factors(seed):
    """Sixteen numbers between 1 and 5, as of a search."""
    return (1 + 4 * torch.rand(16, generator=torch.Generator().manual_seed(seed))).tolist()


OF_THE_LENGTH = {
    "dynamic": (DynamicNTKScaling(3.0, 64), {"factor": 3.0}, 64),
    "longrope": (
        LongRoPEScaling(8.0, 64, factors(1), factors(2)),
        {
            "factor": 8.0,
            "short_factor": factors(1),
            "long_factor": factors(2),
            "original_max_position_embeddings": 64,
        },
        512,
    ),
    "longrope sharpened": (
        LongRoPEScaling(8.0, 64, factors(1), factors(2), sharpen=1.5),
        {
            "factor": 8.0,
            "short_factor": factors(1),
            "long_factor": factors(2),
            "original_max_position_embeddings": 64,
            "attention_factor": 1.5,
        },
        512,
    ),
}


@pytest.mark.parametrize("name", OF_THE_LENGTH)
def test_scalings_of_the_length_are_those_of_hugging_face(name):
    transformers = pytest.importorskip("transformers")
    from transformers.models.llama import modeling_llama as llama

    scaling, parameters, longest = OF_THE_LENGTH[name]
    config = transformers.LlamaConfig(
        hidden_size=3 * 32,
        num_attention_heads=3,
        max_position_embeddings=longest,
        rope_parameters={"rope_type": name.split()[0], "rope_theta": 5000.0, **parameters},
    )
    layer = RotaryPositions(32, 5000.0, scaling, length=16)
    # The layer is one and remembers nothing; theirs keeps the frequencies of the longest sequence so far.
    for length in (11, 64, 65, 200, 113, 40, 300):
        x = torch.randn(1, 3, length, 32)
        cos, sin = llama.LlamaRotaryEmbedding(config)(x, torch.arange(length)[None])
        theirs, _ = llama.apply_rotary_pos_emb(x, x, cos, sin)
        torch.testing.assert_close(layer(x), theirs, rtol=0, atol=1e-4)
        torch.testing.assert_close(layer(x[:, :, 9:], start=9), layer(x)[:, :, 9:], rtol=0, atol=0)
        # The scaling of one length stays what it is, in shorter sequences too.
        fixed = RotaryPositions(32, 5000.0, scaling.at(length))
        torch.testing.assert_close(fixed(x), layer(x), rtol=0, atol=0)
        torch.testing.assert_close(fixed(x[:, :, :7]), layer(x)[:, :, :7], rtol=0, atol=0)
    assert not layer.state_dict()


def test_angles_of_the_length_by_hand():
    # A sequence of 250 where 100 are known: 2 · 2.5 - 1 = 4, and the slowest pair turns by 1/40 (see below).
    dynamic = DynamicNTKScaling(2.0, 100)
    assert dynamic.at(250).frequencies(4, 100.0)[0].tolist() == pytest.approx([1.0, 0.025])
    assert dynamic.at(100).frequencies(4, 100.0)[0].tolist() == pytest.approx([1.0, 0.1])
    assert dynamic.frequencies(4, 100.0)[0].tolist() == pytest.approx([1.0, 0.1])
    longer = LongRoPEScaling(100.0, 100, [1.0, 2.0], [4.0, 5.0])
    angles, sharpen = longer.at(101).frequencies(4, 100.0)
    assert angles.tolist() == pytest.approx([0.25, 0.02])
    assert sharpen == pytest.approx(math.sqrt(2))
    assert longer.at(100).frequencies(4, 100.0)[0].tolist() == pytest.approx([1.0, 0.05])
    assert longer.at(5) == longer.at(7) != longer.at(101)


def test_scaled_angles_by_hand():
    # Pair 0 of four columns turns by 1 a position, pair 1 by 1/10.
    plain, _ = Unscaled().frequencies(4, 100.0)
    assert plain.tolist() == pytest.approx([1.0, 0.1])
    assert LinearScaling(2.0).frequencies(4, 100.0)[0].tolist() == pytest.approx([0.5, 0.05])
    # base 100 · 4² = 1600, whose root is 40: the slowest pair is four times as slow.
    assert NTKScaling(4.0).frequencies(4, 100.0)[0].tolist() == pytest.approx([1.0, 0.025])


@torch.no_grad()
def test_rotary_heads_step_as_they_read():
    torch.manual_seed(3)
    layer = GroupedQueryAttention(24, 4, key_value_heads=2, rotary=RotaryPositions(6)).double()
    x = torch.randn(2, 7, 24).double()
    whole, _ = layer(x, *layer.keys_values(x), causal())
    past = None
    for t in range(7):
        now = x[:, t : t + 1]
        past = append_cache(past, *layer.keys_values(now, t))
        step, _ = layer(now, *past, start=t)
        torch.testing.assert_close(step, whole[:, t : t + 1], rtol=0, atol=1e-7)
    bare = GroupedQueryAttention(24, 4, key_value_heads=2).double()
    bare.load_state_dict(layer.state_dict())
    assert (bare(x, *bare.keys_values(x), causal())[0] - whole).abs().max() > 1e-3


def test_learned_positions():
    layer = LearnedPositions(5, 7)
    x = torch.randn(2, 3, 5)
    assert torch.equal(layer(x, start=4), x + layer.weight[4:7])
    layer(x).sum().backward()
    assert layer.weight.grad.abs().sum(-1).tolist() == [10.0] * 3 + [0.0] * 4
    with pytest.raises(ArgumentError, match="must end at position 7 at the latest, for which there is a vector, got 8"):
        layer(x, start=5)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: RotaryPositions(7), "width: must be even and at least 2"),
        (lambda: RotaryPositions(6, 1.0), "base: must be above 1"),
        (lambda: RotaryPositions(6)(torch.zeros(3, 4)), "x: must be at least 6 wide, got 4"),
        (lambda: LinearScaling(0.5), "factor: must be a number of at least 1"),
        (lambda: YarnScaling(2.0, 512, fast=1.0, slow=2.0), "0 < slow < fast"),
        (lambda: Llama3Scaling(length=0), "length: must be that of training"),
        (lambda: RotaryPositions(2, scaling=NTKScaling(2.0)), "needs a width of at least 4"),
        (lambda: RotaryPositions(2, scaling=DynamicNTKScaling(2.0, 8)), "needs a width of at least 4"),
        (lambda: DynamicNTKScaling(0.5, 8), "factor: must be a number of at least 1"),
        (lambda: DynamicNTKScaling(2.0, 0), "length: must be that of training, in positions, at least 1, got 0"),
        (lambda: LongRoPEScaling(2.0, 1, [1.0], [1.0]), "at least 2, got 1"),
        (lambda: LongRoPEScaling(2.0, 8, [1.0], [0.0]), r"long: must be numbers above 0.*got \[0.0\]"),
        (lambda: LongRoPEScaling(2.0, 8, [1.0], [1.0, 2.0]), "as many numbers, one for each pair, got 1 and 2"),
        (lambda: RotaryPositions(6, scaling=LongRoPEScaling(2.0, 8, [1.0], [2.0])), "each of the 3 pairs, got 1"),
    ],
)
def test_mistakes(make, message):
    with pytest.raises(ArgumentError, match=message):
        make()
