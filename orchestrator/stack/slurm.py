"""slurmctld and several slurmd on this one host.

The settings make tests quick and the outcomes those of a real cluster: dead nodes are noticed within seconds, memory
is enforced without cgroups (`JobAcctGatherParams=OverMemoryKill`), time limits end jobs. The nodes claim more
processors than the machine has. Option names: slurm.conf(5) of SLURM 22.05.
"""

from __future__ import annotations

import os
import pwd
import secrets
import socket
from pathlib import Path

from orchestrator.stack import processes
from orchestrator.stack.addresses import listening
from orchestrator.stack.daemon import Daemon
from orchestrator.stack.layout import Layout, Service, make_private, write_private
from orchestrator.stack.ports import LOOPBACK
from orchestrator.stack.programs import find_program

PROGRAMS = ("slurmctld", "slurmd", "sbatch", "scancel", "scontrol", "sinfo", "squeue")
CLUSTER = "stack"
CREDENTIAL_LIFETIME_S = 20
"""Also how long a requeued job waits before it starts again; SLURM's own default is 120."""
CANCEL_PATIENCE_S = 8
"""Longer than KillWait."""
LEAST_CPUS_PER_NODE = 4
MEMORY_SHARE = 0.8
"""Of the machine's memory, for all nodes together."""

SETTINGS = {
    "AuthType": "auth/munge",
    "AuthAltTypes": "auth/jwt",
    "CredType": "cred/munge",
    # Several nodes of one host can't each have cgroups of the same name; plain processes work everywhere.
    "ProctrackType": "proctrack/linuxproc",
    "TaskPlugin": "task/none",
    "SlurmdParameters": "config_overrides",
    "SelectType": "select/cons_tres",
    "SelectTypeParameters": "CR_Core_Memory",
    "SchedulerType": "sched/backfill",
    "SchedulerParameters": "batch_sched_delay=0,sched_min_interval=0,sched_interval=1,bf_interval=1",
    "PriorityType": "priority/basic",
    "PreemptType": "preempt/partition_prio",
    "PreemptMode": "REQUEUE",
    "JobAcctGatherType": "jobacct_gather/linux",
    "JobAcctGatherFrequency": "task=1",
    "JobAcctGatherParams": "OverMemoryKill",
    "JobRequeue": "1",
    "KillWait": "5",
    "MinJobAge": "300",
    "SlurmdTimeout": "15",
    "SlurmctldTimeout": "15",
    "ReturnToService": "2",
    "PropagateResourceLimits": "NONE",
    "MpiDefault": "none",
    "SwitchType": "switch/none",
    "JobCompType": "jobcomp/none",
    "MailProg": "/bin/true",
    "SlurmctldDebug": "info",
    "SlurmdDebug": "info",
}

CGROUP_SETTINGS = "CgroupPlugin=cgroup/v1\nConstrainRAMSpace=yes\nConstrainSwapSpace=yes\nAllowedSwapSpace=0\n"
"""Without effect unless a stack's own settings have TaskPlugin=task/cgroup; cgroup.conf(5). This plugin does nothing
until it is asked to: SLURM's own choice ends slurmd where no cgroups are mounted, or asks systemd for a scope."""


def prepare(layout: Layout) -> bool:
    """Write slurm.conf and the key for tokens; return whether the configuration differs from the one before."""
    folder = make_private(layout.slurm_conf.parent)
    make_private(folder / "state")
    for node in layout.node_names:
        make_private(layout.runtime / node)
        make_private(layout.runtime / f"{node}-tmp")
    if not layout.jwt_key.exists():
        write_private(layout.jwt_key, secrets.token_bytes(32))
    text = configuration(layout)
    changed = not layout.slurm_conf.exists() or layout.slurm_conf.read_text() != text
    write_private(layout.slurm_conf, text, mode=0o644)
    write_private(folder / "cgroup.conf", CGROUP_SETTINGS, mode=0o644)
    return changed


def configuration(layout: Layout) -> str:
    """Return the text of slurm.conf."""
    user = pwd.getpwuid(os.geteuid()).pw_name
    settings = {
        "ClusterName": CLUSTER,
        "SlurmctldHost": f"{_host()}({LOOPBACK})",
        "SlurmctldPort": layout.ports["slurmctld"],
        "SlurmUser": user,
        "SlurmdUser": user,
        "AuthInfo": f"socket={layout.munge_socket},cred_expire={CREDENTIAL_LIFETIME_S}",
        "AuthAltParameters": f"jwt_key={layout.jwt_key}",
        "StateSaveLocation": layout.slurm_conf.parent / "state",
        "SlurmdSpoolDir": f"{layout.runtime}/%n",
        # Where PMIx keeps its sockets: one folder per node, else the nodes of one host take each other's.
        "TmpFS": f"{layout.runtime}/%n-tmp",
        "SlurmctldPidFile": layout.runtime / "slurmctld.pid",
        "SlurmdPidFile": f"{layout.runtime}/%n.pid",
        "SlurmdLogFile": f"{layout.logs}/steps-%n.log",
        **SETTINGS,
        **listening("NoInAddrAny,NoCtldInAddrAny"),
        **_accounting(layout),
        **layout.slurm_settings,
    }
    lines = [f"{name}={value}" for name, value in settings.items()]
    return "\n".join([*lines, *_nodes(layout), *_partitions(), ""])


def _host() -> str:
    return socket.gethostname().partition(".")[0]


def _accounting(layout: Layout) -> dict[str, str]:
    if Service.ACCOUNTING not in layout.services:
        return {"AccountingStorageType": "accounting_storage/none"}
    return {
        "AccountingStorageType": "accounting_storage/slurmdbd",
        "AccountingStorageHost": LOOPBACK,
        # The socket of munged; slurm.conf(5) gives the option this second meaning.
        "AccountingStoragePass": str(layout.munge_socket),
        "AccountingStoragePort": str(layout.ports["slurmdbd"]),
        "AccountingStoreFlags": "job_comment,job_env,job_script",
    }


def _nodes(layout: Layout) -> list[str]:
    cpus = max(os.cpu_count() or 1, LEAST_CPUS_PER_NODE)
    machine_mb = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2**20
    memory_mb = int(machine_mb * MEMORY_SHARE) // layout.nodes
    shape = f"CPUs={cpus} Boards=1 SocketsPerBoard=1 CoresPerSocket={cpus} ThreadsPerCore=1 RealMemory={memory_mb}"
    where = f"NodeHostname={_host()} NodeAddr={LOOPBACK}"
    return [
        f"DefMemPerCPU={max(memory_mb // cpus, 1)}",
        *(f"NodeName={node} {where} Port={layout.ports[f'slurmd-{node}']} {shape}" for node in layout.node_names),
    ]


def _partitions() -> list[str]:
    return [
        "PartitionName=live Nodes=ALL Default=YES MaxTime=24:00:00 DefaultTime=01:00:00 State=UP",
        "PartitionName=debug Nodes=ALL Default=NO MaxTime=00:30:00 DefaultTime=00:05:00 State=UP",
        # Its jobs put those of the others back into the queue where there is no room for both.
        "PartitionName=urgent Nodes=ALL Default=NO MaxTime=00:30:00 DefaultTime=00:05:00 State=UP PriorityTier=10",
    ]


def daemons(layout: Layout) -> list[Daemon]:
    """Return the descriptions of slurmctld and of each slurmd."""
    return [_controller(layout), *(_node(layout, node) for node in layout.node_names)]


def _controller(layout: Layout) -> Daemon:
    environment = layout.slurm_environment()

    def ready() -> bool:
        return "UP" in processes.run([find_program("scontrol"), "ping"], environment=environment).split()

    return Daemon(
        name="slurmctld",
        command=(find_program("slurmctld"), "-D"),
        log=layout.log("slurmctld"),
        environment=environment,
        ready=ready,
        port=layout.ports["slurmctld"],
        after=("munged", "slurmdbd") if Service.ACCOUNTING in layout.services else ("munged",),
    )


def _node(layout: Layout, node: str) -> Daemon:
    environment = layout.slurm_environment()

    def ready() -> bool:
        state = processes.run([find_program("sinfo"), "-h", "-N", "-n", node, "-o", "%t"], environment=environment)
        # A trailing mark (idle*, idle#) means that the node hasn't answered the controller yet.
        return set(state.split()) <= {"idle", "mix", "alloc", "comp"} and bool(state)

    return Daemon(
        name=f"slurmd-{node}",
        command=(find_program("slurmd"), "-D", "-N", node),
        log=layout.log(f"slurmd-{node}"),
        environment=environment,
        ready=ready,
        port=layout.ports[f"slurmd-{node}"],
        after=("slurmctld",),
    )


def cancel_jobs(layout: Layout) -> None:
    """Cancel all jobs through the controller, so that its records say so, and wait until they are gone."""
    environment = layout.slurm_environment()
    processes.run([find_program("scancel"), "--me"], environment=environment)

    def gone() -> bool:
        return not processes.run([find_program("squeue"), "--noheader"], environment=environment).strip()

    processes.wait_until(gone, timeout_s=CANCEL_PATIENCE_S)


def end_job_processes(layout: Layout) -> None:
    """End what is left of this stack's jobs, TERM first: what a dead slurmd or controller couldn't end.

    slurmstepd comes last and gets no time: it would wait for a controller that is gone.
    """
    family = processes.with_descendants(processes.processes_where(lambda folder: _belongs_to_job(folder, layout)))
    managers = {process for process in family if _is_step_manager(process.pid)}
    processes.end(family - managers, patience_s=3)
    processes.end(managers, patience_s=0)


def _belongs_to_job(folder: Path, layout: Layout) -> bool:
    environment = (folder / "environ").read_bytes().split(b"\0")
    if f"SLURM_CONF={layout.slurm_conf}".encode() not in environment:
        return False
    return _is_step_manager(int(folder.name)) or any(entry.startswith(b"SLURMD_NODENAME=") for entry in environment)


def _is_step_manager(pid: int) -> bool:
    return processes.program_name(pid) == "slurmstepd"
