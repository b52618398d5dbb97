"""What psycopg sends together in libpq's pipeline mode: BEGIN, what else travels, a statement, and COMMIT.

One Sync ends it all. So the server skips whatever follows a command that fails, and COMMIT too.

Holds: the order of what is sent, and whose each answer is; imported only with such an engine.
Must not know: cursors, engines, sessions, or which statements travel.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import Any

from psycopg import errors, pq
from psycopg.generators import fetch_many, send

IDLE: Any = pq.TransactionStatus.IDLE
OK: Any = pq.ConnStatus.OK
FAILED: Any = pq.ExecStatus.FATAL_ERROR
SKIPPED: Any = pq.ExecStatus.PIPELINE_ABORTED


def send_after_begin(conn: Any, pgconn: Any, sends: list[Callable[[], Any]]) -> Generator[Any, Any, Any]:
    """Send BEGIN, what else travels, and what ``sends`` send; return the results of the last, or raise an error."""
    pgconn.enter_pipeline_mode()
    refused, sent = None, _send_first(conn, pgconn)
    for one in sends:
        try:
            one()
        except Exception as exc:  # by libpq, for example for too many parameters: only the transaction begins
            refused = exc
            break
        sent += 1
    commits = refused is None and getattr(conn, "commits", False)
    if commits:
        pgconn.send_query_params(b"COMMIT", None)
        conn.commit_sent = True
    pgconn.pipeline_sync()
    yield from send(pgconn)
    answers = yield from _answers(pgconn, sent + commits)
    if commits and len(answers) > sent:
        _note_commit(conn, pgconn, answers.pop())
    last = None if refused is not None else answers.pop()
    _check(pgconn, answers)
    if refused is not None:
        raise refused
    return last


def _check(pgconn: Any, answers: list[Any]) -> None:
    """Raise the first error of what travelled before the statement."""
    for results in answers:
        for result in results:
            if result.status == FAILED:
                raise errors.error_from_result(result, encoding=pgconn._encoding)


def _answers(pgconn: Any, count: int) -> Generator[Any, Any, list[Any]]:
    """Return the results of so many commands; fewer if the server has ended its session with an error."""
    answers: list[Any] = []
    try:
        while len(answers) < count:
            answers += [(yield from fetch_many(pgconn))]
        yield from fetch_many(pgconn)  # the Sync
    except errors.OperationalError:
        if not any(result.status == FAILED for results in answers for result in results):
            raise
    else:
        pgconn.exit_pipeline_mode()
    return answers


def _note_commit(conn: Any, pgconn: Any, results: list[Any]) -> None:
    """Keep what the server answered to COMMIT; it skips that if the statement failed."""
    conn.commit_sent = results[0].status != SKIPPED
    if results[0].status == FAILED:
        conn.refusal = errors.error_from_result(results[0], encoding=pgconn._encoding)
        if pgconn.status != OK:
            raise conn.refusal  # psycopg refuses commit() on a lost connection in its own words


def _send_first(conn: Any, pgconn: Any) -> int:
    """Send BEGIN and what else travels; return how many statements these are."""
    begins = pgconn.transaction_status == IDLE and not conn._autocommit
    first = [conn._get_tx_start_command()] if begins else []
    if (ahead := getattr(conn, "ahead", None)) is not None:
        conn.ahead = None
        first.append(ahead)
    for command in first:
        pgconn.send_query_params(command, None)
    return len(first)
