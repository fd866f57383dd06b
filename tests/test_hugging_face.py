"""hf:, timm: and pretrained references: configurations without a download, weights without an unpickler."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from maestro_edge.errors import MissingExtra, ModelError
from maestro_edge.ordered import explain, order, ordered_layers
from maestro_edge.recipes.models import load_model


def config(path: Path, **settings: Any) -> str:
    file = path / "config.json"
    file.write_text(json.dumps(settings))
    return f"hf:{file}"


def test_a_type_alone_is_its_default_configuration() -> None:
    """MobileNetV2, the smallest of them, with the data's channels and classes."""
    model = load_model("hf:mobilenet_v2", channels=1, classes=7).eval()

    with torch.no_grad():
        logits = model(torch.randn(2, 1, 64, 64))

    assert logits.shape == (2, 7)


def test_a_configuration_keeps_its_sizes_and_takes_the_datas_classes(tmp_path: Path) -> None:
    """Label names of another data set, and code that a configuration asks to run, are left out."""
    reference = config(
        tmp_path,
        model_type="bert",
        architectures=["BertForMaskedLM"],
        auto_map={"AutoModel": "somewhere--modeling.Model"},
        id2label={"0": "yes", "1": "no"},
        label2id={"yes": 0, "no": 1},
        vocab_size=40,
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=8,
    )

    model = load_model(reference, channels=3, classes=5).eval()

    assert model(torch.randint(40, (2, 6))).shape == (2, 5)
    assert {module.num_embeddings for module in model.modules() if isinstance(module, nn.Embedding)} == {
        40,
        512,
        2,
    }


def test_a_language_model_predicts_every_token_of_its_vocabulary(tmp_path: Path) -> None:
    """The number of classes is the data's, not the model's."""
    reference = config(
        tmp_path, model_type="gpt2", vocab_size=30, n_embd=8, n_layer=1, n_head=2, bos_token_id=0, eos_token_id=0
    )

    model = load_model(reference, channels=3, classes=5).eval()

    assert model(torch.randint(30, (2, 6))).shape == (2, 6, 30)
    reasons = {choice.name: choice.reason for choice in explain(model, where=lambda name, module: True)}
    assert reasons["model.lm_head"] == "its weight is tied to 'model.transformer.wte'"
    assert reasons["model.transformer.h.0.attn.c_attn"] == ""


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot be read as a config.json"),
        ("{", "cannot be read as a config.json"),
        ("{}", "has no model_type"),
        ("[1]", "has no model_type"),
        (
            '{"model_type": "wav2vec2"}',
            "no model type 'wav2vec2': give the path of a config.json, or one of resnet",
        ),
        ('{"model_type": "vit", "hidden_act": "none"}', "makes no vit model: "),
    ],
)
def test_a_configuration_that_makes_no_model_is_one_line(
    content: str | None, message: str, tmp_path: Path
) -> None:
    """Missing, no JSON, of another form, of an unknown type, or with sizes that do not fit."""
    path = tmp_path / "config.json"
    if content is not None:
        path.write_text(content)

    with pytest.raises(ModelError, match=message) as caught:
        load_model(f"hf:{path}", channels=3, classes=2)

    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("reference", ["hf:", "resnet8", "timm:"])
def test_a_reference_of_another_form_is_told_all_forms(reference: str) -> None:
    """The names of pretrained models are references too."""
    with pytest.raises(ModelError, match=r"give package\.module:function, hf:TYPE.* efficientnet-lite0 or minilm"):
        load_model(reference, channels=3, classes=2)


def package(folder: Path, monkeypatch: pytest.MonkeyPatch, source: str) -> None:
    """A `timm` that stands before any that is installed."""
    (folder / "timm").mkdir()
    (folder / "timm" / "__init__.py").write_text(source)
    monkeypatch.delitem(sys.modules, "timm", raising=False)
    monkeypatch.syspath_prepend(str(folder))


def test_timm_makes_a_model_of_the_datas_sizes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By timm's own function, never pretrained."""
    source = (
        "import torch\n"
        "def create_model(name, *, pretrained, num_classes, in_chans):\n"
        "    if name != 'net' or pretrained: raise RuntimeError(f'Unknown model ({name})\\nsecond line')\n"
        "    return torch.nn.Linear(in_chans, num_classes)\n"
    )
    package(tmp_path, monkeypatch, source)

    model = load_model("timm:net", channels=3, classes=4)

    assert model(torch.zeros(1, 3)).shape == (1, 4)
    with pytest.raises(ModelError, match=r"^timm:none: makes no model: Unknown model \(none\)$"):
        load_model("timm:none", channels=3, classes=4)


def test_a_timm_that_does_not_import_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A torchvision of another torch fails inside timm's own import."""
    package(tmp_path, monkeypatch, "raise RuntimeError('operator torchvision::nms does not exist')")

    with pytest.raises(
        ModelError, match=r"timm does not import here \(operator torchvision::nms does not exist\)"
    ):
        load_model("timm:resnet18", channels=3, classes=4)


@pytest.mark.parametrize(
    ("reference", "module", "install"),
    [
        ("timm:resnet18", "timm", "'maestro-edge[timm]'"),
        ("hf:resnet", "transformers", "'maestro-edge[huggingface]'"),
        ("efficientnet-lite0", "efficientnet_lite_pytorch", "--no-deps efficientnet-lite-pytorch"),
    ],
)
def test_a_package_that_is_not_installed_is_named(
    reference: str, module: str, install: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the command that brings it."""
    monkeypatch.setitem(sys.modules, module, None)

    with pytest.raises(MissingExtra, match=f"is not installed: pip install {re.escape(install)}"):
        load_model(reference, channels=3, classes=2)


def differs(model: nn.Module, inputs: Tensor) -> float:
    """Largest difference that ordering makes, over the largest output."""
    with torch.no_grad():
        wanted = model(inputs)
        found = order(model)(inputs)
    return float((found - wanted).abs().max() / wanted.abs().max())


def test_pretrained_efficientnet_keeps_its_function_and_its_depthwise_layers() -> None:
    """Its classes tell images apart: on noise and on black it does not answer the same."""
    torch.manual_seed(0)
    model = load_model("efficientnet-lite0", channels=3, classes=1000).eval()
    inputs = torch.stack([torch.randn(3, 224, 224), torch.zeros(3, 224, 224)])

    reasons = [choice.reason for choice in explain(model)]

    assert reasons.count("depthwise") == 16
    assert reasons.count("") == 31
    assert differs(model, inputs) < 1e-4
    assert len(set(model(inputs).argmax(1).tolist())) == 2
    assert load_model("efficientnet-lite0", channels=3, classes=10)(inputs).shape == (2, 10)
    with pytest.raises(ModelError, match="trained on 3 channels, not 1"):
        load_model("efficientnet-lite0", channels=1, classes=10)


def test_pretrained_minilm_keeps_its_function_and_passes_over_padding() -> None:
    """Sentences of ids; id 0 pads, and adding it changes nothing."""
    torch.manual_seed(0)
    model = load_model("minilm", channels=1, classes=4).eval()
    tokens = torch.randint(1000, 30000, (2, 12))

    padded = nn.functional.pad(tokens, (0, 5))

    assert differs(model, tokens) < 1e-4
    assert len(ordered_layers(order(model))) == 37
    with torch.no_grad():
        torch.testing.assert_close(model(padded), model(tokens), atol=1e-5, rtol=1e-5)
