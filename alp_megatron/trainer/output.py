"""Writes what a run leaves behind and shows: console, metrics, rollouts, the report."""

import json
from dataclasses import asdict
from pathlib import Path

from alp_megatron.config.schema import Config
from alp_megatron.data.trajectory import Trajectory
from alp_megatron.files import write_atomic
from alp_megatron.metrics.console import banner, header, step_line
from alp_megatron.metrics.health import Watch
from alp_megatron.metrics.recorder import Recorder, read_metrics
from alp_megatron.report.write import write_report
from alp_megatron.runtime.mesh import Rank
from alp_megatron.trainer.record import token_ratios


class Output:
    """Writes for rank 0. `resumed_step` is the step that a resumed run goes on with, else None."""

    def __init__(
        self, run_dir: Path, config: Config, learner, rank: Rank, resumed_step: int | None
    ):
        self._run_dir, self._config = run_dir, config
        last = None if resumed_step is None else resumed_step - 1
        self._recorder = Recorder(run_dir, config.logging, resume_step=last)
        earlier = read_metrics(run_dir / "metrics.jsonl")
        self._watch = Watch(earlier[0] if earlier else None)
        (run_dir / "rollouts").mkdir(exist_ok=True)
        parameters = sum(p.numel() for chunk in learner.chunks for p in chunk.parameters())
        model = f"{config.model.path} ({parameters / 1e6:.2f} M parameters on this rank)"
        self.say(banner(config, model=model, device=rank.device.type, world_size=rank.world_size))
        if resumed_step is not None:
            self.say(f"resumed after step {resumed_step}")
        self._header_due = True

    def say(self, text: str) -> None:
        print(text, flush=True)

    def write(self, step: int, record: dict, trajectories: list[Trajectory], updates: list) -> None:
        """Writes one finished step: line, record, a few rollouts, the envelope's data."""
        record = {"step": step} | record
        self._recorder.write(step, record)
        kept = trajectories[: self._config.logging.save_rollouts]
        lines = "".join(json.dumps(asdict(t)) + "\n" for t in kept)
        write_atomic(self._run_dir / "rollouts" / f"step_{step:06d}.jsonl", lines.encode())
        if updates[0].clean is not None:
            envelopes = self._run_dir / "envelopes"
            envelopes.mkdir(exist_ok=True)
            token_ratios(trajectories, updates).save(envelopes / f"step_{step:06d}.npz")
        if self._header_due:
            self.say(header())
            self._header_due = False
        self.say(step_line(record | {"step": step + 1}, self._config.trainer.steps))
        for index, update in enumerate(updates):
            if update.skipped:
                self.say(f"  update {index} skipped: its gradient norm was {update.grad_norm}")
        for sentence in self._watch.new_warnings(record):
            self.say(f"  {sentence}")

    def finish(self, base_score: float, final_score: float) -> None:
        """Writes the report and a summary of the scores."""
        summary = {"base_score": base_score, "final_score": final_score}
        write_atomic(
            self._run_dir / "summary.json", (json.dumps(summary, indent=2) + "\n").encode()
        )
        self.say(f"score {base_score:.3f} -> {final_score:.3f}")
        self.say(f"report: {write_report([self._run_dir])}")

    def close(self) -> None:
        self._recorder.close()
