"""A Slurm of the test's own: munged, slurmctld and several slurmd on this host."""

import os
import signal
import socket
import stat
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import psutil

# Not ephemeral ones, so that no connection holds them.
CONTROL_PORT, NODE_PORT = 16917, 17100
NODES = ("n1", "n2", "n3", "n4", "g1", "g2")
SETTINGS = """
ClusterName=alptest
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={control_port}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={root}/munge/socket
CredType=cred/munge
StateSaveLocation={root}/state
SlurmdSpoolDir={root}/spool-%n
SlurmctldPidFile={root}/slurmctld.pid
SlurmdPidFile={root}/slurmd-%n.pid
SlurmctldLogFile={root}/slurmctld.log
SlurmdLogFile={root}/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
GresTypes=gpu
MpiDefault=none
ReturnToService=2
SlurmdParameters=config_overrides
SchedulerParameters=bf_interval=1,sched_interval=2,batch_sched_delay=0
SlurmdTimeout=20
KillWait=20
MinJobAge=600
SuspendProgram=/bin/true
ResumeProgram=/bin/false
SuspendTime=60
SuspendExcNodes=n[1-4],g[1-2]
"""


class SlurmCluster:
    """Up from construction to `close`: n1 to n4 of 2 cores, and g1, g2 which claim 8 GPUs each.

    In the partition of the latter are also c1 to c64, of which Slurm believes that it could start
    them: enough for `sbatch --test-only` to plan a large job.
    """

    def __init__(self, root: Path):
        self.root = root
        self.environment = os.environ | {"SLURM_CONF": str(root / "slurm.conf")}
        self.daemons: dict[str, int] = {}  # pids
        self._configure()
        try:
            self._start_munge()
            self._start("slurmctld", "slurmctld.pid", "-f", str(root / "slurm.conf"))
            for node in NODES:
                self.start_node(node)
            self.until(lambda: len(self.ask("sinfo", "-hNt", "idle").split("\n")) == len(NODES))
        except BaseException:
            self.close()
            raise

    def _configure(self) -> None:
        root, host = self.root, socket.gethostname().split(".")[0]
        for name in ("munge", "state", *(f"spool-{node}" for node in NODES)):
            (root / name).mkdir(mode=0o755)
        text = SETTINGS.format(host=host, root=root, control_port=CONTROL_PORT)
        for index, node in enumerate(NODES):
            claims = "CPUs=96 Gres=gpu:8" if node.startswith("g") else "CPUs=2"
            text += f"NodeName={node} NodeHostname={host} NodeAddr=127.0.0.1 "
            text += f"Port={NODE_PORT + index} {claims} State=UNKNOWN\n"
        text += f"NodeName=c[1-64] NodeAddr=127.0.0.1 NodeHostname={host} Port={NODE_PORT + 99} "
        text += "CPUs=96 Gres=gpu:8 State=CLOUD\n"
        text += "PartitionName=cpu Nodes=n[1-4] Default=YES MaxTime=INFINITE State=UP\n"
        text += "PartitionName=gpu Nodes=g[1-2],c[1-64] MaxTime=INFINITE State=UP\n"
        (root / "slurm.conf").write_text(text)
        for index in range(8):  # a GPU is a device file: these are /dev/null
            os.mknod(root / f"gpu{index}", 0o666 | stat.S_IFCHR, os.makedev(1, 3))
        (root / "gres.conf").write_text(f"NodeName=g[1-2],c[1-64] Name=gpu File={root}/gpu[0-7]\n")

    def start_node(self, node: str) -> None:
        self._start("slurmd", f"slurmd-{node}.pid", "-N", node, "-f", str(self.root / "slurm.conf"))

    def kill_node(self, node: str, job: str) -> None:
        """What a power cut does: the daemon, its step managers and their tasks, all at once."""
        members = [p for p in self.processes(job) if p.environ().get("SLURMD_NODENAME") == node]
        managers = {p.ppid() for p in members} - {p.pid for p in members}
        victims = [psutil.Process(self.daemons.pop(f"slurmd-{node}.pid")), *members]
        for manager in map(psutil.Process, managers):
            assert manager.name().startswith("slurmstepd"), manager
            victims.append(manager)
        for victim in victims:
            victim.send_signal(signal.SIGKILL)

    def processes(self, job: str) -> list[psutil.Process]:
        """The living processes of this cluster's job."""
        found = []
        for process in psutil.process_iter():
            try:
                variables = process.environ()
                mine = variables.get("SLURM_CONF") == self.environment["SLURM_CONF"]
                if mine and variables.get("SLURM_JOB_ID") == job and process.status() != "zombie":
                    found.append(process)
            except psutil.Error:  # it ended just now, or is another user's
                continue
        return found

    def ask(self, *command: str) -> str:
        """Stripped output of one of Slurm's commands, which must succeed."""
        answer = subprocess.run(command, env=self.environment, capture_output=True, text=True)
        assert answer.returncode == 0, (command, answer.stderr)
        return answer.stdout.strip()

    def until(self, condition: Callable, seconds: float = 600):
        """The first true value of `condition()`."""
        deadline = time.monotonic() + seconds
        while not (value := condition()):
            assert time.monotonic() < deadline, "waited in vain"
            time.sleep(0.2)
        return value

    def state(self, job: str) -> str:
        """Slurm's word for it, also after its end: PENDING, RUNNING, COMPLETED, ..."""
        return self.ask("scontrol", "show", "job", job).split("JobState=")[1].split()[0]

    def start_now(self, job: str) -> None:
        """Without the two minutes that a requeued job waits."""
        self.until(lambda: self.state(job) == "PENDING")
        self.until(lambda: not self.processes(job))
        time.sleep(2)  # a node refuses a job's new credential in the second in which the old ended
        self.ask("scontrol", "update", f"JobId={job}", "StartTime=now")

    def close(self) -> None:
        """Jobs first, then the daemons, by their own pids."""
        if "slurmctld.pid" in self.daemons:
            subprocess.run(["scancel", "--full", "--user=root"], env=self.environment)
            self.until(lambda: not self.ask("squeue", "--noheader"), 60)
        for pid in reversed(self.daemons.values()):
            daemon = psutil.Process(pid)
            daemon.terminate()
            try:
                daemon.wait(20)
            except psutil.TimeoutExpired:
                daemon.kill()
        self.daemons.clear()

    def _start_munge(self) -> None:
        munge = self.root / "munge"
        key = munge / "key"
        key.touch(mode=0o600)
        key.write_bytes(os.urandom(1024))
        options = [f"--{name}-file={munge / name}" for name in ("key", "log", "seed")]
        self._start("munged", "munge/munged.pid", f"--socket={munge / 'socket'}", *options,
                    "--force", f"--pid-file={munge / 'munged.pid'}")  # fmt: skip

    def _start(self, daemon: str, pid_file: str, *options: str) -> None:
        """It leaves the foreground by itself, and its pid in a file."""
        path = self.root / pid_file
        path.unlink(missing_ok=True)
        # Files, not pipes: the daemon would hold them open.
        with open(self.root / "daemons.log", "a") as log:
            subprocess.run(
                [daemon, *options], env=self.environment, stdout=log, stderr=log, check=True
            )
        self.daemons[pid_file] = int(self.until(lambda: path.exists() and path.read_text(), 30))
