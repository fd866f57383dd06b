"""Ordering in loops of one's own: what backward() and update() do, and the errors of a wrong use."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError
from torch import Tensor, nn

from maestro_edge.errors import TrainingError
from maestro_edge.ordered import cut, order, ordered_layers, trace
from maestro_edge.training import ChainSampler, Ordering, Target, TrainSettings, recalibrate, train
from maestro_edge.training.target import Sizes
from maestro_edge.values import LatencyRow, LatencyTable, Timing
from tests.conftest import TinyNet, tiny_data


def fresh() -> nn.Module:
    torch.manual_seed(0)
    return order(TinyNet()).train()


def batch(count: int = 32) -> tuple[Tensor, Tensor]:
    data = tiny_data(count)
    assert isinstance(data.inputs, Tensor)
    return data.prepare(data.inputs), data.targets


def sgd(model: nn.Module, lr: float = 0.05) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9)


def run_steps(ordering: Ordering, count: int) -> list[float]:
    """A plain loop on one batch."""
    x, y = batch()
    losses = []
    for _ in range(count):
        ordering.optimizer.zero_grad()
        losses.append(ordering.backward(lambda: ordering.model(x), lambda logits: F.cross_entropy(logits, y)))
        nn.utils.clip_grad_norm_(ordering.model.parameters(), 1.0)
        ordering.optimizer.step()
        ordering.update()
    return losses


def test_a_loop_of_ones_own_learns_at_full_and_at_small_ranks() -> None:
    """Sixty steps on one batch: the network and its cut to a quarter both fit it."""
    model = fresh()
    ordering = Ordering(model, sgd(model))

    losses = run_steps(ordering, 60)

    x, y = batch()
    small = recalibrate(cut(model, {"conv2": 12}), [x]).eval()
    assert losses[-1] < 0.1 < losses[0]
    assert F.cross_entropy(small(x), y).item() < 0.3


def test_one_backward_is_the_gradient_of_all_passes() -> None:
    """backward() adds up what loss() gives as one tensor."""
    x, y = batch()
    gradients = []
    for whole in (False, True):
        model = fresh()
        ordering = Ordering(model, sgd(model), sampler="sandwich", seed=3)
        forward, loss = partial(model, x), partial(F.cross_entropy, target=y)

        if whole:
            ordering.loss(forward, loss).backward()  # type: ignore[no-untyped-call]
        else:
            ordering.backward(forward, loss)

        gradients.append([p.grad for p in model.parameters()])
    for one, other in zip(*gradients, strict=True):
        assert one is not None and other is not None
        torch.testing.assert_close(one, other)


def test_running_statistics_are_those_of_the_full_ranks() -> None:
    """The smaller passes leave BatchNorm's running mean alone, so the full network needs no recalibration."""
    x, y = batch()
    means = []
    for sampler in ("sandwich", ChainSampler([{"conv2": 48}])):
        model = fresh()
        ordering = Ordering(model, sgd(model), sampler=sampler)

        ordering.backward(partial(model, x), partial(F.cross_entropy, target=y))

        means.append(model.get_submodule("norm2").running_mean)
    model = fresh()
    model(x)
    for mean in means:
        torch.testing.assert_close(mean, model.get_submodule("norm2").running_mean)


@pytest.mark.parametrize(
    "make",
    [
        lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9),
        lambda p: torch.optim.Adam(p, lr=2e-3, amsgrad=True),
        lambda p: torch.optim.AdamW(p, lr=2e-3),
        lambda p: torch.optim.RMSprop(p, lr=1e-3, momentum=0.9, centered=True),
        lambda p: torch.optim.Adagrad(p, lr=1e-2),
        lambda p: torch.optim.NAdam(p, lr=2e-3),
    ],
    ids=["sgd", "adam-amsgrad", "adamw", "rmsprop", "adagrad", "nadam"],
)
def test_any_optimizer_shrinks_with_the_layers(make: Callable[..., torch.optim.Optimizer]) -> None:
    """Parameters, gradients and state shaped like them are cut, nothing dead is kept, and training goes on."""
    model = fresh()
    x, _ = batch()
    optimizer = make(model.parameters())
    ordering = Ordering(model, optimizer, target=Target(macs=150_000), steps=100, example=(x[:1],))

    losses = run_steps(ordering, 100)

    layer = ordered_layers(model)["conv2"]
    assert layer.rank < 20
    assert abs(ordering.size / 150_000 - 1) < 0.05
    assert losses[-1] < losses[0]
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert held == {id(p) for p in model.parameters()}
    assert set(optimizer.state) <= set(model.parameters())
    shapes = {
        value.shape for value in optimizer.state[layer.u].values() if isinstance(value, Tensor) and value.ndim
    }
    assert shapes == {layer.u.shape}


TARGETS = [Target(macs=200_000), Target(params=9_000), Target(size_bytes=40_000), Target(macs=350_000)]


@pytest.mark.parametrize("target", TARGETS, ids=str)
@pytest.mark.parametrize("sampler", ["alternating", "sandwich", "pairs"])
def test_a_run_lands_on_its_target(target: Target, sampler: str) -> None:
    """No λ is named: the cut network of the learned ranks is within 5 % of what was asked for."""
    settings = TrainSettings.model_validate(
        {"epochs": 8, "batch_size": 16, "lr": 0.05, "bf16": False, "sampler": sampler, "target": target}
    )

    model, history = train(fresh(), tiny_data(), settings)

    x, _ = batch(1)
    ranks = {name: layer.rank for name, layer in ordered_layers(model).items()}
    cut_network = trace(cut(model, ranks), (x,))
    found = {
        "macs": cut_network.macs({}),
        "params": cut_network.params({}),
        "size_bytes": 4 * cut_network.params({}),
    }[target.unit]
    assert abs(found / target.value - 1) < 0.05
    assert history[-1].size == found
    assert history[-1].penalty == 0 < history[3].penalty


def staircase(model: nn.Module) -> LatencyTable:
    """A table in which conv2 takes 1 ms dense, and 0.1 ms less at each of the ranks 32, 24, 16 and 8."""
    network = trace(model, (batch(1)[0],))
    device = {"name": "d", "soc": "s", "arch": "a", "cores": 1, "os": "o"}
    rows = []
    for layer in network.layers:
        options = {"dense": 1.0, 32: 0.9, 24: 0.8, 16: 0.7, 8: 0.6} if layer.ordered else {"dense": 0.2}
        for rank, ms in options.items():
            timing = Timing.of([ms, ms])
            rows.append(
                LatencyRow.model_validate({"spec": layer.spec, "rank": rank, "method": "probe", "timing": timing})
            )
    fit = {
        "network": network.fingerprint,
        "rest_ms": 0.1,
        "slope": 1.0,
        "intercept_ms": 0.0,
        "loo_mape": 0.0,
        "networks": (),
    }
    return LatencyTable.model_validate(
        {
            "source": "measured",
            "device": device,
            "runtime": "r",
            "runtime_version": "1",
            "precision": "fp32",
            "threads": 1,
            "created": "now",
            "rows": rows,
            "calibrations": [fit],
        }
    )


def test_a_run_lands_on_milliseconds_of_a_table() -> None:
    """1.2 ms = 0.1 rest + 2 x 0.2 + 0.7: the steps of the table are respected, so conv2 ends at rank 16."""
    model = fresh()
    settings = TrainSettings(epochs=8, batch_size=16, lr=0.05, bf16=False, target=Target(ms=1.2))

    trained, history = train(model, tiny_data(), settings, table=staircase(model))

    assert history[-1].size == pytest.approx(1.2)
    assert 8 < ordered_layers(trained)["conv2"].rank <= 16


@pytest.mark.parametrize("target", [Target(macs=1_000), Target(params=10**7), Target(size_bytes=100)], ids=str)
def test_a_target_out_of_reach_is_refused_with_the_range(target: Target) -> None:
    """Before the first step, in the target's own unit."""
    network = trace(fresh(), (batch(1)[0],))

    with pytest.raises(TrainingError, match=r"out of reach: model goes from [\d.]+ .* rank 1 to [\d.]+ .* dense"):
        Sizes(network, target)


def test_a_target_is_exactly_one_number() -> None:
    """Neither none nor two."""
    with pytest.raises(ValidationError, match="exactly one"):
        Target()
    with pytest.raises(ValidationError, match="exactly one"):
        Target(macs=1.0, params=1)


def test_milliseconds_need_a_table() -> None:
    """A time without the device it is meant on says nothing."""
    with pytest.raises(TrainingError, match="needs the latency table"):
        train(fresh(), tiny_data(), TrainSettings(batch_size=16, target=Target(ms=1.0)))


def test_a_target_needs_an_ordered_model() -> None:
    """A dense network has no ranks to give up."""
    with pytest.raises(TrainingError, match="needs ordered layers"):
        train(TinyNet(), tiny_data(), TrainSettings(batch_size=16, target=Target(macs=1e5)))


def test_wrong_uses_are_refused_in_one_line() -> None:
    """Each names what to do."""
    model = fresh()
    x, y = batch()
    frozen = fresh()
    frozen.requires_grad_(False)
    cases: list[tuple[str, Callable[[], object]]] = [
        ("no ordered layer", lambda: Ordering(TinyNet(), sgd(TinyNet()))),
        ("'conv2' is frozen", lambda: Ordering(frozen, sgd(frozen))),
        ("make it after order", lambda: Ordering(model, sgd(fresh()))),
        ("needs steps=", lambda: Ordering(model, sgd(model), target=Target(macs=1e5))),
        (
            "too few to land",
            lambda: Ordering(model, sgd(model), target=Target(macs=2e5), steps=5, example=(x[:1],)),
        ),
        (
            "drop penalty",
            lambda: Ordering(model, sgd(model), target=Target(macs=2e5), steps=50, example=(x[:1],), penalty=1),
        ),
        ("no profiles", lambda: ChainSampler([])),
        ("not nested", lambda: ChainSampler([{"conv2": 8}, {"conv2": 9}])),
        (
            "eval mode",
            lambda: Ordering(model.eval(), sgd(model)).backward(lambda: model(x), lambda z: F.cross_entropy(z, y)),
        ),
    ]
    for message, wrong in cases:
        with pytest.raises(TrainingError, match=message) as caught:
            wrong()
        assert "\n" not in str(caught.value)


def test_a_batch_of_one_with_batchnorm_is_refused() -> None:
    """By the loop before it starts, and by a step of one's own when torch finds out."""
    model = nn.Sequential(nn.Linear(32, 64), nn.BatchNorm1d(64), nn.Linear(64, 32))
    ordered = order(model, where=lambda *_: True).train()

    with pytest.raises(TrainingError, match="batch of 1 with BatchNorm"):
        Ordering(ordered, sgd(ordered)).backward(lambda: ordered(torch.zeros(1, 32)), lambda z: z.sum())
    with pytest.raises(TrainingError, match=r"micro-batch of 1 .* BatchNorm"):
        train(fresh(), tiny_data(), TrainSettings(batch_size=4, accumulate=4))


def test_a_frozen_layer_is_refused_by_the_loop() -> None:
    """Its ranks cannot be ordered."""
    model = fresh()
    model.get_submodule("conv2").requires_grad_(False)

    with pytest.raises(TrainingError, match="'conv2' is frozen"):
        train(model, tiny_data(), TrainSettings(batch_size=16))


def test_the_state_of_an_ordering_resumes_it() -> None:
    """Steps 6 to 10 are the same in an ordering that was restored after step 5, sampler and λ included."""
    x, _ = batch()

    def made() -> Ordering:
        model = fresh()
        return Ordering(
            model, sgd(model), sampler="pairs", target=Target(macs=300_000), steps=40, example=(x[:1],), seed=5
        )

    whole = made()
    run_steps(whole, 5)
    state = whole.state_dict()
    restored = made()
    restored.load_state_dict(state)

    assert [restored.sampler.draw({"conv2": 48}, restored.generator) for _ in range(3)] == [
        whole.sampler.draw({"conv2": 48}, whole.generator) for _ in range(3)
    ]
    assert restored.state_dict()["factor"] == whole.state_dict()["factor"]
    assert restored.step == 5
