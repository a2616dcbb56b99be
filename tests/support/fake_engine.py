"""A rollout engine without a model, for tests of what is around it."""

import random

import torch

from alp_megatron.data.trajectory import Trajectory
from alp_megatron.weights.verify import Digests

TOKENS = range(8, 18)  # the digits, in the arithmetic model's vocabulary


class FakeEngine:
    """A RolloutEngine that samples at random: a function of the call, never of the weights.

    Attributes:
        versions: of the weights it was sent, in order.
        received: name -> fingerprint of the last ones.
        spoilt: the name of a tensor that arrives with a bit changed, if one does.
    """

    def __init__(self, spoilt=None):
        self.versions, self.received, self.spoilt = [], {}, spoilt

    def wait_ready(self):
        pass

    def generate(self, prompts, sampling):
        rng, n = random.Random(sampling.seed), sampling.n
        return [
            [self._respond(rng, group * n + i, group, prompt, sampling) for i in range(n)]
            for group, prompt in enumerate(prompts)
        ]

    def _respond(self, rng, sample_id, group_id, prompt, sampling):
        ids = rng.choices(TOKENS, k=rng.randint(1, sampling.max_new_tokens))
        logprobs = [rng.uniform(-3, -2) for _ in ids]
        version = self.versions[-1] if self.versions else 0
        return Trajectory(sample_id, group_id, prompt, ids, [1] * len(ids), logprobs, version)

    def score(self, sequences):
        return [[-1.0] * (len(sequence) - 1) for sequence in sequences]

    def update_weights(self, tensors, version, digests=False):
        received = Digests()
        for name, tensor in tensors:
            if name == self.spoilt:
                tensor = tensor.clone()
                tensor.view(-1)[-1:].view(torch.uint8)[0] ^= 1
            for _ in received.record([(name, tensor)]):
                pass
        self.versions.append(version)
        self.received = received.of
        return received.of

    def close(self):
        pass
