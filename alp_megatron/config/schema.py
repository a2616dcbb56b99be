"""The typed configuration. Megatron's own names are used where Megatron has one."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class Section(BaseModel):
    """A part of the configuration: unknown keys and silently converted types are refused."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class Fp8Config(Section):
    """FP8 for the decoder's linear layers: Transformer Engine's on CUDA, elsewhere emulated
    (docs/fp8.md)."""

    format: Literal["e4m3", "hybrid"] = Field(
        "hybrid", description="the gradients' codes: e4m3, or e5m2 (hybrid); all else is e4m3"
    )
    recipe: Literal["delayed", "tensorwise", "blockwise", "mxfp8"] = Field(
        "tensorwise",
        description="how scales are made: per tensor from past micro-batches (delayed) or from "
        "the tensor itself (tensorwise), or per block (blockwise, mxfp8)",
    )
    amax_history_len: int = Field(
        1024, ge=1, description="micro-batches whose amax is remembered, for delayed"
    )
    amax_compute_algo: Literal["max", "most_recent"] = Field(
        "max", description="which amax of the history makes the scale, for delayed"
    )
    margin: int = Field(0, ge=0, le=16, description="scales are divided by 2^margin, for delayed")
    num_layers_at_start_in_bf16: int = Field(0, ge=0, description="first layers, not in FP8")
    num_layers_at_end_in_bf16: int = Field(0, ge=0, description="last layers, not in FP8")
    param_gather: bool = Field(
        False,
        description="weights are held in FP8 and gathered so by the distributed optimizer, which "
        "keeps them in fp32; CUDA only",
    )


class ModelConfig(Section):
    path: str = Field(description="Hugging Face model directory: config.json, weights, tokenizer")
    params_dtype: Literal["float32", "bfloat16"] = Field(
        "float32",
        description="type that the trainer computes in; the optimizer keeps float32 weights",
    )
    tensor_model_parallel_size: int = Field(1, ge=1, description="TP: ranks that share every layer")
    pipeline_model_parallel_size: int = Field(
        1, ge=1, description="PP: stages that the layers are divided into"
    )
    virtual_pipeline_model_parallel_size: int | None = Field(
        None, ge=2, description="VPP: parts of the layers that each stage holds; null for one"
    )
    expert_model_parallel_size: int = Field(
        1, ge=1, description="ranks over which TP x DP of a stage share out the experts"
    )
    sequence_parallel: bool = Field(
        False,
        description="what tensor parallelism leaves whole is divided along the sequence; needs TP "
        "of 2 or more",
    )
    recompute_granularity: Literal["none", "selective", "full"] = Field(
        "none",
        description="what the backward pass computes again instead of keeping it: nothing, "
        "attention, or whole layers",
    )
    fp32_residual_connection: bool = Field(
        False,
        description="hidden states between the layers stay in fp32, so that bfloat16 rounds less "
        "noise away",
    )
    fp8: Fp8Config | None = Field(None, description="null for training without FP8")
    logprob_chunk_tokens: int = Field(
        1024, ge=1, description="tokens whose fp32 logits are held at once"
    )


class PerturbationConfig(Section):
    sigma0: float = Field(0.01, ge=0, description="initial noise scale; 0 switches the noise off")
    sigma_mode: Literal["absolute", "relative"] = Field(
        "absolute",
        description="whether a layer's scale is used as it is, or times the RMS of each token's "
        "hidden state",
    )
    learnable: bool = Field(
        True, description="the noise scales are trained, each layer's as sigma0 exp(s)"
    )
    perturb_lr: float = Field(1e-2, ge=0, description="learning rate of the scales' s")
    layer_start: int = Field(0, ge=0, description="first perturbed layer")
    layer_end: int | None = Field(None, ge=1, description="one past the last perturbed layer")
    target: Literal["layers", "logits"] = Field(
        "layers", description="logits: an ablation, noise of a fixed sigma on the logits only"
    )


class CorrectionConfig(Section):
    """Says what w = pi_old / pi_rollout does to the loss; docs/methods.md has the formulae."""

    weight: Literal["none", "truncated", "masked", "window"] = Field(
        "none",
        description="factor of a token's loss: 1 (none); min(w, high) (truncated); w in [low, "
        "high], else 0 (masked); 1 in [low, high], else 0 (window)",
    )
    weight_level: Literal["token", "sequence", "geometric"] = Field(
        "token",
        description="what w is of: a token, the product over its sequence, or the geometric mean "
        "over it",
    )
    weight_low: float | None = Field(
        None, ge=0, description="lower bound of w, inclusive; null for 0"
    )
    weight_high: float | None = Field(None, gt=0, description="upper bound of w, inclusive")
    reject_by: Literal["k1", "k2", "k3"] | None = Field(
        None, description="statistic of log w, in nats, that must lie in [reject_low, reject_high]"
    )
    reject_over: Literal["token", "sequence_sum", "sequence_mean", "sequence_max"] = Field(
        "token",
        description="whether the statistic is a token's, or its sequence's, which is then "
        "rejected whole",
    )
    reject_low: float | None = Field(
        None, description="lower bound of the statistic, in nats; null for none"
    )
    reject_high: float | None = Field(
        None, description="upper bound of the statistic, in nats; null for none"
    )
    veto: float | None = Field(
        None,
        gt=1e-8,  # log w is clamped at -20, which is w = 2e-9
        lt=1,
        description="a token with a smaller w rejects its whole sequence",
    )
    denominator: Literal["all", "kept"] = Field(
        "all", description="tokens that the loss is divided by: with those rejected, or without"
    )

    @property
    def rejects(self) -> bool:
        by_weight = self.weight in ("masked", "window")
        return by_weight or self.reject_by is not None or self.veto is not None

    @property
    def is_on(self) -> bool:
        return self.weight != "none" or self.rejects


class ObjectiveConfig(Section):
    method: Literal["alp", "bypass", "grpo", "gspo", "tis", "mis", "icepop"] = Field(
        "alp",
        description="what the ratio compares and what corrects it; docs/methods.md. A method has "
        "defaults of its own for keys of this section that are not given",
    )
    level: Literal["token", "sequence"] = Field(
        "token", description="whether a ratio is the token's or its sequence's"
    )
    length_normalized: bool = Field(
        False,
        description="the sequence's ratio is the geometric mean of its tokens', not their product",
    )
    eps_low: float = Field(
        0.5,
        gt=0,
        le=1,
        description="the ratio is clipped below 1 - eps_low where the advantage is negative",
    )
    eps_high: float = Field(
        3.0,
        gt=0,
        description="the ratio is clipped above 1 + eps_high where the advantage is positive",
    )
    dual_clip: float | None = Field(
        3.0,
        gt=1,
        description="the ratio is clipped above this where the advantage is negative; null for no "
        "bound",
    )
    loss_normalization: Literal["token", "sequence"] = Field(
        "token",
        description="mean over the mini-batch's tokens, or over its sequences of each one's mean",
    )
    correction: CorrectionConfig = CorrectionConfig()


class RolloutConfig(Section):
    engine: Literal["vllm", "server"] = Field(
        "vllm", description="vLLM in a process beside the trainer, or vLLM servers over HTTP"
    )
    num_servers: int = Field(1, ge=1, description="vLLM servers to start, for engine=server")
    server_urls: list[str] = Field(
        default_factory=list, description="servers to use instead; see `alp-megatron serve`"
    )
    transport: Literal["shared_memory", "directory", "cuda_ipc", "nccl"] = Field(
        "shared_memory", description="how weights reach servers; see docs/servers.md"
    )
    prompts_per_step: int = Field(32, ge=1, description="prompts that a step samples from")
    samples_per_prompt: int = Field(
        8, ge=2, description="responses to each prompt, which an advantage is relative to"
    )
    # vLLM takes no higher one
    temperature: float = Field(
        1.0,
        gt=0,
        le=2,
        description="sampling temperature, also of the trainer's log-probabilities",
    )
    max_new_tokens: int = Field(64, ge=1, description="tokens of a response at most")
    max_model_len: int = Field(
        256, ge=2, description="tokens of prompt and response together at most"
    )
    stop_token_ids: list[int] = Field(
        default_factory=list, description="besides the model's own end-of-sequence token"
    )
    dtype: Literal["float32", "bfloat16"] = Field(
        "bfloat16", description="type of the engine's weights and activations"
    )
    quantization: Literal["none", "int8", "fp8", "fp8_block", "int4"] = Field(
        "none", description="codes of the engine's linear weights; see docs/quantization.md"
    )
    quantization_ignore: list[str] = Field(
        default_factory=list,
        description="layers left in `dtype`, as names with * and ?, e.g. '*.o_proj'",
    )
    kv_cache_dtype: Literal["auto", "fp8"] = Field(
        "auto", description="type of the engine's keys and values; auto: as dtype"
    )
    sync_interval: int = Field(
        1, ge=1, description="steps between weight syncs; with more, rollouts lag behind"
    )
    weight_noise: float = Field(
        0.0,
        ge=0,
        description="a mismatch on purpose: Gaussian noise in the engine's linear weights, as a "
        "share of each matrix's RMS",
    )
    seed: int | None = Field(None, description="the sampler's seed; the run's if not given")
    cpu_kv_cache_mib: int = Field(256, ge=1, description="memory for keys and values on a CPU")
    gpu_memory_utilization: float = Field(
        0.4, gt=0, le=1, description="share of a GPU's memory that the engine takes"
    )
    cpu_threads: int = Field(2, ge=1, description="threads of the engine on a CPU")
    gate_mean_abs_diff: float | None = Field(
        None,
        gt=0,
        description="mean |log p| difference (nats) allowed at the first sync; if not given, 0.05 "
        "for an engine that is not quantised, 0.1 for 8-bit formats, 0.3 for int4",
    )


class TrainerConfig(Section):
    steps: int = Field(
        40, ge=1, description="a step is rollouts, rewards, updates on them, and a weight sync"
    )
    global_batch_size: int = Field(64, ge=1, description="samples per optimizer update")
    micro_batch_size: int = Field(16, ge=1, description="samples per forward of one replica")
    packing: bool = Field(
        True,
        description="sequences of a micro-batch follow one another in one row, without padding",
    )
    lr: float = Field(
        1e-5, ge=0, description="learning rate of the weights; constant after the warm-up"
    )
    lr_warmup_steps: int = Field(0, ge=0, description="updates over which lr rises from 0")
    weight_decay: float = Field(0.0, ge=0, description="Adam's decoupled weight decay")
    adam_beta1: float = Field(0.9, ge=0, lt=1, description="decay of the gradients' mean")
    adam_beta2: float = Field(0.999, ge=0, lt=1, description="decay of the squared gradients' mean")
    adam_eps: float = Field(
        1e-8, gt=0, description="added to the root of the squared gradients' mean"
    )
    clip_grad: float = Field(1.0, ge=0, description="global gradient norm; 0 switches it off")
    use_distributed_optimizer: bool = Field(
        True, description="replicas divide the optimizer's state among them"
    )
    distrib_optim_sharding_type: Literal["fully_reshardable", "dp_reshardable"] = Field(
        "fully_reshardable",
        description="the optimizer's state in checkpoints: any layout reads the first; the second "
        "costs less time and memory, and is read at the same TP, PP and EP, any DP",
    )
    save_interval: int = Field(
        10, ge=1, description="steps between checkpoints; the last step is always saved"
    )
    keep_checkpoints: int = Field(2, ge=1, description="newest checkpoints that are kept")
    keep_best_checkpoint: bool = Field(
        True, description="also that of the highest evaluation score, as checkpoints/best"
    )


class EvaluationConfig(Section):
    interval: int = Field(
        10, ge=1, description="steps between evaluations; base and last are always evaluated"
    )
    prompts: int = Field(
        128, ge=1, description="evaluation prompts, from the beginning of the task's"
    )
    samples_per_prompt: int = Field(
        4, ge=1, description="responses to each prompt; the score is their mean reward"
    )
    temperature: float = Field(
        1.0, ge=0, le=2, description="sampling temperature; 0 takes the likeliest token"
    )


class TaskConfig(Section):
    name: Literal["arithmetic", "file"] = Field(
        "arithmetic", description="sums made on the fly, or prompts read from files"
    )
    train: str | None = Field(None, description="JSONL or parquet file, for task.name=file")
    eval: str | None = Field(None, description="JSONL or parquet file, for task.name=file")
    reward: Literal["exact", "math_verify"] = Field(
        "exact",
        description="for task.name=file: the answer after the last = must be equal, numbers by "
        "value (exact), or be mathematically equal (math_verify)",
    )
    slip_rate: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="share of wrong guesses in the last quarter of warm-start's text",
    )


class RuntimeConfig(Section):
    device: Literal["auto", "cpu", "cuda"] = Field(
        "auto", description="auto: CUDA where torch sees it"
    )
    world_size: int | None = Field(
        None, ge=1, description="processes; the fewest that can be if not given"
    )
    threads_per_rank: int = Field(1, ge=1, description="CPU threads of one training process")
    distributed_timeout_minutes: int = Field(
        10, ge=1, description="how long ranks wait for one another before the run ends"
    )


class LoggingConfig(Section):
    tensorboard: bool = Field(True, description="also write RUN_DIR/tensorboard/")
    wandb: bool = Field(
        True, description="also write RUN_DIR/wandb/; it is sent only where WANDB_API_KEY is set"
    )
    wandb_project: str = Field("alp-megatron", description="project that wandb files the run under")
    clean_mismatch_interval: int = Field(
        1,
        ge=0,
        description="steps between measurements of mismatch_before/*; costs a forward pass where "
        "the method makes none before its updates; 0 for never",
    )
    envelope_interval: int = Field(
        10,
        ge=0,
        description="steps between envelopes/ and their metrics; the last step has them too; "
        "costs a forward pass where the method has noise; 0 for never",
    )
    save_rollouts: int = Field(16, ge=0, description="samples of each step kept in rollouts/")


class Config(Section):
    run_dir: str = Field(
        "runs/default", description="where the run is written; a new or empty directory"
    )
    seed: int = Field(
        1234,
        ge=0,
        lt=2**63,
        description="of prompts, sampling, data order and noise: with the same one a run is the "
        "same",
    )
    model: ModelConfig
    perturbation: PerturbationConfig = PerturbationConfig()
    objective: ObjectiveConfig = ObjectiveConfig()
    rollout: RolloutConfig = RolloutConfig()
    trainer: TrainerConfig = TrainerConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    task: TaskConfig = TaskConfig()
    runtime: RuntimeConfig = RuntimeConfig()
    logging: LoggingConfig = LoggingConfig()


# Of a rank's part of the tokens and of each dimension of a linear layer, by recipe.
ALIGNMENT = {"delayed": 16, "tensorwise": 16, "blockwise": 128, "mxfp8": 32}
