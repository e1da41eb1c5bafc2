"""The passes of `row_passes.py` on a CPU, compiled by numba, bfloat16 as its bits.

Shape letters as there; N = B * T rows.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numba import njit, prange
from torch import Tensor

from recloom.kernels.numba_math import FAST, exp_cut, f4, rounded, widened
from recloom.kernels.numba_threads import as_many_threads_as_torch


def norm_on_cpu(x_BTC: Tensor, weight_C: Tensor, epsilon: float) -> Tensor:
    x_BTC = x_BTC.contiguous()
    out_BTC = torch.empty_like(x_BTC)
    rows = bits(x_BTC).reshape(-1, x_BTC.shape[-1]), bits(out_BTC).reshape(-1, x_BTC.shape[-1])
    run(norms_in_turn, norms_by_threads, rows[0], bits(weight_C.contiguous()), f4(epsilon), rows[1])
    return out_BTC


def rotate_on_cpu(heads_BHTD: Tensor, cos_BTD: Tensor, sin_BTD: Tensor) -> Tensor:
    heads_BTHD = heads_BHTD.transpose(1, 2).contiguous()  # so they come out of a projection
    out_BHTD = torch.empty(heads_BHTD.shape, dtype=heads_BHTD.dtype)
    angles = [bits(of.expand(len(heads_BTHD), -1, -1).contiguous()) for of in (cos_BTD, sin_BTD)]
    run(rotations_in_turn, rotations_by_threads, bits(heads_BTHD), *angles, bits(out_BHTD))
    return out_BHTD


def gate_on_cpu(gate_BTF: Tensor, up_BTF: Tensor) -> Tensor:
    gate_BTF = gate_BTF.contiguous()
    rows = [bits(of).reshape(-1, of.shape[-1]) for of in (gate_BTF, up_BTF.contiguous())]
    run(gates_in_turn, gates_by_threads, *rows)
    return gate_BTF


def bits(tensor: Tensor) -> np.ndarray:
    found: np.ndarray = tensor.detach().view(torch.uint16).numpy()
    return found


def run(in_turn: Callable[..., None], by_threads: Callable[..., None], *told: object) -> None:
    if torch.get_num_threads() == 1:  # an engine among others: numba's threads are not even started
        in_turn(*told)
    else:
        with as_many_threads_as_torch():
            by_threads(*told)


@njit(inline="always", fastmath=FAST, error_model="numpy")
def norm_row(x_C: np.ndarray, weight_C: np.ndarray, epsilon: np.float32, out_C: np.ndarray) -> None:
    squares = f4(0.0)
    for place in range(x_C.size):
        value = widened(x_C[place])
        squares += value * value
    scale = f4(1.0) / np.sqrt(squares / f4(x_C.size) + epsilon)
    for place in range(x_C.size):
        normed = widened(rounded(widened(x_C[place]) * scale))
        out_C[place] = rounded(widened(weight_C[place]) * normed)


@njit(inline="always", fastmath=FAST, error_model="numpy")
def rotation_row(x_D: np.ndarray, cos_D: np.ndarray, sin_D: np.ndarray, out_D: np.ndarray) -> None:
    half = x_D.size // 2
    for place in range(half):
        low, high = widened(x_D[place]), widened(x_D[place + half])
        out_D[place] = rounded(low * widened(cos_D[place]) - high * widened(sin_D[place]))
        out_D[place + half] = rounded(
            high * widened(cos_D[place + half]) + low * widened(sin_D[place + half])
        )


@njit(inline="always", fastmath=FAST, error_model="numpy")
def gate_row(gate_F: np.ndarray, up_F: np.ndarray, values_F: np.ndarray) -> None:
    """Loops this small become vector instructions; in one, numba leaves them scalar."""
    for place in range(gate_F.size):
        values_F[place] = widened(gate_F[place])
    for place in range(gate_F.size):
        value = values_F[place]
        values_F[place] = value / (f4(1.0) + exp_cut(-value))
    for place in range(gate_F.size):
        gate_F[place] = rounded(widened(rounded(values_F[place])) * widened(up_F[place]))


# Two functions each: numba's cache on disk would not tell two compilations of one apart.
@njit(nogil=True, fastmath=FAST, error_model="numpy", cache=True)
def norms_in_turn(x_NC: np.ndarray, weight_C: np.ndarray, epsilon: np.float32, out_NC: np.ndarray) -> None:
    for row in range(len(x_NC)):
        norm_row(x_NC[row], weight_C, epsilon, out_NC[row])


@njit(parallel=True, nogil=True, fastmath=FAST, error_model="numpy", cache=True)
def norms_by_threads(x_NC: np.ndarray, weight_C: np.ndarray, epsilon: np.float32, out_NC: np.ndarray) -> None:
    for row in prange(len(x_NC)):
        norm_row(x_NC[row], weight_C, epsilon, out_NC[row])


@njit(nogil=True, fastmath=FAST, error_model="numpy", cache=True)
def rotations_in_turn(
    x_BTHD: np.ndarray, cos_BTD: np.ndarray, sin_BTD: np.ndarray, out_BHTD: np.ndarray
) -> None:
    rows, tokens, heads, _ = x_BTHD.shape
    for number in range(rows * tokens):
        row, token = number // tokens, number % tokens
        for head in range(heads):
            angles = cos_BTD[row, token], sin_BTD[row, token]
            rotation_row(x_BTHD[row, token, head], angles[0], angles[1], out_BHTD[row, head, token])


@njit(parallel=True, nogil=True, fastmath=FAST, error_model="numpy", cache=True)
def rotations_by_threads(
    x_BTHD: np.ndarray, cos_BTD: np.ndarray, sin_BTD: np.ndarray, out_BHTD: np.ndarray
) -> None:
    rows, tokens, heads, _ = x_BTHD.shape
    for number in prange(rows * tokens):
        row, token = number // tokens, number % tokens
        for head in range(heads):
            angles = cos_BTD[row, token], sin_BTD[row, token]
            rotation_row(x_BTHD[row, token, head], angles[0], angles[1], out_BHTD[row, head, token])


@njit(nogil=True, fastmath=FAST, error_model="numpy", cache=True)
def gates_in_turn(gate_NF: np.ndarray, up_NF: np.ndarray) -> None:
    values_F = np.empty(gate_NF.shape[1], np.float32)
    for row in range(len(gate_NF)):
        gate_row(gate_NF[row], up_NF[row], values_F)


@njit(parallel=True, nogil=True, fastmath=FAST, error_model="numpy", cache=True)
def gates_by_threads(gate_NF: np.ndarray, up_NF: np.ndarray) -> None:
    for row in prange(len(gate_NF)):
        gate_row(gate_NF[row], up_NF[row], np.empty(gate_NF.shape[1], np.float32))
