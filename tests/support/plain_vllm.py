"""`python -m tests.support.plain_vllm MODEL [portable]`: vLLM's log-probabilities of token lists.

The lists are on stdin. Nothing of the project is imported: what loads here loads for everybody.
`portable` adds the project's CPU kernels, for a format that vLLM's own CPU build reads but
multiplies with AMX only.
"""

import json
import os
import sys

os.environ |= {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "TORCHDYNAMO_DISABLE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "OMP_NUM_THREADS": "1",
    "HF_HUB_OFFLINE": "1",
}


def main() -> None:
    from vllm import LLM, SamplingParams

    if sys.argv[2:] == ["portable"]:
        from alp_megatron.rollout.vllm.patches import use_portable_kernels

        use_portable_kernels()
    llm = LLM(
        model=sys.argv[1],
        quantization="modelopt",
        dtype="bfloat16",
        max_model_len=64,
        enforce_eager=True,
        kv_cache_memory_bytes=64 * 2**20,
        skip_tokenizer_init=True,
        disable_log_stats=True,
    )
    sampling = SamplingParams(
        temperature=0, max_tokens=1, prompt_logprobs=0, flat_logprobs=True, detokenize=False
    )
    prompts = [{"prompt_token_ids": tokens} for tokens in json.load(sys.stdin)]
    requests = llm.generate(prompts, sampling, use_tqdm=False)
    print(json.dumps([request.prompt_logprobs.logprobs for request in requests]))


if __name__ == "__main__":
    main()
