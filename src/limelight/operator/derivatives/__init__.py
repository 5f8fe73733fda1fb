"""Derivatives of the operator, of every order, in memory that grows with the length.

A row of attention is a function of its own query and of what it sees. So a call is a sum over chunks of its queries,
and so is each of its derivatives: the gradient of the keys is the sum of what every chunk adds to it. A
`ChunkedFunction` is such a function, computed a chunk at a time by the definition (`limelight.backends.reference`),
holding the scores of one chunk only. Its derivatives are again such functions:

- `Attention`: ``tensors -> output, logsumexp, observations``, one call; its value may come from any backend;
- `VJP`: ``(tensors, cotangents) -> gradients``, backward mode; its value may come from the backend too;
- `JVP`: ``(tensors, tangents) -> tangents``, forward mode.

They nest, so ``VJP(VJP(...))`` is the double backward, ``JVP(VJP(...))`` a Hessian-vector product, and so on. One
`torch.autograd.Function` presents all of them to PyTorch (`autograd.evaluate`). Sums are taken in float32 (float64 for
float64) and rounded once, at the end.
"""

from __future__ import annotations

from ...backends import reference
from ...backends.contract import Backend, BorrowsBackward, Call, Result, differentiable
from ...forms.observations import Observations
from . import chunks, observed
from .algebra import VJP as VJP
from .algebra import Attention as Attention
from .autograd import PlainAttention, evaluate, is_plain

#: Bytes of scores up to which the definition is computed whole.
MAX_WHOLE_BYTES = 16 * 2**20


def forward(call: Call, backend: Backend) -> Result:
    """Compute a call by ``backend`` so that PyTorch can differentiate it, to any order, under any transform."""
    asked = call.observe
    if asked is None and is_plain(call) and not _reasons_against_backward(call, backend):
        return Result(PlainAttention.apply(call, backend, call.query, call.key, call.value))  # type: ignore[no-untyped-call]
    if asked is not None:
        call = call.replace(observe=observed.in_order(asked))
    tensors = (call.query, call.key, call.value, *call.tensors)
    function = Attention(call, backend, tensors)
    if function.keeps_lowered:
        function.pending = call
    output, logsumexp, *seen = evaluate(function, tensors)
    if asked is None:
        return Result(output, logsumexp)
    observations = Observations(**dict(zip(function.observed, seen, strict=True)))
    if asked.logsumexp:
        observations.logsumexp = logsumexp.detach() if call.only_watched else logsumexp
    return Result(output, logsumexp, observed.as_asked(observations, asked))


def explain(call: Call, backend: Backend) -> str:
    """How the derivatives of a call of ``backend`` are computed, in words."""
    reasons = _reasons_against_backward(call, backend)
    if not reasons:
        by = backend.backward_by(call) if isinstance(backend, BorrowsBackward) else backend.NAME
        return f"gradients by {by}, others from the definition, a chunk of queries at a time"
    return f"from the definition, a chunk of queries at a time ({backend.NAME}: {'; '.join(reasons)})"


def _reasons_against_backward(call: Call, backend: Backend) -> list[str]:
    """Why the gradients of a call are computed from the definition and not by ``backend``."""
    own = differentiable(backend)
    return ["it has no backward pass"] if own is None else own.reasons_against_backward(call)


def whole(call: Call) -> bool:
    """Whether a call is small enough for the definition to be computed and differentiated at once, by PyTorch alone."""
    return reference.score_bytes(call) <= MAX_WHOLE_BYTES


def memory(call: Call, backend: Backend) -> int:
    """Bytes taken beside inputs, outputs and gradients."""
    score_bytes = reference.score_bytes(call)
    scores = score_bytes if backend is reference and whole(call) else min(chunks.MAX_CHUNK_BYTES, score_bytes)
    if backend is reference:
        return (12 if call.autograd_reason else 4) * scores
    return backend.memory(call) + (12 * scores if call.autograd_reason else 0)
