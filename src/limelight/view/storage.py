"""A view as a file: safetensors with the facts as JSON; opened memory-mapped, never unpickled."""

from __future__ import annotations

import hashlib
import json
import math
from itertools import pairwise
from os import PathLike
from pathlib import Path
from typing import Any

import safetensors
import torch
from torch import Tensor

from limelight.backends.protocol import Call
from limelight.contract import accumulation_dtype, float_dtypes, require_broadcast
from limelight.devices import find_device
from limelight.errors import ArgumentError, LimelightError, RunFolderError, ViewFileError
from limelight.view.observations import Answer, Links, RowWeights, Weighted, map_of
from limelight.view.parts import (
    MORE,
    PLAIN,
    Facts,
    read_mask,
    read_normalizer,
    read_score,
    written_mask,
    written_normalizer,
    written_score,
)
from limelight.weights import read_tensors, write_tensors

FORMAT = "limelight-view/1"
WAY_OUT = "save the view again"
_MOST_LEAD = 32
"""Leading axes, at most; a tensor has 64 axes."""


def save(path: str | PathLike[str], call: Call, threshold: Tensor, answers: dict[str, Answer]) -> None:
    """See `AttentionView.save`."""
    # The name is that of softmax's threshold; files of views had no other once.
    tensors: dict[str, Tensor] = {"query": call.query, "key": call.key, "lse": threshold}
    if call.bias is not None:
        tensors["bias"] = call.bias
    facts: Facts = {
        "format": FORMAT,
        "lead": list(call.lead),
        "score": written_score(call.score, tensors),
        "mask": written_mask(call.mask, tensors),
        "normalizer": written_normalizer(call.normalizer, tensors),
        "more": _more(call, tensors),
    }
    for name, one in answers.items():
        tensors |= {f"answer.{name}{part}": tensor for part, tensor in _parts(one).items()}
    for name, one in tensors.items():
        if not isinstance(one, Tensor):
            raise ArgumentError(f"view.save: the {name} cannot be written to a file; it is {one!r}.")
    facts["seal"] = _seal(facts, {name: (str(one.dtype), list(one.shape)) for name, one in tensors.items()})
    write_tensors(Path(path), _apart(tensors), facts)


def load(path: str | PathLike[str], device: str, verify: bool) -> tuple[Call, Tensor, dict[str, Answer]]:
    """See `AttentionView.open`: the call, lse and the answers that were saved with it."""
    path, place = Path(path), find_device(device)
    if path.exists() and not path.is_file():
        raise ViewFileError(f"{path} is no file; give the path of a file that view.save wrote.")
    try:
        if verify:
            read_tensors(path, WAY_OUT)
        facts, tensors = _opened(path)
        return _rebuilt(facts, {name: one.to(place) for name, one in tensors.items()})
    except ViewFileError:
        raise
    except FileNotFoundError:
        raise ViewFileError(f"{path} is missing; give the path of a file that view.save wrote.") from None
    except OSError as error:
        raise ViewFileError(f"{path} cannot be read: {error.strerror or error}; {WAY_OUT}.") from error
    except safetensors.SafetensorError as error:
        raise ViewFileError(f"{path} is truncated or not a safetensors file ({error}); {WAY_OUT}.") from error
    except RunFolderError as error:
        raise ViewFileError(str(error)) from error
    except LimelightError as error:
        raise ViewFileError(f"{path}: its parts do not fit one another: {error} {WAY_OUT.capitalize()}.") from error
    except (LookupError, TypeError, ValueError, ArithmeticError, AttributeError, RecursionError) as error:
        raise ViewFileError(f"{path}: its parts do not fit one another ({error!r}); {WAY_OUT}.") from error


def _opened(path: Path) -> tuple[Facts, dict[str, Tensor]]:
    """Facts and tensors; nothing of the tensors is read from the disk before it is used."""
    with path.open("rb"), safetensors.safe_open(path, framework="pt") as file:
        metadata = file.metadata() or {}
        if metadata.get("limelight") != "1" or "facts" not in metadata:
            raise ViewFileError(f"{path} was not written by Limelight; give the path of a file that view.save wrote.")
        facts = json.loads(metadata["facts"])
        if not isinstance(facts, dict) or facts.get("format") != FORMAT:
            raise ViewFileError(
                f"{path} is no {FORMAT} file; give the path of a file that view.save of this version wrote."
            )
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118, it is no mapping
    layout = {name: (str(one.dtype), list(one.shape)) for name, one in tensors.items()}
    if facts.pop("seal", None) != _seal(facts, layout):
        raise ViewFileError(f"{path} was changed after it was written (its seal differs); {WAY_OUT}.")
    return facts, tensors


def _fit(tensor: Tensor | None, full: tuple[int, ...]) -> bool:
    """Whether it broadcasts to `full`, axis by axis."""
    return tensor is None or all(have in (1, want) for have, want in zip(tensor.shape, full, strict=True))


def _rebuilt(facts: Facts, tensors: dict[str, Tensor]) -> tuple[Call, Tensor, dict[str, Answer]]:
    """The call of these parts, each held against the others."""
    query, key, lse, bias = tensors["query"], tensors["key"], tensors["lse"], tensors.get("bias")
    lead = tuple(facts["lead"])
    if len(lead) > _MOST_LEAD or any(type(size) is not int or size < 0 for size in lead):
        raise ValueError("the leading axes")
    more: dict[str, Any] = {
        name: tensors[f"call.{name}"] if one == "tensor" else one[0] for name, one in facts["more"].items()
    }
    n, heads, queries, _ = query.shape
    _, groups, keys, _ = key.shape
    full = (n, heads, queries, keys)
    # Files from before there were others do not name it.
    normalizer = read_normalizer(facts.get("normalizer", {"kind": "softmax"}), tensors)
    fits = (
        n == key.shape[0] == math.prod(lead)
        and query.shape[-1] > 0
        and (groups == heads or (groups and heads % groups == 0))
        and query.dtype is key.dtype
        and query.dtype in float_dtypes
        and lse.dtype in (accumulation_dtype(query.dtype), *(() if normalizer.is_softmax else (torch.float64,)))
        and lse.shape == full[:3]
        and _fit(more.get("sink"), full[:2])
        and _fit(more.get("distances"), (heads, queries + keys - 1))
        and (bias is None or (bias.dtype in float_dtypes and _fit(bias, full)))
    )
    if not fits:
        raise ValueError("query, key, bias and lse")
    score, mask = read_score(facts["score"], tensors), read_mask(facts["mask"], tensors)
    normalizer.check(more.get("sink"))
    score.check(query, key)
    call = Call(
        query=query, key=key, value=query.new_empty(0), score=score, mask=mask, bias=bias, dropout=0.0, seed=0,
        lead=lead, wants_lse=True, normalizer=normalizer, **more,
    )  # fmt: skip
    if mask is not None:
        mask.check(call.whole())
    found = {name.removeprefix("answer."): one for name, one in tensors.items() if name.startswith("answer.")}
    return call, lse, _answers(found, (*lead, heads, queries, keys), call.dtype())


def _parts(answer: Answer) -> dict[str, Tensor]:
    """An answer as tensors, each by what its name has behind that of the answer."""
    if isinstance(answer, Tensor):
        return {"": answer}
    if isinstance(answer, (Links, Weighted)):
        return {f".{part}": one for part, one in answer._asdict().items()}
    return {".places": torch.tensor(answer.places, dtype=torch.int64), ".weights": answer.weights}


def _answers(tensors: dict[str, Tensor], shape: tuple[int, ...], dtype: torch.dtype) -> dict[str, Answer]:
    """The answers again, each held against the shape [..., H, T, S] of the matrix and the dtype of its weights."""
    integers = ("top.indices", "rows.places")
    for name, one in tensors.items():
        weights = name.startswith("weighted ") and name.endswith(".weights")  # of any dtype
        if not weights and one.dtype is not (torch.int64 if name in integers else dtype):
            raise ValueError(f"the answer {name}")
    per_query, per_key = shape[:-1], (*shape[:-2], shape[-1])
    names = {name.partition(".")[0] for name in tensors if name.startswith("weighted ")}
    weighted = {name: Weighted(*(tensors.pop(f"{name}.{part}") for part in Weighted._fields)) for name in names}
    for name, one in weighted.items():
        require_broadcast("weights", one.weights, per_query)
        if one.received.shape != per_key:
            raise ValueError(f"the answer {name}")
    top = {name.removeprefix("top."): tensors.pop(name) for name in list(tensors) if name.startswith("top.")}
    rows = {name.removeprefix("rows."): tensors.pop(name) for name in list(tensors) if name.startswith("rows.")}
    for name, one in tensors.items():
        kind, _, cells = name.partition(" ")
        if kind == "map":
            fits = one.shape[:-2] == shape[:-2] and map_of(one.shape[-2:], shape, cells.split()[0])[1] == name
        else:
            known = {"received": per_key, "entropy": per_query, "distance": per_query}
            fits = one.shape == known.get(name)
        if not fits:
            raise ValueError(f"the answer {name}")
    answers: dict[str, Answer] = {**tensors, **weighted}
    if top:
        answers["top"] = links = Links(**top)
        if not links.indices.shape == links.weights.shape == (*per_query, links.weights.shape[-1]):
            raise ValueError("the answer top")
    if rows:
        places = tuple(rows["places"].tolist())
        answers["rows"] = RowWeights(places, rows["weights"])
        inside = all(low < high for low, high in pairwise((-1, *places, shape[-2])))
        if not inside or rows["weights"].shape != (*shape[:-2], len(places), shape[-1]):
            raise ValueError("the answer rows")
    return answers


def _more(call: Call, tensors: dict[str, Tensor]) -> Facts:
    """What a call may hold besides: each is "tensor", or [its plain value]."""
    facts: Facts = {}
    for name in MORE:
        value = getattr(call, name)
        if isinstance(value, Tensor):
            tensors[f"call.{name}"] = value
            facts[name] = "tensor"
        elif isinstance(value, PLAIN):
            facts[name] = [value]
        else:
            raise ArgumentError(f"view.save: {name} cannot be written to a file; it is {value!r}.")
    return facts


def _apart(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors, each in memory of its own, as the format wants it: query and key may be one tensor."""
    seen: set[int] = set()
    apart = {}
    for name, tensor in tensors.items():
        one = tensor.detach().contiguous()
        place = one.untyped_storage().data_ptr()
        apart[name] = one.clone() if place in seen else one
        seen.add(place)
    return apart


def _seal(facts: Facts, layout: dict[str, Any]) -> str:
    """A checksum of the facts and of the names, dtypes and shapes, which opening can check without reading all."""
    text = json.dumps([facts, sorted(layout.items())], sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
