"""What hipscore ships with: a bill of materials (CycloneDX) and a list of licences.

The packages are those of ``requirements/run.lock`` as they are installed; what they say of their
licences is read by cyclonedx-py. A licence that is not in :data:`PERMISSIVE`, or that cannot be
told, fails, so that a new dependency with another licence cannot come in unseen.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
BILL = "sbom.cdx.json"
LIST = "LICENCES.md"

#: SPDX identifiers that ask for no more than to be named
PERMISSIVE = frozenset({
    "0BSD", "Apache-2.0", "BSD-2-Clause", "BSD-3-Clause", "CC0-1.0", "ISC", "MIT", "MIT-CMU",
    "MPL-2.0", "PSF-2.0", "Zlib",
})  # fmt: skip
#: what packages that have no SPDX identifier write instead (trove classifiers)
CLASSIFIERS = {
    "License :: OSI Approved :: Apache Software License": "Apache-2.0",
    "License :: OSI Approved :: BSD License": "BSD-3-Clause",
    "License :: OSI Approved :: MIT License": "MIT",
    "License :: OSI Approved :: Mozilla Public License 2.0 (MPL 2.0)": "MPL-2.0",
}
#: packages that do not say it in their metadata, but in a file
UNSAID = {"protobuf": "BSD-3-Clause"}
#: packages that may have another licence, and why
ACCEPTED = {
    "psycopg": ("LGPL-3.0-only", "the driver of PostgreSQL; used as a library, never changed"),
    "psycopg-binary": ("LGPL-3.0-only", "its compiled part, likewise"),
}


class Refused(Exception):
    """A package that must not be shipped, or is missing."""


def normalised(name: str) -> str:
    """Name of a package as locks write it (PEP 503)."""
    return re.sub(r"[-_.]+", "-", name).lower()


def locked() -> set[tuple[str, str]]:
    """Name and version of every package of the runtime lock, of every Python and platform."""
    text = (ROOT / "requirements/run.lock").read_text("utf-8")
    return set(re.findall(r"^([a-z0-9-]+)==([^\s;]+)", text, re.MULTILINE))


def bill(python: Path, wheels: Path | None) -> dict[str, Any]:
    """Bill of the locked packages and of hipscore as ``python`` has them.

    Parameters
    ----------
    python
        Interpreter of the environment.
    wheels
        Folder of the wheels they were installed from; their digests go in.

    Raises
    ------
    Refused
        If a package has another version than the lock says.
    """
    whole = json.loads(
        subprocess.run(
            [
                Path(sys.executable).with_name("cyclonedx-py"), "environment",
                "--output-reproducible", "--no-validate", "--pyproject", ROOT / "pyproject.toml",
                "--of", "JSON", "--output-file", "-", python,
            ],
            check=True,
            capture_output=True,
        ).stdout
    )  # fmt: skip
    pins = locked()
    names = {name for name, _ in pins}
    kept = [each for each in whole["components"] if normalised(each["name"]) in names]
    for each in kept:
        if (name := normalised(each["name"])) in UNSAID and "licenses" not in each:
            each["licenses"] = [
                {"license": {"acknowledgement": "concluded", "id": UNSAID[name]}},
            ]
        if (name, each["version"]) not in pins:
            msg = f"{name} {each['version']} is installed, and the lock has another: make setup"
            raise Refused(msg)
    if wheels is not None:
        _hash(kept, wheels)
    shipped = {each["bom-ref"] for each in kept} | {whole["metadata"]["component"]["bom-ref"]}
    whole["components"] = kept
    whole["dependencies"] = [
        {**each, "dependsOn": [name for name in each.get("dependsOn", ()) if name in shipped]}
        for each in whole["dependencies"]
        if each["ref"] in shipped
    ]
    return whole


def _hash(components: list[dict[str, Any]], wheels: Path) -> None:
    found = {}
    for wheel in wheels.glob("*.whl"):
        name, version, *_ = wheel.name.split("-")
        digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
        found[normalised(name), version] = digest
    for each in components:
        key = normalised(each["name"]), each["version"]
        if key not in found:
            msg = f"{key[0]} {key[1]} is installed, and {wheels} has no wheel of it"
            raise Refused(msg)
        each["hashes"] = [{"alg": "SHA-256", "content": found[key]}]


def licences(component: dict[str, Any]) -> str:
    """What a component may be used under, in SPDX terms; its own words where there are none."""
    said = set()
    for each in component.get("licenses", ()):
        words = each.get("expression") or next(
            (each["license"][key] for key in ("id", "name") if key in each["license"]), ""
        )
        said.add(CLASSIFIERS.get(words, words))
    # a classifier does not tell which BSD licence, an identifier beside it does
    return " OR ".join(sorted(said)) if said else "not said"


def refused(whole: dict[str, Any]) -> Iterator[str]:
    """One line for each package that must not be shipped."""
    for each in whole["components"]:
        name, licence = normalised(each["name"]), licences(each)
        if ACCEPTED.get(name, ("",))[0] == licence:
            continue
        # all of them: to choose among "OR" is a thought that a person must have
        if not set(re.split(r" (?:AND|OR) |[()]", licence)) - {""} <= PERMISSIVE:
            yield f"{name} {each['version']}: {licence} is not on the list of permissive licences"


def listed(whole: dict[str, Any]) -> str:
    """The licences as a table in Markdown."""
    lines = ["| package | version | licence |", "|---|---|---|"]
    lines += [
        f"| {normalised(each['name'])} | {each['version']} | {licences(each)} |"
        for each in sorted(whole["components"], key=lambda each: normalised(each["name"]))
    ]
    ours = licences(whole["metadata"]["component"])
    reasons = [f"- {name} ({licence}): {why}." for name, (licence, why) in ACCEPTED.items()]
    return "\n".join(
        [
            "# Licences of what hipscore is shipped with",
            "",
            f"hipscore itself: {ours}.",
            "",
            *lines,
            "",
            "Not permissive, and accepted:",
            "",
            *reasons,
            "",
        ]
    )


def main() -> int:
    """Write both, or say what must not be shipped."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=ROOT / "build", help="folder to write to")
    parser.add_argument("--python", type=Path, default=Path(sys.executable), help="interpreter")
    parser.add_argument("--wheels", type=Path, help="folder of wheels, for their digests")
    parser.add_argument("--check", type=Path, metavar="FILE", help="only judge this bill")
    chosen = parser.parse_args()
    try:
        if chosen.check:
            whole = json.loads(chosen.check.read_bytes())
        else:
            whole = bill(chosen.python, chosen.wheels)
    except Refused as error:
        print(error, file=sys.stderr)
        return 1
    if complaints := list(refused(whole)):
        print("\n".join(complaints), file=sys.stderr)
        return 1
    if not chosen.check:
        chosen.out.mkdir(parents=True, exist_ok=True)
        (chosen.out / BILL).write_text(json.dumps(whole, indent=2) + "\n", "utf-8")
        (chosen.out / LIST).write_text(listed(whole), "utf-8")
        print(f"{len(whole['components'])} packages: {chosen.out / BILL}, {chosen.out / LIST}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
