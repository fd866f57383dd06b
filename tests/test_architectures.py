"""Sixteen architectures of transformers: ordered, trained a step, cut at five sizes."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.architecture_contract import ArchitectureContract, Case
from tests.architectures import CONFIGS, case_of


@pytest.fixture(scope="module", params=CONFIGS)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Case]:
    yield from case_of(request.param, tmp_path_factory.mktemp(request.param))


class TestContract(ArchitectureContract):
    """The contract of architectures, on those of transformers."""
