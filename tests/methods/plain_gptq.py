"""GPTQ as in its paper, with the Cholesky factor of the inverse, in plain numpy and float64: an independent twin."""

from __future__ import annotations

import numpy as np


def target(
    weight: np.ndarray, hessian: np.ndarray, cross: np.ndarray, residual: np.ndarray, damp: float
) -> np.ndarray:
    """The corrected target: W + ¾ [W (C - H) + D] (H + λI)⁻¹."""
    damped = hessian + damp * hessian.diagonal().mean() * np.eye(len(hessian))
    moved = 0.75 * (weight @ (cross - hessian) + residual)
    return np.asarray(weight + np.linalg.solve(damped, moved.T).T)


def codes_of(
    weight: np.ndarray,
    hessian: np.ndarray,
    scales: np.ndarray,
    zero_points: np.ndarray,
    group: int,
    limits: tuple[int, int],
    damp: float,
) -> np.ndarray:
    """The codes, int [rows, columns]. scales, zero_points: [rows, groups], for the columns in their order (static
    groups)."""
    rest = weight.astype(np.float64).copy()
    n = rest.shape[1]
    damped = hessian.astype(np.float64) + damp * hessian.diagonal().mean() * np.eye(n)
    order = np.argsort(hessian.diagonal(), kind="stable")[::-1]
    upper = np.linalg.cholesky(np.linalg.inv(damped[np.ix_(order, order)])).T
    codes = np.empty(rest.shape, np.int64)
    for i, j in enumerate(order):
        scale, zero_point = scales[:, j // group], zero_points[:, j // group]
        codes[:, j] = np.rint(np.clip(rest[:, j] / scale + zero_point, *limits))
        error = (rest[:, j] - (codes[:, j] - zero_point) * scale) / upper[i, i]
        rest[:, order[i + 1 :]] -= np.outer(error, upper[i, i + 1 :])
    return codes


def output_error(errors: np.ndarray, hessian: np.ndarray) -> float:
    """The error of the outputs, tr(E H Eᵀ)."""
    return float(((errors @ hessian) * errors).sum())
