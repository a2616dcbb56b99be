"""`alp-megatron launch ...` as a user of the test's cluster types it."""

import json
import subprocess
import sys
from pathlib import Path

from tests.support.runs import REPO

# A step takes a second; the whole loop is there, with vLLM and weight syncs.
TINY = [
    "rollout.prompts_per_step=2",
    "rollout.samples_per_prompt=2",
    "rollout.max_new_tokens=4",
    "trainer.global_batch_size=4",
    "trainer.micro_batch_size=4",
    "trainer.save_interval=1",
    "evaluation.interval=1000000",
    "evaluation.prompts=2",
    "evaluation.samples_per_prompt=1",
    "logging.wandb=false",
    "logging.tensorboard=false",
]


def launch(cluster, *words) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "alp_megatron", "launch", *map(str, words)],
        cwd=REPO,
        env=cluster.environment,
        capture_output=True,
        text=True,
    )


def job_of(answer: subprocess.CompletedProcess) -> str:
    """The number in `job 12: ...`, the last line that a submission prints."""
    assert answer.returncode == 0, answer.stderr
    word, number, _ = answer.stdout.splitlines()[-1].split(maxsplit=2)
    assert word == "job"
    return number.rstrip(":")


def status_file(run_dir: Path) -> dict:
    return json.loads((run_dir / "launch" / "status.json").read_text())
