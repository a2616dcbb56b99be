"""The record on disk: whole lines, resume, full disk, and no process left behind."""

import json
import math
import os
import resource
import signal
import subprocess
import sys

import psutil
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from alp_megatron.config.schema import Config, LoggingConfig
from alp_megatron.errors import UserError
from alp_megatron.metrics import console
from alp_megatron.metrics.keys import required_keys
from alp_megatron.metrics.recorder import Recorder, read_metrics, truncate_after
from tests.support.runs import REPO

EVIDENCE = REPO / "docs" / "evidence"
PLAIN = LoggingConfig(tensorboard=False, wandb=False)


def steps(path):
    return [record["step"] for record in read_metrics(path)]


def test_one_line_a_step(tmp_path):
    recorder = Recorder(tmp_path, PLAIN)
    recorder.write(1, {"reward/mean": 0.5, "skip/reason": "gradient norm not finite"})
    recorder.write(2, {"step": 2, "reward/mean": 1e-30})
    recorder.close()
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [
        {"step": 1, "reward/mean": 0.5, "skip/reason": "gradient norm not finite"},
        {"step": 2, "reward/mean": 1e-30},
    ]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_value_that_is_not_finite_is_named_and_nothing_is_written(tmp_path, value):
    recorder = Recorder(tmp_path, PLAIN)
    with pytest.raises(RuntimeError, match="grad_norm is .* at step 4"):
        recorder.write(4, {"entropy": 1.0, "grad_norm": value})
    assert (tmp_path / "metrics.jsonl").read_bytes() == b""


def test_resume_drops_later_steps_and_a_torn_line(tmp_path):
    path = tmp_path / "metrics.jsonl"
    whole = b"".join(b'{"step": %d, "a": 1.5}\n' % step for step in (1, 2, 3, 4))
    path.write_bytes(whole + b'{"step": 5, "a"')
    assert steps(path) == [1, 2, 3, 4]
    recorder = Recorder(tmp_path, PLAIN, resume_step=2)
    recorder.write(3, {"a": 2.0})
    recorder.close()
    assert steps(path) == [1, 2, 3]
    assert path.read_bytes() == whole[: whole.index(b'{"step": 3')] + b'{"step": 3, "a": 2.0}\n'
    assert os.listdir(tmp_path) == ["metrics.jsonl"]


def test_records_of_the_first_edition_have_the_names_of_today(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(
        b'{"step": 0, "mismatch/k3": 1.0, "mismatch_clean/k3": 2.0, "mismatch_perturbed/ess": 0.5, '
        b'"ratio_clean/p98": 3.0, "mismatch_before/k1": 4.0}\n'
    )
    today = {
        "step": 0,
        "mismatch_before/k3": 1.0,
        "mismatch_during_clean/k3": 2.0,
        "mismatch_during_perturbed/ess": 0.5,
        "ratio_clean/p98": 3.0,
        "mismatch_before/k1": 4.0,
    }
    assert read_metrics(path) == [today]
    truncate_after(path, 0)  # a resume writes what it keeps
    assert json.loads(path.read_text()) == today


def test_kept_records_of_the_first_edition_are_read():
    found = sorted(EVIDENCE.glob("**/metrics.jsonl.gz"))
    for kept in (found[0], found[-1]):
        records = read_metrics(kept.with_suffix(""))
        assert not [key for key in records[-1] if key.startswith("mismatch/")]
        assert records[-1]["mismatch_before/k3"] > 0 and records[-1]["mismatch_during_perturbed/k3"]


def test_torn_line_that_happens_to_be_json_is_still_dropped(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 1}\n{"step": 2}')
    truncate_after(path, 9)
    assert path.read_bytes() == b'{"step": 1}\n'


@pytest.mark.parametrize("line", [b"oops", b"[1]", b'{"reward": 1}', b"", b"\xff\xfe"])
def test_a_malformed_line_is_named(tmp_path, line):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 1}\n' + line + b'\n{"step": 3}\n')
    with pytest.raises(UserError, match="metrics.jsonl line 2 is not"):
        read_metrics(path)


def test_a_full_disk_leaves_whole_lines(tmp_path):
    recorder = Recorder(tmp_path, PLAIN)
    recorder.write(1, {"a": 1.0})
    before = (tmp_path / "metrics.jsonl").read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + 5, limits[1]))
    try:
        with pytest.raises(UserError, match="cannot write .*metrics.jsonl: .*; free some space"):
            recorder.write(2, {"a": 2.0})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert (tmp_path / "metrics.jsonl").read_bytes() == before


def test_tensorboard_holds_the_same_record_over_a_resume(tmp_path):
    logging = LoggingConfig(wandb=False)
    for resume, value in ((None, 1.0), (1, 2.0)):
        recorder = Recorder(tmp_path, logging, resume_step=resume)
        for step in (1, 2, 3) if resume is None else (2,):
            recorder.write(step, {"step": step, "reward/mean": value * step, "note": "text"})
        recorder.close()
        # The event files of the two runs are told apart by the second in their names.
        for path in (tmp_path / "tensorboard").glob("events.*") if resume is None else ():
            stamp = path.name.split(".")[3]
            path.rename(path.with_name(path.name.replace(stamp, str(int(stamp) - 1))))
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert events.Tags()["scalars"] == ["reward/mean"]
    assert [(e.step, e.value) for e in events.Scalars("reward/mean")] == [(1, 1.0), (2, 4.0)]


CHILD = """
import sys, time
from pathlib import Path
from alp_megatron.config.schema import LoggingConfig
from alp_megatron.metrics.recorder import Recorder
recorder = Recorder(Path(sys.argv[1]), LoggingConfig())
recorder.write(1, {"a": 1.0})
print("ready", flush=True)
time.sleep(120)
"""


def test_kill_9_leaves_no_wandb_process_and_a_whole_record(tmp_path):
    environment = {k: v for k, v in os.environ.items() if not k.startswith("WANDB_")}
    command = [sys.executable, "-c", CHILD, str(tmp_path)]
    child = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=environment
    )
    try:
        assert child.stdout.readline() == b"ready\n"  # and nothing of wandb's before it
        helpers = psutil.Process(child.pid).children(recursive=True)
        assert any("wandb-core" in helper.name() for helper in helpers)
    finally:
        child.send_signal(signal.SIGKILL)
        child.wait()
        child.stdout.close()
    _, alive = psutil.wait_procs(helpers, timeout=30)
    zombies = [p for p in alive if p.status() == psutil.STATUS_ZOMBIE]
    assert alive == zombies
    assert read_metrics(tmp_path / "metrics.jsonl") == [{"step": 1, "a": 1.0}]
    assert list((tmp_path / "wandb").glob("offline-run-*/*.wandb"))


def test_console_lines_up_and_fits():
    record = dict.fromkeys(required_keys(2), 0.123456789)
    record |= {"step": 9999, "mismatch_before/k3": 1e-12}
    record |= {"time/total": 1234.5, "ratio/p98": 1.25}
    header, line = console.header(), console.step_line(record, 10000)
    assert len(header) == len(line) <= console.WIDTH and line.isascii()
    assert header.index("|") == line.index("|")
    assert "9999/10000" in line and "0.123-1.25" in line and "1.0e-12" in line
    bare = console.step_line({"step": 1}, 10)
    assert len(bare) == len(header) and bare.split()[:2] == ["1/10", "-"]


def test_banner_names_layout_and_method(tmp_path):
    config = Config(
        model={"path": "m", "tensor_model_parallel_size": 2, "sequence_parallel": True},
        run_dir="/a/long/path" * 20,
    )
    text = console.banner(config, model="qwen2", device="cpu (gloo)", world_size=4)
    assert "4 processes: TP 2, PP 1, DP 2, sequence parallel" in text
    assert "alp, token ratio in [0.5, 4], dual clip 3; sigma 0.01" in text
    assert all(len(line) <= console.WIDTH for line in text.splitlines())
