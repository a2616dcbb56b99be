"""A rollout engine without a model, for tests of what is around it."""

import random

from alp_megatron.data.trajectory import Trajectory
from alp_megatron.weights.verify import Digests

TOKENS = range(8, 18)  # the digits, in the arithmetic model's vocabulary


class FakeEngine:
    """A RolloutEngine that samples at random: a function of the call, never of the weights.

    Attributes:
        versions: of the weights it was sent, in order.
    """

    def __init__(self):
        self.versions = []

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
        for _ in received.record(tensors):
            pass
        self.versions.append(version)
        return received.of

    def close(self):
        pass
