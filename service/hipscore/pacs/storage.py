"""Sending: stored bytes leave as they are, the answer comes back as an Outcome.

The encoded data set is cut out of the Part 10 file behind its File Meta Information
(PS3.10 7.1) and put on the wire unread, so what a PACS keeps is what the spool keeps. Only
a peer that takes nothing but Implicit VR Little Endian, the transfer syntax every
application entity supports (PS3.5 10.1), gets the same data set in that encoding.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from pydicom import dcmread
from pydicom.errors import InvalidDicomError
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian
from pynetdicom import _config, build_context
from pynetdicom.association import Association
from pynetdicom.dsutils import split_dataset
from pynetdicom.presentation import PresentationContext
from pynetdicom.sop_class import Verification  # type: ignore[attr-defined]

from hipscore.addresses import Peer
from hipscore.domain import Outcome
from hipscore.pacs.association import DEFAULT_TIMEOUTS, Timeouts, ask, associate, drop, judge, leave

# pynetdicom has no per-call switch for this: send_c_store(path) puts the encoded data set of
# a file on the wire without decoding it.
_config.STORE_SEND_CHUNKED_DATASET = True

#: contexts one association can propose: odd numbers 1 to 255 (PS3.8 9.3.2.2)
MAX_CONTEXTS = 128


@dataclass(frozen=True, slots=True, kw_only=True)
class _Header:
    """What negotiation needs to know about one Part 10 file."""

    path: Path
    sop_class: str
    sop_instance: str
    transfer_syntax: str
    class_name: str
    syntax_name: str
    convertible: bool


def send(
    peer: Peer,
    data: Sequence[bytes],
    *,
    calling_aet: str,
    timeouts: Timeouts = DEFAULT_TIMEOUTS,
) -> Outcome:
    """Send these Part 10 objects by C-STORE over one association, bytes unchanged.

    Returns
    -------
    Outcome
        Delivered when the peer answered every object with success (0x0000) or a warning
        (0xBxxx, PS3.4 B.2.3). Otherwise the outcome of the first object that failed:
        retry for no connection, rejected association, no (readable) answer, out of resources
        (0xA7xx), processing failure (0x0110) and resource limitation (0x0213); no retry
        for a context the peer does not accept and any other status.

    Raises
    ------
    ValueError
        If ``data`` is empty or holds something that is not a DICOM file.
    """
    if not data:
        msg = "nothing to send"
        raise ValueError(msg)
    with _written(data) as paths:
        sending = send_files(peer, paths, calling_aet=calling_aet, timeouts=timeouts)
        with contextlib.closing(sending):
            for _, outcome in sending:
                if not outcome.delivered:
                    break
    return outcome


class Carrier:
    """Objects for one peer, one by one over one association, each with its own outcome.

    The association is made for the first of them. Where it breaks, or an object needs a
    presentation context that was not proposed, the next object gets another one.

    Parameters
    ----------
    peer
        Where to.
    sop_classes
        What is to come, so that one negotiation serves all: proposed in Explicit VR Little
        Endian, and in the default syntax.
    calling_aet, timeouts
        As for :func:`send`.
    """

    def __init__(
        self,
        peer: Peer,
        sop_classes: Iterable[str] = (),
        *,
        calling_aet: str,
        timeouts: Timeouts = DEFAULT_TIMEOUTS,
    ) -> None:
        self._peer = peer
        self._calling_aet = calling_aet
        self._timeouts = timeouts
        self._expected = [
            (sop_class, str(syntax))
            for sop_class in dict.fromkeys(sop_classes)
            for syntax in (ExplicitVRLittleEndian, ImplicitVRLittleEndian)
        ]
        self._association: Association | None = None
        self._proposed: set[tuple[str, str]] = set()
        self._accepted: set[tuple[str, str]] = set()
        self._sent = 0

    def send_one_of(self, forms: Sequence[bytes]) -> tuple[Outcome, int]:
        """Send one object in the first of these forms whose presentation context is accepted.

        Returns
        -------
        tuple of Outcome and int
            As :func:`send`, and the index of the form that was sent; 0 where none was.

        Raises
        ------
        ValueError
            If ``forms`` is empty or holds something that is not a DICOM file.
        """
        if not forms:
            msg = "nothing to send"
            raise ValueError(msg)
        with _written(forms) as paths:
            headers = [_header(path) for path in paths]
            failed = self._associate(headers)
            if failed is not None:
                return failed, 0
            chosen = next((n for n, each in enumerate(headers) if _syntax(each, self._accepted)), 0)
            if self._association is None:
                return _not_accepted(self._peer, headers), chosen
            self._sent += 1
            outcome = _store(
                self._association, self._peer, headers[chosen], self._sent, self._timeouts
            )
            if outcome.status is None and outcome.retry:
                drop(self._association)
                self._association, self._proposed = None, set()
        return outcome, chosen

    def close(self) -> None:
        """Release the association."""
        if self._association is not None:
            leave(self._association)
            self._association, self._proposed = None, set()

    def _associate(self, headers: Sequence[_Header]) -> Outcome | None:
        """Have an association on which these were proposed, or a peer that accepts none of them.

        Returns why there is neither.
        """
        alive = self._association is None or self._association.is_established
        if alive and self._proposed.issuperset((h.sop_class, h.transfer_syntax) for h in headers):
            return None
        self.close()
        wanted = list(dict.fromkeys([*_wanted(headers), *self._expected]))[:MAX_CONTEXTS]
        contexts = [build_context(sop_class, syntax) for sop_class, syntax in wanted]
        made = associate(self._peer, contexts, self._calling_aet, self._timeouts)
        if isinstance(made, Outcome):
            if not made.unsupported:
                return made
            self._accepted = set()
        else:
            self._association, self._accepted = made, _accepted(made)
        self._proposed = set(wanted)
        return None


def send_one_of(
    peer: Peer,
    forms: Sequence[bytes],
    *,
    calling_aet: str,
    timeouts: Timeouts = DEFAULT_TIMEOUTS,
) -> tuple[Outcome, int]:
    """Send one object over an association of its own; see :meth:`Carrier.send_one_of`."""
    with contextlib.closing(Carrier(peer, calling_aet=calling_aet, timeouts=timeouts)) as carrier:
        return carrier.send_one_of(forms)


def send_files(
    peer: Peer,
    paths: Iterable[Path],
    *,
    calling_aet: str,
    timeouts: Timeouts = DEFAULT_TIMEOUTS,
) -> Generator[tuple[Path, Outcome]]:
    """Send files over one association and yield the outcome of each as it is known.

    When the association cannot be made or breaks, the remaining files are yielded with a
    retry outcome, so that every path is accounted for.

    Raises
    ------
    ValueError
        If a file is not a DICOM file with complete File Meta Information, or if the files
        need more presentation contexts than one association can hold.
    """
    headers = [_header(path) for path in paths]
    if not headers:
        return
    association = associate(peer, _contexts(headers), calling_aet, timeouts)
    if isinstance(association, Outcome):
        for header in headers:
            yield header.path, association
        return
    broken: Outcome | None = None
    try:
        for number, header in enumerate(headers):
            outcome = broken or _store(association, peer, header, number % 65535 + 1, timeouts)
            if outcome.status is None and outcome.retry:
                # pynetdicom notices a broken association only a moment later; another
                # request on it would wait for an answer until the timeout.
                broken = outcome
            yield header.path, outcome
    finally:
        if broken is not None:
            drop(association)
        else:
            leave(association)


def echo(peer: Peer, *, calling_aet: str, timeouts: Timeouts = DEFAULT_TIMEOUTS) -> Outcome:
    """Ask the peer for a C-ECHO (PS3.4 annex A)."""
    association = associate(peer, [build_context(Verification)], calling_aet, timeouts)
    if isinstance(association, Outcome):
        return association
    try:
        answer = ask(peer, timeouts, association.send_c_echo)
    finally:
        leave(association)
    return answer if isinstance(answer, Outcome) else judge(peer, int(answer.Status))


@contextlib.contextmanager
def _written(data: Sequence[bytes]) -> Iterator[list[Path]]:
    """Files with these contents, for as long as the context lasts."""
    with tempfile.TemporaryDirectory(prefix="hipscore-send-") as folder:
        paths = []
        for number, content in enumerate(data):
            path = Path(folder) / f"{number}.dcm"
            path.write_bytes(content)
            paths.append(path)
        yield paths


def _header(path: Path) -> _Header:
    try:
        meta, _ = split_dataset(path)
        sop_class = meta.MediaStorageSOPClassUID
        syntax = meta.TransferSyntaxUID
        return _Header(
            path=path,
            sop_class=str(sop_class),
            sop_instance=str(meta.MediaStorageSOPInstanceUID),
            transfer_syntax=str(syntax),
            class_name=sop_class.name,
            syntax_name=syntax.name,
            convertible=not syntax.is_private
            and not syntax.is_compressed
            and syntax.is_little_endian,
        )
    except (InvalidDicomError, AttributeError, ValueError, EOFError, OSError) as error:
        msg = f"{path} is not a DICOM file with File Meta Information: {error}"
        raise ValueError(msg) from error


def _contexts(headers: Iterable[_Header]) -> list[PresentationContext]:
    """One context per SOP class and transfer syntax, plus the default syntax where we can."""
    wanted = _wanted(headers)
    if len(wanted) > MAX_CONTEXTS:
        msg = (
            f"these files need {len(wanted)} presentation contexts, one association holds "
            f"{MAX_CONTEXTS}; send fewer kinds of objects at once"
        )
        raise ValueError(msg)
    return [build_context(sop_class, syntax) for sop_class, syntax in wanted]


def _wanted(headers: Iterable[_Header]) -> list[tuple[str, str]]:
    """SOP class and transfer syntax of the contexts that these need, those as stored first."""
    known = list(headers)
    as_stored = [(each.sop_class, each.transfer_syntax) for each in known]
    default = [(each.sop_class, str(ImplicitVRLittleEndian)) for each in known if each.convertible]
    return list(dict.fromkeys([*as_stored, *default]))


def _accepted(association: Association) -> set[tuple[str, str]]:
    """SOP class and transfer syntax of every accepted presentation context."""
    return {
        (str(context.abstract_syntax), str(context.transfer_syntax[0]))
        for context in association.accepted_contexts
    }


def _syntax(header: _Header, accepted: set[tuple[str, str]]) -> str | None:
    """The transfer syntax in which the object can be sent, or None."""
    if (header.sop_class, header.transfer_syntax) in accepted:
        return header.transfer_syntax
    default = str(ImplicitVRLittleEndian)
    return default if header.convertible and (header.sop_class, default) in accepted else None


def _not_accepted(peer: Peer, headers: Iterable[_Header]) -> Outcome:
    names = ", ".join(sorted({each.class_name for each in headers}))
    text = f"{peer} does not accept {names}"
    return Outcome(delivered=False, retry=False, status=None, text=text, unsupported=True)


def _store(
    association: Association, peer: Peer, header: _Header, message_id: int, timeouts: Timeouts
) -> Outcome:
    syntax = _syntax(header, _accepted(association))
    if syntax is None:
        text = f"{peer} does not accept {header.class_name} in {header.syntax_name}"
        return Outcome(delivered=False, retry=False, status=None, text=text, unsupported=True)
    as_stored = syntax == header.transfer_syntax
    request = partial(
        association.send_c_store,
        header.path if as_stored else dcmread(header.path),
        msg_id=message_id,
    )
    answer = ask(peer, timeouts, request)
    if isinstance(answer, Outcome):
        return answer
    return judge(peer, int(answer.Status), str(answer.get("ErrorComment", "")))
