"""Architectures of transformers and timm from a configuration, with random weights, as tensor in, logits out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

from torch import Tensor, nn

from maestro_edge.errors import MissingExtra, ModelError

__all__ = ["IMAGE_MODELS", "TEXT_MODELS", "Logits", "bert_encoder", "hugging_face_model", "timm_model"]

IMAGE_MODELS: Final = (
    "resnet",
    "regnet",
    "convnext",
    "mobilenet_v2",
    "efficientnet",
    "vit",
    "deit",
    "swin",
    "poolformer",
    "levit",
    "segformer",
    "dinov2",
)
WITHOUT_TEACHER: Final = {"deit": "DeiTForImageClassification", "levit": "LevitForImageClassification"}
CLASSIFIERS: Final = ("bert", "distilbert")
CAUSAL: Final = ("gpt2", "llama")
TEXT_MODELS: Final = CLASSIFIERS + CAUSAL


class Logits(nn.Module):
    """A transformers model as one tensor in, its logits out.

    Images (N, C, H, W) give (N, classes); token ids (N, L), all of them attended to, give (N, classes), or
    (N, L, V) where the model predicts the next token.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.model(x).logits
        return logits


def hugging_face_model(name: str, *, channels: int, classes: int) -> Logits:
    """The model of a type's default configuration, or of a config.json at path `name`, with random weights.

    Nothing is downloaded. Attention is scaled_dot_product_attention, which every exporter knows.

    Raises:
        ModelError: there is no such type or file, or the configuration makes no model.
        MissingExtra: transformers is not installed.
    """
    settings = _settings(name)
    kind = settings.pop("model_type")
    if kind not in IMAGE_MODELS + TEXT_MODELS:
        known = ", ".join(IMAGE_MODELS + TEXT_MODELS)
        raise ModelError(f"no model type {kind!r}: give the path of a config.json, or one of {known}")
    transformers = _transformers()
    if kind not in CAUSAL:
        settings |= {"num_labels": classes}
    if kind in IMAGE_MODELS:
        settings |= {"num_channels": channels}
    else:
        settings |= {"use_cache": False}
    try:
        config = transformers.AutoConfig.for_model(kind, **settings)
        config.architectures = None if kind not in WITHOUT_TEACHER else [WITHOUT_TEACHER[kind]]
        return Logits(_task(transformers, kind).from_config(config))
    except Exception as error:  # transformers raises what its parts raise
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ModelError(f"hf:{name}: the configuration makes no {kind} model: {reason}") from error


def _transformers() -> Any:
    try:
        import transformers
    except ImportError as error:
        raise MissingExtra("transformers", "huggingface") from error
    return transformers


def _settings(name: str) -> dict[str, Any]:
    """What the configuration says, its class names left out: the labels are those of the data."""
    path = Path(name)
    if path.suffix != ".json":
        return {"model_type": name}
    try:
        settings = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise ModelError(f"{path}: cannot be read as a config.json of Hugging Face: {error}") from error
    if not isinstance(settings, dict) or not isinstance(settings.get("model_type"), str):
        raise ModelError(f"{path}: has no model_type: give a config.json of Hugging Face")
    return {key: value for key, value in settings.items() if key not in ("id2label", "label2id", "auto_map")}


def _task(transformers: Any, kind: str) -> Any:
    if kind in IMAGE_MODELS:
        return transformers.AutoModelForImageClassification
    if kind in CLASSIFIERS:
        return transformers.AutoModelForSequenceClassification
    return transformers.AutoModelForCausalLM


def bert_encoder(settings: dict[str, Any]) -> nn.Module:
    """BERT without a head, from the settings of a config.json, with random weights.

    Raises:
        MissingExtra: transformers is not installed.
    """
    transformers = _transformers()
    encoder: nn.Module = transformers.BertModel(transformers.BertConfig(**settings))
    return encoder


def timm_model(name: str, *, channels: int, classes: int) -> nn.Module:
    """A model of timm with random weights: images (N, C, H, W) to logits (N, classes).

    Raises:
        ModelError: timm does not import, or has no such model.
        MissingExtra: timm is not installed.
    """
    try:
        import timm
    except ModuleNotFoundError as error:
        raise MissingExtra(error.name or "timm", "timm") from error
    except (ImportError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise ModelError(
            f"timm does not import here ({reason}): install the torchvision that belongs to this torch"
        ) from error
    try:
        model: nn.Module = timm.create_model(name, pretrained=False, num_classes=classes, in_chans=channels)
    except (RuntimeError, TypeError, ValueError) as error:
        raise ModelError(f"timm:{name}: makes no model: {str(error).splitlines()[0]}") from error
    return model
