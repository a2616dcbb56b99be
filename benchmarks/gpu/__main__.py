"""`python -m benchmarks.gpu [WORD ...]`: all parts, or those whose group is a word given, or whose
name contains it.

Prints the parts and about how long each takes, then a line for each, and writes
`benchmarks/results/DEVICE.json`. Exit code: 0; 1 if a part failed or missed a goal; 2 without a
GPU or where no part has such a name.
"""

import json
import re
import sys
import time
import traceback
from dataclasses import asdict
from pathlib import Path

RESULTS = Path(__file__).parents[1] / "results"


def main(words: list[str]) -> int:
    reason = _no_gpu()
    if reason is not None:
        print(f"error: the GPU proof needs a CUDA device, but {reason}.", file=sys.stderr)
        return 2
    import torch

    from benchmarks.gpu.parts import PARTS, chosen

    parts = chosen(words)
    if not parts:
        groups = ", ".join(sorted({part.group for part in PARTS.values()}))
        named = ", ".join(words)
        print(
            f"error: no part is of a group, or has a name, with {named}: the groups are {groups}.",
            file=sys.stderr,
        )
        return 2
    for name, part in parts.items():
        print(f"{part.group}: {name}, about {part.seconds} s", flush=True)
    device = torch.cuda.get_device_name()
    path = RESULTS / f"{re.sub(r'[^a-z0-9]+', '_', device.lower()).strip('_')}.json"
    kept = json.loads(path.read_text())["parts"] if path.exists() else {}
    for name, part in parts.items():
        kept[name] = _outcome(part.run)
        print(_line(name, kept[name]), flush=True)
        whole = {"machine": _machine(device), "parts": kept}
        path.write_text(json.dumps(whole, indent=1) + "\n")  # what is done survives a later crash
    print(path)
    bad = [n for n in parts if kept[n]["status"] == "failed" or not _all_met(kept[n])]
    return 1 if bad else 0


def _no_gpu() -> str | None:
    try:
        import torch
    except ImportError:
        return "torch is not installed"
    return None if torch.cuda.is_available() else "torch sees none"


def _outcome(part) -> dict:
    """Any exception is that part's alone."""
    from benchmarks.gpu.part import Skip

    started = time.perf_counter()
    try:
        found = part()
    except Skip as skip:
        return {"status": "skipped", "reason": str(skip), "goals": []}
    except Exception as error:
        traceback.print_exc()
        return {"status": "failed", "reason": f"{type(error).__name__}: {error}", "goals": []}
    return {
        "status": "ran",
        "seconds": time.perf_counter() - started,
        "figures": found.figures,
        "goals": [asdict(goal) | {"met": goal.met, "text": str(goal)} for goal in found.goals],
        "note": found.note,
    }


def _line(name: str, outcome: dict) -> str:
    if outcome["status"] != "ran":
        return f"{name}: {outcome['status']}: {outcome['reason']}"
    goals = "; ".join(goal["text"] for goal in outcome["goals"])
    return f"{name}: {goals or 'ran'} ({outcome['seconds']:.0f} s)"


def _all_met(outcome: dict) -> bool:
    return all(goal["met"] for goal in outcome["goals"])


def _machine(device: str) -> dict:
    import torch

    from alp_megatron.runtime.machine import installed_version

    packages = ("megatron-core", "transformer-engine", "vllm", "triton")
    return {
        "device": device,
        "capability": list(torch.cuda.get_device_capability()),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        **{name: installed_version(name) for name in packages},
    }


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
