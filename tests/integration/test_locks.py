"""Locks are installed as they are, whatever was released since they were written."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[2]
LOCKS = ("build", "run", "dev", "gpu")
PYTHONS = ("3.11.2", "3.12.3", "3.13.5", "3.14.0")

#: name and version of a wheel, and what it requires; highdicom stands for itself, with what the
#: lock leaves out on purpose (requirements/unmet.txt)
LOCKED = {
    ("highdicom", "1.0"): ("coverage[toml]>=1", "pyjpegls>=1"),
    ("coverage", "1.0"): ('tomli>=1; extra == "toml"',),
    ("tomli", "1.0"): (),
}
#: what was released afterwards: of a package named with an extra, of one that the extra brings,
#: and of one that the lock leaves out
RELEASED = {
    ("coverage", "1.1"): ('tomli>=1; extra == "toml"',),
    ("tomli", "1.1"): (),
    ("pyjpegls", "1.0"): (),
}


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A package index on this disk (PEP 503) that has all of them."""
    root = tmp_path_factory.mktemp("simple")
    for (name, version), requires in (LOCKED | RELEASED).items():
        folder = root / name
        folder.mkdir(exist_ok=True)
        _wheel(folder, name, version, requires)
        links = "".join(f'<a href="{each.name}">{each.name}</a>' for each in folder.glob("*.whl"))
        (folder / "index.html").write_text(f"<!doctype html><title>{name}</title>{links}")
    return root


@pytest.fixture(scope="module")
def lock(index: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("lock") / "some.lock"
    lines = []
    for name, version in LOCKED:
        (wheel,) = (index / name).glob(f"*-{version}-*.whl")
        digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
        lines.append(f"{name}=={version} \\\n    --hash=sha256:{digest}\n")
    path.write_text("".join(lines))
    return path


@pytest.fixture(scope="module")
def bare_venv(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("bare") / "venv"
    subprocess.run([sys.executable, "-m", "venv", made], check=True)
    return made


@pytest.fixture
def venv(bare_venv: Path, tmp_path: Path) -> Path:
    """A new environment with the pip that comes with this Python."""
    return shutil.copytree(bare_venv, tmp_path / "venv", symlinks=True)


def _wheel(folder: Path, name: str, version: str, requires: Iterable[str]) -> None:
    info = f"{name}-{version}.dist-info"
    metadata = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
    extras = {found[1] for each in requires if (found := re.search(r'extra == "(\w+)"', each))}
    metadata += "".join(f"Provides-Extra: {each}\n" for each in extras)
    metadata += "".join(f"Requires-Dist: {each}\n" for each in requires)
    files = {
        f"{name}.py": f"version = {version!r}\n",
        f"{info}/METADATA": metadata,
        f"{info}/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = "".join(f"{path},,\n" for path in (*files, f"{info}/RECORD"))
    with zipfile.ZipFile(folder / f"{name}-{version}-py3-none-any.whl", "w") as wheel:
        for path, text in (files | {f"{info}/RECORD": record}).items():
            wheel.writestr(path, text)


def _run(command: list[object], index: Path) -> subprocess.CompletedProcess[str]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("PIP_")}
    return subprocess.run(
        [str(each) for each in command],
        env={**clean, "PIP_INDEX_URL": index.as_uri(), "PIP_CONFIG_FILE": os.devnull},
        capture_output=True,
        text=True,
        check=False,
    )


def _installed(venv: Path) -> set[str]:
    found = subprocess.run(
        [venv / "bin/python", "-m", "pip", "freeze"], capture_output=True, text=True, check=True
    )
    return set(found.stdout.split())


def test_newer_releases_are_not_taken(index: Path, lock: Path, venv: Path) -> None:
    done = _run([ROOT / "scripts/install.sh", venv, lock], index)
    assert done.returncode == 0, done.stderr
    assert _installed(venv) == {f"{name}=={version}" for name, version in LOCKED}


def test_a_resolver_would_have_taken_one(index: Path, lock: Path, venv: Path) -> None:
    """What the test above would say of the old way."""
    old = [venv / "bin/python", "-m", "pip", "install", "--require-hashes", "-r", lock]
    assert _run(old, index).returncode != 0


def test_a_lock_that_lacks_something_is_refused_by_name(
    index: Path, lock: Path, venv: Path, tmp_path: Path
) -> None:
    shorter = tmp_path / "shorter.lock"
    shorter.write_text(lock.read_text().partition("coverage==")[0])
    done = _run([ROOT / "scripts/install.sh", venv, shorter], index)
    assert done.returncode == 1
    assert "highdicom requires coverage, which is not installed" in done.stderr


def test_another_file_under_a_locked_name_is_refused(
    index: Path, lock: Path, venv: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other.lock"
    other.write_text(re.sub(r"sha256:.", "sha256:0", lock.read_text(), count=1))
    other.write_text(re.sub(r"sha256:(.).", r"sha256:\g<1>0", other.read_text(), count=1))
    done = _run([ROOT / "scripts/install.sh", venv, other], index)
    assert done.returncode != 0
    assert "HASHES" in done.stderr.upper()
    assert not {each for each in _installed(venv) if each.startswith("highdicom")}


# --- the locks of the project ------------------------------------------------------------


def _pins(name: str, python: str) -> Iterator[Requirement]:
    """What a lock names for this Python on Linux."""
    for line in (ROOT / f"requirements/{name}.lock").read_text().splitlines():
        if line[:1] in {"", " ", "#"}:
            continue
        pin = Requirement(line.removesuffix("\\"))
        minor = ".".join(python.split(".")[:2])
        here = {"python_full_version": python, "python_version": minor, "sys_platform": "linux"}
        if pin.marker is None or pin.marker.evaluate(here):
            yield pin


@pytest.mark.parametrize("python", PYTHONS)
@pytest.mark.parametrize("name", LOCKS)
def test_a_lock_names_each_package_once_for_each_python(name: str, python: str) -> None:
    names = [pin.name for pin in _pins(name, python)]
    assert names
    assert len(names) == len(set(names))


@pytest.mark.parametrize("python", PYTHONS)
def test_the_locks_agree_with_each_other(python: str) -> None:
    """They are installed one after the other into the same environment."""
    run = {pin.name: str(pin.specifier) for pin in _pins("run", python)}
    dev = {pin.name: str(pin.specifier) for pin in _pins("dev", python)}
    assert run.items() <= dev.items()


def test_what_is_left_out_on_purpose_is_explained() -> None:
    lines = (ROOT / "requirements/unmet.txt").read_text().splitlines()
    assert lines[0].startswith("#")
    missing = {line.split(" requires ")[1].split(",")[0] for line in lines if line[:1] != "#"}
    for name in missing:
        assert name in {pin.name for pin in _pins("run", PYTHONS[0])}
        assert name not in {pin.name for pin in _pins("run", PYTHONS[-1])}
