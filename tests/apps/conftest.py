"""What every app is given: a real bundle, made in this run. What cannot be made fails; nothing is skipped."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.apps.small import make_bundle


@pytest.fixture(scope="session")
def app_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of LiteRT and ExecuTorch; `images` and `run` are beside it: see make_bundle()."""
    return make_bundle(tmp_path_factory.mktemp("made"))
