"""Attention among the neighbours of one atom, for atoms with any numbers of them and nothing padded."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from equimol.nn.groups import Groups, by_group
from equimol.ops.function import Function, wanted_inputs


def legendre_products(harmonics: Sequence[Tensor], groups: Groups) -> list[Tensor]:
    """Y_l(j).Y_l(k) of each group for l = 1, 2, ..., [atoms, degrees, m, m], from harmonics [slots, 2l+1] divided by sqrt(2l+1).

    That is P_l of the cosine of the angle between two neighbours, and 0 where a slot has no direction.
    """
    parts = [by_group(y, groups) for y in harmonics]
    return [torch.stack([torch.matmul(y, y.mT) for y in of_group], dim=1) for of_group in zip(*parts, strict=True)]


def legendre_polynomials(cosines: Float[Tensor, "..."], lmax: int) -> Float[Tensor, "..."]:
    """P_1, ..., P_lmax of cosines [atoms, m, m]: [atoms, lmax, m, m], by Bonnet's recursion."""
    found = [torch.ones_like(cosines), cosines]
    for l in range(1, lmax):
        found.append(((2 * l + 1) / (l + 1)) * cosines * found[l] - (l / (l + 1)) * found[l - 1])
    return torch.stack(found[1 : lmax + 1], 1) if lmax else cosines.new_zeros(len(cosines), 0, *cosines.shape[1:])


def neighbor_attention(
    query_key_value: Float[Tensor, "slots three_widths"],
    legendre: Sequence[Tensor | None],  # of each group [atoms, degrees - 1, m, m]; None where there is but degree 0
    bias: Sequence[Tensor],  # of each group [atoms, m or 1, m]
    groups: Groups,
    heads: int,
    parts: Sequence[int],
    scale: float,
) -> Float[Tensor, "slots width"]:
    """softmax over k of (scale * sum_l P_l(cos jk) q_j^(l).k_k^(l) + bias_jk), times v_k, among the slots of each atom; P_0 is one.

    The width of a head is cut into ``parts``, one per degree l. It equals attention of vectors repeated 2l+1 times and multiplied by the
    harmonics of their slot, at a fifth of the work. A bias of -inf leaves a neighbour out; one row of it serves all queries.
    """
    out = []
    for x, p, b in zip(by_group(query_key_value, groups), legendre, bias, strict=True):
        q, k, v = x.unflatten(-1, (3, heads, -1)).permute(2, 0, 3, 1, 4).contiguous().unbind()  # [atoms, heads, m, width of a head]
        mixed, _ = _Attention.apply(q, k, v, p, b, tuple(parts), scale)
        out.append(mixed.transpose(1, 2).flatten(2).flatten(0, 1))
    return torch.cat(out) if len(out) > 1 else out[0]


def own_attention(
    query: Float[Tensor, "atoms width"],
    key_value: Float[Tensor, "slots two_widths"],
    bias: Sequence[Tensor],  # of each group [atoms, 1, m]
    groups: Groups,
    heads: int,
    parts: Sequence[int],
    scale: float,
) -> Float[Tensor, "atoms width"]:
    """`neighbor_attention` for the queries of the atoms themselves, in the order of their slots. They have no direction: degree 0 alone."""
    out, start = [], 0
    for x, b in zip(by_group(key_value, groups), bias, strict=True):
        k, v = x.unflatten(-1, (2, heads, -1)).permute(2, 0, 3, 1, 4).unbind()
        q = query[start : start + k.shape[0]].unflatten(-1, (1, heads, -1)).transpose(1, 2)[..., : parts[0]] * scale
        logits = torch.matmul(q, k[..., : parts[0]].mT) + b.unsqueeze(1)
        out.append(torch.matmul(torch.softmax(logits, -1), v).flatten(1))
        start += k.shape[0]
    return torch.cat(out)


class _Attention(Function):
    """Attention of one group, and its weights: a result, so that the written-out derivative can be differentiated by PyTorch again.

    Of all it computes the weights alone are kept.
    """

    @staticmethod
    def forward(q, k, v, legendre, bias, parts, scale):
        by_degree = list(zip(q.split(parts, -1), k.split(parts, -1), strict=True))
        logits = torch.matmul(by_degree[0][0], by_degree[0][1].mT).mul_(scale).add_(bias.unsqueeze(1))
        for degree, (ql, kl) in enumerate(by_degree[1:]):
            logits.addcmul_(torch.matmul(ql, kl.mT), legendre[:, degree, None], value=scale)
        weights = torch.softmax(logits, -1)
        return torch.matmul(weights, v), weights

    @staticmethod
    def setup_context(ctx, inputs, output):
        q, k, v, legendre, bias, ctx.parts, ctx.scale = inputs
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(q, k, v, legendre, bias, output[1])

    @staticmethod
    def backward(ctx, of_mixed, of_weights):
        q, k, v, legendre, bias, weights = ctx.saved_tensors
        need = wanted_inputs(ctx)
        of_v = torch.matmul(weights.mT, of_mixed) if of_mixed is not None else None
        if of_mixed is not None:
            through = torch.matmul(of_mixed, v.mT)
            of_weights = through if of_weights is None else of_weights + through
        of_logits = torch.ops.aten._softmax_backward_data(of_weights, weights, -1, weights.dtype)
        of_bias = None
        if need[4]:
            of_bias = of_logits.sum(1)
            of_bias = of_bias.sum(1, keepdim=True) if bias.shape[1] == 1 else of_bias
        scaled = of_logits * ctx.scale
        of_q, of_k, of_legendre = [], [], []
        for degree, (ql, kl) in enumerate(zip(q.split(ctx.parts, -1), k.split(ctx.parts, -1), strict=True)):
            of_product = scaled * legendre[:, degree - 1, None] if degree else scaled
            of_q.append(torch.matmul(of_product, kl))
            of_k.append(torch.matmul(of_product.mT, ql))
            if degree and need[3]:
                of_legendre.append((torch.matmul(ql, kl.mT) * scaled).sum(1))
        of_legendre = torch.stack(of_legendre, 1) if of_legendre else None
        return torch.cat(of_q, -1), torch.cat(of_k, -1), of_v, of_legendre, of_bias, None, None
