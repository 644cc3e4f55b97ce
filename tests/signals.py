"""Signals for processes that tests start."""

import signal


def heed_interrupts() -> None:
    """Let a new process end at SIGINT, though its caller ignores it, as under nohup.

    For `preexec_fn`; an ignored signal stays ignored in all processes that are started.
    """
    signal.signal(signal.SIGINT, signal.SIG_DFL)
