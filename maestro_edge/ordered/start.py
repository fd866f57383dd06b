"""Where the factors start: the balanced SVD of a weight, or the SVD whitened by the activations it sees."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from maestro_edge.errors import ModelError
from maestro_edge.ordered.modes import evaluating

__all__ = ["output_moments", "svd_start", "whitened_start"]


def svd_start(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Balanced SVD of W (m, n): U = Ũ√S as (r, m) and V = Ṽ√S as (r, n), r = min(m, n).

    The start of Maestro (ICML 2024, §3.1); both factors get the same scale, so that neither is trained faster.
    """
    left, scale, right = torch.linalg.svd(weight.detach().double(), full_matrices=False)
    root = scale.sqrt()[:, None]
    return _as_start(root * left.T, weight), _as_start(root * right, weight)


def whitened_start(weight: Tensor, moment: Tensor) -> tuple[Tensor, Tensor]:
    """Factors of W (m, n) whose every prefix is the best for the inputs seen: U as (r, m), V as (r, n).

    The best rank-k W' for E‖(W − W') x‖² is Ũ_k Ũ_kᵀ W with Ũ the left singular vectors of W Σₓ^½ (SVD-LLM,
    ICLR 2025, §3.1). Those are the eigenvectors of W Σₓ Wᵀ, the second moment of the layer's *outputs*
    (`moment`, (m, m)), so neither a root nor an inverse of Σₓ is needed and a rank-deficient Σₓ does no harm:
    a trace of W Wᵀ, the plain SVD's order, ranks the directions that the data never excites.
    """
    matrix = weight.detach().double()
    # Within the column space of W: rounding, or a layer that is never excited, would choose directions outside.
    basis, scale, _ = torch.linalg.svd(matrix, full_matrices=False)
    plain = scale.square().diag()
    seen = basis.T @ moment.double() @ basis
    tiny = torch.finfo(torch.float64).tiny
    ridge = 1e-6 * seen.trace() / plain.trace().clamp_min(tiny) if seen.trace() > tiny else 1.0
    _, vectors = torch.linalg.eigh(seen + ridge * plain)
    left = basis @ vectors.flip(1)
    right = left.T @ matrix
    # Balance: both rows of a component get the root of their common norm.
    norm = right.norm(dim=1, keepdim=True)
    root = norm.sqrt()
    u = root * left.T
    v = right / root.clamp_min(torch.finfo(torch.float64).tiny)
    return _as_start(u, weight), _as_start(v, weight)


def _as_start(factor: Tensor, weight: Tensor) -> Tensor:
    # LAPACK returns column-major factors; prefixes are contiguous only when components are rows.
    return factor.to(weight.dtype).contiguous()


@torch.no_grad()
def output_moments(
    model: nn.Module, layers: Mapping[str, nn.Module], batches: Iterable[Tensor]
) -> dict[str, Tensor]:
    """(m, m) second moments of the named layers' outputs without their bias, streamed over `batches`.

    Raises:
        ModelError: there are no batches, or a layer never runs.
    """
    totals: dict[str, Tensor] = {}

    def collect(name: str, module: nn.Module, output: Tensor) -> None:
        channels = output.movedim(1, -1) if isinstance(module, nn.Conv2d) else output
        rows = channels.reshape(-1, channels.shape[-1]).double()
        bias = getattr(module, "bias", None)
        rows = rows if bias is None else rows - bias
        totals[name] = totals.get(name, torch.zeros((), dtype=rows.dtype)) + rows.T @ rows

    hooks = [
        module.register_forward_hook(lambda module, _, output, name=name: collect(name, module, output))
        for name, module in layers.items()
    ]
    try:
        with evaluating(model):
            for batch in batches:
                model(batch)
    except (RuntimeError, TypeError, ValueError, LookupError, AssertionError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ModelError(f"the model does not run on the calibration batches: {reason}") from error
    finally:
        for hook in hooks:
            hook.remove()
    missing = [name for name in layers if name not in totals]
    if missing:
        raise ModelError(f"calibration never reached layer {missing[0]!r}: give batches that run every layer")
    return totals
