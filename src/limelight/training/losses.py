"""The training losses: guided alignment; cross-entropy of an output layer, without ever holding all logits."""

import math

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from limelight.backends.rows import cross_entropy

# Rows of logits held at a time: products of fewer than 800 rows of 10,000 floats, which are 32 MB, are slower.
_CHUNK_BYTES = 32 << 20


def output_loss(
    features: Tensor, weight: Tensor, bias: Tensor, target: Tensor, *, label_smoothing: float = 0.0
) -> tuple[Tensor, Tensor]:
    """Σ_n [(1 - ε) nll_n + ε/V Σ_v nll_nv] with nll_nv = -log softmax(W f_n + b)_v, and Σ_n nll_n alone.

    The logits [N, V] are made, used and dropped block by block, and their gradient with them, so that the memory is one
    block's whatever N is. Label smoothing: Szegedy et al. (2016), "Rethinking the Inception architecture", section 7,
    with the smoothed share spread over all V tokens.

    Args:
        features: [N, C]; fp32, or bf16 under autocast (products in bf16, sums and softmax in fp32).
        weight: W, [V, C].
        bias: b, [V].
        target: int64 [N], the right tokens; no padding.
        label_smoothing: ε in [0, 1).

    Returns:
        the loss, differentiable with respect to features, weight and bias; the negative log-likelihood, for reports.
        Both are sums over tokens, in nats.
    """
    return _OutputLoss.apply(features, weight, bias, target, label_smoothing)  # pyright: ignore


def guided_loss(log_weights: Tensor, shares: Tensor) -> Tensor:
    """-Σ_p share_p log w_p over links p: the cross-entropy between the links and the attention, summed, in nats.

    Chen et al. (2016), "Guided alignment training for topic-aware neural machine translation"; Garg et al. (2019),
    "Jointly learning to align and translate with Transformer models".

    Args:
        log_weights: log w, [P], differentiable.
        shares: [P]; those of one target token sum to 1.
    """
    return -(log_weights * shares).sum()


class _OutputLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx, features, weight, bias, target, epsilon):
        vocabulary = len(weight)
        smooth = epsilon / vocabulary
        operand = weight.to(features.dtype)  # the products' dtype
        grad_features = torch.empty_like(features)
        grad_weight, grad_bias = torch.zeros_like(weight), torch.zeros_like(bias)
        likelihood = weight.new_zeros(())
        parts = max(1, math.ceil(len(target) * 4 * vocabulary / max(1, _CHUNK_BYTES)))
        rows = max(1, math.ceil(len(target) / parts))
        for f, y, grad_f in zip(features.split(rows), target.split(rows), grad_features.split(rows), strict=True):
            # d loss / d z = softmax(z) - (1 - ε) [v = y] - ε/V; the last term, the same everywhere, is added below.
            z, sums, each = cross_entropy((f @ operand.t()).to(weight.dtype), bias, y, 1 - epsilon)
            likelihood += each.sum()
            grad_bias += sums
            g = z.to(f.dtype)
            torch.mm(g, operand, out=grad_f)
            if f.dtype == weight.dtype:
                grad_weight.addmm_(g.t(), f)
            else:
                grad_weight += g.t() @ f
        loss = likelihood.clone()
        if epsilon:
            # Σ_v nll_nv = V nll_ny + V z_ny - Σ_v z_nv, whose sums over v are products with the summed weight.
            weight_sum, feature_sum = weight.sum(0), features.sum(0).to(weight.dtype)
            right = (features.to(weight.dtype) * weight[target]).sum() + bias[target].sum()
            every = weight_sum @ feature_sum + len(target) * bias.sum()
            loss = likelihood + smooth * (vocabulary * right - every)
            grad_features -= smooth * weight_sum.to(features.dtype)
            grad_weight -= smooth * feature_sum
            grad_bias -= smooth * len(target)
        ctx.save_for_backward(grad_features, grad_weight, grad_bias)
        ctx.mark_non_differentiable(likelihood)
        return loss, likelihood

    # The decorator's own signature is narrower than what it wraps.
    @staticmethod
    @once_differentiable
    def backward(ctx, *grad_outputs):  # pyright: ignore[reportIncompatibleMethodOverride]
        # Of the loss alone: the likelihood is not differentiable.
        return *(saved * grad_outputs[0] for saved in ctx.saved_tensors), None, None
