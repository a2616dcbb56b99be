"""The machine that an estimate is for, every figure of it stated."""

from pathlib import Path

from pydantic import Field

from alp_megatron.config.load import load_section
from alp_megatron.config.schema import Section
from alp_megatron.errors import UserError

GIB = 2**30


class Hardware(Section):
    name: str
    gpus_per_node: int = Field(ge=1)
    memory_gib: float = Field(gt=0, description="of one GPU")
    reserved_gib: float = Field(ge=0, description="what neither trainer nor engine can have")
    peak_tflops: float = Field(gt=0, description="bfloat16 without sparsity")
    hbm_gb_s: float = Field(gt=0, description="a GPU's own memory; 1e9 bytes a second")
    nvlink_gb_s: float = Field(gt=0, description="a GPU to others of its node, one direction")
    network_gb_s: float = Field(gt=0, description="a GPU to other nodes, one direction")
    train_mfu: float = Field(gt=0, le=1)
    decode_efficiency: float = Field(gt=0, le=1)
    link_efficiency: float = Field(gt=0, le=1)
    sync_gb_s: float = Field(gt=0, description="of a weight sync, gathering and loading together")

    @property
    def usable_bytes(self) -> float:
        return (self.memory_gib - self.reserved_gib) * GIB


def load_hardware(name: str) -> Hardware:
    """`h100`, or a YAML file with the keys above. Raises UserError."""
    if name.endswith((".yaml", ".yml")):
        return load_section(Hardware, Path(name))
    known = {path.stem: path for path in Path(__file__).parent.glob("*.yaml")}
    if name not in known:
        example = known["h100"]
        raise UserError(f"--hardware {name} is not known: use h100, or a YAML file like {example}.")
    return load_section(Hardware, known[name])
