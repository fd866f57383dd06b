"""Builds the Android app without Gradle, of what Debian, npm and PyPI hold: see apps/android/README.md."""

from __future__ import annotations

import re
import shutil
import struct
import sys
import zipfile
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from tests.devices.debian import alone, kept, native_architecture, output
from tests.devices.programs import bring, bring_npm

ROOT = Path(__file__).parents[2]
CACHE = ROOT / ".cache" / "lab"
PROJECT = ROOT / "apps" / "android"
MAIN = PROJECT / "app/src/main"
CHECKS = Path(__file__).parent / "android"
"""The driver of the app's logic, and stubs of what no jar in reach has."""

SUITE = "bullseye"
"""The last Debian with an android.jar and a dexer; its JDK runs on all later ones too."""

JARS = ("apksigner", "dalvik-exchange", "libandroid-23-java", "libandroid-json-org-java", "libapksig-java")
JDK = ("openjdk-17-jdk-headless", "openjdk-17-jre-headless")
EXECUTORCH = "react-native-executorch@0.8.5"
"""A package of npm that holds ExecuTorch's classes and native libraries for Android."""

KOTLIN = "kotlin-jupyter-kernel==0.19.0.944"
"""A package of PyPI that holds a Kotlin compiler and its standard library."""

ABIS = ("arm64-v8a", "x86_64")
JVM = ("-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-Xshare:auto")  # a compiler is over before it is warm


@dataclass(frozen=True)
class Tools:
    """Programs and jars, brought below `cache` on first use; `folder` is for scripts of this run."""

    cache: Path
    folder: Path

    @cached_property
    def _jars(self) -> Path:
        return alone(self.cache, native_architecture(), JARS, suite=SUITE) / "usr/share/java"

    @cached_property
    def _jdk(self) -> Path:
        (home,) = (alone(self.cache, native_architecture(), JDK, suite=SUITE) / "usr/lib/jvm").glob(
            "java-17-openjdk-*"
        )
        return home

    @cached_property
    def _kotlin(self) -> Path:
        def fill(root: Path) -> None:
            output(sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", f"--target={root}", KOTLIN)

        return kept(self.cache, ["kotlin", KOTLIN], fill) / "run_kotlin_kernel/jars"

    @cached_property
    def executorch(self) -> Path:
        """The folder `android/libs` with classes.jar, and `third-party/android/libs` with the native libraries."""

        def fill(root: Path) -> None:
            bring_npm(self.cache, self.folder)
            npm = shutil.which("npm") or str(self.folder / "npm")
            output(npm, "pack", "--silent", EXECUTORCH, folder=root)
            (archive,) = root.glob("*.tgz")
            shutil.unpack_archive(archive, root, filter="data")
            archive.unlink()

        return kept(self.cache, ["executorch", EXECUTORCH], fill) / "package"

    def java(self, program: str = "java") -> str:
        """A program of the JDK."""
        return str(self._jdk / "bin" / program)

    @property
    def android_jar(self) -> Path:
        return self._jars / "com.android.android-23.jar"

    @property
    def json_jar(self) -> Path:
        """Android's org.json for a JVM, where android.jar has its signatures alone."""
        return self._jars / "json-android.jar"

    @property
    def kotlin_library(self) -> Path:
        (found,) = self._kotlin.glob("kotlin-stdlib-*.jar")
        return found

    @property
    def executorch_jar(self) -> Path:
        return self.executorch / "android/libs/classes.jar"

    def native_library(self, abi: str) -> Path:
        """libexecutorch.so; LiteRT's and fbjni's lie in Maven alone."""
        return self.executorch / "third-party/android/libs/executorch" / abi / "libexecutorch.so"

    def aapt2(self, *arguments: str) -> str:
        return output(str(bring(self.cache, self.folder, "/usr/bin/aapt2", "aapt")), *arguments)

    def zipalign(self, *arguments: str) -> str:
        return output(str(bring(self.cache, self.folder, "/usr/bin/zipalign", "zipalign")), *arguments)

    def apksigner(self, *arguments: str) -> str:
        jars = [self._jars / name for name in ("apksigner.jar", "apksig.jar")]
        return output(self.java(), "-cp", classpath(jars), "com.android.apksigner.ApkSignerTool", *arguments)

    def kotlinc(self, sources: Iterable[Path], jars: Iterable[Path], into: Path) -> None:
        """Warnings are errors; no lambda becomes an invokedynamic, which this dexer cannot translate."""
        (compiler,) = self._kotlin.glob("kotlin-jupyter-kernel-*-all.jar")
        main = "org.jetbrains.kotlin.cli.jvm.K2JVMCompiler"
        plain = ("-jvm-target", "1.8", "-Xlambdas=class", "-Xsam-conversions=class")
        own = ("-no-stdlib", "-no-reflect", "-no-jdk", "-Werror", "-classpath", classpath(jars), "-d", str(into))
        output(self.java(), *JVM, "-cp", str(compiler), main, *plain, *own, *map(str, sources))

    def javac(self, sources: Iterable[Path], into: Path) -> None:
        plain = ("--release", "8", "-Xlint:-options", "-cp", str(self.android_jar), "-d", str(into))
        output(self.java("javac"), *plain, *map(str, sources))

    def dex(self, inputs: Iterable[Path], into: Path) -> None:
        jar = self._jars / "com.android.dx.jar"
        arguments = ("--dex", "--min-sdk-version=26", f"--output={into}")
        output(self.java(), *JVM, "-cp", str(jar), "com.android.dx.command.Main", *arguments, *map(str, inputs))


def classpath(jars: Iterable[Path]) -> str:
    return ":".join(map(str, jars))


def defined_classes(dex: bytes) -> set[str]:
    """Names such as Lorg/example/Main; (Dalvik executable format: class definitions name types, types strings)."""
    (strings,), (types,) = struct.unpack_from("<I", dex, 0x3C), struct.unpack_from("<I", dex, 0x44)
    count, definitions = struct.unpack_from("<II", dex, 0x60)

    def name(definition: int) -> str:
        (index,) = struct.unpack_from("<I", dex, definitions + 32 * definition)
        (index,) = struct.unpack_from("<I", dex, types + 4 * index)
        (at,) = struct.unpack_from("<I", dex, strings + 4 * index)
        while dex[at] >= 0x80:  # the length in front, 7 bits a byte
            at += 1
        return dex[at + 1 : dex.index(0, at + 1)].decode()

    return {name(definition) for definition in range(count)}


def gradle(name: str) -> str:
    """A value of app/build.gradle.kts, such as minSdk."""
    found = re.search(
        rf'^\s*{name} = "?([^"\n]+)"?$', (PROJECT / "app/build.gradle.kts").read_text(), re.MULTILINE
    )
    assert found is not None, f"{name} is not in app/build.gradle.kts"
    return found[1]


def compile_app(tools: Tools) -> Path:
    """A folder with `app` and `checks` (classes), `classes.dex`, `resources.zip`; kept while nothing changes."""
    sources = sorted(
        path for folder in (MAIN, CHECKS) for path in folder.rglob("*.*") if "assets" not in path.parts
    )
    parts = ["android", EXECUTORCH, KOTLIN, Path(__file__).read_text(), gradle("namespace")]
    return kept(tools.cache, [*parts, *(path.read_text() for path in sources)], lambda root: _compile(tools, root))


def _compile(tools: Tools, root: Path) -> None:
    for name in ("generated", "app", "checks", "stubs", "library"):
        (root / name).mkdir()
    tools.aapt2("compile", "--dir", str(MAIN / "res"), "-o", str(root / "resources.zip"))
    link(tools, root, root / "unused.apk", "--java", str(root / "generated"))
    tools.javac(CHECKS.rglob("*.java"), root / "stubs")
    tools.javac((root / "generated").rglob("*.java"), root / "app")
    kotlin = [*MAIN.rglob("*.kt"), *CHECKS.rglob("*.kt")]
    jars = [tools.android_jar, tools.kotlin_library, tools.executorch_jar]
    tools.kotlinc(kotlin, [root / "stubs", root / "app", *jars], root / "app")
    for path in (
        "com",
        f"{gradle('namespace').replace('.', '/')}/driver",
    ):  # stubs and driver are no part of the app
        target = root / "checks" / path
        target.parent.mkdir(parents=True, exist_ok=True)
        (root / "app" / path).rename(target)
    with zipfile.ZipFile(tools.kotlin_library) as library:  # the classes of later Javas are not for Android
        names = [name for name in library.namelist() if name.startswith("kotlin/") and name.endswith(".class")]
        library.extractall(root / "library", names)
    tools.dex([root / "app", root / "library", tools.executorch_jar], root / "classes.dex")
    shutil.rmtree(root / "library")


def link(tools: Tools, compiled: Path, apk: Path, *more: str) -> None:
    """The manifest and resources as Android reads them, with what Gradle would write into the manifest."""
    manifest = apk.with_name("AndroidManifest.xml")
    text = (MAIN / "AndroidManifest.xml").read_text()
    manifest.write_text(text.replace("<manifest ", f'<manifest package="{gradle("namespace")}" ', 1))
    values = {
        "--min-sdk-version": gradle("minSdk"),
        "--target-sdk-version": gradle("targetSdk"),
        "--version-code": gradle("versionCode"),
        "--version-name": gradle("versionName"),
    }
    given = [text for pair in values.items() for text in pair]
    inputs = ["-I", str(tools.android_jar), "--manifest", str(manifest), str(compiled / "resources.zip")]
    tools.aapt2("link", "-o", str(apk), *given, *inputs, *more)


def package_app(tools: Tools, compiled: Path, bundle: Path, folder: Path) -> Path:
    """The signed APK with a bundle among its assets, in `folder`."""
    assets = folder / "assets"
    shutil.copytree(bundle, assets / "model")
    bare, aligned, signed = (folder / f"{name}.apk" for name in ("bare", "aligned", "signed"))
    link(tools, compiled, bare, "-A", str(assets))
    with zipfile.ZipFile(bare, "a") as archive:
        archive.write(compiled / "classes.dex", "classes.dex", zipfile.ZIP_DEFLATED)
        for abi in ABIS:
            archive.write(tools.native_library(abi), f"lib/{abi}/libexecutorch.so", zipfile.ZIP_STORED)
    tools.zipalign("-f", "-p", "4", str(bare), str(aligned))
    key = ("-keystore", str(folder / "key"), "-storepass", "android", "-keypass", "android", "-alias", "key")
    made = ("-genkeypair", "-keyalg", "RSA", "-validity", "2", "-dname", "CN=test")
    output(tools.java("keytool"), *made, *key)
    secret = ("--ks", str(folder / "key"), "--ks-pass", "pass:android")
    tools.apksigner("sign", *secret, "--out", str(signed), str(aligned))
    return signed
