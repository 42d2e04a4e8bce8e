"""Attention within each of many short texts that lie one behind the other, on a GPU; used by `stack.py`.

FlashAttention-2 (Dao, 2023, arXiv:2307.08691, algorithms 1 and 2) in Triton: scores never leave the chip. A program
works on `BLOCK` tokens of the whole sequence and one head, whatever texts they belong to, and walks over the tokens
of just these texts. For texts of some 90 tokens this took 14 ms where `varlen_attn`, which begins anew with every
text in blocks of 128 tokens, took 26 (H200, BERT-base, five steps of 16 tasks of ten texts, forward and backward).
Queries, keys and values are read, and their gradients written, where they lie together.
"""

import math
from typing import Any

import torch
import triton
import triton.language as tl

BLOCK = 64  # tokens; a multiple of them is what the sequence must have
Tensors = tuple[torch.Tensor, ...]


@triton.jit
def forward(qkv, out, log_sums, texts, ends, tokens, SCALE: tl.constexpr, HEADS: tl.constexpr, SIZE: tl.constexpr,
            BLOCK: tl.constexpr):  # fmt: skip
    """softmax(q kᵀ · SCALE) v, powers of two instead of e; log₂ of each row's sum is kept for the way back."""
    tile, head = tl.program_id(0), tl.program_id(1)
    WIDTH: tl.constexpr = HEADS * SIZE
    here, columns = tile * BLOCK + tl.arange(0, BLOCK), head * SIZE + tl.arange(0, SIZE)[None, :]
    queries = qkv + columns  # behind them lie the keys, then the values
    q, mine = tl.load(queries + here[:, None] * (3 * WIDTH)), tl.load(texts + here)
    start = tl.load(ends + tl.load(texts + tile * BLOCK))
    stop = tl.load(ends + 1 + tl.load(texts + tile * BLOCK + BLOCK - 1))
    top, total = tl.full([BLOCK], -1e30, tl.float32), tl.zeros([BLOCK], tl.float32)
    found = tl.zeros([BLOCK, SIZE], tl.float32)
    for first in range(start, stop, BLOCK):
        there = first + tl.arange(0, BLOCK)
        inside, rows = there < stop, there[:, None] * (3 * WIDTH)
        theirs = tl.load(texts + there, inside, -1)
        k = tl.load(queries + WIDTH + rows, inside[:, None], 0.0)
        v = tl.load(queries + 2 * WIDTH + rows, inside[:, None], 0.0)
        same = mine[:, None] == theirs[None, :]
        score = tl.where(same, tl.dot(q, tl.trans(k)) * SCALE, -1e30)
        higher = tl.maximum(top, tl.max(score, 1))
        p = tl.where(same, tl.exp2(score - higher[:, None]), 0.0)
        less = tl.exp2(top - higher)
        total = total * less + tl.sum(p, 1)
        found = found * less[:, None] + tl.dot(p.to(v.dtype), v)
        top = higher
    tl.store(out + columns + here[:, None] * WIDTH, (found / total[:, None]).to(out.dtype.element_ty))
    tl.store(log_sums + head * tokens + here, top + tl.log2(total))


@triton.jit
def backward(qkv, out, slope, log_sums, texts, ends, found, tokens, SCALE: tl.constexpr, HEADS: tl.constexpr,
             SIZE: tl.constexpr, BLOCK: tl.constexpr):  # fmt: skip
    """Gradients of q, k and v of these tokens: as queries they meet the keys there, as keys the queries there."""
    tile, head = tl.program_id(0), tl.program_id(1)
    WIDTH: tl.constexpr = HEADS * SIZE
    here, columns = tile * BLOCK + tl.arange(0, BLOCK), head * SIZE + tl.arange(0, SIZE)[None, :]
    queries, wide, narrow = qkv + columns, here[:, None] * (3 * WIDTH), here[:, None] * WIDTH + columns
    keys, values = queries + WIDTH, queries + 2 * WIDTH
    q, k, v, g = tl.load(queries + wide), tl.load(keys + wide), tl.load(values + wide), tl.load(slope + narrow)
    mean = tl.sum(g.to(tl.float32) * tl.load(out + narrow).to(tl.float32), 1)
    log_sum, mine = tl.load(log_sums + head * tokens + here), tl.load(texts + here)
    start = tl.load(ends + tl.load(texts + tile * BLOCK))
    stop = tl.load(ends + 1 + tl.load(texts + tile * BLOCK + BLOCK - 1))
    dq, dk = tl.zeros([BLOCK, SIZE], tl.float32), tl.zeros([BLOCK, SIZE], tl.float32)
    dv = tl.zeros([BLOCK, SIZE], tl.float32)
    for first in range(start, stop, BLOCK):
        there = first + tl.arange(0, BLOCK)
        inside, rows, place = there < stop, there[:, None] * (3 * WIDTH), there[:, None] * WIDTH + columns
        same = mine[:, None] == tl.load(texts + there, inside, -1)[None, :]
        k2, v2 = tl.load(keys + rows, inside[:, None], 0.0), tl.load(values + rows, inside[:, None], 0.0)
        p = tl.where(same, tl.exp2(tl.dot(q, tl.trans(k2)) * SCALE - log_sum[:, None]), 0.0)
        ds = p * (tl.dot(g, tl.trans(v2)) - mean[:, None])
        dq += tl.dot(ds.to(k2.dtype), k2)
        q2, g2 = tl.load(queries + rows, inside[:, None], 0.0), tl.load(slope + place, inside[:, None], 0.0)
        mean2 = tl.sum(g2.to(tl.float32) * tl.load(out + place, inside[:, None], 0.0).to(tl.float32), 1)
        log_sum2 = tl.load(log_sums + head * tokens + there, inside, 0.0)
        p = tl.where(same, tl.exp2(tl.dot(k, tl.trans(q2)) * SCALE - log_sum2[None, :]), 0.0)
        dv += tl.dot(p.to(g2.dtype), g2)
        ds = p * (tl.dot(v, tl.trans(g2)) - mean2[None, :])
        dk += tl.dot(ds.to(q2.dtype), q2)
    to = found + columns + wide
    factor = SCALE * 0.6931471805599453  # log 2: the powers are of two
    tl.store(to, (dq * factor).to(found.dtype.element_ty))
    tl.store(to + WIDTH, (dk * factor).to(found.dtype.element_ty))
    tl.store(to + 2 * WIDTH, dv.to(found.dtype.element_ty))


def sizes(qkv: torch.Tensor) -> tuple[tuple[int, int], int, dict[str, Any]]:
    """The programs, the tokens, and what else a kernel must know."""
    tokens, _, heads, size = qkv.shape
    return (tokens // BLOCK, heads), tokens, {"SCALE": size**-0.5 / math.log(2), "HEADS": heads, "SIZE": size,
                                              "BLOCK": BLOCK, "num_warps": 4, "num_stages": 1}  # fmt: skip


@torch.library.custom_op("metalib_benchmarks::within_texts", mutates_args=())
def within_texts(qkv: torch.Tensor, texts: torch.Tensor, ends: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention of each token to its own text.

    Args:
        qkv: (tokens, 3, heads, size) queries, keys and values; tokens a multiple of `BLOCK`.
        texts: (tokens,) int32, each token's text: 0, 1, …, in order.
        ends: (texts + 1,) int32, the tokens before each text, and all.

    Returns:
        (tokens, heads · size), and for the way back (heads, tokens).
    """
    grid, tokens, more = sizes(qkv)
    out, log_sums = within_texts_shapes(qkv, texts, ends)
    forward[grid](qkv, out, log_sums, texts, ends, tokens, **more)
    return out, log_sums


@within_texts.register_fake
def within_texts_shapes(qkv: torch.Tensor, texts: torch.Tensor, ends: torch.Tensor) -> Tensors:
    tokens, _, heads, size = qkv.shape
    return qkv.new_empty(tokens, heads * size), qkv.new_empty(heads, tokens, dtype=torch.float32)


@torch.library.custom_op("metalib_benchmarks::within_texts_back", mutates_args=())
def within_texts_back(qkv: torch.Tensor, out: torch.Tensor, slope: torch.Tensor, log_sums: torch.Tensor,
                      texts: torch.Tensor, ends: torch.Tensor) -> torch.Tensor:  # fmt: skip
    """The gradient of `qkv`, given that of the output."""
    (grid, tokens, more), found = sizes(qkv), torch.empty_like(qkv)
    backward[grid](qkv, out, slope.contiguous(), log_sums, texts, ends, found, tokens, **more)
    return found


@within_texts_back.register_fake
def _(qkv: torch.Tensor, *others: torch.Tensor) -> torch.Tensor:
    return torch.empty_like(qkv)


def keep(ctx: Any, inputs: Tensors, output: Tensors) -> None:
    ctx.save_for_backward(*inputs, *output)


def back(ctx: Any, slope: torch.Tensor, unused: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
    qkv, texts, ends, out, log_sums = ctx.saved_tensors
    return within_texts_back(qkv, out, slope, log_sums, texts, ends), None, None


within_texts.register_autograd(back, setup_context=keep)
