from __future__ import annotations

import math
import subprocess
import sys

import pytest
import torch

import limelight


def test_numbers_worked_by_hand():
    # One query, keys 0 and ln 3 along it: weights 1/4 and 3/4.
    query = torch.tensor([[[1.0]]])
    key = torch.tensor([[[0.0], [math.log(3)]]])
    value = torch.tensor([[[4.0, 0.0], [8.0, 100.0]]])
    output, view = limelight.look(query, key, value)
    torch.testing.assert_close(output, torch.tensor([[[7.0, 75.0]]]))
    torch.testing.assert_close(view.dense(), torch.tensor([[[0.25, 0.75]]]))
    torch.testing.assert_close(view.lse, torch.tensor([[math.log(4)]]))


def test_the_default_scale_is_one_over_the_root_of_the_width():
    query, key = torch.ones(1, 1, 16), torch.stack([torch.zeros(16), torch.full((16,), math.log(3) / 4)])[None]
    _, view = limelight.look(query, key, key)
    torch.testing.assert_close(view.dense(), torch.tensor([[[0.25, 0.75]]]))


def test_query_head_h_meets_key_head_h_over_the_group():
    query = torch.zeros(1, 6, 1, 2)
    key = torch.zeros(1, 3, 5, 2)
    value = torch.arange(3.0)[None, :, None, None].expand(1, 3, 5, 1)
    assert limelight.attend(query, key, value).flatten().tolist() == [0, 0, 1, 1, 2, 2]


@pytest.mark.parametrize("lead", [(), (2,), (2, 3), (1, 2, 3)])
def test_leading_axes_are_free(lead):
    query, key, value = torch.randn(*lead, 4, 5, 7), torch.randn(*lead, 2, 3, 7), torch.randn(*lead, 2, 3, 11)
    output, view = limelight.look(query, key, value)
    assert output.shape == (*lead, 4, 5, 11)
    assert view.shape == (*lead, 4, 5, 3)
    flat = limelight.attend(query.reshape(-1, 4, 5, 7), key.reshape(-1, 2, 3, 7), value.reshape(-1, 2, 3, 11))
    torch.testing.assert_close(output.reshape(flat.shape), flat)
    assert torch.equal(limelight.attend(query, key, value), output)


def test_inputs_need_not_be_contiguous():
    query, key, value = (torch.randn(2, n, 3, 5).transpose(1, 2) for n in (7, 11, 11))
    plain = limelight.attend(query.contiguous(), key.contiguous(), value.contiguous())
    torch.testing.assert_close(limelight.attend(query, key, value), plain)


def test_attend_and_look_give_the_same_output():
    query, key, value = torch.randn(2, 3, 5, 7), torch.randn(2, 3, 11, 7), torch.randn(2, 3, 11, 13)
    mask = limelight.lengths(torch.tensor([4, 11])) & limelight.causal()
    assert torch.equal(limelight.attend(query, key, value, mask=mask), limelight.look(query, key, value, mask=mask)[0])


def test_inference_mode_leaves_nothing_behind_for_training():
    query, key, value = torch.randn(2, 3, 5, 7), torch.randn(2, 3, 11, 7), torch.randn(2, 3, 11, 13)
    mask = limelight.lengths(torch.tensor([4, 11]))
    for backend in ("streaming", "reference"):
        with torch.inference_mode():
            before = limelight.attend(query, key, value, mask=mask & limelight.causal(), backend=backend)
        leaf = query.clone().requires_grad_()
        output = limelight.attend(leaf, key, value, mask=mask & limelight.causal(), backend=backend)
        output.sum().backward()
        torch.testing.assert_close(output.detach(), before.clone())


def test_gradients_reach_only_what_wants_them():
    query, key, value = torch.randn(2, 3, 5, 7), torch.randn(2, 3, 11, 7), torch.randn(2, 3, 11, 13)
    key.requires_grad_()
    limelight.attend(query, key, value).sum().backward()
    assert key.grad is not None
    assert query.grad is None
    assert not limelight.attend(query, key.detach(), value).requires_grad


def test_the_graph_frees_what_it_kept():
    query = torch.randn(2, 3, 5, 7, requires_grad=True)
    output = limelight.attend(query, query, query)
    output.sum().backward()
    with pytest.raises(RuntimeError, match="second time"):
        output.sum().backward()


_IMPORTS = """
import sys
FIRST = ("limelight.look", "limelight.attend", "import limelight.attend", "import limelight.layers")
import limelight
heavy = [name for name in ("torch", "matplotlib", "sacrebleu", "tokenizers", "typer", "babel") if name in sys.modules]
assert not heavy, heavy
for first in FIRST:
    for name in [name for name in sys.modules if name.split(".")[0] == "limelight"]:
        del sys.modules[name]
    import limelight
    exec(first)
    assert limelight.attend.__qualname__ == "attend", first
    assert limelight.scores.dot is limelight.dot, first
    assert limelight.masks.causal is limelight.causal, first
"""


def test_importing_does_no_work_and_names_mean_the_same_in_any_order():
    subprocess.run([sys.executable, "-W", "error", "-c", _IMPORTS], check=True)


def test_public_names_are_all_there():
    for name in limelight.__all__:
        assert getattr(limelight, name) is not None
    assert set(limelight.__all__) <= set(dir(limelight))
    with pytest.raises(AttributeError, match="has no attribute 'flash'"):
        _ = limelight.flash
