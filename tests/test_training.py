"""The loop: what it learns, what a checkpoint holds, and that it goes on exactly where it stopped."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from maestro_edge.errors import CheckpointError, MaestroError, TrainingError
from maestro_edge.ordered import cut, order, ordered_layers
from maestro_edge.training import (
    Target,
    TrainSettings,
    batches,
    evaluate,
    load_checkpoint,
    recalibrate,
    restore_model,
    save_checkpoint,
    train,
)
from tests.conftest import TinyNet, tiny_data

SETTINGS = TrainSettings(epochs=3, batch_size=16, lr=0.05, bf16=False)


def fresh() -> nn.Module:
    torch.manual_seed(0)
    return TinyNet()


def test_training_a_dense_model_learns() -> None:
    """The loop without ordered layers is a plain dense training."""
    data = tiny_data()

    model, history = train(fresh(), data, SETTINGS)

    assert evaluate(model, data.inputs, data.targets, data.prepare).top1 > 0.9
    assert [line.epoch for line in history] == [0, 1, 2]


def test_nested_training_makes_small_ranks_useful() -> None:
    """After nested training, conv2 cut to an eighth of its rank loses less than the SVD of the dense network."""
    data = tiny_data()
    dense, _ = train(fresh(), data, SETTINGS)
    calibration = list(batches(data.inputs, data.prepare))
    settings = SETTINGS.model_copy(update={"epochs": 6})

    nested, _ = train(order(dense.eval(), calibration=calibration), data, settings)

    def loss(model: nn.Module) -> float:
        small = recalibrate(cut(model, {"conv2": 6}), calibration)
        return evaluate(small, data.inputs, data.targets, data.prepare).loss

    assert loss(nested) < loss(order(dense))


def test_the_sampler_is_really_used() -> None:
    """The reference code trains without sampling by mistake: here other ranks give other weights."""
    data = tiny_data()
    full = SETTINGS.model_copy(update={"epochs": 1})

    sandwich, _ = train(order(fresh()), data, full)
    pairs, _ = train(order(fresh()), data, full.model_copy(update={"sampler": "pairs"}))

    first, second = ordered_layers(sandwich)["conv2"].u, ordered_layers(pairs)["conv2"].u
    assert not torch.allclose(first, second)


def interrupted_after(steps: int) -> Callable[[int, int, float], None]:
    def progress(step: int, total: int, loss: float) -> None:
        if step == steps:
            os.kill(os.getpid(), signal.SIGINT)

    return progress


@pytest.mark.parametrize("stop", [1, 6, 8, 13])
@pytest.mark.parametrize("sampler", ["sandwich", "pairs"])
def test_an_interrupted_training_resumes_exactly(tmp_path: Path, stop: int, sampler: str) -> None:
    """Ctrl-C in the middle of an epoch, or at its end, changes nothing: weights are equal bit by bit."""
    data = tiny_data()
    settings = SETTINGS.model_validate(
        {**SETTINGS.model_dump(), "sampler": sampler, "penalty": 0.02, "shrink_below": 0.05}
    )
    whole, lines = train(order(fresh()), data, settings)

    with pytest.raises(KeyboardInterrupt):
        train(order(fresh()), data, settings, folder=tmp_path, progress=interrupted_after(stop))
    resumed, again = train(order(fresh()), data, settings, folder=tmp_path, rebuild=fresh)

    assert [(a.epoch, a.loss, a.ranks) for a in again] == [(b.epoch, b.loss, b.ranks) for b in lines]
    for name, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name


def test_checkpoints_hold_the_ranks(tmp_path: Path) -> None:
    """A shrunk layer comes back with the rank it had: the reference reloads 4 as 16."""
    model = order(fresh())
    ordered_layers(model)["conv2"].keep(4)
    save_checkpoint(tmp_path, model, name="tiny", data="tiny", input_shape=(1, 1, 8, 8), classes=3)

    again = restore_model(fresh(), *load_checkpoint(tmp_path))

    assert ordered_layers(again)["conv2"].rank == 4
    x = torch.randn(2, 1, 8, 8)
    assert torch.equal(again.eval()(x), model.eval()(x))


def test_a_checkpoint_folder_keeps_one_set_of_weights(tmp_path: Path) -> None:
    """Old weights go once the JSON names the new ones."""
    for seed in range(3):
        torch.manual_seed(seed)
        save_checkpoint(tmp_path, TinyNet(), name="tiny", data="tiny", input_shape=(1, 1, 8, 8), classes=3)

    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize("damage", ["json", "weights", "missing", "schema", "path", "swapped"])
def test_a_damaged_checkpoint_is_refused_in_one_line(tmp_path: Path, damage: str) -> None:
    """Truncated, altered, missing or foreign: one line that names the file."""
    save_checkpoint(tmp_path, fresh(), name="tiny", data="tiny", input_shape=(1, 1, 8, 8), classes=3)
    path = tmp_path / "checkpoint.json"
    raw = json.loads(path.read_text())
    weights = tmp_path / raw["weights"]
    match damage:
        case "json":
            path.write_text(path.read_text()[:40])
        case "weights":
            weights.write_bytes(weights.read_bytes()[:-10])
        case "missing":
            weights.unlink()
        case "schema":
            path.write_text(json.dumps({**raw, "schema_version": 9}))
        case "path":
            path.write_text(json.dumps({**raw, "weights": f"../{weights.name}"}))
        case "swapped":
            weights.write_bytes(b"x" * 100)

    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(tmp_path)

    assert str(tmp_path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_checkpoint_of_another_model_is_refused(tmp_path: Path) -> None:
    """The message names the model, in one line."""
    save_checkpoint(tmp_path, order(fresh()), name="tiny", data="tiny", input_shape=(1, 1, 8, 8), classes=3)

    with pytest.raises(CheckpointError, match="does not fit model 'tiny'") as caught:
        restore_model(TinyNet(width=32), *load_checkpoint(tmp_path))

    assert "\n" not in str(caught.value)


def test_a_folder_with_other_settings_is_refused(tmp_path: Path) -> None:
    """Resuming under other hyper-parameters would be neither run."""
    train(fresh(), tiny_data(), SETTINGS, folder=tmp_path)

    with pytest.raises(CheckpointError, match="other settings"):
        train(fresh(), tiny_data(), SETTINGS.model_copy(update={"lr": 0.1}), folder=tmp_path)


def test_a_loss_that_is_not_finite_stops_with_the_step(tmp_path: Path) -> None:
    """The message names step, epoch, learning rate, the largest weights and the last good checkpoint."""
    data = tiny_data()
    assert isinstance(data.inputs, Tensor)
    bad = dataclasses.replace(data, inputs=torch.full_like(data.inputs, float("nan")))
    missing = (
        r"nan at step 0: lower the learning rate.*norms: .*conv.*\(epoch 0, lr 0.0\d+\); there is no checkpoint"
    )

    with pytest.raises(TrainingError, match=missing):
        train(fresh(), bad, SETTINGS, folder=tmp_path)
    with pytest.raises(KeyboardInterrupt):
        train(order(fresh()), data, SETTINGS, folder=tmp_path, progress=interrupted_after(8))
    with pytest.raises(TrainingError, match=f"nan at step 8.*the last good checkpoint is {tmp_path}"):
        train(order(fresh()), bad, SETTINGS, folder=tmp_path, rebuild=fresh)


def test_too_little_data_is_refused() -> None:
    """Fewer images than a batch."""
    with pytest.raises(MaestroError, match="8 inputs are fewer than one batch of 16"):
        train(fresh(), tiny_data(8), SETTINGS)


def test_the_lasso_shrinks_and_training_goes_on() -> None:
    """With a strong penalty ranks fall, no layer reaches 0, and the loss stays finite."""
    settings = SETTINGS.model_copy(update={"penalty": 0.5, "shrink_below": 0.5, "epochs": 4})
    model = order(fresh())
    before = {name: layer.rank for name, layer in ordered_layers(model).items()}

    trained, history = train(model, tiny_data(), settings)

    after = {name: layer.rank for name, layer in ordered_layers(trained).items()}
    assert all(1 <= after[name] <= before[name] for name in before)
    assert sum(after.values()) < sum(before.values())
    assert all(line.loss < 10 for line in history)


def test_recalibration_takes_the_statistics_of_the_cut_network() -> None:
    """After it, each BatchNorm holds mean and variance of what reaches it; momentum and mode are kept."""
    data = tiny_data()
    model = cut(order(fresh(), where=lambda name, _: name == "conv2"), {"conv2": 2})
    model.train()

    recalibrate(model, batches(data.inputs, data.prepare))

    with torch.no_grad():
        (inputs,) = batches(data.inputs, data.prepare)
        first = model.get_submodule("conv1")(inputs)
    norm = model.get_submodule("norm1")
    assert isinstance(norm, nn.BatchNorm2d) and norm.running_mean is not None
    assert torch.allclose(norm.running_mean, first.mean((0, 2, 3)), atol=1e-5)
    assert norm.momentum == 0.1
    assert norm.training


def test_one_run_trains_dense_then_orders_in_place(tmp_path: Path) -> None:
    """Half of the epochs dense, the rest at all ranks; interrupted in either half it ends the same."""
    data = tiny_data()
    settings = SETTINGS.model_copy(update={"epochs": 6, "dense_share": 0.5, "target": Target(macs=250_000)})
    whole, lines = train(fresh(), data, settings)

    for stop in (4, 9):
        with pytest.raises(KeyboardInterrupt):
            train(fresh(), data, settings, folder=tmp_path, rebuild=fresh, progress=interrupted_after(stop))
    resumed, again = train(fresh(), data, settings, folder=tmp_path, rebuild=fresh)

    assert [line.epoch for line in lines] == list(range(6))
    assert [bool(line.ranks) for line in lines] == [False] * 3 + [True] * 3
    assert [(a.epoch, a.loss, a.ranks) for a in again] == [(b.epoch, b.loss, b.ranks) for b in lines]
    for name, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name


def test_a_target_out_of_reach_is_refused_before_the_dense_epochs() -> None:
    """Nobody waits for a warm-up to learn that its target cannot be."""
    steps: list[int] = []
    settings = SETTINGS.model_copy(update={"epochs": 4, "dense_share": 0.5, "target": Target(macs=1e9)})

    with pytest.raises(TrainingError, match="out of reach"):
        train(fresh(), tiny_data(), settings, progress=lambda step, total, loss: steps.append(step))

    assert steps == []


def test_adamw_resumes_exactly_too(tmp_path: Path) -> None:
    """Its moments and step counts are in the checkpoint, without pickle."""
    data = tiny_data()
    settings = SETTINGS.model_copy(update={"optimizer": "adamw", "lr": 3e-3, "sampler": "independent"})
    whole, _ = train(order(fresh()), data, settings)

    with pytest.raises(KeyboardInterrupt):
        train(order(fresh()), data, settings, folder=tmp_path, progress=interrupted_after(7))
    resumed, _ = train(order(fresh()), data, settings, folder=tmp_path, rebuild=fresh)

    for name, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name


class Mixed(nn.Module):
    """A convolution, an attention layer of torch's own and a classifier: (N, 32, 4, 4) → (N, 3)."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(32, 48, 3, padding=1)
        self.encoder = nn.TransformerEncoderLayer(48, 2, 96, batch_first=True)
        self.head = nn.Linear(48, 3)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.encoder(self.conv(x).flatten(2).mT).mean(1))
        return logits


def test_a_checkpoint_rebuilds_spatial_pairs_and_attention(tmp_path: Path) -> None:
    """The dense model, the names and the ranks are enough."""
    torch.manual_seed(0)
    model = order(Mixed().eval(), spatial=["conv"])
    ordered_layers(model)["conv"].keep(20)
    save_checkpoint(tmp_path, model, name="m", data="d", input_shape=(1, 32, 4, 4), classes=3)

    again = restore_model(Mixed(), *load_checkpoint(tmp_path)).eval()

    x = torch.randn(2, 32, 4, 4)
    layers = ordered_layers(again)
    assert type(layers["conv"]).__name__ == "OrderedSpatialConv2d" and layers["conv"].rank == 20
    assert any("encoder.self_attn" in name for name in layers)
    with torch.no_grad():
        assert torch.equal(again(x), model(x))
