"""When each word of a transcript is said: cross-attention warped along the sound.

The heads that follow the sound give each written token a weight over the encoder's states. Standardised over the
tokens, smoothed along the sound and averaged over the heads, these weights are a map on which dynamic time warping
(Sakoe and Chiba 1978) finds the best path that goes forward in both. This is how OpenAI's Whisper finds the times of
words (Radford et al. 2022, arXiv:2212.04356, and the code published with it).
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]

SMOOTHED = 7  # states of the median filter: 0.14 seconds


def first_states(weights: Floats) -> npt.NDArray[np.int64]:
    """The state of the encoder with which each token begins, ``(R,)``, never going back.

    Args:
        weights: ``(heads, R, S)``, of the queries that predict the tokens.
    """
    shares = weights / np.maximum(weights.sum(-1, keepdims=True), 1e-12)  # the silence behind the sound left out
    scores = (shares - shares.mean(1, keepdims=True)) / np.maximum(shares.std(1, keepdims=True), 1e-12)
    tokens, states = warp(-_median(scores).mean(0))
    begins = np.concatenate([[True], np.diff(tokens) > 0])
    return np.asarray(states[begins], dtype=np.int64)


def warp(cost: Floats) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """The path of least total cost from the first cell of ``(R, S)`` to the last: its rows, and its columns.

    A step goes to the next row, the next column, or both.

    >>> warp(np.array([[0.0, 9.0, 9.0], [9.0, 0.0, 0.0]], dtype=np.float32))
    (array([0, 1, 1]), array([0, 1, 2]))
    """
    rows, columns = cost.shape
    total = np.full((rows + 1, columns + 1), np.inf)
    total[0, 0] = 0.0
    step = np.zeros((rows, columns), np.int8)  # 0: both, 1: next row, 2: next column
    for i in range(rows):
        above, line = total[i].tolist(), [np.inf]
        for j, here in enumerate(cost[i].tolist()):
            options = (above[j], above[j + 1], line[j])
            best = min(range(3), key=options.__getitem__)
            step[i, j] = best
            line.append(options[best] + here)
        total[i + 1] = line
    path = [(rows - 1, columns - 1)]
    while path[-1] != (0, 0):
        i, j = path[-1]
        path.append((i - (step[i, j] != 2), j - (step[i, j] != 1)))
    found = np.array(path[::-1], np.int64)
    return found[:, 0], found[:, 1]


def _median(scores: Floats) -> Floats:
    """The median of each state and those around it."""
    half = SMOOTHED // 2
    if scores.shape[-1] <= half:
        return scores
    padded = np.pad(scores, ((0, 0), (0, 0), (half, half)), mode="reflect")
    windows = np.lib.stride_tricks.sliding_window_view(padded, SMOOTHED, axis=-1)
    return np.asarray(np.median(windows, axis=-1), dtype=np.float32)
