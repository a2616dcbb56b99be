"""Proof that ranks draw the same noise."""

import torch.distributed as dist

from alp_megatron.errors import UserError
from alp_megatron.perturbation.key import NoiseKey
from alp_megatron.runtime.process_groups import from_every_rank


def assert_keys_agree(key: NoiseKey, group: dist.ProcessGroup | None = None) -> None:
    """Collective over the group: raise UserError on every rank if their keys differ.

    Call it at the start and at each resume: ranks of a tensor-parallel group with different
    keys would train on inconsistent hidden states without any other sign.
    """
    held = from_every_rank((dist.get_rank(), key.seed, key.step, key.update), group)
    ranks_of: dict[NoiseKey, list[int]] = {}
    for rank, *fields in held:
        ranks_of.setdefault(NoiseKey(*fields), []).append(rank)
    if len(ranks_of) > 1:
        parts = [f"ranks {ranks} hold {other}" for other, ranks in ranks_of.items()]
        raise UserError(
            f"the noise keys of ranks that must share their noise differ: {', '.join(parts)}; "
            "start all of them with one seed, from one checkpoint"
        )
