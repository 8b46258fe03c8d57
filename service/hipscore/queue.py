"""The broker as a hint: task names, the Celery application, and publishing that never hangs.

A message carries one id and nothing else. Losing one is harmless, because the reaper
re-enqueues whatever the database says is due; therefore publishing gives up after about
two seconds instead of holding a C-STORE association or a finished job.
"""

from __future__ import annotations

import logging
from typing import Any

from celery import Celery
from kombu import Queue
from kombu.exceptions import ChannelError, OperationalError
from redis.exceptions import RedisError

ANALYSE = "hipscore.analyse"
DELIVER = "hipscore.deliver"
COMMIT = "hipscore.commit"

ANALYSIS_QUEUE = "analysis"
DELIVERY_QUEUE = "delivery"

#: seconds to connect to the broker, or to wait for its answer, before giving up
PUBLISH_TIMEOUT = 2

log = logging.getLogger(__name__)


def publisher(broker_url: str) -> Celery:
    """Build the application that only publishes, one try of about two seconds each.

    Not for consuming: its socket timeout is shorter than a worker's blocking read.

    Parameters
    ----------
    broker_url
        ``redis://…`` or ``redis+socket:///path``.
    """
    app = _application(broker_url)
    app.conf.broker_transport_options = {
        "socket_connect_timeout": PUBLISH_TIMEOUT,
        "socket_timeout": PUBLISH_TIMEOUT,
        "connect_retries_timeout": PUBLISH_TIMEOUT,
        "max_retries": 0,
        "interval_start": 0,
        "interval_step": 0,
    }
    return app


def consumer(broker_url: str, *, lease_seconds: float) -> Celery:
    """Build the application that workers run: late acknowledgement, prefetch 1.

    Parameters
    ----------
    broker_url
        ``redis://…`` or ``redis+socket:///path``.
    lease_seconds
        Longest time one task may hold its row. An unacknowledged message goes to another
        worker only after twice this long (Redis visibility timeout), so that the lease,
        not the broker, decides who works.
    """
    app = _application(broker_url)
    app.conf.update(
        task_acks_late=True,
        task_reject_on_worker_lost=True,
        worker_prefetch_multiplier=1,
        # Whoever reaches the broker could end, starve or reconfigure the workers by it.
        worker_enable_remote_control=False,
        broker_connection_retry_on_startup=True,
        broker_connection_max_retries=None,
        broker_transport_options={
            "visibility_timeout": int(2 * lease_seconds),
            "socket_connect_timeout": 10.0,
        },
        # Loading and warming the networks takes longer than Celery's four seconds.
        worker_proc_alive_timeout=300.0,
        worker_hijack_root_logger=False,
        worker_redirect_stdouts=False,
        worker_cancel_long_running_tasks_on_connection_loss=False,
    )
    return app


def enqueue_analyse(app: Celery, job_id: int) -> bool:
    """Ask a worker to analyse this job; False (and a warning) when the broker is down."""
    return _publish(app, ANALYSE, job_id)


def enqueue_deliver(app: Celery, delivery_id: int) -> bool:
    """Ask a worker to send this delivery; False (and a warning) when the broker is down."""
    return _publish(app, DELIVER, delivery_id)


def enqueue_commit(app: Celery, delivery_id: int) -> bool:
    """Ask a worker to ask for the storage commitment of this delivery and of what else is due."""
    return _publish(app, COMMIT, delivery_id)


def warm(app: Celery) -> bool:
    """Connect to the broker and declare the queues, as the first message would; whether it did."""
    try:
        with app.producer_or_acquire() as producer:
            producer.connection.ensure_connection(max_retries=0, timeout=PUBLISH_TIMEOUT)
            for queue in app.conf.task_queues:
                producer.maybe_declare(queue)
    except (OperationalError, RedisError, OSError):
        return False
    return True


def waiting(app: Celery, queue: str) -> int | None:
    """How many messages wait in the queue; None when the broker does not say within two seconds.

    Those that a worker has taken and not finished are not counted.
    """
    try:
        with app.connection_for_write() as connection:
            connection.ensure_connection(max_retries=0, timeout=PUBLISH_TIMEOUT)
            channel: Any = connection.default_channel  # the stubs know too little of it
            declared = channel.queue_declare(queue, passive=True)
            return int(declared.message_count)
    except ChannelError:
        return 0  # Redis keeps no empty list
    except (OperationalError, RedisError, OSError):
        return None


def reachable(app: Celery) -> bool:
    """Whether the broker answers now. Takes at most about two seconds."""
    try:
        with app.connection_for_write() as connection:
            connection.ensure_connection(max_retries=0, timeout=PUBLISH_TIMEOUT)
    except (OperationalError, RedisError, OSError):
        return False
    return True


def _application(broker_url: str) -> Celery:
    app = Celery("hipscore", broker=broker_url, set_as_current=False)
    app.conf.update(
        accept_content=["json"],
        task_serializer="json",
        task_ignore_result=True,
        task_create_missing_queues=False,
        task_queues=(Queue(ANALYSIS_QUEUE), Queue(DELIVERY_QUEUE)),
        task_default_queue=ANALYSIS_QUEUE,
        task_routes={
            ANALYSE: {"queue": ANALYSIS_QUEUE},
            DELIVER: {"queue": DELIVERY_QUEUE},
            COMMIT: {"queue": DELIVERY_QUEUE},
        },
    )
    return app


def _publish(app: Celery, task: str, row_id: int) -> bool:
    try:
        app.send_task(task, args=[row_id], retry=False)
    except (OperationalError, RedisError, OSError) as error:
        log.warning(
            "broker is down, %s %d waits for the reaper: %s", task, row_id, _one_line(error)
        )
        return False
    return True


def _one_line(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}"[:200]
