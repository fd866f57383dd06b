"""The Android app's own classes in a JVM."""

from __future__ import annotations

import json
import subprocess
from typing import Any, Self

from tests.apps.android_build import JVM, Tools, classpath, compile_app


class Logic:
    """The driver in a JVM of its own: a request a line, an answer a line."""

    def __init__(self, tools: Tools) -> None:
        built = compile_app(tools)
        jars = [built / "app", built / "checks", tools.kotlin_library, tools.json_jar]
        argv = [tools.java(), *JVM, "-cp", classpath(jars), "org.maestroedge.classifier.driver.DriverKt"]
        self.process = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.communicate(timeout=60)  # the end of its input ends it

    def _ask(self, task: str, request: dict[str, Any]) -> dict[str, Any]:
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(json.dumps({"task": task, **request}) + "\n")
        self.process.stdin.flush()
        return dict(json.loads(self.process.stdout.readline()))

    def ask(self, task: str, **request: Any) -> Any:
        """The answer; a refusal fails the test."""
        found = self._ask(task, request)
        assert "error" not in found, found["error"]
        return found["answer"]

    def refusal(self, task: str, **request: Any) -> str:
        """The one line of a request that must be refused."""
        found = self._ask(task, request)
        assert found.keys() == {"error"} and "\n" not in found["error"], found
        return str(found["error"])
