"""When a series is in Orthanc, asked for so that the asking does not slow down what is timed.

A new HTTP client per question costs this machine's processor twenty milliseconds. Here it is
one connection and Orthanc's log of changes: a third of a millisecond of both together.
"""

from __future__ import annotations

import http.client
import json
import time
from typing import Any

from tests import servers

#: seconds between two questions, and so the resolution of what is measured
EVERY_S = 0.01


class Arrivals:
    """New series in Orthanc from now on."""

    def __init__(self, pacs: servers.Orthanc) -> None:
        self._connection = http.client.HTTPConnection(pacs.host, pacs.http_port, timeout=60.0)
        self._last = int(self._get("/changes?last")["Last"])

    def wait_for(self, modality: str, seconds: float = 120.0) -> float:
        """The time (epoch) at which Orthanc has a new series of this modality.

        Raises
        ------
        TimeoutError
            If there is none within ``seconds``.
        """
        servers.wait_until(
            lambda: self._has(modality),
            what=f"a series of modality {modality} is in Orthanc",
            seconds=seconds,
            every=EVERY_S,
        )
        return time.time()

    def _has(self, modality: str) -> bool:
        answer = self._get(f"/changes?since={self._last}&limit=100")
        self._last = int(answer["Last"])
        # no generator: every change of the answer is read only once
        return modality in [
            self._get(change["Path"])["MainDicomTags"]["Modality"]
            for change in answer["Changes"]
            if change["ChangeType"] == "NewSeries"
        ]

    def _get(self, path: str) -> Any:
        for again in (True, False):
            try:
                self._connection.request("GET", path)
                return json.loads(self._connection.getresponse().read())
            except (http.client.RemoteDisconnected, ConnectionError):
                # Orthanc ends a connection that was idle
                self._connection.close()
                if not again:
                    raise
        raise AssertionError
