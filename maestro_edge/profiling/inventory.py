"""list_devices(): what can be measured on now, with which runtimes, and what is missing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from maestro_edge.devices import connect, discover_adb
from maestro_edge.errors import MaestroError
from maestro_edge.runtimes import versions_on
from maestro_edge.values import DeviceFacts

__all__ = ["Listing", "list_devices"]

_MISSING = {
    "litert": "litert is missing: pip install ai-edge-litert there",
    "onnx": "onnx is missing: pip install onnxruntime there",
    "executorch": "executorch is missing: 'maestro-edge runners' builds the one that is brought along",
}
_ON_PHONES = {
    "litert": "litert is missing: measure it in the phone's browser, --device browser",
    "executorch": _MISSING["executorch"],
}


class Listing(NamedTuple):
    """One device: its facts, None where it does not answer, and remarks that say why or what to install."""

    name: str
    facts: DeviceFacts | None
    runtimes: tuple[str, ...]
    remarks: tuple[str, ...]


def list_devices(names: Sequence[str] = ()) -> list[Listing]:
    """This machine, the phones that adb sees, and the devices of `names`; whatever fails says so in its row."""
    found = [_listing("local")]
    try:
        for phone in discover_adb():
            name = f"adb:{phone.serial}"
            if phone.state == "device":
                found.append(_listing(name))
            else:
                found.append(Listing(name, None, (), (f"{phone.state}: {phone.remedy}",)))
    except MaestroError as error:
        found.append(Listing("adb", None, (), (str(error),)))
    return [*found, *map(_listing, names)]


def _listing(name: str) -> Listing:
    try:
        device = connect(name)
    except MaestroError as error:
        return Listing(name, None, (), (str(error),))
    facts, versions = None, {}
    try:
        facts = device.facts()
        versions = versions_on(device)
        missing = _MISSING if device.python else _ON_PHONES
        remarks = tuple(remark for runtime, remark in missing.items() if runtime not in versions)
    except MaestroError as error:
        remarks = (str(error),)
    finally:
        device.close()
    return Listing(name, facts, tuple(f"{runtime} {version}" for runtime, version in versions.items()), remarks)
