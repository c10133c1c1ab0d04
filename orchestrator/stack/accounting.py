"""slurmdbd on a MariaDB of its own, so that finished jobs can be asked for after the controller forgot them."""

from __future__ import annotations

import os
import pwd

from orchestrator.stack import databases, processes
from orchestrator.stack.addresses import listening
from orchestrator.stack.daemon import Daemon
from orchestrator.stack.layout import Layout, make_private, write_private
from orchestrator.stack.ports import LOOPBACK
from orchestrator.stack.programs import find_program

PROGRAMS = ("slurmdbd", "mariadbd", "mariadb-install-db", "sacctmgr")


def database_url(layout: Layout) -> str:
    """Return the SQLAlchemy URL of the database beside SLURM's, free for the orchestrator's own use."""
    return databases.mariadb_url(layout.ports["mariadb"], layout.password)


def prepare(layout: Layout) -> None:
    """Make the database's system tables where they are missing, and write slurmdbd.conf."""
    databases.install_mariadb(make_private(layout.directory / "mariadb"), layout.password)
    settings = {
        "AuthType": "auth/munge",
        "AuthInfo": f"socket={layout.munge_socket}",
        "AuthAltTypes": "auth/jwt",
        "AuthAltParameters": f"jwt_key={layout.jwt_key}",
        "DbdHost": "localhost",
        "DbdAddr": LOOPBACK,
        "DbdPort": layout.ports["slurmdbd"],
        **listening("NoInAddrAny"),
        "SlurmUser": pwd.getpwuid(os.geteuid()).pw_name,
        "PidFile": layout.runtime / "slurmdbd.pid",
        "StorageType": "accounting_storage/mysql",
        "StorageHost": LOOPBACK,
        "StoragePort": layout.ports["mariadb"],
        "StorageUser": databases.USER,
        "StoragePass": layout.password,
        "StorageLoc": "slurm_acct_db",
        "DebugLevel": "info",
    }
    text = "".join(f"{name}={value}\n" for name, value in settings.items())
    write_private(layout.slurm_conf.with_name("slurmdbd.conf"), text)


def daemons(layout: Layout) -> list[Daemon]:
    """Return the descriptions of MariaDB and slurmdbd."""
    return [_database(layout), _slurmdbd(layout)]


def _database(layout: Layout) -> Daemon:
    return Daemon(
        name="mariadb",
        command=tuple(databases.mariadb_command(layout.directory / "mariadb", layout.ports["mariadb"])),
        log=layout.log("mariadb"),
        environment=dict(os.environ),
        ready=lambda: databases.accepts_connections(database_url(layout)),
        port=layout.ports["mariadb"],
    )


def _slurmdbd(layout: Layout) -> Daemon:
    environment = layout.slurm_environment()

    def ready() -> bool:
        processes.run([find_program("sacctmgr"), "-n", "show", "cluster"], environment=environment)
        return True

    return Daemon(
        name="slurmdbd",
        command=(find_program("slurmdbd"), "-D"),
        log=layout.log("slurmdbd"),
        environment=environment,
        ready=ready,
        port=layout.ports["slurmdbd"],
        after=("munged", "mariadb"),
    )
