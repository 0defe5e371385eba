"""What `make setup` installs: versions and hashes of all of it are written down, and pip refuses any other file."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import tomllib
import zipfile
from hashlib import sha256
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
CUDA = re.compile("nvidia-|triton|cuda-")
Pins = dict[str, tuple[str, int]]
"""A package's version and the number of its files' hashes."""


def pins(name: str) -> Pins:
    found: Pins = {}
    for entry in (ROOT / name).read_text().replace("\\\n", " ").splitlines():
        if entry and not entry.startswith("#"):
            requirement, *hashes = entry.split(" --hash=sha256:")
            assert all(re.fullmatch("[0-9a-f]{64} *", one) for one in hashes), entry
            wanted = Requirement(requirement)
            (pinned,) = wanted.specifier
            assert pinned.operator == "==", entry
            found[canonicalize_name(wanted.name)] = (pinned.version, len(hashes))
    return found


def setup_command(file: str) -> list[str]:
    """How the Makefile calls pip for a file of pins."""
    told = subprocess.run(
        ["make", "-n", "-B", "setup", "TORCH_INDEX=https://download.pytorch.org/whl/cpu", "VENV=environment"], cwd=ROOT,
        capture_output=True, text=True, check=True, env={**os.environ, "MAKEFLAGS": ""},
    ).stdout
    (line,) = [line for line in told.splitlines() if f"-r {file}" in line]
    return shlex.split(line.split("||")[0].strip(" \\"))


def test_all_pins_have_hashes_and_agree() -> None:
    lock, known = pins("requirements.lock"), pins("constraints.txt")
    assert len(lock) > 90
    assert not [name for name, (_, hashes) in lock.items() if not hashes]
    assert {name: known[name][0] for name in lock} == {name: version for name, (version, _) in lock.items()}
    assert not [name for name in (*lock, *known) if CUDA.match(name)]  # a CPU machine would load gigabytes
    cpu = re.findall("^torch==([^ ]+)", (ROOT / "torch-cpu.lock").read_text(), flags=re.MULTILINE)
    assert {version.removesuffix("+cpu") for version in cpu} == {known["torch"][0]}, "torch-cpu.lock has another torch"
    assert pins("torch-cpu.lock")["torch"][1]


def test_all_that_the_default_set_up_requires_is_in_the_lock() -> None:
    """From pyproject.toml through what the installed packages require in turn, on this platform."""
    lock, extras = pins("requirements.lock"), PROJECT["project"]["optional-dependencies"]
    waiting = [Requirement(one) for one in (
        *PROJECT["build-system"]["requires"], *PROJECT["project"]["dependencies"], *extras["dev"], *extras["postgres"])]
    seen: set[str] = set()
    while waiting:
        wanted = waiting.pop()
        name = canonicalize_name(wanted.name)
        if name == "lit-simplified" or CUDA.match(name) or str(wanted) in seen:
            continue
        seen.add(str(wanted))
        assert name in lock, f"{wanted} is not in requirements.lock: make lock"
        version = lock[name][0]
        assert wanted.specifier.contains(version, prereleases=True), f"{wanted}, but {version} is locked: make lock"
        try:
            needed = [Requirement(one) for one in metadata.requires(name) or ()]
        except metadata.PackageNotFoundError:  # setuptools, where the environment was made by hand
            continue
        extra = [{"extra": one} for one in ("", *wanted.extras)]
        waiting += [one for one in needed if not one.marker or any(map(one.marker.evaluate, extra))]
    assert len(seen) > 100


def test_pip_takes_the_locked_file_and_refuses_any_other(tmp_path: Path) -> None:
    wheel = write_wheel(tmp_path, "value = 1")
    asked = tmp_path / "asked.lock"
    asked.write_text(f"tiny==1.0 --hash=sha256:{sha256(wheel.read_bytes()).hexdigest()}\n")
    program, *flags = (part for part in setup_command("requirements.lock") if part != "requirements.lock")
    assert (program, flags[:3], flags[-1]) == ("environment/bin/python", ["-m", "pip", "install"], "-r")
    assert setup_command("torch-cpu.lock")[:len(flags) + 1] == [program, *flags]
    command = [sys.executable, *flags, str(asked), "--no-index", "--find-links", str(tmp_path), "--upgrade"]
    own = {key: value for key, value in os.environ.items() if not key.startswith("PIP_")}
    for content, status in (("value = 1", 0), ("value = 2", 1)):
        write_wheel(tmp_path, content)
        told = subprocess.run([*command, "--target", str(tmp_path / "site")], capture_output=True, text=True,
                              env={**own, "PIP_CONFIG_FILE": os.devnull})
        assert (told.returncode, "DO NOT MATCH THE HASHES" in told.stderr) == (status, bool(status)), told.stderr
    assert (tmp_path / "site" / "tiny.py").read_text() == "value = 1"


def write_wheel(folder: Path, content: str) -> Path:
    """A package of one module, the same bytes for the same content."""
    wheel = folder / "tiny-1.0-py3-none-any.whl"
    files = {
        "tiny.py": content,
        "tiny-1.0.dist-info/METADATA": "Metadata-Version: 2.1\nName: tiny\nVersion: 1.0\n",
        "tiny-1.0.dist-info/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        "tiny-1.0.dist-info/RECORD": "tiny.py,,\n",
    }
    with zipfile.ZipFile(wheel, "w") as archive:
        for name, text in files.items():
            archive.writestr(zipfile.ZipInfo(name), text)
    return wheel
