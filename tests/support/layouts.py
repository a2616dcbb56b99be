"""The layouts that must all compute the same thing, and what they are tried on."""

import random

from alp_megatron.config.methods import with_method_defaults
from alp_megatron.config.schema import (
    Config,
    ModelConfig,
    ObjectiveConfig,
    PerturbationConfig,
    RuntimeConfig,
    TrainerConfig,
)
from alp_megatron.data.trajectory import Trajectory
from alp_megatron.perturbation import NoiseKey
from tests.support.models import SHAPES

KEY = NoiseKey(seed=7, step=3, update=1)

NUM_SAMPLES = 8

# name -> (processes, model settings, trainer settings)
LAYOUTS = {
    "tp2": (2, {"tensor_model_parallel_size": 2}, {}),
    "tp2-sp": (2, {"tensor_model_parallel_size": 2, "sequence_parallel": True}, {}),
    "pp2": (2, {"pipeline_model_parallel_size": 2}, {}),
    "pp2-vpp2": (
        2,
        {"pipeline_model_parallel_size": 2, "virtual_pipeline_model_parallel_size": 2},
        {},
    ),
    "dp2": (2, {}, {}),
    "tp2-pp2": (4, {"tensor_model_parallel_size": 2, "pipeline_model_parallel_size": 2}, {}),
    "tp2-sp-dp2": (4, {"tensor_model_parallel_size": 2, "sequence_parallel": True}, {}),
    "micro-batch-1": (1, {}, {"micro_batch_size": 1}),
    "micro-batch-4": (1, {}, {"micro_batch_size": 4}),
    "unpacked": (1, {}, {"packing": False, "micro_batch_size": 4}),
    "recompute-selective": (1, {"recompute_granularity": "selective"}, {}),
    "recompute-full": (1, {"recompute_granularity": "full"}, {}),
    "everything": (
        4,
        {
            "tensor_model_parallel_size": 2,
            "sequence_parallel": True,
            "pipeline_model_parallel_size": 2,
            "virtual_pipeline_model_parallel_size": 2,
            "recompute_granularity": "full",
            "logprob_chunk_tokens": 5,
        },
        {"packing": False},
    ),
}


def config_for(model_dir: str, layout: str | None = None, **sections) -> Config:
    """A configuration in one of LAYOUTS (None: one process) with learning rates 0."""
    processes, model, trainer = LAYOUTS[layout] if layout else (1, {}, {})
    defaults = {"micro_batch_size": 2, "global_batch_size": NUM_SAMPLES, "clip_grad": 0.0}
    fixed = {"lr": 0.0, "use_distributed_optimizer": False}
    return Config(
        model=ModelConfig(path=model_dir, **({"logprob_chunk_tokens": 16} | model)),
        trainer=TrainerConfig(**(defaults | fixed | trainer | sections.pop("trainer", {}))),
        perturbation=PerturbationConfig(
            **({"sigma0": 0.02, "perturb_lr": 0.0} | sections.pop("perturbation", {}))
        ),
        objective=with_method_defaults(ObjectiveConfig(**sections.pop("objective", {}))),
        runtime=RuntimeConfig(world_size=processes),
        **sections,
    )


def processes_of(layout: str | None) -> int:
    return LAYOUTS[layout][0] if layout else 1


# Of the models in SHAPES: name -> (processes, TP, PP, VPP, EP); TP is with sequence parallelism
# but for "tp4".
DENSE_LAYOUTS = {
    "one": (1, 1, 1, None, 1),
    "tp2-sp": (2, 2, 1, None, 1),
    "tp4": (4, 4, 1, None, 1),
    "pp2": (2, 1, 2, None, 1),
    "pp2-vpp2": (2, 1, 2, 2, 1),
    "tp2-sp-pp2": (4, 2, 2, None, 1),
}
MOE_LAYOUTS = {
    "one": (1, 1, 1, None, 1),
    "ep2": (2, 1, 1, None, 2),
    "tp2-sp-ep2": (2, 2, 1, None, 2),
    "tp4-sp": (4, 4, 1, None, 1),
    "tp2-sp-ep4-dp2": (4, 2, 1, None, 4),
    "pp2-ep2": (4, 1, 2, None, 2),
    "tp2-sp-pp2-vpp2-ep2": (4, 2, 2, 2, 2),
}


def layout_config(model_dir: str, layout: str) -> Config:
    processes, tp, pp, vpp, ep = (DENSE_LAYOUTS | MOE_LAYOUTS)[layout]
    return Config(
        model=ModelConfig(
            path=model_dir,
            tensor_model_parallel_size=tp,
            pipeline_model_parallel_size=pp,
            virtual_pipeline_model_parallel_size=vpp,
            expert_model_parallel_size=ep,
            sequence_parallel=tp > 1 and layout != "tp4",
            logprob_chunk_tokens=16,
        ),
        runtime=RuntimeConfig(world_size=processes),
        trainer=TrainerConfig(
            micro_batch_size=2,
            global_batch_size=NUM_SAMPLES,
            lr=0.0,
            clip_grad=0.0,
            use_distributed_optimizer=False,
        ),
        perturbation=PerturbationConfig(sigma0=0.02, perturb_lr=0.0),
    )


def layouts_of(name: str) -> dict:
    """The layouts of the shape of that name in SHAPES."""
    return MOE_LAYOUTS if "moe" in SHAPES[name]["family"] else DENSE_LAYOUTS


def some_sequences(vocab_size: int = 61) -> list[list[int]]:
    """Token ids of awkward, different lengths."""
    rng = random.Random(1)
    lengths = [5, 17, 9, 12, 30, 8, 2, 21]
    return [[rng.randrange(vocab_size) for _ in range(n)] for n in lengths]


def some_trajectories() -> list[Trajectory]:
    """Samples with prompts, masked tool output, and rollout log-probs near a random model's."""
    rng = random.Random(2)
    result = []
    for index, tokens in enumerate(some_sequences()):
        prompt = max(1, len(tokens) // 3)
        response = tokens[prompt:]
        result.append(
            Trajectory(
                sample_id=100 + index,
                group_id=index // 4,
                prompt_ids=tokens[:prompt],
                response_ids=response,
                loss_mask=[0 if rng.random() < 0.2 else 1 for _ in response],
                rollout_logprobs=[-4.1 + rng.gauss(0, 0.5) for _ in response],
                policy_version=0,
                reward=0.0,
                advantage=rng.gauss(0, 1),
            )
        )
    return result
