"""The other process: maps the sender's memory and copies tensors out of it, as an engine does."""

import json
import sys
from typing import IO, Any


def send_line(stream: IO[str] | None, what: Any) -> None:
    assert stream is not None
    stream.write(json.dumps(what) + "\n")
    stream.flush()


def receive_line(stream: IO[str] | None) -> Any:
    assert stream is not None
    line = stream.readline()
    if not line:
        raise RuntimeError("the other process has ended")
    return json.loads(line)


def main() -> None:
    import torch

    from alp_megatron.weights.transport.buckets import Assembler, Memory, from_json
    from alp_megatron.weights.transport.memory import map_memory
    from alp_megatron.weights.verify import digest

    device = torch.device("cuda", torch.cuda.current_device())
    kept: dict[str, torch.Tensor] = {}
    assembler, memory = Assembler(), None
    for line in sys.stdin:
        asked = json.loads(line)
        answer: Any = None
        if "connect" in asked:
            memory = Memory(map_memory(**asked["connect"], device=device))
        elif "receive" in asked:
            assert memory is not None
            kept.update(assembler.take(from_json(asked["receive"]["pieces"]), memory.view))
            torch.cuda.synchronize()
        else:
            answer = {name: digest(tensor) for name, tensor in kept.items()}
        send_line(sys.stdout, answer)


if __name__ == "__main__":
    main()
