"""``orchestrator serve``: the service, in the foreground."""

from __future__ import annotations

import logging
import signal
from enum import StrEnum
from typing import Annotated

import typer

from orchestrator.cli.common import SiteOption, says_errors
from orchestrator.service import Service
from orchestrator.settings import load_settings
from orchestrator.signals import EndSignals

log = logging.getLogger("orchestrator")


class LogLevel(StrEnum):
    """How much the service says."""

    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


def set_up_logging(level: LogLevel) -> None:
    """Send log lines to standard error with time, level, thread and module."""
    logging.basicConfig(
        level=level.upper(), format="%(asctime)s %(levelname)-7s %(threadName)-12s %(name)s: %(message)s", force=True
    )
    logging.getLogger("stomp.py").setLevel(logging.WARNING)
    logging.getLogger("alembic").setLevel(logging.WARNING)


@says_errors
def serve(
    site: SiteOption,
    log_level: Annotated[LogLevel, typer.Option(metavar="LEVEL", help=f"{', '.join(LogLevel)}.")] = LogLevel.INFO,
) -> None:
    """Run the service: take messages, submit jobs, follow them, until SIGTERM or Ctrl-C.

    Ending it, even with `kill -9`, loses nothing: jobs go on, messages stay with the broker, and the next start takes
    up where this one ended. Log lines go to standard error.

    - try a site file first: `orchestrator site check site.toml`, then `orchestrator serve --site site.toml`
    - what it does in detail: `orchestrator serve --log-level debug`
    """
    set_up_logging(log_level)
    signals = EndSignals(signal.SIGTERM, signal.SIGINT)
    settings = load_settings(site)
    with Service.of(settings) as service:
        log.info("serving site %s through %s", settings.name, service.gateway.name)
        for door in service.doors:
            log.info("listening: %s", door.name)
        signals.wait()
        log.info("stopping; jobs go on")
