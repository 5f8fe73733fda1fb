"""Attention by four nested loops in float64: written from the definitions alone, sharing no code with the library.

Slow on purpose: every rule is one line that a person can check against the documentation.
"""

from __future__ import annotations

import math
from types import SimpleNamespace

import numpy as np
import torch

from limelight import (
    ALiBi,
    Aligned,
    Bias,
    Blocks,
    Causal,
    Chunks,
    CosineSimilarity,
    DilatedWindow,
    Explicit,
    Full,
    KeyMask,
    Keys,
    Packed,
    Padded,
    Paged,
    Predicate,
    Prefix,
    RelativeBias,
    SoftCap,
    Subset,
    Window,
)  # fmt: skip
from limelight.compat.flex.patterns import Below, SameDocument
from limelight.forms.layouts import Portion, ScatteredPortion
from limelight.forms.patterns import And, Not, Or


def places(layout, B, Lq, Lk):
    """For each batch row: lists of (position, document) of queries and of keys; None where one does not exist."""
    if isinstance(layout, Subset):
        whole = places(layout.of, B, layout.queries, Lk)
        return [
            ([queries[i] if i >= 0 else None for i in chosen], keys)
            for (queries, keys), chosen in zip(whole, layout.index.tolist(), strict=True)
        ]
    rows = []
    for b in range(B):
        queries, keys = [], []
        if layout is None or isinstance(layout, (Aligned, KeyMask)):
            start_k = 0 if not isinstance(layout, Aligned) else at(layout.key_start, b)
            start_q = None if not isinstance(layout, Aligned) else at(layout.query_start, b)
            if start_q is None:
                start_q = start_k + Lk - Lq
            queries = [(start_q + i, 0) for i in range(Lq)]
            keys = [(start_k + j, 0) for j in range(Lk)]
            if isinstance(layout, KeyMask):
                mask = layout.mask[b if len(layout.mask) > 1 else 0]
                keys = [place if mask[j] else None for j, place in enumerate(keys)]
        elif isinstance(layout, Padded):
            nq = at(layout.query_lengths, b)
            nk = nq if layout.key_lengths is None else at(layout.key_lengths, b)
            real_queries = [(nk - nq + i, 0) for i in range(nq)]
            real_keys = [(j, 0) for j in range(nk)]
            if layout.side == "right":
                queries, keys = real_queries + [None] * (Lq - nq), real_keys + [None] * (Lk - nk)
            else:
                queries, keys = [None] * (Lq - nq) + real_queries, [None] * (Lk - nk) + real_keys
        elif isinstance(layout, (Portion, ScatteredPortion)):
            queries, keys, groups = [None] * Lq, [None] * Lk, []
            for row, q0, q1, k0, k1, query_offset, key_offset, number in layout.table[:, :8].tolist():
                if row != b:
                    continue
                if q0 not in groups:
                    groups.append(q0)
                document = number - b * layout.count + layout.count * groups.index(q0)
                exists = layout.exists if layout.exists is None else layout.exists[b % len(layout.exists)]
                queries[q0:q1] = [(i + query_offset, document) for i in range(q0, q1)]
                keys[k0:k1] = [
                    (j + key_offset, document) if exists is None or exists[j] else None for j in range(k0, k1)
                ]
        elif isinstance(layout, (Packed, Paged)):
            lengths_q = [int(n) for n in layout.query_lengths]
            lengths_k = lengths_q if layout.key_lengths is None else [int(n) for n in layout.key_lengths]
            for document, (nq, nk) in enumerate(zip(lengths_q, lengths_k, strict=True)):
                queries += [(nk - nq + i, document) for i in range(nq)]
                keys += [(j, document) for j in range(nk)]
        else:
            raise TypeError(f"say in {__file__} where the queries and keys of a {type(layout).__name__} stand")
        rows.append((queries, keys))
    return rows


def at(value, b):
    return value if value is None or isinstance(value, int) else int(value[b])


def allows(pattern, b, h, p, q, i, j):
    """Position ``p`` and index ``i`` of the query, ``q`` and ``j`` of the key."""
    match pattern:
        case None | Full():
            return True
        case Causal():
            return q <= p
        case Window(back, ahead):
            return (back is None or q >= p - back) and (ahead is None or q <= p + ahead)
        case DilatedWindow(back, ahead, step):
            seen = [] if back is None else [p - n * step for n in range(back + 1)]
            seen += [] if ahead is None else [p + n * step for n in range(ahead + 1)]
            beyond = (back is None and q <= p) or (ahead is None and q >= p)
            return q in seen or (beyond and abs(q - p) % step == 0)
        case Prefix(length):
            return p < at(length, b) and q < at(length, b)
        case Keys(first):
            return q < first
        case Chunks(size):
            return math.floor(p / size) == math.floor(q / size)
        case Below(bound, queries):
            return (p if queries else q) < at(bound, b)
        case SameDocument(of_queries, of_keys):
            row = () if of_queries.dim() == 1 else (b,)
            inside = 0 <= p < of_queries.shape[-1] and 0 <= q < of_keys.shape[-1]
            return inside and bool(of_queries[(*row, p)] == of_keys[(*row, q)])
        case Explicit(mask):
            return bool(pick(mask, b, h, i, j))
        case Blocks(table, size):
            r, c = math.floor(p / size), math.floor(q / size)
            inside = 0 <= r < table.shape[-2] and 0 <= c < table.shape[-1]
            return inside and bool(pick(table, b, h, r, c, exact=True))
        case And(left, right):
            return allows(left, b, h, p, q, i, j) and allows(right, b, h, p, q, i, j)
        case Or(left, right):
            return allows(left, b, h, p, q, i, j) or allows(right, b, h, p, q, i, j)
        case Not(inner):
            return not allows(inner, b, h, p, q, i, j)
        case Predicate(function):
            fields = {"query_position": p, "key_position": q, "distance": q - p, "query_index": i, "key_index": j}
            return bool(function(SimpleNamespace(batch=b, head=h, **fields)))
    raise TypeError(f"say in {__file__} which keys a {type(pattern).__name__} allows")


def pick(tensor, *index, exact=False):
    """An element of a tensor that broadcasts from its last dimension on."""
    index = index[len(index) - tensor.dim() :]
    last = tensor.dim() - 2 if exact else tensor.dim()
    return tensor[tuple(k if n >= last or tensor.shape[n] > 1 else 0 for n, k in enumerate(index))]


def visible(pattern, layout, B, Hq, Lq, Lk):
    """``(B, Hq, Lq, Lk)`` bool by the definitions."""
    seen = np.zeros((B, Hq, Lq, Lk), bool)
    for b, (queries, keys) in enumerate(places(layout, B, Lq, Lk)):
        for i, query in enumerate(queries):
            for j, key in enumerate(keys):
                if query is None or key is None or query[1] != key[1]:
                    continue
                for h in range(Hq):
                    seen[b, h, i, j] = allows(pattern, b, h, query[0], key[0], i, j)
    return seen


def philox_word(seed, head, query, key, row):
    """Philox4x32-10 by its paper, for one weight."""
    c = [(key // 4) % 2**32, query % 2**32, head, row]
    k = [seed % 2**32, (seed >> 32) % 2**32]
    for _ in range(10):
        first, second = 0xD2511F53 * c[0], 0xCD9E8D57 * c[2]
        c = [(second >> 32) ^ c[1] ^ k[0], second % 2**32, (first >> 32) ^ c[3] ^ k[1], first % 2**32]
        k = [(k[0] + 0x9E3779B9) % 2**32, (k[1] + 0xBB67AE85) % 2**32]
    return c[key % 4]


def attention(
    q, k, v, *, layout=None, pattern=None, compare=None, scores=(), sink=None, scale=None, dropout=0.0, seed=0
):
    """``(output, weights, logsumexp, scores)`` in float64 numpy; weights before dropout."""
    B, Hq, Lq, D = q.shape
    Hkv, Lk, Dv = k.shape[1], k.shape[2], v.shape[3]
    q, k, v = (x.detach().double().numpy() for x in (q, k, v))
    scale = 1 / math.sqrt(D) if scale is None else scale
    seen = visible(pattern, layout, B, Hq, Lq, Lk)
    out, weights = np.zeros((B, Hq, Lq, Dv)), np.zeros((B, Hq, Lq, Lk))
    lse, kept_scores = np.full((B, Hq, Lq), -np.inf), np.full((B, Hq, Lq, Lk), -np.inf)
    for b, (queries, keys) in enumerate(places(layout, B, Lq, Lk)):
        for h in range(Hq):
            g = h // (Hq // Hkv)
            for i in range(Lq):
                s = {}
                for j in range(Lk):
                    if not seen[b, h, i, j]:
                        continue
                    if compare is None:
                        x = scale * float(np.dot(q[b, h, i], k[b, g, j]))
                    elif isinstance(compare, CosineSimilarity):
                        t = compare.temperature
                        t = t if isinstance(t, float) else float(t[h % len(t)])
                        lengths = np.linalg.norm(q[b, h, i]) * np.linalg.norm(k[b, g, j])
                        x = float(np.dot(q[b, h, i], k[b, g, j])) / (lengths or 1.0) / t
                    else:
                        vector = (
                            compare.vector if compare.vector.dim() == 1 else compare.vector[h % len(compare.vector)]
                        )
                        x = float(np.dot(vector.detach().double().numpy(), np.tanh(q[b, h, i] + k[b, g, j])))
                    distance = keys[j][0] - queries[i][0]
                    for rule in scores:
                        x = apply(rule, x, b, h, i, j, distance)
                    if x != -math.inf:
                        s[j] = x
                        kept_scores[b, h, i, j] = x
                terms = list(s.values()) + ([] if sink is None else [float(sink[h])])
                if not terms:
                    continue
                most = max(terms)
                lse[b, h, i] = most + math.log(sum(math.exp(x - most) for x in terms))
                for j, x in s.items():
                    p = math.exp(x - lse[b, h, i])
                    weights[b, h, i, j] = p
                    if dropout:
                        documents = 1 if layout is None else layout.documents
                        row = b * documents + queries[i][1] % documents
                        if philox_word(seed, h, queries[i][0], keys[j][0], row) < int(dropout * 2.0**32):
                            continue
                        p /= 1 - dropout
                    out[b, h, i] += p * v[b, g, j]
    return out, weights, lse, kept_scores


def apply(rule, x, b, h, i, j, distance):
    match rule:
        case ALiBi(slopes):
            slope = slopes[h % len(slopes)] if slopes.dim() == 1 else slopes[b % len(slopes), h % slopes.shape[1]]
            return x - float(slope) * abs(distance)
        case RelativeBias(table, buckets):
            return x + float(table[h % len(table), int(buckets(torch.tensor([distance])))])
        case Bias(tensor):
            return x + float(pick(tensor, b, h, i, j))
        case SoftCap(limit):
            return limit * math.tanh(x / limit)
    raise TypeError(f"say in {__file__} what a {type(rule).__name__} makes of a score")
