"""vLLM itself, inside the engine's process: one method for each request of the client."""

import gc
import tempfile
from collections.abc import Iterable
from functools import partial

import torch
from torch import Tensor
from vllm import LLM, RequestOutput, SamplingParams
from vllm.model_executor.model_loader.reload import finalize_layerwise_reload

from alp_megatron.data.trajectory import Trajectory
from alp_megatron.rollout.engine import (
    EngineError,
    SamplingSpec,
    sampling_parameters,
    scoring_parameters,
)
from alp_megatron.rollout.settings import EngineSettings
from alp_megatron.rollout.vllm.arguments import vllm_arguments
from alp_megatron.rollout.vllm.patches import apply_patches, refresh_tied_head
from alp_megatron.rollout.vllm.receipt import Receipt, expected_shapes
from alp_megatron.weights.quantize.scheme import UNQUANTIZED


def start_vllm(settings: EngineSettings) -> LLM:
    apply_patches(settings.model_dir)
    # vLLM leaves its rendezvous file behind in the temporary directory: give it one to remove.
    with tempfile.TemporaryDirectory(prefix="alp-vllm-") as scratch:
        tempfile.tempdir = scratch
        try:
            return LLM(**vllm_arguments(settings))
        finally:
            tempfile.tempdir = None


class VllmWorker:
    def __init__(self, settings: EngineSettings):
        self._max_model_len = settings.max_model_len
        self._llm = start_vllm(settings)
        # A quantised engine starts with random weights, see vllm_arguments.
        self._whole = settings.quantization == UNQUANTIZED
        config = self._llm.llm_engine.model_config.hf_config
        self._new_receipt = partial(Receipt, expected_shapes(settings), config.tie_word_embeddings)
        self._version = 0
        # What the start made stays: the garbage collector need not walk it again.
        gc.collect()
        gc.freeze()

    def generate(self, prompts: list[list[int]], sampling: SamplingSpec) -> list[list[Trajectory]]:
        # One generator for the batch: a generator for each request costs a call each per token.
        torch.manual_seed(sampling.seed)
        parameters = [
            SamplingParams(
                **sampling_parameters(sampling, prompt, self._max_model_len), flat_logprobs=True
            )
            for prompt in prompts
        ]
        requests = self._run(prompts, parameters)
        return [
            [
                Trajectory(
                    sample_id=group * sampling.n + index,
                    group_id=group,
                    prompt_ids=prompt,
                    response_ids=list(output.token_ids),
                    loss_mask=[1] * len(output.token_ids),
                    rollout_logprobs=output.logprobs.logprobs,
                    policy_version=self._version,
                    finished=output.finish_reason == "stop",
                )
                for index, output in enumerate(request.outputs)
            ]
            for group, (prompt, request) in enumerate(zip(prompts, requests, strict=True))
        ]

    def score(self, sequences: list[list[int]]) -> list[list[float]]:
        parameters = SamplingParams(**scoring_parameters(), flat_logprobs=True)
        requests = self._run(sequences, [parameters] * len(sequences))
        return [request.prompt_logprobs.logprobs for request in requests]

    def _run(
        self, prompts: list[list[int]], parameters: list[SamplingParams]
    ) -> list[RequestOutput]:
        if not self._whole:
            raise EngineError(
                "the engine's weights are not whole: it waits for a whole weight update"
            )
        # What an earlier call left in the cache would change batch shapes, and with them the
        # last bits of the log-probs: the same call would not give the same samples.
        self._llm.reset_prefix_cache()
        inputs = [{"prompt_token_ids": prompt} for prompt in prompts]
        return self._llm.generate(inputs, parameters, use_tqdm=False)

    def update_weights(
        self, tensors: Iterable[tuple[str, Tensor]], version: int, digests: bool
    ) -> dict[str, str]:
        receipt = self._new_receipt(digests)
        self._whole = False
        try:
            stream = receipt.whole(tensors)
            self._llm.collective_rpc("reload_weights", kwargs={"weights_iterator": stream})
        except BaseException:
            # Back to a state from which a later update can start.
            model_config = self._llm.llm_engine.model_config
            self._llm.apply_model(lambda model: finalize_layerwise_reload(model, model_config))
            raise
        self._llm.apply_model(refresh_tied_head)
        self._llm.reset_prefix_cache()
        self._version = version
        self._whole = True
        return receipt.digests
