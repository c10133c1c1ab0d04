"""A private one-machine SLURM, broker and database, for trying out and for tests."""

from orchestrator.stack.daemon import BrokerAddress, DaemonStatus
from orchestrator.stack.layout import Layout, Service, default_directory
from orchestrator.stack.stack import Stack

__all__ = ["BrokerAddress", "DaemonStatus", "Layout", "Service", "Stack", "default_directory"]
