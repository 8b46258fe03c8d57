"""The DICOM listener: Storage and Verification SCP for MR images (PS3.4 annexes A and B).

An image is acknowledged only when its bytes are fsynced in the spool and its row is
committed. The handler reads a bounded part of the header and decodes nothing else. When an
association is released, its series are closed if the images prove that they are complete;
otherwise the reaper's quiet period decides. Of structured reports only our own are taken, for
what they say of earlier studies.
"""

from __future__ import annotations

from hipscore.keeping import transfer_syntaxes
from hipscore.listener.reception import Reception
from hipscore.listener.server import ListenerError, serve

__all__ = ["ListenerError", "Reception", "serve", "transfer_syntaxes"]
