"""`python -m tests.support.modelopt_job SOURCE RAGGED SPOILT OUT`

All that the tests want of ModelOpt, in one process.

It takes long to import, and what it changes in other libraries must not reach the other tests.
Makes OUT/FORMAT with the project's command and OUT/FORMAT-whole with ModelOpt alone, OUT/ragged
from the model whose sizes do not suit fp8_block, and tries one with NaN. What the command said is
in OUT/said.json.
"""

import contextlib
import io
import json
import sys
from pathlib import Path


def main(source: str, ragged: str, spoilt: str, out: str) -> None:
    said = {}
    for name in ("fp8", "fp8_block"):
        said[name] = command(source, f"{out}/{name}", name)
    said["ragged"] = command(ragged, f"{out}/ragged", "fp8_block")
    said["spoilt"] = command(spoilt, f"{out}/spoilt", "fp8")
    said["made"] = sorted(path.name for path in Path(out).iterdir())
    export_whole(source, "FP8_PER_CHANNEL_PER_TOKEN_CFG", f"{out}/fp8-whole")
    export_whole(source, "FP8_2D_BLOCKWISE_WEIGHT_ONLY_CFG", f"{out}/fp8_block-whole")
    Path(out, "said.json").write_text(json.dumps(said))


def command(source: str, out: str, name: str) -> list:
    """[exit code, stdout, stderr]"""
    from alp_megatron.cli import main as cli

    with (
        contextlib.redirect_stdout(io.StringIO()) as stdout,
        contextlib.redirect_stderr(io.StringIO()) as stderr,
    ):
        code = cli(["quantize", "--hf", source, "--out", out, "--format", name])
    return [code, stdout.getvalue(), stderr.getvalue()]


def export_whole(source: str, configuration: str, out: str) -> None:
    import modelopt.torch.quantization as mtq
    from modelopt.torch.export import export_hf_checkpoint
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(source, dtype="auto")
    mtq.quantize(model, getattr(mtq, configuration), forward_loop=None)
    export_hf_checkpoint(model, export_dir=out)


if __name__ == "__main__":
    main(*sys.argv[1:])
