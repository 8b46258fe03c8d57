"""Loading the networks calls nobody and leaves nothing behind in anybody's home."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

PROGRAM = """
import sys
def watch(event, arguments):
    if event in {"socket.connect", "socket.getaddrinfo", "urllib.Request"}:
        print("calls", event, arguments, flush=True)
sys.addaudithook(watch)
from hipscore.inference import load_segmenter
import time
print(load_segmenter(provider="openvino", precision="fp32").engine.provider)
time.sleep(1.0)  # whatever reports does so in a thread
"""


def test_openvino_reports_to_nobody(tmp_path: Path) -> None:
    told = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        env={**os.environ, "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    assert told.stdout.split() == ["openvino"]
    assert not (tmp_path / "intel").exists()
