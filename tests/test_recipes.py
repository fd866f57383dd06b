"""The paper's networks have its sizes, and its experiments can be started."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from maestro_edge.ordered import cut, explain, order, trace
from maestro_edge.recipes.models import load_model
from maestro_edge.recipes.paper import RECIPES, Recipe
from maestro_edge.recipes.vision import lenet, resnet18, resnet20, resnet50, small_cnn, vgg19
from maestro_edge.training import TrainSet, TrainSettings, train
from maestro_edge.training.target import Sizes
from maestro_edge.values import Network

SIZES = [
    (lenet, 1, 32, 61_706, 416_520),
    (small_cnn, 1, 32, 193_322, 9_832_320),
    (resnet20, 3, 32, 272_474, 40_813_184),
    (resnet18, 3, 32, 11_173_962, 555_422_720),
    (vgg19, 3, 32, 20_035_018, 398_136_320),
    (resnet50, 3, 224, 25_557_032, 4_089_184_256),
]
"""Parameters and MACs: 11.17 M and 0.555 G, 20.04 M and 0.398 G in the paper; torchvision: 25.56 M and 4.09 G."""


@pytest.mark.parametrize(("make", "channels", "size", "params", "macs"), SIZES)
def test_networks_have_the_sizes_that_are_reported(
    make: type[nn.Module], channels: int, size: int, params: int, macs: int
) -> None:
    """Counted in the modules and in the traced layers."""
    model = make(channels)

    network = trace(model, (torch.zeros(1, channels, size, size),))

    assert sum(p.numel() for p in model.parameters()) == params
    assert (network.macs({}), network.params({})) == (macs, params)


@pytest.mark.parametrize(("make", "channels", "size"), [(make, *rest[:2]) for make, *rest in SIZES[:-1]])
def test_networks_take_other_channels_and_classes(make: type[nn.Module], channels: int, size: int) -> None:
    """(N, C, 32, 32) → (N, classes) for the other kind of image as well."""
    reference = f"maestro_edge.recipes.vision:{make.__name__}"

    model = load_model(reference, channels=4 - channels, classes=7)

    assert model(torch.zeros(2, 4 - channels, size, size)).shape == (2, 7)


def test_convolutions_before_a_norm_have_no_bias() -> None:
    """The norm would take it away again; LeNet, which has no norms, keeps its own."""
    networks = [make() for make in (small_cnn, resnet20, resnet18, vgg19, resnet50)]

    biased = [
        m for network in networks for m in network.modules() if isinstance(m, nn.Conv2d) and m.bias is not None
    ]

    assert not biased
    assert all(m.bias is not None for m in lenet().modules() if isinstance(m, nn.Conv2d))


def test_an_ordered_resnet_computes_the_same_and_can_be_cut() -> None:
    """Every layer that can gain is ordered; cut to rank 4 it holds stock layers alone."""
    torch.manual_seed(0)
    model, image = resnet20().eval(), torch.randn(2, 3, 32, 32)

    ordered = order(model)
    thin = cut(ordered, {choice.name: 4 for choice in explain(model) if choice.ordered})

    torch.testing.assert_close(ordered(image), model(image), atol=1e-4, rtol=1e-3)
    assert sum(p.numel() for p in thin.parameters()) < sum(p.numel() for p in model.parameters()) / 3
    assert {type(m).__module__.split(".")[0] for m in thin.modules() if not [*m.children()]} == {"torch"}


@pytest.mark.parametrize("make", [lenet, small_cnn])
def test_small_networks_learn(make: type[nn.Module]) -> None:
    """A few steps on bright and dark images tell them apart."""
    torch.manual_seed(0)
    targets = torch.arange(64) % 2
    images = torch.rand(64, 1, 32, 32, generator=torch.Generator().manual_seed(0)) + targets[:, None, None, None]
    data = TrainSet("bright", images, targets, lambda x: x - 1)

    model, history = train(make(1, 2), data, TrainSettings(epochs=16, batch_size=16, lr=0.05, bf16=False))

    assert history[-1].loss < 0.3 < history[0].loss
    assert model(images - 1).argmax(1).eq(targets).float().mean() > 0.9


CLASSES = {"mnist": (1, 10), "cifar10": (3, 10), "imagenet": (3, 1000), "multi30k": (80, 9_483)}
INPUTS: dict[str, Tensor] = {
    "mnist": torch.zeros(1, 1, 32, 32),
    "cifar10": torch.zeros(1, 3, 32, 32),
    "imagenet": torch.zeros(1, 3, 224, 224),
    "multi30k": torch.zeros(1, 80, dtype=torch.int64),
}


def to_be_ordered(recipe: Recipe) -> Network:
    """The network as order() will make it, without the SVD of every layer."""
    channels, classes = CLASSES[recipe.data]
    model = load_model(recipe.model, channels=channels, classes=classes)
    chosen = {choice.name for choice in explain(model) if choice.ordered}
    network = trace(model, (INPUTS[recipe.data],), name=recipe.name)
    layers = tuple(layer.model_copy(update={"ordered": layer.name in chosen}) for layer in network.layers)
    return network.model_copy(update={"layers": layers})


@pytest.mark.parametrize("name", [name for name in RECIPES if name != "transformer_multi30k"])
def test_every_experiment_can_reach_its_size(name: str) -> None:
    """Its model is loaded by its reference, and its target lies between rank 1 and dense."""
    recipe = RECIPES[name]()
    assert recipe.ordered.target is not None

    sizes = Sizes(to_be_ordered(recipe), recipe.ordered.target)

    assert recipe.name == name
    assert 1.1 * sizes.smallest < recipe.ordered.target.value < 0.9 * sizes.dense


@pytest.mark.parametrize("name", RECIPES)
def test_the_three_trainings_of_an_experiment_compare(name: str) -> None:
    """They differ in what orders the network alone, and the paper's is the paper's."""
    recipe = RECIPES[name]()
    ours = {"dense_share", "target", "sampler", "penalty", "penalty_form"}

    dense, ordered, paper = (
        each.model_dump(exclude=ours) for each in (recipe.dense, recipe.ordered, recipe.paper)
    )

    assert dense == ordered == paper
    assert (recipe.paper.sampler, recipe.paper.penalty_form, recipe.paper.dense_share) == ("pairs", "raw", 0)
    assert recipe.paper.penalty > 0 and recipe.paper.target is None
    assert recipe.dense.penalty == recipe.dense.dense_share == 0 and recipe.dense.target is None


def test_an_experiment_is_a_value() -> None:
    """It prints, and comes back from its JSON."""
    recipe = RECIPES["resnet18_cifar10"]()

    again = Recipe.model_validate_json(recipe.model_dump_json())

    assert again == recipe
