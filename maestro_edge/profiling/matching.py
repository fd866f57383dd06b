"""Whose operator is it: kernels of a traced network, given back to the layers they came from."""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Sequence

from maestro_edge.runtimes import Operator
from maestro_edge.values import LayerSpec, Rank, Timing

__all__ = ["assign", "averaged"]

Key = tuple[LayerSpec, Rank]


def assign(keys: Sequence[Key], operators: Sequence[Operator]) -> list[tuple[Key, Timing]] | None:
    """The time of each call of a layer, in execution order; None when layers and kernels do not correspond.

    A dense layer is one kernel, a layer at a rank two, whose samples are added. Where the file tells the shapes
    of weights, a kernel goes to the next part of that shape, as converters may swap independent branches;
    elsewhere the order alone decides.
    """
    parts = [part for spec, rank in keys for part in spec.parts(rank)]
    if len(parts) != len(operators):
        return None
    if all(operator.weights is not None for operator in operators):
        waiting: dict[tuple[int, ...], deque[Operator]] = defaultdict(deque)
        for operator in operators:
            waiting[_compact(operator.weights or ())].append(operator)
        chosen = [_next(waiting, part) for part in parts]
    else:
        chosen = [each if _fits(each, part) else None for part, each in zip(parts, operators, strict=True)]
    if any(operator is None for operator in chosen):
        return None
    timings = iter([operator.timing for operator in chosen if operator is not None])
    return [(key, _sum([next(timings) for _ in key[0].parts(key[1])])) for key in keys]


def _next(waiting: dict[tuple[int, ...], deque[Operator]], part: LayerSpec) -> Operator | None:
    shape = (part.out_channels, *(part.kernel if _kind(part) == "conv2d" else ()), part.in_channels // part.groups)
    queue = waiting[_compact(shape)]
    return queue.popleft() if queue else None


def _compact(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Without sizes of one: a conv1d is a convolution one pixel high, a 1x1 convolution may become a product."""
    return tuple(size for size in shape if size != 1)


def _fits(operator: Operator, part: LayerSpec) -> bool:
    """XNNPACK computes a 1x1 convolution as a matrix product where it can."""
    return operator.kind == _kind(part) or (operator.kind == "linear" and part.kernel == (1, 1))


def _kind(part: LayerSpec) -> str:
    return "linear" if part.kind == "linear" else "conv2d"


def averaged(calls: Sequence[tuple[Key, Timing]]) -> dict[Key, Timing]:
    """One time a key: of several calls in a network, run by run, the mean.

    ExecuTorch runs the factors of parallel branches, such as queries and keys, alternately: which kernel belongs
    to which of equal layers is not known then, but their mean is right however they are paired.
    """
    found: dict[Key, list[Timing]] = defaultdict(list)
    for key, timing in calls:
        found[key].append(timing)
    return {key: _combined(timings, 1 / len(timings)) for key, timings in found.items()}


def _sum(timings: Sequence[Timing]) -> Timing:
    """Of kernels that ran in the same runs: sample by sample."""
    return _combined(timings, 1.0)


def _combined(timings: Sequence[Timing], weight: float) -> Timing:
    if len(timings) == 1:
        return timings[0]
    count = min(timing.n for timing in timings)
    samples = [weight * sum(timing.samples_ms[run] for timing in timings) for run in range(count)]
    return Timing.of(samples, disturbed=any(timing.disturbed for timing in timings))
