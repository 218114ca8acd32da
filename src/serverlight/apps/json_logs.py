"""Log records as lines of JSON, with the stream, session and request that they are about."""

from __future__ import annotations

import datetime
import json
import logging
import sys

from serverlight.runtime.observe import Event, Greeted, Refused, SessionClosed, SessionOpened, StreamClosed
from serverlight.runtime.tally import Device, Tally

__all__ = ["JsonFormatter", "SessionLog", "log_as_json"]

_FIELDS = (
    "stream",
    "session",
    "request_id",
    "model",
    "cut",
    "code",
    "how",
    "requests",
    "tokens",
    "up_bytes",
    "down_bytes",
)
"""What a record may say beside its text."""

_log = logging.getLogger(__name__)


class JsonFormatter(logging.Formatter):
    """One object a record: time, level, logger, message, what it is about, and a traceback where there is one."""

    def format(self, record: logging.LogRecord) -> str:
        """The line, without its end."""
        when = datetime.datetime.fromtimestamp(record.created, datetime.UTC)
        line = {
            "time": when.isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        line |= {name: getattr(record, name) for name in _FIELDS if getattr(record, name, None) is not None}
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


def log_as_json() -> None:
    """From now on every record of this process, from INFO on, is a line of JSON on standard error."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter())
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)


class SessionLog:
    """Logs streams and sessions; to be told of an event before ``tally`` is, which knows what came before.

    A session is named by its stream and its place there: ``7.2`` is the second of stream 7.
    """

    def __init__(self, tally: Tally) -> None:
        self._tally = tally

    def take(self, event: Event) -> None:
        """Logs what is worth a line; single requests are not, for they may be thousands a second."""
        device = self._tally.devices.get(event.stream)
        if device is None:
            return
        if isinstance(event, Greeted):
            about = {"stream": device.number, "model": event.model, "cut": event.cut}
            _log.info("stream %d: a client at cut %s", device.number, event.cut, extra=about)
        elif isinstance(event, SessionOpened):
            session = f"{device.number}.{device.num_sessions + 1}"
            about = {"stream": device.number, "session": session, "model": device.model, "cut": event.cut}
            _log.info("session %s opened", session, extra=about)
        elif isinstance(event, SessionClosed) and device.has_session:
            self._session_ended(device, "expired" if event.expired else "closed")
        elif isinstance(event, Refused) and not event.request_id:
            about = {"stream": device.number, "code": event.code}
            _log.info("stream %d refused: %s", device.number, event.code, extra=about)
        elif isinstance(event, StreamClosed):
            if device.has_session:
                self._session_ended(device, "with_stream")
            _log.info("stream %d closed", device.number, extra={"stream": device.number, **_sums(device)})

    def _session_ended(self, device: Device, how: str) -> None:
        session = f"{device.number}.{device.num_sessions}"
        about = {"stream": device.number, "session": session, "how": how, "cut": device.cut}
        _log.info("session %s ended: %s", session, how.replace("_", " "), extra=about)


def _sums(device: Device) -> dict[str, int]:
    return {
        "requests": device.requests,
        "tokens": device.tokens,
        "up_bytes": device.up_bytes,
        "down_bytes": device.down_bytes,
    }
