"""What a predictor sees of an operator: named numbers, the same of our layers and of other tools' operators."""

from __future__ import annotations

import math
from collections.abc import Mapping

from maestro_edge.values import LayerSpec, Rank

__all__ = ["Features", "kind_of", "layer_features", "operator_features", "with_shape"]

Features = Mapping[str, float]
"""Name → number, none negative. A name that begins with `kind:` tells kinds apart; what is absent is 0."""

_LANES = 4
"""Channels are computed in groups of as many: a GPU's texel, half a vector of the smallest CPU."""

_TILE = 4
"""Pixels a side of what Winograd's and many tiled kernels compute at once."""

_SUMMED = ("macs", "padded_macs", "elements_in", "elements_out", "weights")


def operator_features(
    kind: str,
    *,
    pixels_in: float,
    pixels_out: float,
    in_channels: float,
    out_channels: float,
    taps: float = 1,
    stride: float = 1,
    groups: float = 1,
    weighted: bool = True,
) -> dict[str, float]:
    """Work, traffic and shape of one operator; `taps` are the elements of its kernel or window.

    MACs are counted as such for pooling, too: what it adds up. `weighted` is false where there are no weights.
    """
    seen = in_channels / groups * taps
    padded_in, padded_out = _padded(in_channels), _padded(out_channels)
    found = {
        f"kind:{kind}": 1.0,
        "macs": pixels_out * out_channels * seen,
        "padded_macs": pixels_out * padded_out * max(1.0, padded_in / groups) * taps,
        "elements_in": pixels_in * padded_in,
        "elements_out": pixels_out * padded_out,
        "weights": out_channels * seen if weighted else 0.0,
        "pixels_in": pixels_in,
        "pixels_out": pixels_out,
        "in_channels": in_channels,
        "out_channels": out_channels,
        "taps": taps,
        "stride": stride,
        "groups": groups,
    }
    return _with_intensity(found)


def with_shape(features: Features) -> dict[str, float]:
    """An operator's features and what follows from them: worth its columns where operators are many thousands."""
    side = math.ceil(math.sqrt(features["pixels_out"]) / _TILE)
    return {
        **features,
        "in_per_group": features["in_channels"] / features["groups"],
        "out_per_group": features["out_channels"] / features["groups"],
        "tiles": float(side * side),
    }


def kind_of(features: Features) -> str:
    """What an operator is, for a calibration: runtimes have kernels of their own for those with a stride."""
    kind = next(name for name, value in features.items() if name.startswith("kind:") and value)
    return f"{kind}, strided" if features.get("stride", 1) > 1 else kind


def layer_features(spec: LayerSpec, rank: Rank) -> dict[str, float]:
    """Of a layer at a rank: the work of its parts together, its own shape, and its rank (0 when dense)."""
    parts = [_part_features(part) for part in spec.parts(rank)]
    found = _part_features(spec) | {name: sum(part[name] for part in parts) for name in _SUMMED}
    if len(parts) == 2:
        found |= {"rank": float(parts[0]["out_channels"]), "padded_rank": _padded(parts[0]["out_channels"])}
    found["spatial"] = float(spec.factors == "spatial")
    if spec.factors == "gauge":
        found["gauge"] = 1.0
    if spec.int8:
        found["int8"] = 1.0
    return _with_intensity(found)


def _part_features(spec: LayerSpec) -> dict[str, float]:
    looked_up = spec.kind == "embedding"
    return operator_features(
        spec.kind,
        pixels_in=spec.batch * math.prod(spec.input_size),
        pixels_out=spec.batch * math.prod(spec.output_size),
        # An embedding reads one row of its table, whatever the size of the vocabulary.
        in_channels=1 if looked_up else spec.in_channels,
        out_channels=spec.out_channels,
        taps=math.prod(spec.kernel),
        stride=math.prod(spec.stride),
        groups=spec.groups,
    )


def _padded(channels: float) -> float:
    return float(_LANES * math.ceil(channels / _LANES))


def _with_intensity(found: dict[str, float]) -> dict[str, float]:
    moved = found["elements_in"] + found["elements_out"] + found["weights"]
    return found | {"moved": moved, "macs_per_element": found["macs"] / moved}
