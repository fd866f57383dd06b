"""Sensitivity: losses by hand, replayed runs against plain ones, the rule that stops, many cuts together."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from maestro_edge.errors import DataError, ModelError, TableError
from maestro_edge.ordered import at_ranks, cut, order, ordered_layers, trace
from maestro_edge.planning import (
    Option,
    corrected,
    measure_interaction,
    measure_sensitivity,
    solve_exactly,
)
from maestro_edge.planning.replay import merged_once, replaying
from maestro_edge.values import (
    DENSE,
    Cut,
    DeviceFacts,
    LatencyRow,
    LatencyTable,
    Network,
    Rank,
    Sensitivity,
    Timing,
)

CUTS = (1, 2, 4)


def tiny(*, norms: Sequence[nn.Module]) -> nn.Module:
    """Conv, norm, ReLU twice, then a head: every layer ordered, BatchNorm with statistics of its own."""
    torch.manual_seed(0)
    first, second = norms
    dense = nn.Sequential(
        nn.Conv2d(2, 6, 3, padding=1, bias=False),
        first,
        nn.ReLU(),
        nn.Conv2d(6, 8, 3, padding=1),
        second,
        nn.ReLU(),
        nn.Flatten(),
        nn.Dropout(0.5),
        nn.Linear(8 * 4 * 4, 5),
    )
    for module in dense.modules():
        if isinstance(module, nn.BatchNorm2d) and module.running_mean is not None:
            assert module.running_var is not None
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
    return order(dense, where=lambda name, module: True)


def validation() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(16, 2, 4, 4, generator=generator), torch.randint(0, 5, (16,), generator=generator)


def table_of(of: Network, ranks: Sequence[int], *, dense_ms: float = 20.0) -> LatencyTable:
    """One of a device on which rank r takes r / 10 ms."""
    times: list[tuple[Rank, float]] = [*((rank, rank / 10) for rank in ranks), (DENSE, dense_ms)]
    rows = [
        LatencyRow(spec=layer.spec, rank=rank, method="probe", timing=Timing.of([ms, ms]))
        for layer in of.layers
        for rank, ms in times
    ]
    return LatencyTable(
        source="measured",
        device=DeviceFacts(name="pixel-8", soc="Tensor G3", arch="aarch64", cores=9, os="Android 15"),
        runtime="executorch",
        runtime_version="1.5.1",
        precision="fp32",
        threads=1,
        created="2026-02-03T10:00:00Z",
        rows=tuple(rows),
    )


def loss_by_hand(model: nn.Module, ranks: dict[str, Rank], inputs: Tensor, targets: Tensor) -> float:
    """Cut to stock layers, let BatchNorm forget what it learnt, and take the loss on the whole batch."""
    stock = copy.deepcopy(cut(model, ranks)).eval()
    for module in stock.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean = module.running_var = None
            module.track_running_stats = False
    with torch.no_grad():
        return F.cross_entropy(stock(inputs), targets).item()


def two_norms() -> list[nn.Module]:
    return [nn.BatchNorm2d(6), nn.BatchNorm2d(8)]


def test_sensitivity_is_the_loss_of_each_layer_cut_alone_with_batch_statistics() -> None:
    """Base and single cuts equal those of stock layers computed by hand."""
    model, (inputs, targets) = tiny(norms=two_norms()), validation()
    of = trace(model, (inputs[:1],))

    measured = measure_sensitivity(model, of, [table_of(of, CUTS)], inputs, targets)

    assert measured.network == of.fingerprint
    assert measured.images == 16
    assert measured.base_loss == pytest.approx(loss_by_hand(model, {}, inputs, targets), abs=1e-5)
    assert set(measured.options) == {"0", "3", "8"}
    for name, cuts in measured.options.items():
        assert list(cuts) == [1, 2, 4]
        for rank in cuts:
            loss = measured.base_loss + measured.increase(name, rank)
            assert loss == pytest.approx(loss_by_hand(model, {name: rank}, inputs, targets), abs=1e-5)


def test_sensitivity_evaluates_the_ranks_of_all_tables_that_a_layer_has() -> None:
    """Ranks above a layer's own, such as those from before it shrank, are left out."""
    model, (inputs, targets) = tiny(norms=two_norms()), validation()
    of = trace(model, (inputs[:1],))
    steps: list[tuple[int, int]] = []

    measured = measure_sensitivity(
        model,
        of,
        [table_of(of, (1, 100)), table_of(of, (1, 6))],
        inputs,
        targets,
        progress=lambda done, total, what: steps.append((done, total)),
    )

    assert {name: list(cuts) for name, cuts in measured.options.items()} == {"0": [1, 6], "3": [1, 6], "8": [1]}
    assert steps == [(done, 6) for done in range(1, 7)]


def state(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def assert_same_state(model: nn.Module, before: dict[str, Tensor]) -> None:
    after = model.state_dict()
    assert list(after) == list(before)
    assert [name for name in before if not torch.equal(after[name], before[name])] == []


@pytest.mark.parametrize("training", [False, True])
def test_sensitivity_leaves_the_model_as_it_was(training: bool) -> None:
    """Weights, BatchNorm buffers and momentum, mode and ranks in use are untouched."""
    model, (inputs, targets) = tiny(norms=two_norms()).train(training), validation()
    of = trace(model, (inputs[:1],))
    before = state(model)

    measure_sensitivity(model, of, [table_of(of, CUTS)], inputs, targets)

    assert_same_state(model, before)
    assert all(module.training == training for module in model.modules())
    assert [m.momentum for m in model.modules() if isinstance(m, nn.BatchNorm2d)] == [0.1, 0.1]
    assert [m.active_rank for m in model.modules() if hasattr(m, "active_rank")] == [None] * 3


def test_sensitivity_leaves_the_model_as_it_was_when_a_forward_fails() -> None:
    """Inputs of another size stop it half-way."""
    model, (inputs, targets) = tiny(norms=two_norms()).train(), validation()
    of = trace(model, (inputs[:1],))
    before = state(model)

    with pytest.raises(RuntimeError):
        measure_sensitivity(model, of, [table_of(of, CUTS)], torch.randn(16, 2, 7, 7), targets)

    assert_same_state(model, before)
    assert all(module.training for module in model.modules())
    assert [m.momentum for m in model.modules() if isinstance(m, nn.BatchNorm2d)] == [0.1, 0.1]


def test_sensitivity_leaves_frozen_layers_frozen() -> None:
    """A BatchNorm in eval mode inside a model in training mode stays so."""
    model, (inputs, targets) = tiny(norms=two_norms()).train(), validation()
    model.get_submodule("1").eval()
    of = trace(copy.deepcopy(model), (inputs[:1],))

    measure_sensitivity(model, of, [table_of(of, CUTS)], inputs, targets)

    assert not model.get_submodule("1").training
    assert model.get_submodule("4").training


def test_sensitivity_leaves_the_batches_counted_beside_a_norm_that_counts_none() -> None:
    """A BatchNorm without running statistics has no counter to put back."""
    norms = [nn.BatchNorm2d(6, track_running_stats=False), nn.BatchNorm2d(8)]
    model, (inputs, targets) = tiny(norms=norms), validation()
    of = trace(model, (inputs[:1],))
    before = state(model)

    measure_sensitivity(model, of, [table_of(of, CUTS)], inputs, targets)

    assert_same_state(model, before)


# Replayed runs


class Residual(nn.Module):
    """A block as torchvision writes it: ReLU and sum in place, and here also a layer's output."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)
        self.conv2, self.norm2 = nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)
        self.relu, self.nothing = nn.ReLU(inplace=True), nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv1(x)
        y.mul_(0.5)
        y = self.nothing(self.relu(self.norm1(y)))
        y = self.norm2(self.conv2(y))
        y += x
        out: Tensor = self.relu(y)
        return out


def residual_cnn() -> tuple[nn.Module, Tensor]:
    stem = nn.Conv2d(3, 8, 3, padding=1)
    head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5))
    return nn.Sequential(stem, nn.BatchNorm2d(8), Residual(8), Residual(8), head), torch.randn(12, 3, 8, 8)


def vision_transformer() -> tuple[nn.Module, Tensor]:
    """transformers' own, whose blocks pass objects and tuples on."""
    import transformers

    config = transformers.ViTConfig(
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=24,
        image_size=16,
        patch_size=8,
        num_labels=5,
    )
    return Logits(transformers.ViTForImageClassification(config)), torch.randn(6, 3, 16, 16)


class Logits(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.inner(x).logits
        return logits


class Twice(nn.Module):
    """A norm and a layer that are called before and after others."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Linear(12, 12), nn.Linear(12, 12), nn.Linear(12, 5)
        self.norm, self.shared = nn.LayerNorm(12), nn.Linear(12, 12)

    def forward(self, x: Tensor) -> Tensor:
        x = self.shared(self.norm(self.first(x))).relu()
        x = self.shared(self.norm(self.second(x))).relu()
        logits: Tensor = self.head(x)
        return logits


def called_twice() -> tuple[nn.Module, Tensor]:
    return Twice(), torch.randn(9, 12)


class Recurrent(nn.Module):
    """Layers that return tuples: an LSTM its states, attention its weights or None."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Linear(6, 16), nn.Linear(16, 5)
        self.lstm = nn.LSTM(16, 16, batch_first=True)
        self.attention = nn.MultiheadAttention(16, 2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        y, (state, _) = self.lstm(self.embed(x))
        y, _ = self.attention(y, y, y, need_weights=False)
        logits: Tensor = self.head(y.mean(1) + state[-1])
        return logits


def tuples() -> tuple[nn.Module, Tensor]:
    return Recurrent(), torch.randn(7, 4, 6)


class Remembering(nn.Module):
    """A layer that leaves its output where a later one finds it."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Linear(12, 12), nn.Linear(12, 12), nn.Linear(12, 5)
        self.left: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        self.left.clear()
        for layer in (self.first, self.second):
            x = Leaving(layer, self.left)(x)
        logits: Tensor = self.head(x + self.left[0])
        return logits


class Leaving:
    def __init__(self, layer: nn.Module, left: list[Tensor]) -> None:
        self.layer, self.left = layer, left

    def __call__(self, x: Tensor) -> Tensor:
        y: Tensor = self.layer(x).relu()
        self.left.append(y)
        return y


class Cache(nn.Module):
    """A block whose inside writes what the block after it reads."""

    def __init__(self, cache: dict[str, Tensor], name: str, read: str | None) -> None:
        super().__init__()
        self.layer, self.cache, self.name, self.read = nn.Linear(12, 12), cache, name, read

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.layer(x).relu()
        self.cache[self.name] = y
        return y if self.read is None else y + self.cache[self.read]


def caching() -> tuple[nn.Module, Tensor]:
    cache: dict[str, Tensor] = {}
    blocks = [Cache(cache, "a", None), Cache(cache, "b", "a"), Cache(cache, "c", "a")]
    return nn.Sequential(*blocks, nn.Linear(12, 5)), torch.randn(9, 12)


def remembering() -> tuple[nn.Module, Tensor]:
    return Remembering(), torch.randn(9, 12)


MODELS: dict[str, Callable[[], tuple[nn.Module, Tensor]]] = {
    "residual": residual_cnn,
    "vit": vision_transformer,
    "twice": called_twice,
    "tuples": tuples,
    "remembering": remembering,
    "caching": caching,
}


def named_model(name: str) -> tuple[nn.Module, Tensor]:
    """The model ordered, in eval mode but for its BatchNorms; a shared layer stays dense."""
    torch.manual_seed(0)
    dense, inputs = MODELS[name]()
    model = order(dense, where=lambda layer, module: layer != "shared").eval()
    for module in model.modules():
        module.train(isinstance(module, nn.BatchNorm2d))
    return model, inputs


@pytest.mark.parametrize("name", MODELS)
@torch.no_grad()
def test_a_replayed_run_equals_a_plain_one_exactly(name: str) -> None:
    """On other inputs than it was proven on, for every layer at every rank, in any order, twice."""
    model, inputs = named_model(name)
    ranks = {layer: [1, 2, module.rank // 2, module.rank] for layer, module in ordered_layers(model).items()}
    options = [(layer, rank) for layer, known in ranks.items() for rank in known]
    plain = {}
    for layer, rank in options:
        with at_ranks(model, {layer: rank}):
            plain[layer, rank] = model(inputs)
    uncut = model(inputs)

    with merged_once(model), replaying(model) as replay:
        replay.prove(inputs[:2], ranks)
        recorded = replay.record(inputs)
        for layer, rank in [*options, *reversed(options)]:
            with at_ranks(model, {layer: rank}):
                assert torch.equal(replay.after([layer]), plain[layer, rank])
        several = list(ranks)[-2:]
        with at_ranks(model, dict.fromkeys(several, 1)):
            together = replay.after(several)

    assert torch.equal(recorded, uncut)
    assert torch.equal(model(inputs), uncut)
    with at_ranks(model, dict.fromkeys(several, 1)):
        assert torch.equal(together, model(inputs))
    assert not any("forward" in vars(module) for module in model.modules())


class Counting(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner, self.runs = inner, 0

    def forward(self, x: Tensor) -> Tensor:
        self.runs += 1
        y: Tensor = self.inner(x)
        return y


@torch.no_grad()
def test_what_comes_before_the_cut_does_not_run_again() -> None:
    """Only the block of the cut layer and those after it."""
    torch.manual_seed(0)
    blocks = [Counting(nn.Linear(12, 12)) for _ in range(4)]
    model = order(nn.Sequential(*blocks), where=lambda name, module: True)
    counting = [module for module in model.modules() if isinstance(module, Counting)]

    with replaying(model) as replay:
        replay.record(torch.randn(3, 12))
        for block in counting:
            block.runs = 0
        replay.after(["2.inner"])

    assert [block.runs for block in counting] == [0, 0, 1, 1]


@torch.no_grad()
def test_what_is_remembered_is_that_of_one_batch() -> None:
    """Of the last; outputs that share memory count once."""
    torch.manual_seed(0)
    model = nn.Sequential(Counting(nn.Linear(12, 20)), nn.Identity(), nn.Linear(20, 5))

    with replaying(model) as replay:
        for count in (7, 3):
            replay.record(torch.randn(count, 12))

            assert replay.kept_bytes() == 4 * count * (20 + 5)


def test_a_forward_of_its_own_is_put_back_when_a_run_fails() -> None:
    """Such as one that another library had put in place."""
    model = order(nn.Sequential(nn.Linear(12, 12), nn.ReLU()), where=lambda name, module: True)
    own = model[1].forward = lambda x: x.abs()  # type: ignore[index]

    with pytest.raises(RuntimeError), replaying(model) as replay:
        replay.record(torch.randn(3, 7))

    assert vars(model[1])["forward"] is own  # type: ignore[index]
    assert "forward" not in vars(model[0])  # type: ignore[index]


# Chunks, standard errors and the rule that stops


def plain_differences(
    model: nn.Module, ranks: Mapping[str, Rank], inputs: Tensor, targets: Tensor
) -> tuple[Tensor, Tensor]:
    """Of every target: how much its loss rises and whether its top-1 is lost, in one plain batch of all."""
    found = []
    for chosen in ({}, ranks):
        with torch.no_grad(), at_ranks(model.eval(), chosen):
            logits = model(inputs).flatten(0, -2)
        loss = F.cross_entropy(logits, targets.flatten(), reduction="none")
        found.append((loss.double(), (logits.argmax(1) == targets.flatten()).double()))
    (loss, right), (cut_loss, cut_right) = found
    return cut_loss - loss, right - cut_right


def classifier() -> tuple[nn.Module, Network]:
    """Two layers that have no norm between them, so that chunks do not matter."""
    torch.manual_seed(0)
    dense = nn.Sequential(nn.Linear(12, 24), nn.ReLU(), nn.Linear(24, 5))
    model = order(dense, where=lambda name, module: True)
    return model, trace(model, (torch.zeros(1, 12),))


def labelled(count: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(count, 12, generator=generator), torch.randint(0, 5, (count,), generator=generator)


RANKS = {"0": [1, 4, 12], "2": [1, 3]}


def test_increases_and_drops_are_means_of_paired_differences() -> None:
    """With the standard error of such a mean, in one chunk and joined from many."""
    (model, of), (inputs, targets) = classifier(), labelled(100)

    whole = measure_sensitivity(model, of, [], inputs, targets, ranks=RANKS, tolerance=0, chunk=100)
    parts = measure_sensitivity(model, of, [], inputs, targets, ranks=RANKS, tolerance=0, chunk=9)

    for layer, ranks in RANKS.items():
        for rank in ranks:
            rise, drop = plain_differences(model, {layer: rank}, inputs, targets)
            for measured, within in ((whole, 1e-4), (parts, 0.15)):
                found = measured.option(layer, rank)
                assert found.n == 100
                assert found.loss_increase == pytest.approx(float(rise.mean()), abs=1e-6)
                assert found.top1_drop == pytest.approx(float(drop.mean()))
                assert found.loss_se == pytest.approx(float(rise.std()) / 10, rel=within, abs=1e-6)
                assert found.top1_se == pytest.approx(float(drop.std()) / 10, rel=within)
    assert parts.base_loss == pytest.approx(whole.base_loss)
    assert parts.base_top1 == pytest.approx(whole.base_top1)
    assert parts.n == whole.n == 100


def test_padding_does_not_count_and_a_sentence_is_one_sample() -> None:
    """Repeating every word of a sentence tells nothing new: the same mean with the same error."""
    model, of = classifier()
    generator = torch.Generator().manual_seed(2)
    words = torch.randn(40, 3, 12, generator=generator)
    targets = torch.randint(0, 5, (40, 3), generator=generator)
    targets[::2, 1:] = -100  # every other sentence has one word
    targets[7] = -100

    def measured(words: Tensor, targets: Tensor) -> Sensitivity:
        return measure_sensitivity(model, of, [], words, targets, ranks={"0": [2]}, tolerance=0)

    once, repeated = measured(words, targets), measured(words.repeat(1, 2, 1), targets.repeat(1, 2))

    count = int((targets != -100).sum())
    rise, _ = plain_differences(model, {"0": 2}, words, targets)
    assert once.n == once.option("0", 2).n == count
    assert once.increase("0", 2) == pytest.approx(float(rise.sum()) / count, abs=1e-6)
    assert repeated.n == 2 * count
    assert repeated.increase("0", 2) == pytest.approx(once.increase("0", 2), abs=1e-6)
    assert repeated.option("0", 2).loss_se == pytest.approx(once.option("0", 2).loss_se, rel=1e-4)


def test_targets_of_which_none_counts_are_refused() -> None:
    """Instead of a mean over nothing; a chunk of padding alone among others is passed over."""
    (model, of), (inputs, targets) = classifier(), labelled(20)
    few = torch.full_like(targets, -100)

    with pytest.raises(DataError, match="none of the targets of 20 inputs counts"):
        measure_sensitivity(model, of, [], inputs, few, ranks=RANKS)
    few[3:5] = targets[3:5]
    measured = measure_sensitivity(model, of, [], inputs, few, ranks=RANKS, chunk=2)

    assert measured.n == measured.option("0", 1).n == 2


def test_an_option_runs_until_its_error_is_small_enough() -> None:
    """Each of those that stopped keeps the rule, each of those that did not has had all inputs."""
    (model, of), (inputs, targets) = classifier(), labelled(2000)
    tolerance = 0.03

    measured = measure_sensitivity(model, of, [], inputs, targets, ranks=RANKS, tolerance=tolerance, chunk=40)

    cuts = [measured.option(layer, rank) for layer, ranks in RANKS.items() for rank in ranks]
    for found in cuts:
        limit = tolerance * max(found.loss_increase, 0.1 * measured.base_loss)
        assert found.n == 2000 or found.loss_se < 1.1 * limit  # the uncut loss is now of more inputs than then
    assert measured.option("0", 12).n == 80  # nothing is cut: two chunks tell
    assert len({found.n for found in cuts}) > 2


def test_what_stopped_early_is_as_near_to_all_inputs_as_it_says() -> None:
    """Over many layers and ranks the deviations are of the size of the standard errors."""
    (inputs, targets), deviations = labelled(1500), []
    for seed in range(6):
        torch.manual_seed(seed)
        dense = nn.Sequential(nn.Linear(12, 24), nn.ReLU(), nn.Linear(24, 24), nn.ReLU(), nn.Linear(24, 5))
        model = order(dense, where=lambda name, module: True)
        of = trace(model, (inputs[:1],))
        ranks = {"0": [2, 6], "2": [3, 12], "4": [1, 3]}
        few, whole = (
            measure_sensitivity(model, of, [], inputs, targets, ranks=ranks, tolerance=tolerance, chunk=30)
            for tolerance in (0.3, 0)
        )
        for layer, known in ranks.items():
            for rank in known:
                early, late = few.option(layer, rank), whole.option(layer, rank)
                if early.n < 750:
                    deviations.append((early.loss_increase - late.loss_increase) / early.loss_se)

    assert len(deviations) > 10
    assert max(map(abs, deviations)) < 4
    assert 0.4 < math.sqrt(sum(d * d for d in deviations) / len(deviations)) < 1.6


def test_inputs_that_are_sorted_by_class_are_mixed_before_they_are_used() -> None:
    """The first chunks see every class."""
    (model, of), (inputs, targets) = classifier(), labelled(500)
    by_class = targets.argsort(stable=True)

    measured = measure_sensitivity(
        model, of, [], inputs[by_class], targets[by_class], ranks={"2": [1]}, tolerance=1e9, chunk=50
    )
    whole = measure_sensitivity(model, of, [], inputs, targets, ranks={"2": [1]}, tolerance=0)

    found = measured.option("2", 1)
    assert found.n == 100
    assert abs(found.loss_increase - whole.increase("2", 1)) < 4 * found.loss_se


def test_ranks_that_a_table_has_slower_than_dense_are_not_evaluated() -> None:
    """No plan takes one; where another table has it faster, or it is asked for by name, it counts."""
    (model, of), (inputs, targets) = classifier(), labelled(20)
    slow, fast = table_of(of, (1, 4), dense_ms=0.2), table_of(of, (2, 4), dense_ms=0.5)

    assert list(measure_sensitivity(model, of, [slow], inputs, targets).options["0"]) == [1]
    both = measure_sensitivity(model, of, [slow, fast], inputs, targets, ranks={"0": [8]})
    assert list(both.options["0"]) == [1, 2, 4, 8]


class Viewing(nn.Module):
    """What a view() refuses where channels come last."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(2, 6, 3, padding=1), nn.Linear(6 * 16, 5)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.conv(x).relu().view(len(x), -1))
        return logits


def test_a_model_that_cannot_take_channels_last_is_measured_as_it_is() -> None:
    """The layout is a matter of speed alone."""
    torch.manual_seed(0)
    model, (inputs, targets) = order(Viewing(), where=lambda name, module: True), validation()
    of = trace(model, (inputs[:1],))

    measured = measure_sensitivity(model, of, [table_of(of, CUTS)], inputs, targets)

    rise, _ = plain_differences(model, {"conv": 2}, inputs, targets)
    assert measured.increase("conv", 2) == pytest.approx(float(rise.mean()), abs=1e-6)


# Going on


class StoppedError(Exception):
    pass


def test_an_interrupted_measurement_goes_on_where_it_stopped(tmp_path: Path) -> None:
    """It ends with what an uninterrupted one finds, to the last bit, and runs no option twice."""
    (model, of), (inputs, targets) = classifier(), labelled(400)
    path, steps = tmp_path / "sensitivity.json", []

    def stopping(done: int, total: int, what: str) -> None:
        steps.append(done)
        if len(steps) % 7 == 0:
            raise StoppedError

    def measured(path: Path | None, progress: Callable[[int, int, str], None] | None) -> Sensitivity:
        return measure_sensitivity(
            model, of, [], inputs, targets, ranks=RANKS, chunk=40, path=path, progress=progress
        )

    stops = 0
    while True:
        try:
            found = measured(path, stopping)
            break
        except StoppedError:
            stops += 1
    whole = measured(None, None)

    assert stops > 1
    assert found == whole == Sensitivity.load(path)
    again: list[int] = []
    assert measured(path, lambda done, total, what: again.append(done)) == whole
    assert again == []


def test_what_is_saved_is_of_these_weights_inputs_and_chunks(tmp_path: Path) -> None:
    """Of others, or in a file that cannot be read, nothing is taken."""
    (model, of), (inputs, targets) = classifier(), labelled(60)
    path = tmp_path / "sensitivity.json"

    def measured(path: Path | None, inputs: Tensor, chunk: int = 30) -> Sensitivity:
        return measure_sensitivity(model, of, [], inputs, targets, ranks=RANKS, chunk=chunk, path=path)

    first = measured(path, inputs)
    assert measured(path, -inputs) == measured(None, -inputs) != first
    assert measured(path, inputs, chunk=20) == measured(None, inputs, chunk=20)
    path.write_text(path.read_text().replace('"schema_version": 2', '"schema_version": 1'))
    assert measured(path, inputs) == first
    with torch.no_grad():
        ordered_layers(model)["0"].u.mul_(1.5)
    assert measured(path, inputs) == measured(None, inputs) != first


def test_more_ranks_and_a_smaller_tolerance_add_to_what_is_saved(tmp_path: Path) -> None:
    """What was evaluated stays, and gets the inputs that it still needs."""
    (model, of), (inputs, targets) = classifier(), labelled(300)
    path = tmp_path / "sensitivity.json"

    def measured(ranks: Mapping[str, Sequence[int]], tolerance: float, path: Path | None = path) -> Sensitivity:
        return measure_sensitivity(
            model, of, [], inputs, targets, ranks=ranks, tolerance=tolerance, chunk=30, path=path
        )

    few = measured({"0": [1]}, 1e9)
    more = measured({"0": [4]}, 1e9)
    all_inputs = measured(RANKS, 0)

    assert few.option("0", 1).n == 60
    assert more.options == {"0": {1: few.option("0", 1), 4: more.option("0", 4)}}
    assert all_inputs == measured(RANKS, 0, None)


def test_progress_counts_to_the_end_though_options_settle_early() -> None:
    """It never falls, and what a settled option no longer needs counts as done."""
    (model, of), (inputs, targets) = classifier(), labelled(400)
    steps: list[tuple[int, int]] = []

    measure_sensitivity(
        model,
        of,
        [],
        inputs,
        targets,
        ranks=RANKS,
        tolerance=1e9,
        chunk=40,
        progress=lambda done, total, what: steps.append((done, total)),
    )

    assert steps == sorted(steps)
    assert {total for _, total in steps} == {1 + 5 * 10}
    assert steps[-1][0] == steps[-1][1]


# Cuts of many layers together


class Agreeing(nn.Module):
    """Layers whose outputs add up, and which are all wrong in the same direction at rank 1."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(12, 8, bias=False) for _ in range(4))
        large, small = torch.randn(8, 12), torch.outer(torch.randn(8), torch.randn(12))
        left, values, right = torch.linalg.svd(large)
        first = values[0] * torch.outer(left[:, 0], right[0])
        for layer in self.layers:
            layer.weight = nn.Parameter(0.2 * first + 0.02 * small)

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([layer(x) for layer in self.layers]).sum(0)


def agreeing() -> tuple[nn.Module, Network, Tensor, Tensor]:
    """With targets drawn from its own distribution, so that the loss is near its least and grows with a square."""
    torch.manual_seed(0)
    model, inputs = order(Agreeing(), where=lambda name, module: True), torch.randn(6000, 12)
    with torch.no_grad():
        targets = torch.multinomial(model(inputs).softmax(1), 1).flatten()
    return model, trace(model, (inputs[:1],)), inputs, targets


def test_cuts_that_are_wrong_together_cost_more_than_their_sum() -> None:
    """Four errors in one direction cost nearly sixteen times one; what is corrected knows of three, too."""
    model, of, inputs, targets = agreeing()
    names = list(ordered_layers(model))
    alone = measure_sensitivity(model, of, [], inputs, targets, ranks={name: [1] for name in names}, tolerance=0)

    four, three, one = (
        measure_interaction(model, alone, dict.fromkeys(names[:count], 1), inputs, targets) for count in (4, 3, 1)
    )
    known = corrected(alone, [(four.ranks, four.measured.loss_increase)])

    rise, _ = plain_differences(model, four.ranks, inputs, targets)
    assert four.measured.loss_increase == pytest.approx(float(rise.mean()), abs=1e-6)
    assert four.measured.n == 6000
    assert four.additive == pytest.approx(sum(alone.increase(name, 1) for name in names))
    assert four.measured.loss_increase > 2.5 * four.additive
    assert four.error == four.additive - four.measured.loss_increase < 0
    assert one.error == pytest.approx(0, abs=1e-6)
    assert sum(known.increase(name, 1) for name in names) == pytest.approx(four.measured.loss_increase)
    sum_of_three = sum(known.increase(name, 1) for name in names[:3])
    assert abs(sum_of_three - three.measured.loss_increase) < abs(three.error)


def test_an_assignment_of_nothing_costs_nothing_and_unknown_ranks_are_refused() -> None:
    """Dense layers may be named."""
    (model, of), (inputs, targets) = classifier(), labelled(50)
    alone = measure_sensitivity(model, of, [], inputs, targets, ranks=RANKS)

    nothing = measure_interaction(model, alone, {"0": DENSE}, inputs, targets)

    assert nothing.measured.loss_increase == nothing.additive == nothing.error == 0
    with pytest.raises(TableError, match="'0' at rank 3"):
        measure_interaction(model, alone, {"0": 3}, inputs, targets)
    with pytest.raises(ModelError, match="'head' is not an ordered layer"):
        measure_interaction(model, alone, {"head": DENSE, "0": 1}, inputs, targets)


def invented(rises: Sequence[Sequence[float]], se: float = 0.0) -> Sensitivity:
    """Of layers "0", "1" …, each with ranks 1, 2 … of these rises."""
    options = {
        str(layer): {
            rank: Cut(loss_increase=rise, loss_se=se, top1_drop=0, top1_se=0, n=100)
            for rank, rise in enumerate(known, 1)
        }
        for layer, known in enumerate(rises)
    }
    return Sensitivity(network="n", images=100, base_loss=1, base_top1=0.5, n=100, options=options)


def planned(of: Sensitivity, budget: float) -> dict[str, Rank]:
    """The best ranks where a layer costs its rank, and 4 when it is dense."""
    names = list(of.options)
    ranks: list[Rank] = [1, 2, 3, DENSE]
    costs = (1.0, 2.0, 3.0, 4.0)
    layers = [
        [Option((cost,), of.increase(name, rank)) for cost, rank in zip(costs, ranks, strict=True)]
        for name in names
    ]
    return {name: ranks[at] for name, at in zip(names, solve_exactly(layers, [budget]).chosen, strict=True)}


@pytest.mark.parametrize("power", [0.5, 0.75, 1.0, 1.5])
def test_a_second_plan_is_never_worse_where_increases_add_up_to_a_power(power: float) -> None:
    """One measurement of the first plan is enough, and unless they simply add up it makes some plans better."""
    generator = torch.Generator().manual_seed(0)

    def together(of: Sensitivity, ranks: Mapping[str, Rank]) -> float:
        return float(sum(of.increase(name, rank) ** power for name, rank in ranks.items()) ** (1 / power))

    better = 0
    for _ in range(12):
        rises = torch.rand(8, 3, generator=generator).mul(0.2).cumsum(1).flip(1).tolist()
        alone = invented(rises)
        first = planned(alone, 18)
        known = corrected(alone, [(first, together(alone, first))])
        second = planned(known, 18)

        assert sum(known.increase(*option) for option in first.items()) == pytest.approx(together(alone, first))
        gain = together(alone, first) - together(alone, second)
        assert gain > -0.005 * together(alone, first)
        better += gain > 1e-6

    assert better > 2 or power == 1


def test_sensitivities_that_add_up_stay_as_they_are() -> None:
    """Also their standard errors, and those without a telling observation."""
    alone = invented([[0.3, 0.2], [0.5, 0.1]], se=0.01)

    known = corrected(alone, [({"0": 1, "1": 1}, 0.8), ({"0": 2, "1": 2}, 0.3)])

    for layer, cuts in alone.options.items():
        for rank, was in cuts.items():
            assert known.increase(layer, rank) == pytest.approx(was.loss_increase)
            assert known.option(layer, rank).loss_se == pytest.approx(was.loss_se)
    nothing: list[tuple[dict[str, Rank], float]] = [
        ({"0": 1}, 0.5),
        ({"0": 1, "1": 2}, -0.1),
        ({"0": 1, "1": DENSE}, 0.2),
    ]
    assert corrected(alone, nothing) == corrected(alone, []) == alone


def test_a_fall_of_the_loss_by_noise_is_not_made_larger() -> None:
    """A root would make much of little, and of less than nothing a number that is none."""
    known = corrected(invented([[0.3, -0.001], [0.5, 0.1]], se=0.002), [({"0": 1, "1": 1}, 1.5)])

    assert known.increase("0", 2) == 0
    assert 0 < known.option("0", 2).loss_se < known.increase("1", 2)
