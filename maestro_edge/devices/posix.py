"""What devices with a POSIX shell share: quoting, a guard that ends a run with its connection, and facts."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence

from maestro_edge.errors import DeviceError
from maestro_edge.values import DeviceFacts

__all__ = ["FACTS_SCRIPT", "guarded", "parse_facts"]


def guarded(argv: Sequence[str], *, folder: str) -> str:
    """A shell command that runs `argv` in `folder` and ends it when the command's own input ends.

    Over ssh and adb a silent remote process outlives the connection that started it. Here a watcher reads the
    input that the host keeps open; at its end, the program is killed. The exit code is the program's.
    """
    # Quoted always: a program named like a keyword (if) or an assignment (A=b) is a program all the same.
    name = "'" + argv[0].replace("'", "'\"'\"'") + "'"
    program = " ".join((name, shlex.join(argv[1:])))
    return (
        f"cd -- {shlex.quote(folder)} || exit 97; exec 3<&0; ( exec {program} ) </dev/null 3<&- & p=$!; "
        "( while read -r _; do :; done <&3; kill -KILL $p 2>/dev/null ) >/dev/null 2>&1 & w=$!; "
        "exec 3<&-; wait $p; c=$?; kill $w 2>/dev/null; exit $c"
    )


FACTS_SCRIPT = """
put() { [ -n "$2" ] && printf '%s=%s\\n' "$1" "$2"; }
first() { for f in "$@"; do [ -r "$f" ] && tr -d '\\000' < "$f" 2>/dev/null && return; done; }
prop() { command -v getprop >/dev/null 2>&1 && getprop "$1" 2>/dev/null; }
put arch "$(uname -m)"
put kernel "$(uname -sr)"
unset OMP_NUM_THREADS OMP_THREAD_LIMIT # nproc obeys them
put cores "$(nproc 2>/dev/null || getconf _NPROCESSORS_ONLN)"
put board "$(first /proc/device-tree/model /sys/firmware/devicetree/base/model)"
put cpu "$(sed -n 's/^model name[^:]*: *//p' /proc/cpuinfo 2>/dev/null | head -n 1)"
put cpu "$(sysctl -n machdep.cpu.brand_string 2>/dev/null)"
case " $(sed -n '/^flags/{p;q;}' /proc/cpuinfo 2>/dev/null) " in
  *" avx512f "*) put simd avx512 ;;
  *" avx2 "*) put simd avx2 ;;
esac
put soc "$(prop ro.soc.manufacturer) $(prop ro.soc.model)"
put phone "$(prop ro.product.manufacturer) $(prop ro.product.model)"
put build "$(prop ro.build.fingerprint)"
put android "$(prop ro.build.version.release)"
put os "$(. /etc/os-release 2>/dev/null && printf '%s' "$PRETTY_NAME")"
put jetpack "$(first /etc/nv_tegra_release | head -n 1)"
put memory_kib "$(sed -n 's/^MemTotal: *\\([0-9]*\\).*/\\1/p' /proc/meminfo 2>/dev/null)"
put governor "$(first /sys/devices/system/cpu/cpu0/cpufreq/scaling_governor)"
i=0
while [ -d "/sys/devices/system/cpu/cpu$i" ]; do
  put "khz$i" "$(first /sys/devices/system/cpu/cpu$i/cpufreq/cpuinfo_max_freq)"
  i=$((i + 1))
done
for zone in /sys/class/thermal/thermal_zone*; do
  kind="$(first "$zone/type")"
  case "$kind" in *cpu*|*CPU*|*soc*|*pkg*|*tsens*) put zone "$(first "$zone/temp")" ;; esac
done
put temp "$(first /sys/class/thermal/thermal_zone0/temp)"
put throttled "$(command -v vcgencmd >/dev/null 2>&1 && vcgencmd get_throttled 2>/dev/null)"
true
"""
"""Prints KEY=VALUE lines; every line is optional, so that it runs on a Pi, a Jetson, a phone and a PC."""


def parse_facts(text: str, *, device: str) -> DeviceFacts:
    """The facts that FACTS_SCRIPT printed.

    Raises:
        DeviceError: what `device` printed is not that.
    """
    found: dict[str, str] = {}
    zones: list[float] = []
    for line in text.splitlines():
        key, equals, value = line.partition("=")
        value = value.strip()
        if key == "zone" and (heat := _celsius(value)) is not None:
            zones.append(heat)
        elif equals and value and key not in found:
            found[key] = value
    if "arch" not in found or not _number(found.get("cores")):
        raise DeviceError(f"{device}: its shell told neither architecture nor cores: is it a POSIX system?")
    soc = next(filter(None, map(found.get, ("soc", "board", "cpu", "phone"))), found["arch"])
    name = next(filter(None, map(found.get, ("phone", "board", "cpu"))), found["arch"])
    kernel, memory_kib = found.get("kernel", "unknown"), _number(found.get("memory_kib"))
    simd = found.get("simd") if found.get("simd") in ("avx2", "avx512") else None
    # Virtual machines hide their model: one name may stand for processors that run different kernels.
    parts = filter(None, (slug(name), simd, f"{found['cores']}c"))
    system = f"Android {found['android']}" if "android" in found else found.get("os")
    return DeviceFacts(
        name="-".join(parts),
        soc=soc,
        arch=found["arch"],
        simd=simd,
        cores=int(found["cores"]),
        os=f"{system}, {kernel}" if system else kernel,
        build=found.get("build") or found.get("jetpack"),
        memory_gib=round(memory_kib / 2**20, 1) if memory_kib else None,
        governor=found.get("governor"),
        core_mhz=_core_mhz(found),
        temperature_c=max(zones, default=_celsius(found.get("temp", ""))),
        throttled=_throttled(found.get("throttled")),
    )


def slug(name: str) -> str:
    """A device's name in file names: lower case letters, digits and dashes."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-") or "unknown"


def _core_mhz(found: Mapping[str, str]) -> tuple[int, ...]:
    cores = int(found["cores"])
    if f"khz{cores - 1}" not in found:
        return ()
    mhz = [_number(found.get(f"khz{core}")) // 1000 for core in range(cores)]
    return tuple(mhz) if all(mhz) else ()


def _number(raw: str | None) -> int:
    """0 where it is none."""
    return int(raw) if raw and re.fullmatch("[0-9]{1,12}", raw) else 0


def _celsius(raw: str) -> float | None:
    """Thermal zones count in thousandths of a degree; some count in degrees."""
    if not re.fullmatch("-?[0-9]{1,12}", raw):
        return None
    value = float(raw)
    return value / 1000 if abs(value) >= 1000 else value


def _throttled(raw: str | None) -> bool | None:
    """Raspberry Pi: bits 0 to 3 of `throttled=0x…` stand for now, the others for the past since boot."""
    match = re.fullmatch(r"throttled=0x([0-9a-fA-F]+)", raw or "")
    return bool(int(match[1], 16) & 0xF) if match else None
