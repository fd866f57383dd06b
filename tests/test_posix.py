"""The guard and the facts script run in this machine's sh; what boards and phones print is written by hand."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from maestro_edge.devices.posix import FACTS_SCRIPT, guarded, parse_facts, slug
from maestro_edge.errors import DeviceError

WORDS = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=12)


def start(argv: list[str], folder: str = ".") -> subprocess.Popen[bytes]:
    """The guarded command, its input held open as a host does."""
    return subprocess.Popen(
        ["sh", "-c", guarded(argv, folder=folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def finish(process: subprocess.Popen[bytes]) -> tuple[int, bytes]:
    """Exit code and output; the input stays open until both are there."""
    assert process.stdout and process.stderr and process.stdin
    with process, process.stdin:
        output = process.stdout.read()
        return process.wait(20), output


@settings(max_examples=40, deadline=None)
@given(words=st.lists(WORDS, max_size=4))
def test_every_argument_arrives_as_it_is(words: list[str]) -> None:
    """Quotes, dollars, semicolons, line ends and stars mean nothing."""
    code, output = finish(start(["printf", "[%s]", *words]))

    assert code == 0
    assert output.decode() == "".join(f"[{word}]" for word in words or [""])


@settings(max_examples=20, deadline=None)
@given(folder=WORDS.filter(lambda text: "/" not in text and text not in ("", ".", "..")))
def test_any_folder_is_entered(folder: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Also one that looks like an option or a command."""
    path = tmp_path_factory.mktemp("device") / folder
    path.mkdir()

    code, output = finish(start(["pwd"], folder=str(path)))

    assert (code, output.decode()) == (0, f"{path}\n")


@pytest.mark.parametrize(
    "name", ["if", "while", "{", "A=b", "no such", "x;true", "$(true)", "exit", "cd", "~", "it's"]
)
def test_no_program_name_is_read_as_shell(name: str) -> None:
    """Keywords, assignments and builtins are looked for as programs, which these are not."""
    code, _ = finish(start([name, "0"]))

    assert code == 127


@pytest.mark.parametrize("code", [0, 1, 3, 126, 255])
def test_the_exit_code_is_the_programs(code: int) -> None:
    """Nothing of the guard shows."""
    assert finish(start(["sh", "-c", f"exit {code}"])) == (code, b"")


def test_a_missing_folder_has_a_code_of_its_own(tmp_path: Path) -> None:
    """The program does not run elsewhere instead."""
    assert finish(start(["pwd"], folder=str(tmp_path / "gone"))) == (97, b"")


def test_the_program_reads_nothing() -> None:
    """Its input is empty, not the connection's."""
    assert finish(start(["cat"])) == (0, b"")


def test_the_program_ends_with_the_input() -> None:
    """A silent program does not outlive the connection."""
    process = start(["sh", "-c", "echo $$; exec sleep 60"])
    assert process.stdin and process.stdout and process.stderr
    number = process.stdout.readline().strip().decode()

    process.stdin.close()

    assert process.wait(10) == 128 + 9
    assert not Path("/proc", number).exists()
    process.stdout.close()
    process.stderr.close()


def test_the_facts_script_runs_here() -> None:
    """Every line is KEY=VALUE, also under a shell that stops at unset variables."""
    shell = shutil.which("sh")
    assert shell

    done = subprocess.run([shell, "-c", FACTS_SCRIPT], capture_output=True, text=True, check=True, timeout=30)

    facts = parse_facts(done.stdout, device="local")
    assert (facts.cores or 0) >= 1 and facts.arch and done.stderr == ""
    assert all("=" in line for line in done.stdout.splitlines())


PI = """\
arch=aarch64
kernel=Linux 6.12.25+rpt-rpi-2712
cores=4
board=Raspberry Pi 5 Model B Rev 1.0
os=Debian GNU/Linux 12 (bookworm)
memory_kib=8256224
governor=ondemand
khz0=2400000
khz1=2400000
khz2=2400000
khz3=2400000
zone=51600
temp=51600
throttled=throttled=0x50000
"""

JETSON = """\
Welcome to the lab!
arch=aarch64
kernel=Linux 5.15.148-tegra
cores=6
board=NVIDIA Jetson Orin Nano Developer Kit
cpu=ARMv8 Processor rev 1 (v8l)
os=Ubuntu 22.04.5 LTS
jetpack=# R36 (release), REVISION: 4.3, GCID: 38968081, BOARD: generic, EABI: aarch64
memory_kib=7802532
governor=schedutil
khz0=1728000
khz1=1728000
khz2=1728000
khz3=1728000
khz4=1728000
khz5=1728000
zone=48562
zone=49093
temp=48562
"""

PHONE = """\
arch=aarch64
kernel=Linux 5.15.137-android14-11-g8d3e2b1
cores=9
soc=Google Tensor G3
phone=Google Pixel 8
build=google/shiba/shiba:14/UQ1A.240205.004/11269751:user/release-keys
android=14
memory_kib=7770444
governor=sched_pixel
khz0=1704000
khz1=1704000
khz2=1704000
khz3=1704000
khz4=2367000
khz5=2367000
khz6=2367000
khz7=2367000
khz8=2914000
zone=38
"""


def test_facts_of_a_raspberry_pi() -> None:
    """Written in the form of the script's output, not measured; under-voltage in the past is no throttling now."""
    facts = parse_facts(PI, device="ssh:pi@pi")

    assert facts.name == "raspberry-pi-5-model-b-rev-1-0-4c"
    assert facts.soc == "Raspberry Pi 5 Model B Rev 1.0"
    assert facts.os == "Debian GNU/Linux 12 (bookworm), Linux 6.12.25+rpt-rpi-2712"
    assert (facts.governor, facts.temperature_c, facts.throttled) == ("ondemand", 51.6, False)
    assert facts.core_mhz == (2400,) * 4 and facts.memory_gib == 7.9
    assert parse_facts(PI.replace("0x50000", "0x50005"), device="ssh:pi@pi").throttled is True


def test_facts_of_a_jetson() -> None:
    """Written, not measured; its JetPack is the build, the hottest zone counts, and a greeting is passed over."""
    facts = parse_facts(JETSON, device="ssh:jetson")

    assert facts.name == "nvidia-jetson-orin-nano-developer-kit-6c"
    assert facts.build is not None and facts.build.startswith("# R36 (release), REVISION: 4.3")
    assert (facts.temperature_c, facts.throttled, facts.cores) == (49.093, None, 6)


def test_facts_of_an_android_phone() -> None:
    """Written, not measured; its fastest core is told, and degrees are not taken for thousandths."""
    facts = parse_facts(PHONE, device="adb:1")

    assert facts.name == "google-pixel-8-9c" and facts.soc == "Google Tensor G3"
    assert facts.os == "Android 14, Linux 5.15.137-android14-11-g8d3e2b1"
    assert (facts.big_cores, facts.temperature_c) == ((8,), 38.0)


SERVER = """\
arch=x86_64
kernel=Linux 6.12.0
cores=2
cpu=AMD EPYC
simd=avx512
"""


def test_facts_of_a_virtual_machine() -> None:
    """Its processor hides its model, not its instructions: machines of one name may run different kernels."""
    facts = parse_facts(SERVER, device="local")

    assert (facts.name, facts.simd) == ("amd-epyc-avx512-2c", "avx512")
    assert parse_facts(SERVER.replace("avx512", "avx2"), device="local").name == "amd-epyc-avx2-2c"
    assert parse_facts(SERVER.replace("avx512", "; rm"), device="local").name == "amd-epyc-2c"


@given(text=st.text() | st.sampled_from(["", "arch=x", "cores=2", "arch=x\ncores=0", "arch=x\ncores=²"]))
def test_what_is_no_answer_of_the_script_is_refused_by_name(text: str) -> None:
    """Whatever a shell prints: facts or one clear error."""
    with pytest.raises(DeviceError, match=r"adb:1: its shell told neither architecture nor cores"):
        parse_facts(text, device="adb:1")


KEYS = [line.partition("=")[0] for line in (PI + JETSON + PHONE + SERVER).splitlines()]
SPOILT = st.builds("{}={}".format, st.sampled_from(KEYS), st.text("0123456789-²٣x ", max_size=4) | st.text())


@given(lines=st.lists(st.sampled_from(PHONE.splitlines()[3:]) | SPOILT))
def test_every_line_but_two_may_be_missing_or_spoilt(lines: list[str]) -> None:
    """Architecture and cores are enough."""
    facts = parse_facts("\n".join(["arch=x", "cores=2", *lines]), device="d")

    assert (facts.arch, facts.cores) == ("x", 2)
    assert len(facts.core_mhz) in (0, 2)
    assert slug(facts.name) == facts.name
