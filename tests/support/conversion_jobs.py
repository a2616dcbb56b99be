"""What the training processes do in the tests of this folder."""

from pathlib import Path

from alp_megatron.conversion.megatron_model import load_megatron, sharded_state
from alp_megatron.data.microbatch import Sequence
from alp_megatron.learner.learner import Learner, token_logprobs
from alp_megatron.learner.writer import save_now


def through_megatron(config, rank, state_dir: str, saved: str, sequences: list) -> dict:
    """Load a converted checkpoint and save it again, both by Megatron, in the config's layout.

    Returns {sample: log-probabilities}.
    """

    def load(chunks):
        for chunk in chunks:
            for parameter in chunk.parameters():
                parameter.data.fill_(float("nan"))  # what is not loaded is seen
            for layer in chunk.decoder.layers:
                layer.log_sigma_scale.data.zero_()
        load_megatron(chunks, state_dir)

    learner = Learner(config, rank.device, training=False, load=load)
    samples = [Sequence(i, tokens, first_predicted=1) for i, tokens in enumerate(sequences)]
    found = token_logprobs(learner, samples)
    state = {f"model{i}": sharded_state(chunk) for i, chunk in enumerate(learner.chunks)}
    save_now(state, Path(saved))
    return found
