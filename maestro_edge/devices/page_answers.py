"""What a page may answer: checked strictly, for whoever holds the address may post anything."""

from __future__ import annotations

import contextlib
import math
import re
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import ConfigDict, Field, StringConstraints, ValidationError

from maestro_edge.devices.posix import slug
from maestro_edge.values import DeviceFacts, Value

__all__ = ["About", "check_answer"]

_MOST_REPEATS = 20
"""Samples a file has in one round, at most."""

Word = Annotated[str, StringConstraints(min_length=1, max_length=100)]


class _Answer(Value):
    model_config = ConfigDict(strict=True)


class PageFacts(_Answer):
    """What a browser tells of itself; most of it is missing outside secure contexts."""

    user_agent: Annotated[str, StringConstraints(min_length=1, max_length=1000)]
    cores: int = Field(ge=1, le=4096)
    memory_gib: float | None = Field(gt=0)
    gpu: Word | None
    model: Word | None
    isolated: bool
    features: list[Word] = Field(max_length=20)


class About(_Answer):
    """The answer to the task `about`."""

    versions: dict[Word, Word] = Field(max_length=10)
    page: PageFacts

    def facts(self) -> DeviceFacts:
        """The page's facts as a device's; the name tells browser, system and cores."""
        page = self.page
        browser, system = _browser(page.user_agent), _system(page.user_agent)
        name = " ".join(filter(None, (page.model, *browser, system.split()[0])))
        return DeviceFacts(
            name=f"{slug(name)}-{page.cores}c",
            soc=page.model or page.gpu or "unknown",
            arch="+".join(("wasm32", *page.features)),
            cores=page.cores,
            os=f"{system}, {' '.join(browser)}{' (isolated)' if page.isolated else ''}",
            build=page.user_agent,
            memory_gib=page.memory_gib,
        )


class _Times(_Answer):
    samples_ns: dict[str, list[Annotated[int, Field(ge=1)]]]


class _Failure(_Answer):
    error: Annotated[str, StringConstraints(min_length=1, max_length=2000)]


_KINDS: dict[str, type[_Answer]] = {"about": About, "time": _Times}


def check_answer(job: Mapping[str, Any], answer: bytes, *, elapsed_s: float) -> None:
    """Refuse what cannot be the answer to `job`, which was handed out `elapsed_s` ago.

    Raises:
        ValueError: one line that says what is wrong.
    """
    with contextlib.suppress(ValidationError):
        _Failure.model_validate_json(answer)
        return
    try:
        # A page fails at tasks that it does not know.
        found = _KINDS.get(job["task"], _Failure).model_validate_json(answer)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(map(str, first["loc"])) or "top level"
        reason = f"no answer to {job['task']!r}: {where}: {first['msg']}"
        raise ValueError(" ".join(reason.split())[:300]) from None
    if isinstance(found, _Times):
        _check_times(job, found.samples_ns, elapsed_s)


def _check_times(job: Mapping[str, Any], samples: Mapping[str, list[int]], elapsed_s: float) -> None:
    if set(samples) != set(job["files"]):
        raise ValueError(f"times of {len(samples)} files, not of the {len(job['files'])} that were asked for")
    rounds = job["rounds"]
    for name, times in samples.items():
        repeats, rest = divmod(len(times), rounds)
        if rest or not 1 <= repeats <= _MOST_REPEATS:
            raise ValueError(f"{len(times)} samples of {name!r} in {rounds} rounds")
    total_s = math.fsum(map(math.fsum, samples.values())) / 1e9
    if total_s > elapsed_s:
        raise ValueError(f"samples of {total_s:.3g} s in the {elapsed_s:.3g} s since the job was given")


_BROWSERS = (
    ("edge", r"(?:Edg|EdgA|EdgiOS)/(\d+)"),
    ("opera", r"OPR/(\d+)"),
    ("samsung", r"SamsungBrowser/(\d+)"),
    ("firefox", r"(?:Firefox|FxiOS)/(\d+)"),
    ("chrome", r"(?:Chrome|CriOS)/(\d+)"),
    ("safari", r"Version/(\d+).*Safari/"),
)
"""In this order: all but Firefox call themselves Chrome and Safari too."""

_SYSTEMS = (
    ("Android", r"Android (?!10; K\))([\d.]+)"),  # Chrome says 10 and K on every Android
    ("Android", r"Android()"),
    ("iOS", r"(?:iPhone|iPad|iPod).*? OS ([\d_]+)"),
    ("macOS", r"Mac OS X()"),  # its version has stood still at 10.15
    ("ChromeOS", r"CrOS()"),
    ("Windows", r"Windows()"),
    ("Linux", r"Linux()"),
)


def _browser(agent: str) -> tuple[str, ...]:
    for name, pattern in _BROWSERS:
        if match := re.search(pattern, agent):
            return name, match[1]
    return ("browser",)


def _system(agent: str) -> str:
    for name, pattern in _SYSTEMS:
        if match := re.search(pattern, agent):
            return f"{name} {match[1].replace('_', '.')}".strip()
    return "unknown"
