"""What a notebook shows."""

from __future__ import annotations

import base64
import io
import re

import matplotlib.image
import numpy as np
import pytest
import torch
from tests.support.inputs import Sizes, tensors

import limelight
from limelight.view import picture


def _image(html):
    data = base64.b64decode(re.search(r"base64,([^\"]+)", html)[1])
    return matplotlib.image.imread(io.BytesIO(data))


def test_a_notebook_shows_the_mean_map_in_grey():
    query, key, value = (one.detach().float() for one in tensors(Sizes(T=31, S=67)))
    _, view = limelight.look(query, key, value)
    html = view._repr_html_()
    assert "AttentionView(shape=[2, 3, 31, 67]" in html
    assert "the first sequence, mean over 3 heads" in html
    cells = view.map(31, 64)[0].mean(0)
    want = 1 - (cells / cells.max()).numpy()
    assert _image(html).shape == want.shape
    np.testing.assert_allclose(_image(html), want, atol=0.5 / 255 + 1e-6)


def test_a_stale_one_says_so():
    query, key, value = (one.detach().float() for one in tensors(Sizes()))
    _, view = limelight.look(query, key, value)
    query.zero_()
    assert "AttentionView(" in view._repr_html_()
    assert "query was changed in place since" in view._repr_html_()


def test_of_a_long_one_its_end(monkeypatch):
    asked = []

    def spy(q, k, *, query_index, key_index):
        asked.append((int(query_index.min()), int(key_index.min()), query_index.numel() * key_index.numel()))
        return q @ k.mT

    query = torch.zeros(1, 2, 300, 1)
    _, view = limelight.look(query, query, query, score=limelight.tile_score(spy))
    monkeypatch.setattr(picture, "PAIRS", 20_000)
    asked.clear()
    assert "the last 100 queries and 100 keys, mean over 2 heads" in view._repr_html_()
    assert asked == [(200, 200, 10_000)]


def test_one_query_shows_more_keys(monkeypatch):
    query, key = torch.zeros(1, 1, 2), torch.zeros(1, 5000, 2)
    _, view = limelight.look(query, key, key)
    monkeypatch.setattr(picture, "PAIRS", 4000)
    assert "the last 1 queries and 4,000 keys" in view._repr_html_()


@pytest.mark.parametrize("keys", [0, 1])
def test_empty_views(keys):
    query, key = torch.zeros(1, 3, 2), torch.zeros(1, keys, 2)
    _, view = limelight.look(query, key, key, mask=~limelight.causal("start") & limelight.causal("start"))
    assert ("<img" in view._repr_html_()) == bool(keys)
