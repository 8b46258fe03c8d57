"""Worker and reaper: analyse, deliver, commit, reap; each asks the database first.

A message is a hint that a row may be due. Whoever wins the row's lease does the work; what
the work produced and the row's next state are committed together. No exception leaves a
task: a job ends as FAILED or waits for its next attempt, and the ledger says why.
"""

from __future__ import annotations

from hipscore.worker.analysis import analyse
from hipscore.worker.bench import Bench, bench
from hipscore.worker.commitment import commit
from hipscore.worker.delivery import deliver
from hipscore.worker.process import run_beat, run_worker
from hipscore.worker.reaping import reap

__all__ = ["Bench", "analyse", "bench", "commit", "deliver", "reap", "run_beat", "run_worker"]
