"""Multi30k's files as tensors, the Transformers that take them, and text on the path of the images."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from maestro_edge.devices import LocalDevice
from maestro_edge.errors import DataError, ModelError
from maestro_edge.ordered import explain, order, trace
from maestro_edge.recipes import data as datasets
from maestro_edge.recipes.bundles import bundle_run
from maestro_edge.recipes.multi30k import BOS, EOS, IGNORED, PAD, UNK, load_corpus, trimmed, words_of
from maestro_edge.recipes.plans import plan_run, sensitivity_of
from maestro_edge.recipes.reports import report_run
from maestro_edge.recipes.run import create
from maestro_edge.recipes.tables import profile_run
from maestro_edge.recipes.trainings import train_run
from maestro_edge.recipes.translation import (
    DecoderLayer,
    EncoderLayer,
    Transformer,
    sinusoids,
    small_transformer,
    transformer,
)
from maestro_edge.recipes.variants import export_run
from maestro_edge.runtimes import MeasuringProtocol
from maestro_edge.training import TrainSet, TrainSettings, train
from tests.conftest import FakeRuntime

TRAIN = {"de": ["Ein Hund läuft.", "Ein Hund  bellt!", "Die Katze schläft"], "en": ["a dog runs."] * 3}
HELD = {"de": ["Ein Hund fliegt."], "en": ["A dog flies."]}


def corpus(folder: Path, *, packed: bool = False, test: str = "test_2016_flickr") -> Path:
    """Three training pairs, one pair in each other split."""
    for stem, lines in (("train", TRAIN), ("val", HELD), (test, HELD)):
        for language, texts in lines.items():
            content = "".join(f"{line}\n" for line in texts).encode()
            path = folder / f"{stem}.{language}{'.gz' if packed else ''}"
            path.write_bytes(gzip.compress(content) if packed else content)
    return folder


def refusal(folder: Path) -> str:
    """The message with which the folder is refused: one line."""
    with pytest.raises(DataError) as caught:
        load_corpus(folder)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_words_are_lower_case_and_signs_stand_alone() -> None:
    """Umlauts and digits are part of words, a hyphen is not."""
    assert words_of("Zwei T-Shirts, größe 40!\n") == ["zwei", "t", "-", "shirts", ",", "größe", "40", "!"]


@pytest.mark.parametrize("packed", [False, True])
def test_a_pair_is_one_row(tmp_path: Path, packed: bool) -> None:
    """Source and eos, then bos and target, each padded; the targets are shifted, and ignored at padding."""
    corpus(tmp_path, packed=packed)

    read = load_corpus(tmp_path, max_length=6, min_frequency=2)

    word = {name: place for place, name in enumerate(read.words)}
    assert read.words == ("<pad>", "<bos>", "<eos>", "<unk>", ".", "a", "dog", "runs", "ein", "hund")
    source = [word["ein"], word["hund"], UNK, word["."], EOS, PAD]
    target = [word["a"], word["dog"], word["runs"], word["."]]
    assert read.train.inputs[0].tolist() == [*source, BOS, *target, PAD]
    assert read.train.targets[0].tolist() == [*target, EOS, IGNORED]
    assert (read.train.inputs.dtype, len(read.train), read.train.dropped) == (torch.int64, 3, 0)
    assert read.test.targets.tolist() == [[word["a"], word["dog"], UNK, word["."], EOS, IGNORED]]


def test_the_vocabulary_counts_each_language_on_its_own(tmp_path: Path) -> None:
    """A word twice in German and once in English does not reach a frequency of 3."""
    corpus(tmp_path)
    (tmp_path / "train.de").write_text("art art\nkunst kunst kunst\n")
    (tmp_path / "train.en").write_text("art\nskill skill skill\n")

    read = load_corpus(tmp_path)

    assert read.words[4:] == ("kunst", "skill")


def test_long_and_empty_pairs_are_dropped_and_counted(tmp_path: Path) -> None:
    """A side of L words would leave no room for eos."""
    corpus(tmp_path)
    (tmp_path / "train.de").write_text("ein hund\nein\n\nein hund bellt laut und lang\n")
    (tmp_path / "train.en").write_text("a dog\na b c d e\na\na\n")

    read = load_corpus(tmp_path, max_length=5)

    assert (len(read.train), read.train.dropped) == (1, 3)


def test_a_form_feed_does_not_part_a_line(tmp_path: Path) -> None:
    """Lines end at \\n alone: any other break would shift all pairs behind it."""
    corpus(tmp_path)
    (tmp_path / "train.de").write_text("ein\x0chund\u2028\x85\nzwei\ndrei\n", encoding="utf-8")

    read = load_corpus(tmp_path)

    assert len(read.train) == 3


def test_the_short_name_of_the_test_split_is_known(tmp_path: Path) -> None:
    """test2016 is what other copies call it."""
    corpus(tmp_path, test="test2016")

    assert len(load_corpus(tmp_path).test) == 1


def test_a_missing_text_file_is_named(tmp_path: Path) -> None:
    """The message names the file, plain and packed."""
    (corpus(tmp_path) / "val.en").unlink()

    message = refusal(tmp_path)

    assert message == f"{tmp_path / 'val.en'}: no such file, nor val.en.gz: put it there"


@pytest.mark.parametrize(
    "content",
    [b"no gz", gzip.compress(b"a\n" * 99)[:-5], gzip.compress(b"\xff\xfe")],
    ids=["no gz", "truncated", "no text"],  # gzip notes the time, and each worker must find the same tests
)
def test_a_damaged_text_file_is_refused(tmp_path: Path, content: bytes) -> None:
    """Not packed, cut, or not UTF-8."""
    (corpus(tmp_path, packed=True) / "train.de.gz").write_bytes(content)

    message = refusal(tmp_path)

    assert message.startswith(f"{tmp_path / 'train.de.gz'}: cannot be read (")


def test_files_of_different_length_are_refused(tmp_path: Path) -> None:
    """Lines would be paired with other lines' translations."""
    (corpus(tmp_path) / "train.en").write_text("a\nb\n")

    message = refusal(tmp_path)

    assert "train: 3 lines of German, 2 of English: get both files again" in message


def test_a_split_without_a_usable_pair_is_refused(tmp_path: Path) -> None:
    """An empty file, or only sentences that are too long."""
    (corpus(tmp_path) / "val.de").write_text("\n")

    message = refusal(tmp_path)

    assert "no validation pair has 1 to 39 words" in message


def test_a_length_without_room_is_refused(tmp_path: Path) -> None:
    """One place is eos's."""
    with pytest.raises(DataError, match="max_length 1 leaves no room"):
        load_corpus(corpus(tmp_path), max_length=1)


def tiny(layers: int = 2) -> Transformer:
    torch.manual_seed(0)
    return Transformer(20, width=16, heads=2, inner=32, layers=layers, dropout=0.1).eval()


def rows(count: int = 3, length: int = 6) -> Tensor:
    """Rows of words without padding."""
    tokens = torch.randint(4, 20, (count, 2 * length), generator=torch.Generator().manual_seed(1))
    tokens[:, length] = BOS
    return tokens


@torch.no_grad()
def test_padding_of_the_source_changes_no_logits() -> None:
    """Three more pads give the same logits as none: they are not seen."""
    model, tokens = tiny(), rows()
    padded = torch.cat((tokens[:, :6], torch.full((3, 3), PAD), tokens[:, 6:], torch.full((3, 3), PAD)), 1)

    logits = model(padded)[:, :6]

    torch.testing.assert_close(logits, model(tokens))


@torch.no_grad()
@pytest.mark.parametrize("place", [4, 9])
def test_what_a_pad_holds_changes_no_other_logits(place: int) -> None:
    """The embedding of a pad, in source or target, may be anything."""
    model, tokens = tiny(), rows()
    tokens[:, place] = PAD
    before = model(tokens)

    model.embedding.weight[PAD] += 5
    after = model(tokens)

    others = [position for position in range(6) if position != place - 6]
    torch.testing.assert_close(after[:, others], before[:, others])


@torch.no_grad()
@pytest.mark.parametrize("place", range(1, 6))
def test_the_future_of_the_target_is_not_seen(place: int) -> None:
    """Another word at a place changes the logits from there on, and none before."""
    model, tokens = tiny(), rows()
    other = tokens.clone()
    other[:, 6 + place] = (tokens[:, 6 + place] + 1).clamp(4, 19) + (tokens[:, 6 + place] == 19).int() * -3

    before, after = model(tokens), model(other)

    torch.testing.assert_close(after[:, :place], before[:, :place])
    assert not torch.allclose(after[:, place:], before[:, place:])


@torch.no_grad()
def test_every_source_word_and_its_place_matter() -> None:
    """The first logits change with each word of the source, and with their order."""
    model, tokens = tiny(), rows(1)
    swapped = tokens[:, [1, 0, *range(2, 12)]]

    changed = [tokens.index_fill(1, torch.tensor(place), 4 + (place % 2)) for place in range(6)]

    first = model(tokens)[:, 0]
    assert not torch.allclose(model(swapped)[:, 0], first)
    assert all(not torch.allclose(model(row)[:, 0], first) for row in changed if not torch.equal(row, tokens))


@torch.no_grad()
def test_attention_is_that_of_torch() -> None:
    """The same weights in torch's own pre-norm encoder and decoder layers give the same logits."""
    model, tokens = tiny(layers=1), rows()
    encoder, decoder = model.encoder[0], model.decoder[0]
    assert isinstance(encoder, EncoderLayer) and isinstance(decoder, DecoderLayer)
    options: Any = {"batch_first": True, "norm_first": True}
    stock_encoder = nn.TransformerEncoderLayer(16, 2, 32, 0.0, **options).eval()
    stock_decoder = nn.TransformerDecoderLayer(16, 2, 32, 0.0, **options).eval()
    pairs = [(stock_encoder.self_attn, encoder.attention), (stock_decoder.self_attn, decoder.attention)]
    for theirs, ours in [*pairs, (stock_decoder.multihead_attn, decoder.cross)]:
        theirs.in_proj_weight.copy_(torch.cat([ours.query.weight, ours.key.weight, ours.value.weight]))
        theirs.out_proj.weight.copy_(ours.out.weight)
    for stock, feed in ((stock_encoder, encoder.feed), (stock_decoder, decoder.feed)):
        stock.get_submodule("linear1").load_state_dict(feed.first.state_dict())
        stock.get_submodule("linear2").load_state_dict(feed.second.state_dict())

    source, target = (model.embedding(part) * 4 + sinusoids(6, 16) for part in tokens.chunk(2, 1))
    mask = nn.Transformer.generate_square_subsequent_mask(6)
    memory = model.encoder_norm(stock_encoder(source))
    expected = model.output(model.decoder_norm(stock_decoder(target, memory, tgt_mask=mask)))

    torch.testing.assert_close(model(tokens), expected, atol=1e-5, rtol=1e-4)


def test_a_row_of_padding_has_finite_logits() -> None:
    """An example of zeros can be traced."""
    logits = tiny()(torch.zeros(1, 12, dtype=torch.int64))

    assert logits.shape == (1, 6, 20)
    assert logits.isfinite().all()


def test_too_long_a_row_is_refused() -> None:
    """The message says how many positions there are."""
    with pytest.raises(ModelError, match="sequences of 300 tokens, this model has 256 positions"):
        tiny()(torch.zeros(1, 600, dtype=torch.int64))


@torch.no_grad()
def test_autocast_keeps_the_logits() -> None:
    """In bf16 they are within a few hundredths."""
    model, tokens = tiny(), rows()

    with torch.autocast("cpu", torch.bfloat16):
        logits = model(tokens).float()

    torch.testing.assert_close(logits, model(tokens), atol=0.06, rtol=0.05)


def test_the_small_transformer_can_be_ordered_everywhere() -> None:
    """Each of 3 x 6 + 3 x 10 projections and the output; the ordered model computes the same."""
    model, tokens = small_transformer(classes=200).eval(), rows(2)

    reasons = {choice.name: choice.reason for choice in explain(model) if choice.kind == "Linear"}
    difference = (order(model)(tokens) - model(tokens)).detach().abs().max()

    assert len(reasons) == 49 and not any(reasons.values())
    assert float(difference) < 1e-4


def test_the_transformers_have_the_sizes_of_their_docstrings() -> None:
    """44.1 M and 1.4 M beside the vocabulary's; MACs are parameters times positions, where all are Linears."""
    with torch.device("meta"):
        large = transformer(classes=9_483)
    small = small_transformer(classes=100)

    network = trace(small, (rows(1, 5),))

    assert sum(p.numel() for p in large.parameters()) - 2 * 9_483 * 512 == 44_140_544
    assert sum(p.numel() for p in small.parameters()) - 2 * 100 * 128 == 1_389_056
    linears = [module for module in small.modules() if isinstance(module, nn.Linear)]
    assert network.macs({}) == 5 * sum(module.weight.numel() for module in linears)


def test_it_learns_to_copy() -> None:
    """Eighty steps on rows whose target is their source: the loss falls below a twentieth of guessing's."""
    torch.manual_seed(0)
    model = Transformer(12, width=32, heads=4, inner=64, layers=1, dropout=0.0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    words = torch.randint(4, 12, (256, 4), generator=torch.Generator().manual_seed(2))
    end = torch.full((256, 1), EOS)
    tokens = torch.cat((words, end, torch.full((256, 1), BOS), words), 1)
    targets = torch.cat((words, end), 1)

    for _ in range(80):
        loss = F.cross_entropy(model(tokens).flatten(0, 1), targets.flatten())
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()

    assert float(loss.detach()) < 0.05 * torch.tensor(12.0).log()


def random_pairs(count: int, length: int) -> tuple[Tensor, Tensor]:
    """Pairs of 2 to `length` words, in the form of load_corpus."""
    generator = torch.Generator().manual_seed(0)
    inputs = torch.full((count, 2, length), PAD)
    targets = torch.full((count, length), IGNORED)
    for row in range(count):
        source, target = (int(torch.randint(2, length + 1, (1,), generator=generator)) for _ in range(2))
        inputs[row, 0, :source] = torch.randint(4, 20, (source,), generator=generator)
        inputs[row, 1, :target] = torch.randint(4, 20, (target,), generator=generator)
        targets[row, :target] = torch.randint(4, 20, (target,), generator=generator)
    return inputs.flatten(1), targets


def test_trimming_changes_no_loss() -> None:
    """The columns that are padding in every row take no part in what is learned."""
    inputs, targets = random_pairs(6, 12)
    inputs.view(6, 2, 12)[:, :, 9:] = PAD
    targets[:, 9:] = IGNORED
    model = tiny().eval()

    short_inputs, short_targets = trimmed(inputs, targets)

    assert short_inputs.shape == (6, 18) and short_targets.shape == (6, 9)
    losses = [
        F.cross_entropy(model(x).flatten(0, 1), y.flatten())
        for x, y in ((inputs, targets), (short_inputs, short_targets))
    ]
    torch.testing.assert_close(*losses)


def test_training_on_trimmed_batches_is_training_on_padded_ones() -> None:
    """The same batches, narrower, and the same weights after them."""
    inputs, targets = random_pairs(64, 24)
    widths: list[int] = []

    def prepare(rows: Tensor) -> Tensor:
        widths.append(rows.shape[1])
        return rows

    def weights(trim: Any) -> dict[str, Tensor]:
        torch.manual_seed(0)
        model = Transformer(20, width=8, heads=2, inner=8, layers=1, dropout=0.0)
        data = TrainSet("pairs", inputs, targets, prepare, trim=trim)
        settings = TrainSettings(epochs=2, batch_size=4, warmup_epochs=0, bf16=False)
        return dict(train(model, data, settings)[0].state_dict())

    padded, trimmed_ones = weights(None), weights(trimmed)

    torch.testing.assert_close(trimmed_ones, padded, rtol=1e-4, atol=1e-6)
    whole, narrow = widths[: len(widths) // 2], widths[len(widths) // 2 :]
    assert set(whole) == {48} and min(narrow) < 44 and max(narrow) <= 48


def test_text_takes_the_path_of_images(tmp_path: Path) -> None:
    """multi30k:PATH gives splits, labels and a train set that is neither normalised nor varied."""
    data = datasets.load(f"multi30k:{corpus(tmp_path)}")

    assert (data.name, data.is_text, data.flip) == ("multi30k", True, False)
    assert (len(data.train), len(data.validation), len(data.test)) == (3, 1, 1)
    assert data.train.inputs.shape == (3, 80) and data.train.targets.shape == (3, 40)
    assert data.labels[:4] == ("<pad>", "<bos>", "<eos>", "<unk>")
    assert torch.equal(data.normalise(data.train.inputs), data.train.inputs)


def miniature(classes: int) -> nn.Module:
    return Transformer(classes, width=48, heads=2, inner=96, layers=1, dropout=0.1)


def test_text_runs_through_the_steps_of_images(tmp_path: Path) -> None:
    """Trained dense, ordered and trained, scored by words without padding, profiled and planned."""
    source = f"multi30k:{corpus(tmp_path)}"
    run = create(tmp_path / "run", data=source, model="tests.test_text:miniature")
    settings = TrainSettings(epochs=10, batch_size=3, optimizer="adamw", lr=5e-3, bf16=False)
    untrained = run.score(run.new_model(), run.data.train)

    scores = train_run(run, dense=settings, nested=settings)
    table = profile_run(
        run, FakeRuntime(), LocalDevice(), profiles=tmp_path, protocol=MeasuringProtocol(pause_s=0)
    )
    sensitivity = sensitivity_of(run, [table])
    (plan,) = plan_run(run, table, sensitivity, [0.7 * table.predict_ms(run.network, {})])

    assert run.score(run.ordered, run.data.train).loss < 0.7 * untrained.loss
    assert scores["dense"].images == 1
    assert plan.predicted_ms <= plan.promises[0].planned
    assert run.variant(plan.ranks)(run.example[0]).shape == (1, 40, len(run.labels))


@pytest.mark.parametrize("step", ["export", "bundle", "report"])
def test_a_run_of_text_refuses_what_apps_read(tmp_path: Path, step: str) -> None:
    """The message names the run, its data and the step."""
    source = f"multi30k:{corpus(tmp_path)}"
    run = create(tmp_path / "run", data=source, model="maestro_edge.recipes.translation:small_transformer")

    with pytest.raises(DataError) as caught:
        if step == "export":
            export_run(run, LocalDevice(), [FakeRuntime()])
        elif step == "bundle":
            bundle_run(run)
        else:
            report_run(run, [])

    assert str(caught.value) == f"{run.folder} is a run of {source}: {step} needs a data set of images"
