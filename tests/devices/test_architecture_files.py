"""Sixteen architectures of transformers as files: exported, and run on this machine."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.architecture_contract import Case, FileContract
from tests.architectures import CONFIGS, case_of


@pytest.fixture(scope="module", params=CONFIGS)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Case]:
    yield from case_of(request.param, tmp_path_factory.mktemp(request.param))


class TestContract(FileContract):
    """The contract of architectures as files, on those of transformers."""
