"""Multi30k (Elliott et al., 2016), German to English, from its raw text files, as int64 tensors of word indices.

A pair is one row, so that text goes where images go: `inputs` (2 L,) is the source and eos, padded to L, then
bos and the translation, padded to L; `targets` (L,) is the translation and eos, -100 where there is padding.
"""

from __future__ import annotations

import gzip
import re
import zlib
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import torch
from torch import Tensor

from maestro_edge.errors import DataError

__all__ = [
    "BOS",
    "EOS",
    "IGNORED",
    "PAD",
    "UNK",
    "Corpus",
    "Pairs",
    "load_corpus",
    "trimmed",
    "words_of",
]

PAD, BOS, EOS, UNK = range(4)
SPECIALS: Final = ("<pad>", "<bos>", "<eos>", "<unk>")
IGNORED: Final = -100
"""The target that torch's cross_entropy leaves out."""

WORD: Final = re.compile(r"\w+|[^\w\s]")
FILES: Final = {"train": ("train",), "validation": ("val",), "test": ("test_2016_flickr", "test2016")}

Sentences = list[list[str]]


@dataclass(frozen=True, eq=False)
class Pairs:
    """(N, 2 L) inputs and (N, L) targets; `dropped` pairs were empty or longer than L - 1 words on one side."""

    inputs: Tensor
    targets: Tensor
    dropped: int

    def __len__(self) -> int:
        return len(self.targets)


@dataclass(frozen=True, eq=False)
class Corpus:
    """The three splits as published, and the words that the indices stand for, specials first."""

    train: Pairs
    validation: Pairs
    test: Pairs
    words: tuple[str, ...]


def words_of(line: str) -> list[str]:
    """The words and single signs of a line, in lower case."""
    return WORD.findall(line.lower())


def trimmed(inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """(N, 2 l) inputs and (N, l) targets of (N, 2 L) and (N, L): l is the longest side of any of the pairs."""
    longest = int(inputs.view(len(inputs), 2, -1).ne(PAD).sum(2).max())
    sides = inputs.view(len(inputs), 2, -1)[:, :, :longest]
    return sides.reshape(len(inputs), -1), targets[:, :longest]


def load_corpus(folder: Path, *, max_length: int = 40, min_frequency: int = 3) -> Corpus:
    """Read `train`, `val` and `test_2016_flickr` (or `test2016`), each `.de` and `.en`, plain or `.gz`.

    One vocabulary serves both languages: the words that occur `min_frequency` times in a language's training
    lines. That, lower case and the count of 3 are the preprocessing of the paper's baseline (Pufferfish, MLSys
    2021, which takes it from jadore801120/attention-is-all-you-need-pytorch, `-share_vocab`); theirs are
    spaCy's words, for which a regular expression stands here. Length 40 loses 5 of 29,000 training pairs and
    none of the other splits.

    Raises:
        DataError: a file is missing or damaged, or two that belong together have other numbers of lines.
    """
    if max_length < 2:
        raise DataError(f"max_length {max_length} leaves no room for a word and <eos>: give 2 or more")
    texts = {split: _pair(folder, stems) for split, stems in FILES.items()}
    words = _vocabulary(texts["train"], min_frequency)
    index = {word: place for place, word in enumerate(words)}
    splits = {split: _pairs(*text, index=index, length=max_length) for split, text in texts.items()}
    for split, pairs in splits.items():
        if not len(pairs):
            raise DataError(f"{folder}: no {split} pair has 1 to {max_length - 1} words: give other files")
    return Corpus(words=words, **splits)


def _pair(folder: Path, stems: tuple[str, ...]) -> tuple[Sentences, Sentences]:
    stem = next((stem for stem in stems if _file(folder / f"{stem}.de").exists()), stems[0])
    german, english = (_lines(folder / f"{stem}.{language}") for language in ("de", "en"))
    if len(german) != len(english):
        counts = f"{len(german)} lines of German, {len(english)} of English"
        raise DataError(f"{folder / stem}: {counts}: get both files again")
    return german, english


def _file(plain: Path) -> Path:
    return plain if plain.exists() else plain.with_name(f"{plain.name}.gz")


def _lines(plain: Path) -> Sentences:
    path = _file(plain)
    try:
        content = path.read_bytes()
        text = (content if path == plain else gzip.decompress(content)).decode("utf-8")
    except FileNotFoundError as error:
        raise DataError(f"{plain}: no such file, nor {path.name}: put it there") from error
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read ({error}): get the file again") from error
    # splitlines() would also part a line at U+2028 or a form feed, and shift all lines behind it.
    lines = text.removesuffix("\n").split("\n")
    return [words_of(line) for line in lines]


def _vocabulary(train: tuple[Sentences, Sentences], min_frequency: int) -> tuple[str, ...]:
    both: Counter[str] = Counter()
    chosen: set[str] = set()
    for sentences in train:
        counts = Counter(word for sentence in sentences for word in sentence)
        chosen |= {word for word, count in counts.items() if count >= min_frequency}
        both += counts
    return (*SPECIALS, *sorted(chosen, key=lambda word: (-both[word], word)))


def _pairs(german: Sentences, english: Sentences, *, index: dict[str, int], length: int) -> Pairs:
    chosen = [
        (source, target)
        for source, target in zip(german, english, strict=True)
        if 0 < len(source) < length and 0 < len(target) < length
    ]
    inputs = torch.full((len(chosen), 2 * length), PAD)
    targets = torch.full((len(chosen), length), IGNORED)
    for row, pair in enumerate(chosen):
        source, target = (_indices(sentence, index) for sentence in pair)
        inputs[row, : len(source) + 1] = torch.tensor([*source, EOS])
        inputs[row, length : length + len(target) + 1] = torch.tensor([BOS, *target])
        targets[row, : len(target) + 1] = torch.tensor([*target, EOS])
    return Pairs(inputs, targets, len(german) - len(chosen))


def _indices(sentence: Iterable[str], index: dict[str, int]) -> list[int]:
    return [index.get(word, UNK) for word in sentence]
