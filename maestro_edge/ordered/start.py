"""Where the factors start: the balanced SVD of a weight, or the SVD whitened by the activations it sees."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from maestro_edge.errors import ModelError
from maestro_edge.ordered.dense import matrices, output_rows
from maestro_edge.ordered.modes import evaluating

__all__ = ["output_moments", "svd_start", "whitened_start"]


def svd_start(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Balanced SVD of W (..., m, n): U = Ũ√S as (..., r, m) and V = Ṽ√S as (..., r, n), r = min(m, n).

    The start of Maestro (ICML 2024, §3.1); both factors get the same scale, so that neither is trained faster.
    Leading dimensions are groups, each with an SVD of its own. Computed in double precision.
    """
    left, scale, right = torch.linalg.svd(weight.detach().double(), full_matrices=False)
    root = scale.sqrt()[..., None]
    return _as_start(root * left.mT, weight), _as_start(root * right, weight)


def whitened_start(weight: Tensor, moment: Tensor) -> tuple[Tensor, Tensor]:
    """Factors of W (..., m, n) with the best prefixes for the inputs seen: U as (..., r, m), V as (..., r, n).

    The best rank-k W' for E‖(W − W') x‖² is Ũ_k Ũ_kᵀ W with Ũ the left singular vectors of W Σₓ^½ (SVD-LLM,
    ICLR 2025, §3.1). Those are the eigenvectors of W Σₓ Wᵀ, the second moment of the layer's *outputs*
    (`moment`, (..., m, m), or (..., r, r) within W's column space, as output_moments gives), so neither a root
    nor an inverse of Σₓ is needed and a rank-deficient Σₓ does no harm: a trace of W Wᵀ, the plain SVD's order,
    ranks the directions that the data never excites.
    """
    matrix = weight.detach().double()
    # Within the column space of W: rounding, or a layer that is never excited, would choose directions outside.
    basis, scale, _ = torch.linalg.svd(matrix, full_matrices=False)
    plain = scale.square().diag_embed()
    inside = moment.shape[-1] < matrix.shape[-2]
    seen = moment.double() if inside else basis.mT @ moment.double() @ basis
    energy, size = _trace(seen), _trace(plain)
    tiny = torch.finfo(torch.float64).tiny
    ridge = torch.where(energy > tiny, 1e-6 * energy / size.clamp_min(tiny), 1.0)
    _, vectors = torch.linalg.eigh(seen + ridge * plain)
    left = basis @ vectors.flip(-1)
    right = left.mT @ matrix
    # Balance: both rows of a component get the root of their common norm.
    norm = right.norm(dim=-1, keepdim=True)
    root = norm.sqrt()
    u = root * left.mT
    v = right / root.clamp_min(tiny)
    return _as_start(u, weight), _as_start(v, weight)


def _column_space(weight: Tensor) -> Tensor | None:
    """The left singular vectors (..., m, r) of W (..., m, n) with m > n: the coordinates of whitened_start."""
    if weight.shape[-2] <= weight.shape[-1]:
        return None
    basis: Tensor = torch.linalg.svd(weight.detach().double(), full_matrices=False)[0]
    return basis


def _trace(matrix: Tensor) -> Tensor:
    return matrix.diagonal(dim1=-2, dim2=-1).sum(-1)[..., None, None]


def _as_start(factor: Tensor, weight: Tensor) -> Tensor:
    # LAPACK returns column-major factors; prefixes are contiguous only when components are rows.
    return factor.to(weight.dtype).contiguous()


@torch.no_grad()
def output_moments(
    model: nn.Module, layers: Mapping[str, nn.Module], batches: Iterable[Tensor]
) -> dict[str, Tensor]:
    """(G, m / G, m / G) second moments of the named layers' outputs without their bias, streamed over `batches`.

    Of a layer with more outputs than inputs, such as a projection onto a vocabulary, only the (G, r, r) moments
    within the column space of its weight are kept: all that its outputs have, in a fraction of the memory.

    Raises:
        ModelError: there are no batches, a layer never runs, or one gives NaN or infinity.
    """
    totals: dict[str, Tensor] = {}
    bases = {name: _column_space(matrices(layer)) for name, layer in layers.items()}

    def collect(name: str, module: nn.Module, output: Tensor) -> None:
        rows, basis = output_rows(module, output), bases[name]
        rows = rows if basis is None else rows @ basis
        moment = rows.mT @ rows
        totals[name] = totals[name] + moment if name in totals else moment

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
    for name, total in totals.items():
        if not torch.isfinite(total).all():
            raise ModelError(
                f"layer {name!r} gives NaN or infinity on the calibration batches: check their values"
            )
    return totals
