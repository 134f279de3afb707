"""Test-time composition: denoisers in, a denoiser out.

At equal angle every score is (cos * action - x) / sin^2, so a convex mix of scores is the same mix of clean actions,
and guidance is the mix with weights (scale, 1 - scale).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from polyarm.policies.generate.forms import Denoise
from polyarm.spec import UserError

Weights = Sequence[Any] | Callable[[Tensor], Sequence[Any]]
"""One weight a part (a number, or a tensor that spreads over [b h d]), or a function of the angle that gives them."""


def mix(parts: Sequence[Denoise], weights: Weights) -> Denoise:
    """General policy composition. The mixed denoiser takes one condition a part."""
    if not callable(weights):
        _sums_to_one(parts, weights)

    def denoise(x: Tensor, phi: Tensor, conds: Sequence[Any]) -> Tensor:
        now = weights(phi) if callable(weights) else weights
        if callable(weights) and not any(isinstance(w, Tensor) for w in now):  # tensors would have to be waited for
            _sums_to_one(parts, now)
        terms = [w * part(x, phi, cond) for w, part, cond in zip(now, parts, conds, strict=True)]
        return sum(terms[1:], terms[0])

    return denoise


def guide(denoise: Denoise, scale: float) -> Denoise:
    """Classifier-free guidance (Ho and Salimans, 2022) on clean actions: scale 0 ignores the condition, 1 is the
    conditional model, above 1 overshoots. The condition None stands for "nothing given"."""
    mixed = mix([denoise, denoise], (scale, 1 - scale))
    return lambda x, phi, cond=None: mixed(x, phi, (cond, None))


def clip(denoise: Denoise, low: float = -1.0, high: float = 1.0) -> Denoise:
    """Clean actions clamped to the range of the scaled demonstrations. Clip once, after mixing."""
    return lambda x, phi, cond=None: denoise(x, phi, cond).clamp(low, high)


def _sums_to_one(parts: Sequence[Denoise], weights: Sequence[Any]) -> None:
    if len(weights) != len(parts) or not parts:
        raise UserError(f"{len(weights)} weights for {len(parts)} parts: give one weight a part, and at least one part")
    total = sum(weights[1:], weights[0])
    worst = float(abs(total - 1).max()) if isinstance(total, Tensor) else abs(total - 1)
    if not worst < 1e-6:
        raise UserError(f"weights {list(weights)} sum to {total}, not to 1: divide each by their sum")
