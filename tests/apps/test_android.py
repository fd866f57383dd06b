"""The Android app: compiled, packaged with a bundle and signed. No Android is here to run it, nor a Gradle."""

from __future__ import annotations

import re
import tomllib
import zipfile
from pathlib import Path
from xml.etree import ElementTree

import pytest

from tests.apps.android_build import (
    ABIS,
    CACHE,
    MAIN,
    PROJECT,
    ROOT,
    Tools,
    compile_app,
    defined_classes,
    gradle,
    package_app,
)

ANDROID = "{http://schemas.android.com/apk/res/android}"


@pytest.fixture(scope="module")
def tools(tmp_path_factory: pytest.TempPathFactory) -> Tools:
    return Tools(CACHE, tmp_path_factory.mktemp("bin"))


@pytest.fixture(scope="module")
def apk(tools: Tools, app_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return package_app(tools, compile_app(tools), app_bundle, tmp_path_factory.mktemp("apk"))


def test_the_apk_holds_the_bundle_as_it_is(apk: Path, app_bundle: Path) -> None:
    """Every file of the bundle, byte for byte, where the app looks for it."""
    with zipfile.ZipFile(apk) as archive:
        packed = {name: archive.read(name) for name in archive.namelist() if name.startswith("assets/")}

    found = {path.relative_to(app_bundle): path.read_bytes() for path in app_bundle.rglob("*") if path.is_file()}
    assert packed == {f"assets/model/{name.as_posix()}": content for name, content in found.items()}
    assert "assets/model/manifest.json" in packed and len(packed) > 1


def test_the_apk_holds_program_and_libraries(apk: Path) -> None:
    """All classes of the app and ExecuTorch's, none of the stubs, and a library for each kind of processor."""
    with zipfile.ZipFile(apk) as archive:
        names, code = set(archive.namelist()), archive.read("classes.dex")
        stored = {info.filename for info in archive.infolist() if info.compress_type == zipfile.ZIP_STORED}

    libraries = {f"lib/{abi}/libexecutorch.so" for abi in ABIS}
    assert {"AndroidManifest.xml", "resources.arsc", "classes.dex", "res/layout/classifier.xml"} <= names
    assert libraries <= stored and code.startswith(b"dex\n")
    defined = defined_classes(code)
    activities = {f"Lorg/maestroedge/classifier/{path.stem};" for path in MAIN.rglob("*Activity.kt")}
    assert activities | {"Lorg/pytorch/executorch/Module;", "Lkotlin/Unit;"} <= defined
    assert not any(name.startswith(("Lcom/google/", "Landroid/")) or "/driver/" in name for name in defined)


def test_the_apk_is_signed_and_aligned(apk: Path, tools: Tools) -> None:
    verified = tools.apksigner("verify", "--verbose", str(apk))

    assert verified.startswith("Verifies") and "(APK Signature Scheme v3): true" in verified
    assert "FAILED" not in tools.zipalign("-c", "-v", "-p", "4", str(apk))


def test_what_android_reads_of_the_apk(apk: Path, tools: Tools) -> None:
    """Its name, the oldest Android, the camera as a wish, and the activity that the launcher starts."""
    told = tools.aapt2("dump", "badging", str(apk))

    assert f"package: name='{gradle('applicationId')}' versionCode='1'" in told
    assert re.search(f"(minS|s)dkVersion:'{gradle('minSdk')}'", told)  # its name differs between versions of aapt2
    assert f"targetSdkVersion:'{gradle('targetSdk')}'" in told
    assert "launchable-activity: name='org.maestroedge.classifier.ClassifierActivity'" in told
    assert "uses-feature-not-required: name='android.hardware.camera'" in told
    assert f"native-code: {' '.join(repr(abi) for abi in ABIS)}" in told


# --- the Gradle project, which is only read here


def test_every_version_of_the_catalogue_is_used() -> None:
    """By a library or a plugin, which the build files name; and nothing else is named."""
    catalogue = tomllib.loads((PROJECT / "gradle/libs.versions.toml").read_text())
    scripts = "".join(path.read_text() for path in PROJECT.rglob("*.gradle.kts"))
    named = {
        **catalogue["libraries"],
        **{f"plugins-{name}": entry for name, entry in catalogue["plugins"].items()},
    }

    asked = set(re.findall(r"\blibs\.([a-z.]+)", scripts))

    assert {entry["version"]["ref"] for entry in named.values()} == set(catalogue["versions"])
    assert asked == {name.replace("-", ".") for name in named}


def test_the_runtimes_are_those_of_the_exporters() -> None:
    """A file belongs to the version of the runtime that it was measured with."""
    versions = tomllib.loads((PROJECT / "gradle/libs.versions.toml").read_text())["versions"]
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]

    assert extras["executorch"] == [f"executorch=={versions['executorch']}"]
    litert = next(extra for extra in extras["litert"] if extra.startswith("ai-edge-litert=="))
    assert versions["litert"].startswith(litert.removeprefix("ai-edge-litert==").removesuffix("*"))


def test_the_wrapper_and_the_readme_name_one_gradle() -> None:
    """And every bracket of the build files is closed."""
    (version,) = re.findall(
        r"gradle-([\d.]+)-bin\.zip", (PROJECT / "gradle/wrapper/gradle-wrapper.properties").read_text()
    )

    assert f"Gradle {version}" in (PROJECT / "README.md").read_text()
    for path in PROJECT.rglob("*.gradle.kts"):
        text = path.read_text()
        assert text.count("{") == text.count("}") > 0 and text.count("(") == text.count(")") > 0, path


def test_manifest_sources_and_gradle_agree() -> None:
    """The namespace is the package of all sources; every activity of the manifest is one of them, and exported."""
    manifest = ElementTree.parse(MAIN / "AndroidManifest.xml").getroot()
    sources = {path.stem: path.read_text() for path in (MAIN / "kotlin").rglob("*.kt")}

    activities = manifest.findall("application/activity")

    assert {text.splitlines()[0] for text in sources.values()} == {f"package {gradle('namespace')}"}
    assert {f".{name}" for name in sources if name.endswith("Activity")} == {
        activity.get(f"{ANDROID}name") for activity in activities
    }
    assert manifest.get("package") is None  # Gradle refuses it: the namespace says it
    assert {activity.get(f"{ANDROID}exported") for activity in activities} == {"true"}


def test_the_logic_imports_nothing_of_android() -> None:
    """What runs on a JVM in these tests is what runs on the phone; only org.json is Android's there."""
    on_android = {"Android", "Camera", "ClassifierActivity", "BenchmarkActivity"}
    sources = {path.stem: path.read_text() for path in (MAIN / "kotlin").rglob("*.kt")}

    imported = {
        name: set(re.findall(r"^import (android|com|org\.pytorch)\.", text, re.MULTILINE))
        for name, text in sources.items()
    }

    assert {name for name, found in imported.items() if "android" in found} == on_android
    assert {name for name, found in imported.items() if found - {"android"}} == {"LiteRt", "ExecuTorch"}


def test_the_readme_names_what_is_there() -> None:
    """Its commands start an activity of the manifest, pull from the app's own folder, and read the log's tag."""
    readme = (PROJECT / "README.md").read_text()
    benchmark = (MAIN / "kotlin/org/maestroedge/classifier/BenchmarkActivity.kt").read_text()

    assert f"-n {gradle('applicationId')}/.BenchmarkActivity" in readme
    assert f"/sdcard/Android/data/{gradle('applicationId')}/files/" in readme
    assert all(f'"{name}"' in benchmark for name in re.findall(r"--e[si] (\w+)", readme))
    assert re.search(r'TAG = "([^"]+)"', benchmark)[1] in readme  # type: ignore[index]
