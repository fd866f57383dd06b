"""governor(): a frequency governor set for a measurement, and put back afterwards."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from maestro_edge.devices import Device
from maestro_edge.errors import DeviceError

__all__ = ["governor"]

_READ = """
for policy in /sys/devices/system/cpu/cpufreq/policy*; do
  [ -r "$policy/scaling_governor" ] && printf '%s %s\\n' "${policy##*/}" "$(cat "$policy/scaling_governor")"
done
true
"""
_WRITE = 'printf "%s" "$2" > "/sys/devices/system/cpu/cpufreq/$1/scaling_governor"'


@contextmanager
def governor(device: Device, wanted: str | None) -> Iterator[None]:
    """Run the block under the governor `wanted` on every policy of the device; None changes nothing.

    Raises:
        DeviceError: the device has no governors, not this one, or does not let us set it.
    """
    if wanted is None:
        yield
        return
    before = _read(device)
    if not before:
        raise DeviceError(f"{device.name}: its governors cannot be read: leave out --governor")
    changed: list[str] = []
    try:
        for policy in before:
            _write(device, policy, wanted)
            changed.append(policy)
        yield
    finally:
        for policy in changed:
            _write(device, policy, before[policy])


def _read(device: Device) -> dict[str, str]:
    lines = device.run(["sh", "-c", _READ], timeout_s=30).splitlines()
    pairs = (line.split() for line in lines)
    return {pair[0]: pair[1] for pair in pairs if len(pair) == 2}


def _write(device: Device, policy: str, name: str) -> None:
    try:
        device.run(["sh", "-c", _WRITE, "sh", policy, name], timeout_s=30)
    except DeviceError as error:
        raise DeviceError(
            f"{device.name}: cannot set governor {name!r} of {policy} (needs root, and a name from "
            f"scaling_available_governors): leave out --governor"
        ) from error
