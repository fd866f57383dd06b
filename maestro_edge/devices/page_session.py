"""What passes between the host and the one page that serves it: the claim, a job, its answer."""

from __future__ import annotations

import json
import secrets
import threading
import time
from collections.abc import Callable
from typing import NamedTuple

from maestro_edge.devices.page_answers import check_answer

__all__ = ["Job", "PageSession", "Refused"]


class Refused(Exception):  # noqa: N818 - an answer to the page, not an error of ours
    """A request of a page that gets an HTTP status and a one-line reason."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status, self.reason = status, reason


class Job(NamedTuple):
    """A job document under the name it was pushed by."""

    name: str
    content: bytes


class PageSession:
    """Shared by the host's thread and the server's.

    The first page to claim gets a key; whoever has no key stays outside. The page that holds it may be opened
    again, which is a new visit: the newest visit counts. An idle page polls, so a job that is unanswered goes
    to whoever polls: that is how a page that went away gets it again.
    """

    def __init__(self, silence_s: float = 20.0) -> None:
        self.silence_s = silence_s
        self._changed = threading.Condition()
        self._key: str | None = None
        self._visit = 0
        self._job: Job | None = None
        self._answer: bytes | None = None
        self._given_at = self._seen_at = 0.0
        self._closed = False

    # What the page may do.

    def claim(self, key: str | None) -> tuple[str, int]:
        """The session's key and a new visit, for the first page and for the one that has the key."""
        with self._changed:
            if self._key is None:
                self._key = secrets.token_urlsafe(16)
            elif not self._holds(key):
                raise Refused(409, "another browser was here first: start again on the computer for a new address")
            self._visit += 1
            self._alive()
            return self._key, self._visit

    def check(self, key: str | None) -> None:
        """Let only the page that claimed the session pass."""
        if not self._holds(key):
            raise Refused(403, "this browser has not opened the page, or refuses its cookie")

    def next_job(self, key: str | None, visit: int, wait_s: float) -> Job | None:
        """The unanswered job, waiting for one at most `wait_s`."""
        with self._changed:
            self._enter(key, visit)
            self._changed.wait_for(lambda: self._job or self._closed or visit != self._visit, wait_s)
            self._enter(key, visit)
            return self._job

    def beat(self, key: str | None, visit: int) -> None:
        """The page is at work."""
        with self._changed:
            self._enter(key, visit)

    def answer(self, key: str | None, visit: int, name: str, content: bytes) -> None:
        """Take the answer to the job of that name if it can be one; another may follow if not."""
        with self._changed:
            self._enter(key, visit)
            if self._job is None or self._job.name != name:
                raise Refused(404, f"no job {name[:100]!r} waits for an answer")
            try:
                check_answer(json.loads(self._job.content), content, elapsed_s=time.monotonic() - self._given_at)
            except ValueError as error:
                raise Refused(422, str(error)) from error
            self._job, self._answer = None, content
            self._changed.notify_all()

    # What the host does.

    def wait_for_page(self, wait_s: float) -> bool:
        """Whether a page has claimed the session within `wait_s`."""
        with self._changed:
            return self._changed.wait_for(lambda: self._key is not None, wait_s)

    def run(self, job: Job, timeout_s: float, on_silence: Callable[[], None]) -> bytes | None:
        """The page's answer, or None after `timeout_s`; `on_silence` is called each time the page goes away."""
        with self._changed:
            self._job, self._answer, self._given_at = job, None, time.monotonic()
            self._changed.notify_all()
            quiet = False
            while self._answer is None and (left_s := self._given_at + timeout_s - time.monotonic()) > 0:
                if self.silent_s > self.silence_s and not quiet:
                    on_silence()
                quiet = self.silent_s > self.silence_s
                self._changed.wait(min(left_s, 0.5))
            self._job = None
            return self._answer

    @property
    def silent_s(self) -> float:
        """Seconds since the page was last heard."""
        return time.monotonic() - self._seen_at

    def close(self) -> None:
        """Tell the page that all is done."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def _holds(self, key: str | None) -> bool:
        return bool(self._key and key and secrets.compare_digest(self._key.encode(), key.encode()))

    def _enter(self, key: str | None, visit: int) -> None:
        self.check(key)
        if visit != self._visit:
            raise Refused(409, "this page was opened again elsewhere: only the newest one measures")
        if self._closed:
            raise Refused(410, "done")
        self._alive()

    def _alive(self) -> None:
        self._seen_at = time.monotonic()
        self._changed.notify_all()
