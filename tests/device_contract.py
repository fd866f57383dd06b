"""What every device on the other side of a connection must do; each transport's tests inherit these."""

from __future__ import annotations

import re
import time
from pathlib import Path

import pytest

from maestro_edge.devices import Device
from maestro_edge.errors import DeviceError

HOSTILE = [
    "a b",
    "it's",
    'say "hi"',
    "semi;touch broken",
    "$(touch broken)",
    "`touch broken`",
    "a&b|c>d",
    "*",
    "-rf",
    "tab\there",
    "läuft",
    "new\nline",
    "back\\slash",
    "~",
    "",
]


def refused(error: pytest.ExceptionInfo[DeviceError], device: Device) -> str:
    """The message of an error, which is one line that names the device."""
    text = str(error.value)
    assert "\n" not in text
    assert text.startswith(device.name)
    return text


class DeviceContract:
    """Inherit, and give a fixture `device`."""

    def test_a_pushed_file_is_what_a_program_there_reads(self, device: Device, tmp_path: Path) -> None:
        """The path that push returns is the one that programs open, whatever is in the file."""
        local = tmp_path / "model.bin"
        local.write_bytes(bytes(range(256)) * 400)

        path = device.push(local, "file-0.bin")

        assert device.run(["wc", "-c", path], timeout_s=60).split()[0] == "102400"
        assert device.run(["ls"], timeout_s=60).split() == ["file-0.bin"], "it runs in the private folder"

    def test_what_was_pushed_is_pulled_back_the_same(self, device: Device, tmp_path: Path) -> None:
        """Also an empty file, and over an older one."""
        for content in (b"", b"\r\n\0\xff" * 1000):
            (tmp_path / "sent").write_bytes(content)
            device.push(tmp_path / "sent", "x")

            device.pull("x", tmp_path / "back")

            assert (tmp_path / "back").read_bytes() == content
        assert sorted(path.name for path in tmp_path.iterdir()) == ["back", "sent"]

    def test_a_name_that_is_pushed_again_has_the_new_content(self, device: Device, tmp_path: Path) -> None:
        """Files are stored by digest, but the name decides which one a program sees."""
        for content in ("one", "two", "one"):
            (tmp_path / "file").write_text(content)

            path = device.push(tmp_path / "file", "file")

            assert device.run(["cat", path], timeout_s=60) == content

    def test_a_folder_arrives_with_its_files(self, device: Device, tmp_path: Path) -> None:
        """Names below it are kept; two of its files may be the same."""
        (tmp_path / "folder" / "sub dir").mkdir(parents=True)
        for name in ("a", "b", "sub dir/c"):
            (tmp_path / "folder" / name).write_text("same")

        path = device.push(tmp_path / "folder", "pushed")

        assert device.run(["cat", f"{path}/a", f"{path}/b", f"{path}/sub dir/c"], timeout_s=60) == "same" * 3

    def test_a_file_that_can_be_run_here_can_be_run_there(self, device: Device, tmp_path: Path) -> None:
        """A native runner is pushed and run by the path that push returns."""
        script = tmp_path / "runner"
        script.write_text('#!/bin/sh\necho "$1" > result\necho ran\n')
        script.chmod(0o755)

        path = device.push(script, "bin/runner")

        assert device.run([path, "7"], timeout_s=60) == "ran\n"
        device.pull("result", tmp_path / "result")
        assert (tmp_path / "result").read_text() == "7\n"

    def test_no_file_name_is_read_as_a_command(self, device: Device, tmp_path: Path) -> None:
        """Local and remote names, with all that a shell would act on."""
        for name in filter(None, HOSTILE):
            (tmp_path / name).write_text(name)

            path = device.push(tmp_path / name, f"x/{name}")
            device.pull(f"x/{name}", tmp_path / "back")

            assert (tmp_path / "back").read_text() == name
            assert device.run(["cat", path], timeout_s=60) == name
        assert device.run(["ls"], timeout_s=60) == "x\n"

    def test_arguments_arrive_as_they_are(self, device: Device) -> None:
        """None is split, expanded or lost, the empty one included."""
        printed = device.run(["printf", "[%s]", *HOSTILE], timeout_s=60)

        assert printed == "".join(f"[{word}]" for word in HOSTILE)
        assert device.run(["ls"], timeout_s=60) == ""

    def test_a_program_that_fails_tells_its_code_and_last_words(self, device: Device) -> None:
        """The exit code is the program's, not the transport's."""
        for code in (1, 3, 97, 255):
            script = f"echo progress; echo first >&2; printf 'the reason' >&2; exit {code}"

            with pytest.raises(DeviceError) as error:
                device.run(["sh", "-c", script], timeout_s=60)

            assert refused(error, device).endswith(f"ended with code {code}: the reason")

    def test_a_program_that_is_not_there_is_named(self, device: Device) -> None:
        """By its name, not by a shell's complaint alone."""
        with pytest.raises(DeviceError) as error:
            device.run(["no-such-program", "x"], timeout_s=60)

        assert "no-such-program" in refused(error, device)
        assert "not installed" in str(error.value)

    def test_much_output_arrives_whole(self, device: Device) -> None:
        """Nothing is cut at a buffer's end; what goes to standard error is apart."""
        script = "i=0; while [ $i -lt 20000 ]; do echo line $i; echo noise >&2; i=$((i + 1)); done"

        printed = device.run(["sh", "-c", script], timeout_s=120)

        assert printed.splitlines() == [f"line {number}" for number in range(20000)]

    def test_a_program_reads_no_input(self, device: Device) -> None:
        """It finds its end at once: none waits for a keyboard."""
        assert device.run(["sh", "-c", "read -r line || echo none"], timeout_s=60) == "none\n"

    def test_a_program_that_takes_too_long_is_ended_there(self, device: Device) -> None:
        """It does not go on heating the device after the host gave up."""
        with pytest.raises(DeviceError, match=re.escape("took longer than 1 s")) as error:
            device.run(["sh", "-c", "echo $$ > pid; exec sleep 120"], timeout_s=1)

        refused(error, device)
        wait_until_gone(device, device.run(["cat", "pid"], timeout_s=60).strip())

    def test_a_missing_file_is_not_pulled(self, device: Device, tmp_path: Path) -> None:
        """An older file of that name stays, and nothing half lies beside it."""
        (tmp_path / "kept").write_text("old")

        with pytest.raises(DeviceError) as error:
            device.pull("never", tmp_path / "kept")

        assert "never" in refused(error, device)
        assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("kept", "old")]

    def test_a_missing_file_is_not_pushed(self, device: Device, tmp_path: Path) -> None:
        """The file here is named."""
        with pytest.raises(DeviceError) as error:
            device.push(tmp_path / "never", "x")

        assert "never" in refused(error, device)

    def test_facts_are_those_of_the_device(self, device: Device) -> None:
        """What its own programs say."""
        facts = device.facts()

        assert facts.arch == device.run(["uname", "-m"], timeout_s=60).strip()
        assert (facts.cores or 0) >= 1

    def test_closing_twice_is_closing(self, device: Device) -> None:
        """A caller may close in a finally beside a with."""
        device.close()
        device.close()


def wait_until_gone(device: Device, pid: str, *, within_s: float = 15) -> None:
    """Return when the device has no such process."""
    give_up = time.monotonic() + within_s
    while device.run(["sh", "-c", f"kill -0 {int(pid)} 2>/dev/null && echo alive || true"], timeout_s=60):
        assert time.monotonic() < give_up, f"process {pid} is still there"
        time.sleep(0.1)
