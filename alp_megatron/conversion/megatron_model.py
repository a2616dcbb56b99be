"""The real models on both sides of a conversion. Imports Megatron: see runtime.cpu_megatron."""

import torch
from megatron.core import dist_checkpointing, parallel_state
from torch import Tensor

from alp_megatron.config.schema import Config
from alp_megatron.data.microbatch import Sequence
from alp_megatron.hf.shape import read_model_shape
from alp_megatron.hf.tensors import HfTensors
from alp_megatron.learner.learner import Learner, token_logprobs
from alp_megatron.weights.mapping import PRIVATE_SUFFIX, rules_of_chunk


def load_megatron(chunks: list, state_dir: str) -> None:
    """Fills this rank's chunks from a distributed checkpoint, by Megatron's own reader. Collective.

    ALP's scales are not asked for: a converted model has none.
    """
    state = {f"model{index}": sharded_state(chunk) for index, chunk in enumerate(chunks)}
    loaded = dist_checkpointing.load(state, state_dir)
    for index, chunk in enumerate(chunks):
        chunk.load_state_dict(loaded[f"model{index}"])


def sharded_state(chunk) -> dict:
    """Returns Megatron's description of a chunk's weights, without ALP's scales."""
    group = parallel_state.get_data_parallel_group(with_context_parallel=True)
    state = chunk.sharded_state_dict(metadata={"dp_cp_group": group})
    return {name: part for name, part in state.items() if not name.endswith(PRIVATE_SUFFIX)}


def megatron_logprobs(
    config: Config, rank, state_dir: str, sequences: list[list[int]]
) -> list[Tensor]:
    """Returns the log-probabilities of each sequence's tokens after the first, fp32. Collective.

    Weights that the Hugging Face directory `model.path` holds in a narrower type are rounded to
    it, so that only the computation is compared.
    """
    tensors = HfTensors(config.model.path)
    model_type = read_model_shape(config.model.path).family.model_type

    def load(chunks: list) -> None:
        load_megatron(chunks, state_dir)
        for chunk in chunks:
            parameters = dict(chunk.named_parameters())
            for name, rule in rules_of_chunk(chunk, model_type).items():
                dtype = tensors.dtype(rule.hf_names[0])
                with torch.no_grad():
                    parameters[name].copy_(parameters[name].to(dtype))

    learner = Learner(config, rank.device, training=False, load=load)
    samples = [Sequence(i, tokens, first_predicted=1) for i, tokens in enumerate(sequences)]
    found = token_logprobs(learner, samples)
    return [found[i] for i in range(len(sequences))]


def transformers_logprobs(model_dir: str, sequences: list[list[int]]) -> list[Tensor]:
    """Returns the same from the Hugging Face directory by transformers, fp32."""
    from transformers import AutoModelForCausalLM
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    # Its default for experts, a grouped product, wants sizes that are multiples of 4.
    model = AutoModelForCausalLM.from_pretrained(
        model_dir, dtype=torch.float32, experts_implementation="eager"
    )
    found = []
    for tokens in sequences:
        ids = torch.tensor([tokens])
        with torch.no_grad():
            logprobs = model(ids).logits[0, :-1].log_softmax(-1)
        found.append(logprobs.gather(1, ids[0, 1:, None])[:, 0])
    return found
