"""Makes a running proxy follow a link that changes with time."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable
from types import TracebackType
from typing import Self

from serverlight.link.config import LinkConfig
from serverlight.link.proxy import LinkProxy
from serverlight.link.trace import LinkPiece

__all__ = ["LinkPlayer"]


class LinkPlayer:
    """Sets a proxy's link piece by piece, in real time, on a thread of its own; a context manager.

    ``with LinkProxy(...) as proxy, LinkPlayer(proxy, model.sample(seed=1)): ...``

    Args:
        proxy: a proxy that has been started.
        pieces: what the link is like from when on; may never end.
        on_change: hears of each piece as it begins, on the player's thread.
    """

    def __init__(
        self,
        proxy: LinkProxy,
        pieces: Iterable[LinkPiece],
        *,
        on_change: Callable[[LinkPiece], None] = lambda piece: None,
    ) -> None:
        self._proxy, self._pieces, self._on_change = proxy, pieces, on_change
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._play, name="serverlight-link-player", daemon=True)

    def __enter__(self) -> Self:
        self._started_s = time.monotonic()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def stop(self) -> None:
        """Leaves the link as it is; a second call does nothing."""
        self._stopped.set()
        self._thread.join()

    def _play(self) -> None:
        for piece in self._pieces:
            if self._stopped.wait(max(0.0, self._started_s + piece.start_s - time.monotonic())):
                return
            put_on(self._proxy, piece.link)
            self._on_change(piece)


def put_on(proxy: LinkProxy, link: LinkConfig | None) -> None:
    """Gives a proxy a link, or cuts it."""
    if link is None:
        proxy.cut()
    else:
        proxy.set_link(link)
        proxy.restore()
