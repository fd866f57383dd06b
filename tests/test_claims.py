"""One profiler at a time on a device: claims between processes of this machine, and over ssh."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import threading
import time
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from maestro_edge.devices import LocalDevice
from maestro_edge.devices.claims import claim, clean
from maestro_edge.errors import DeviceError

HOLD = """
import sys
from maestro_edge.devices import LocalDevice
from maestro_edge.devices.claims import claim
with claim(LocalDevice(), folder=sys.argv[1]):
    print("held", flush=True)
    sys.stdin.read()
"""


def hold(folder: Path) -> subprocess.Popen[str]:
    """Another process that holds the claim until its input ends."""
    command = [sys.executable, "-c", HOLD, str(folder)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout and process.stdout.readline() == "held\n"
    return process


def leave(folder: Path, host: str, process: int, since: datetime) -> Path:
    """A claim as its owner left it."""
    path = folder / "maestro-edge.claim"
    path.symlink_to(json.dumps([host, process, since.astimezone().isoformat(), "0"]))
    return path


def test_two_processes_do_not_measure_at_once(tmp_path: Path) -> None:
    """The second is refused by the name of the first, waits for it, and takes over one that was killed."""
    device = LocalDevice()
    first = hold(tmp_path)
    assert first.stdin and first.stdout
    told: list[str] = []

    with pytest.raises(DeviceError) as caught, claim(device, folder=str(tmp_path)):
        pass
    threading.Timer(0.3, first.stdin.close).start()
    with claim(device, wait_s=20, waiting=told.append, folder=str(tmp_path)):
        held = (tmp_path / "maestro-edge.claim").is_symlink()

    who = f"local is in use by {re.escape(socket.gethostname())}, process {first.pid}, since \\d\\d:\\d\\d"
    assert re.fullmatch(f"{who}: wait, or 'maestro-edge devices clean local'", str(caught.value))
    assert len(told) == 1 and re.fullmatch(f"{who}: waiting up to 20 s", told[0])
    assert held and list(tmp_path.iterdir()) == []
    assert first.wait(10) == 0
    first.stdout.close()
    device.close()


def test_a_claim_whose_process_is_dead_is_taken_over(tmp_path: Path) -> None:
    """Killed in the middle of a profile: no one has to clean up."""
    first = hold(tmp_path)
    first.kill()
    first.communicate()

    with claim(LocalDevice(), folder=str(tmp_path)):
        owner = json.loads(str((tmp_path / "maestro-edge.claim").readlink()))

    assert owner[:2] == [socket.gethostname(), os.getpid()]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("days", [0, 3])
def test_a_claim_of_another_host_is_never_taken_over(tmp_path: Path, days: int) -> None:
    """Its processes cannot be seen from here; a day other than today is told."""
    since = datetime.now() - timedelta(days=days)
    path = leave(tmp_path, "elsewhere", 2**22 + 1, since)

    with pytest.raises(DeviceError) as caught, claim(LocalDevice(), wait_s=0.1, folder=str(tmp_path)):
        pass

    shown = f"{since:%H:%M}" if days == 0 else f"{since:%Y-%m-%d %H:%M}"
    assert f"in use by elsewhere, process {2**22 + 1}, since {shown}: wait, or" in str(caught.value)
    assert path.is_symlink()


def test_a_claim_that_cannot_be_read_is_somebodys(tmp_path: Path) -> None:
    """It is shown as it is."""
    (tmp_path / "maestro-edge.claim").symlink_to("who knows")

    with pytest.raises(DeviceError, match="in use by 'who knows'"), claim(LocalDevice(), folder=str(tmp_path)):
        pass


def test_the_claim_ends_with_an_error_inside(tmp_path: Path) -> None:
    """Also then it is given back."""
    with pytest.raises(KeyboardInterrupt), claim(LocalDevice(), folder=str(tmp_path)):
        raise KeyboardInterrupt

    assert list(tmp_path.iterdir()) == []


def test_of_many_at_once_each_holds_it_alone(tmp_path: Path) -> None:
    """Three threads that first find a stale claim: one takes it over, the others come after."""
    gone = subprocess.Popen(["true"])
    gone.wait()
    leave(tmp_path, socket.gethostname(), gone.pid, datetime.now())
    inside: list[int] = []
    most: list[int] = []

    def measure(number: int) -> None:
        with claim(LocalDevice(), wait_s=30, folder=str(tmp_path)):
            inside.append(number)
            most.append(len(inside))
            time.sleep(0.02)
            inside.remove(number)

    threads = [threading.Thread(target=measure, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert most == [1] * 3
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_takes_no_claim_is_told(tmp_path: Path) -> None:
    """A name in the way that is no link."""
    (tmp_path / "maestro-edge.claim").write_text("")

    refusal = pytest.raises(DeviceError, match="local: no folder there takes a claim")
    with refusal, claim(LocalDevice(), folder=str(tmp_path)):
        pass


def test_cleaning_frees_the_device(tmp_path: Path) -> None:
    """Whoever holds it, and the private folder goes too."""
    path = leave(tmp_path, "elsewhere", 1, datetime.now())
    device = LocalDevice()
    inside = Path(device.run(["pwd"], timeout_s=5).strip())

    clean(device, folder=str(tmp_path))

    assert not path.is_symlink() and not inside.exists()
