"""What a collective that waits costs the work beside it."""

import torch

from benchmarks.gpu.part import Found, need
from benchmarks.gpu.timing import milliseconds

SIZE = 8192
PROGRAMS = (1, 8, 16, 24)  # NCCL has a block of threads for each of its channels


def waiting_beside_work() -> Found:
    """Slow-down of a matrix product and of a copy while so many blocks of 512 threads poll memory
    on another stream, as NCCL's kernels do until their peers come."""
    need("triton")
    from benchmarks.gpu.spin_kernel import poll

    a = torch.randn(SIZE, SIZE, device="cuda", dtype=torch.bfloat16)
    out, target = torch.empty_like(a), torch.empty_like(a)
    work = {"product": lambda: torch.mm(a, a, out=out), "copy": lambda: target.copy_(a)}
    flag = torch.zeros(1, dtype=torch.int32, device="cuda")
    waiting, releasing = torch.cuda.Stream(), torch.cuda.Stream()
    alone = {name: milliseconds(job) for name, job in work.items()}
    figures: dict = {"alone_ms": alone}
    for programs in PROGRAMS:
        flag.zero_()
        torch.cuda.synchronize()
        with torch.cuda.stream(waiting):
            poll[(programs,)](flag, num_warps=16)
        figures[f"{programs} blocks: slow-down"] = {
            name: milliseconds(job) / alone[name] for name, job in work.items()
        }
        with torch.cuda.stream(releasing):
            flag.fill_(1)
        torch.cuda.synchronize()
    return Found(figures, note=f"[{SIZE}, {SIZE}] bf16")
