"""Multi-head attention in the place of torch's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from limelight.attend import attend, attend_with_mean, look
from limelight.backends.dropout import kept_over_rate
from limelight.errors import ExportError, TorchArgumentError
from limelight.interop.torch_attention import ignored
from limelight.masks import Mask, causal
from limelight.masks.block import whole_block
from limelight.view import AttentionView


class MultiHeadAttention(nn.MultiheadAttention):
    """Concat(head_1 ... head_H) W_O, head_h = attend(q W_Q^h, k W_K^h, v W_V^h): `nn.MultiheadAttention` on `attend`.

    Vaswani et al. (2017), section 3.2.2. It takes the place of torch's layer: the same arguments, parameters, state
    dict (it loads both ways), first values under the same seed, and results within rounding. Being a subclass it is
    found by code that looks for torch's layer. What differs:

    - with `need_weights=False` nothing of L x S is stored, also for masks and in the backward pass, on every device;
    - `need_weights="view"` gives an `AttentionView` instead of the weights;
    - a query that may attend to nothing gets 0 from every head, and its weights are 0; in torch they are NaN;
    - what stands at ignored keys touches nothing, be it NaN;
    - bool and float masks may be mixed; a float mask may have another float dtype than the query;
    - nested tensors are refused: padded ones with a `key_padding_mask` cost the same here;
    - torch's encoder layers never go past it on their own fast path.

    Arguments:
        embed_dim: E, a multiple of num_heads.
        num_heads: H.
        dropout: share of the weights dropped in training, in [0, 1).
        bias: whether the projections add biases.
        add_bias_kv: one more key and value behind the others, which are learned.
        add_zero_attn: one more key and value behind those, which are 0.
        kdim, vdim: widths of key and value; E unless given.
        batch_first: [N, L, E] instead of [L, N, E].
        device, dtype: of the parameters.

    Errors: TorchArgumentError, which is a ValueError, an AssertionError and a RuntimeError: torch raises all three.

    Example: `MultiHeadAttention(512, 8, batch_first=True)(x, x, x, need_weights="view")`, x [2, 100, 512], gives
    [2, 100, 512] and a view [2, 8, 100, 100].
    """

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        dropout: float = 0.0,
        bias: bool = True,
        add_bias_kv: bool = False,
        add_zero_attn: bool = False,
        kdim: int | None = None,
        vdim: int | None = None,
        batch_first: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        if embed_dim <= 0 or num_heads <= 0:
            raise TorchArgumentError(
                f"embed_dim and num_heads must be greater than 0; they are {embed_dim} and {num_heads}."
            )
        if embed_dim % num_heads:
            raise TorchArgumentError(
                f"embed_dim must be divisible by num_heads; it is {embed_dim}, and {num_heads} heads leave "
                f"{embed_dim % num_heads}. Take embed_dim={embed_dim - embed_dim % num_heads + num_heads}."
            )
        if not 0 <= dropout < 1:
            raise TorchArgumentError(f"dropout must be in [0, 1); it is {dropout}. Use 0.0 for none.")
        super().__init__(
            embed_dim, num_heads, dropout, bias, add_bias_kv, add_zero_attn, kdim, vdim, batch_first, device, dtype
        )

    def _reset_parameters(self) -> None:
        self._qkv_same_embed_dim = self.in_proj_weight is not None
        super()._reset_parameters()
        self.keep_off_fast_path()

    def keep_off_fast_path(self) -> None:
        """Say what keeps `nn.TransformerEncoderLayer` from computing this layer's attention itself, in C++."""
        self._qkv_same_embed_dim = False

    def __prepare_scriptable__(self) -> Any:
        """Errors: ExportError, as `torch.jit.script`, whose hook this is, would fail with less to say."""
        raise ExportError(
            "torch.jit.script cannot compile limelight.layers.MultiHeadAttention: TorchScript has no words for its "
            "kernels and views. Use torch.compile, torch.export or torch.jit.trace, which take it; or script the "
            "model as torch makes it, with nn.MultiheadAttention, into which this state dict loads."
        )

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool | Literal["view"] = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Any]:
        """Attend from query to key and value.

        Arguments:
            query: [L, N, E], with batch_first [N, L, E], without a batch [L, E].
            key: [S, N, kdim], and accordingly.
            value: [S, N, vdim].
            key_padding_mask: [N, S], without a batch [S]; bool: True is ignored; float: added to the scores.
            need_weights: True: the weights too, [N, L, S], on the CPU in the pass of a kernel that stores nothing else
                (in a second one where gradients are wanted); with dropout, or each head's, in the memory of N H L S
                numbers; False: None in their place;
                "view": an `AttentionView` [N, H, L, S], of the weights before dropout.
            attn_mask: [L, S] or [N H, L, S]; bool: True is ignored; float: added to the scores.
            average_attn_weights: the mean over the heads; False: [N, H, L, S]. A view always has the heads.
            is_causal: says that attn_mask, which has to be given, hides the future. As in torch it is believed, and the
                mask not looked at, with `need_weights=False` and without key_padding_mask; else the mask decides.

        Result: output, shaped as query; and weights, None or a view. The weights are those that made the output: as in
        torch after dropout, and without a batch [L, S] or [H, L, S], where a view has a batch of 1.

        Errors: TorchArgumentError for an argument that breaks a rule.
        """
        batched = self._check(query, key, value, key_padding_mask, attn_mask, need_weights, is_causal)
        if not batched:
            query, key, value = _alike(lambda x: x.unsqueeze(0), query, key, value)
            key_padding_mask = None if key_padding_mask is None else key_padding_mask.unsqueeze(0)
        batch_first = self.batch_first or not batched
        heads = [self._split(x, batch_first) for x in self._project(query, key, value)]
        heads[1], heads[2], extra = self._lengthened(heads[1], heads[2])
        mask, bias = self._masks(attn_mask, key_padding_mask, extra, believed=is_causal and not need_weights)
        options: dict[str, Any] = {"mask": mask, "bias": bias, "dropout": self.dropout if self.training else 0.0}
        seen = None
        if not need_weights:
            output = attend(*heads, **options)
        else:
            output, seen = self._seen(heads, options, need_weights, average_attn_weights, batched)
        # [N, H, L, D] -> [N, L, E] or [L, N, E]
        output = output.permute(0, 2, 1, 3) if batch_first else output.permute(2, 0, 1, 3)
        output = F.linear(output.flatten(-2), self.out_proj.weight, self.out_proj.bias)
        return (output if batched else output.squeeze(0)), seen

    def _project(self, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values [.., .., E], in as few products as the inputs allow."""
        weight, bias = self.in_proj_weight, self.in_proj_bias
        if weight is None:
            weights = (self.q_proj_weight, self.k_proj_weight, self.v_proj_weight)
        elif query is key and key is value:
            q, k, v = F.linear(query, weight, bias).chunk(3, -1)
            return q, k, v
        else:
            weights = weight.chunk(3)
        biases = (None, None, None) if bias is None else bias.chunk(3)
        if key is value and weight is not None:
            both = None if bias is None else bias[self.embed_dim :]
            k, v = F.linear(key, weight[self.embed_dim :], both).chunk(2, -1)
            return F.linear(query, weights[0], biases[0]), k, v
        inputs = (query, key, value)
        q, k, v = (F.linear(x, w, b) for x, w, b in zip(inputs, weights, biases, strict=True))
        return q, k, v

    def _split(self, x: Tensor, batch_first: bool) -> Tensor:
        """[N, L, E] or [L, N, E] -> [N, H, L, D], a view."""
        x = x.unflatten(-1, (self.num_heads, self.head_dim))
        return x.permute(0, 2, 1, 3) if batch_first else x.permute(1, 2, 0, 3)

    def _lengthened(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, int]:
        """Keys and values with the learned ones and the zeros behind them, and how many those are."""
        extra = 0
        if self.bias_k is not None and self.bias_v is not None:
            shape = (key.shape[0], self.num_heads, 1, self.head_dim)
            key, value = (
                torch.cat([x, one.view(1, *shape[1:]).expand(shape).to(x.dtype)], 2)
                for x, one in ((key, self.bias_k), (value, self.bias_v))
            )
            extra += 1
        if self.add_zero_attn:
            key, value = F.pad(key, (0, 0, 0, 1)), F.pad(value, (0, 0, 0, 1))
            extra += 1
        return key, value, extra

    def _masks(
        self, attn_mask: Tensor | None, key_padding_mask: Tensor | None, extra: int, *, believed: bool
    ) -> tuple[Mask | None, Tensor | None]:
        # With keys behind the S the hint says too little: torch then hides them, though the mask does not.
        if believed and key_padding_mask is None and not extra:
            return causal("start"), None
        return ignored(attn_mask, key_padding_mask, self.num_heads, extra)

    def _seen(
        self, heads: list[Tensor], options: dict[str, Any], wanted: bool | str, average: bool, batched: bool
    ) -> tuple[Tensor, Tensor | AttentionView]:
        """The output of all heads [N, H, L, D], and the weights or the view."""
        rate = options["dropout"]
        if wanted is True and average and not rate:
            at_once = attend_with_mean(*heads, mask=options["mask"], bias=options["bias"])
            if at_once is not None:
                output, weights = at_once
                return output, (weights if batched else weights.squeeze(0)).to(output.dtype)
        seed = int(torch.randint(2**63 - 1, ())) if rate else None
        output, view = look(*heads, **options, seed=seed)
        if wanted == "view":
            return output, view
        if average and seed is None:
            weights = view.mean().dense(limit=None)
        else:
            weights = view.dense(limit=None)
            if seed is not None:
                n, h, rows, columns = weights.shape
                block = whole_block(n, h, rows, columns, weights.device)
                weights = weights * kept_over_rate(block, rate, seed, weights.dtype)
            weights = weights.mean(1) if average else weights
        return output, (weights if batched else weights.squeeze(0)).to(output.dtype)

    def _check(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None,
        attn_mask: Tensor | None,
        need_weights: bool | str,
        is_causal: bool,
    ) -> bool:
        """Raise TorchArgumentError for what breaks a rule; else whether there is a batch axis."""
        if isinstance(need_weights, str) and need_weights != "view":
            raise TorchArgumentError(f"need_weights must be True, False or 'view'; it is {need_weights!r}.")
        if query.is_nested or key.is_nested or value.is_nested:
            raise TorchArgumentError(
                "query, key and value must not be nested tensors. Give padded ones and a key_padding_mask, and an "
                "nn.TransformerEncoder enable_nested_tensor=False; limelight.convert(model) says that to it."
            )
        if query.ndim not in (2, 3):
            raise TorchArgumentError(
                f"query must have the axes {self._axes('L', 'E')}, or [L, E] without a batch; its shape is "
                f"{list(query.shape)}."
            )
        batched = query.ndim == 3
        for name, x, width in (("query", query, self.embed_dim), ("key", key, self.kdim), ("value", value, self.vdim)):
            if x.ndim != query.ndim:
                raise TorchArgumentError(
                    f"{name} must have {query.ndim} axes, as query has; its shape is {list(x.shape)} and that of query "
                    f"{list(query.shape)}."
                )
            if x.shape[-1] != width:
                raise TorchArgumentError(
                    f"{name} must be {width} wide, as the layer was made; its shape is {list(x.shape)}."
                )
        if key.shape[:-1] != value.shape[:-1]:
            raise TorchArgumentError(
                f"key and value must have the same positions and batch; their shapes are {list(key.shape)} and "
                f"{list(value.shape)}."
            )
        batch, sequence = (0, 1) if self.batch_first and batched else (1, 0)
        sizes = (query.shape[batch] if batched else 1, query.shape[sequence], key.shape[sequence])
        if batched and key.shape[batch] != sizes[0]:
            raise TorchArgumentError(
                f"key must have the batch of query, {sizes[0]}; it has {key.shape[batch]}. The axes are "
                f"{self._axes('L', 'E')} because batch_first={self.batch_first}."
            )
        self._check_masks(key_padding_mask, attn_mask, sizes, batched)
        if is_causal and attn_mask is None:
            raise TorchArgumentError(
                "is_causal only says that attn_mask hides the future, and attn_mask is None. Give it "
                "attn_mask=nn.Transformer.generate_square_subsequent_mask(L) as well."
            )
        return batched

    def _check_masks(
        self, key_padding_mask: Tensor | None, attn_mask: Tensor | None, sizes: tuple[int, int, int], batched: bool
    ) -> None:
        batch, queries, keys = sizes
        padding = [batch, keys] if batched else [keys]
        folded = [batch * self.num_heads, queries, keys]
        letters = ("[N, S]", "[L, S] or [N H, L, S]") if batched else ("[S]", "[L, S] or [H, L, S]")
        for name, mask, shapes, axes in (
            ("key_padding_mask", key_padding_mask, (padding,), letters[0]),
            ("attn_mask", attn_mask, (folded[1:], folded), letters[1]),
        ):
            if mask is None:
                continue
            if not isinstance(mask, Tensor) or (mask.dtype is not torch.bool and not mask.is_floating_point()):
                kind = mask.dtype if isinstance(mask, Tensor) else type(mask).__name__
                raise TorchArgumentError(
                    f"{name} must be a tensor of bool, True is ignored, or of floats, which are added to the scores; "
                    f"it is {kind}. Use {name}.bool()."
                )
            if list(mask.shape) not in shapes:
                wanted = " or ".join(map(str, shapes))
                raise TorchArgumentError(
                    f"{name} must have the shape {axes}, here {wanted}; it is {list(mask.shape)}. S are the keys "
                    f"given: those that add_bias_kv and add_zero_attn add are always attended to."
                )

    def _axes(self, length: str, width: str) -> str:
        return f"[N, {length}, {width}]" if self.batch_first else f"[{length}, N, {width}]"


def _alike(change: Callable[[Tensor], Tensor], query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, ...]:
    """The three changed; what was one tensor stays one, which saves products."""
    changed = change(query)
    other = changed if key is query else change(key)
    return changed, other, other if value is key else change(value)
