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
        "hybrid", description="of the gradients: e4m3, or e5m2 (hybrid); all else is e4m3"
    )
    recipe: Literal["delayed", "tensorwise", "blockwise", "mxfp8"] = "tensorwise"
    amax_history_len: int = Field(1024, ge=1, description="in micro-batches, for delayed")
    amax_compute_algo: Literal["max", "most_recent"] = Field(
        "max", description="which amax of the history makes the scale, for delayed"
    )
    margin: int = Field(0, ge=0, le=16, description="scales are divided by 2^margin, for delayed")
    num_layers_at_start_in_bf16: int = Field(0, ge=0, description="layers that stay out of FP8")
    num_layers_at_end_in_bf16: int = Field(0, ge=0, description="layers that stay out of FP8")
    param_gather: bool = Field(
        False,
        description="weights are held in FP8 and gathered so by the distributed optimizer, which "
        "keeps them in fp32; CUDA only",
    )


class ModelConfig(Section):
    path: str = Field(description="Hugging Face model directory: config.json, weights, tokenizer")
    params_dtype: Literal["float32", "bfloat16"] = "float32"
    tensor_model_parallel_size: int = Field(1, ge=1)
    pipeline_model_parallel_size: int = Field(1, ge=1)
    virtual_pipeline_model_parallel_size: int | None = Field(None, ge=2)
    expert_model_parallel_size: int = Field(
        1, ge=1, description="ranks over which TP x DP of a stage share out the experts"
    )
    sequence_parallel: bool = False
    recompute_granularity: Literal["none", "selective", "full"] = "none"
    fp32_residual_connection: bool = False
    fp8: Fp8Config | None = Field(None, description="null for training without FP8")
    logprob_chunk_tokens: int = Field(
        1024, ge=1, description="tokens whose fp32 logits are held at once"
    )


class PerturbationConfig(Section):
    sigma0: float = Field(0.01, ge=0, description="initial noise scale; 0 switches the noise off")
    sigma_mode: Literal["absolute", "relative"] = "absolute"
    learnable: bool = True
    perturb_lr: float = Field(1e-2, ge=0)
    layer_start: int = Field(0, ge=0, description="first perturbed layer")
    layer_end: int | None = Field(None, ge=1, description="one past the last perturbed layer")
    target: Literal["layers", "logits"] = Field(
        "layers", description="logits: an ablation, noise of a fixed sigma on the logits only"
    )


class CorrectionConfig(Section):
    """What w = pi_old / pi_rollout does to the loss; docs/methods.md has the formulae."""

    weight: Literal["none", "truncated", "masked", "window"] = Field(
        "none",
        description="factor of the loss: 1; min(w, high); w or else 1 in [low, high], else 0",
    )
    weight_level: Literal["token", "sequence", "geometric"] = "token"
    weight_low: float | None = Field(None, ge=0)
    weight_high: float | None = Field(None, gt=0)
    reject_by: Literal["k1", "k2", "k3"] | None = Field(
        None, description="statistic of log w, in nats, that must lie in [reject_low, reject_high]"
    )
    reject_over: Literal["token", "sequence_sum", "sequence_mean", "sequence_max"] = "token"
    reject_low: float | None = None
    reject_high: float | None = None
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
    method: Literal["alp", "bypass", "grpo", "gspo", "tis", "mis", "icepop"] = "alp"
    level: Literal["token", "sequence"] = Field("token", description="of the policy's ratio")
    length_normalized: bool = False
    eps_low: float = Field(0.5, gt=0, le=1)
    eps_high: float = Field(3.0, gt=0)
    dual_clip: float | None = Field(3.0, gt=1)
    loss_normalization: Literal["token", "sequence"] = "token"
    correction: CorrectionConfig = CorrectionConfig()


class RolloutConfig(Section):
    engine: Literal["vllm", "server"] = "vllm"
    num_servers: int = Field(1, ge=1, description="vLLM servers to start, for engine=server")
    server_urls: list[str] = Field(
        default_factory=list, description="servers to use instead; see `alp-megatron serve`"
    )
    transport: Literal["shared_memory", "directory", "cuda_ipc", "nccl"] = Field(
        "shared_memory", description="how weights reach servers; see docs/servers.md"
    )
    prompts_per_step: int = Field(32, ge=1)
    samples_per_prompt: int = Field(8, ge=2)
    temperature: float = Field(1.0, gt=0, le=2)  # vLLM takes no higher one
    max_new_tokens: int = Field(64, ge=1)
    max_model_len: int = Field(256, ge=2)
    stop_token_ids: list[int] = Field(
        default_factory=list, description="besides the model's own end-of-sequence token"
    )
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    quantization: Literal["none", "int8", "fp8", "fp8_block", "int4"] = Field(
        "none", description="of the engine's linear weights; see docs/quantization.md"
    )
    quantization_ignore: list[str] = Field(
        default_factory=list,
        description="layers left in `dtype`, as names with * and ?, e.g. '*.o_proj'",
    )
    kv_cache_dtype: Literal["auto", "fp8"] = "auto"
    sync_interval: int = Field(
        1, ge=1, description="steps between weight syncs; with more, rollouts lag behind"
    )
    weight_noise: float = Field(
        0.0,
        ge=0,
        description="a mismatch on purpose: Gaussian noise in the engine's linear weights, as a "
        "share of each matrix's RMS",
    )
    seed: int | None = Field(None, description="of the sampler; the run's seed if not given")
    cpu_kv_cache_mib: int = Field(256, ge=1)
    gpu_memory_utilization: float = Field(0.4, gt=0, le=1)
    cpu_threads: int = Field(2, ge=1)
    gate_mean_abs_diff: float | None = Field(
        None,
        gt=0,
        description="mean |log p| difference (nats) allowed at the first sync; if not given, 0.05 "
        "for an engine that is not quantised, 0.1 for 8-bit formats, 0.3 for int4",
    )


class TrainerConfig(Section):
    steps: int = Field(40, ge=1)
    global_batch_size: int = Field(64, ge=1, description="samples per optimizer update")
    micro_batch_size: int = Field(16, ge=1, description="samples per forward of one replica")
    packing: bool = True
    lr: float = Field(1e-5, ge=0)
    lr_warmup_steps: int = Field(0, ge=0, description="in optimizer updates")
    weight_decay: float = Field(0.0, ge=0)
    adam_beta1: float = Field(0.9, ge=0, lt=1)
    adam_beta2: float = Field(0.999, ge=0, lt=1)
    adam_eps: float = Field(1e-8, gt=0)
    clip_grad: float = Field(1.0, ge=0, description="global gradient norm; 0 switches it off")
    use_distributed_optimizer: bool = True
    distrib_optim_sharding_type: Literal["fully_reshardable", "dp_reshardable"] = Field(
        "fully_reshardable",
        description="the optimizer's state in checkpoints: any layout reads the first; the second "
        "costs less time and memory, and is read at the same TP, PP and EP, any DP",
    )
    save_interval: int = Field(10, ge=1, description="in steps; the last step is always saved")
    keep_checkpoints: int = Field(2, ge=1, description="the newest")
    keep_best_checkpoint: bool = Field(
        True, description="also that of the highest evaluation score, as checkpoints/best"
    )


class EvaluationConfig(Section):
    interval: int = Field(10, ge=1, description="in steps; base and last are always evaluated")
    prompts: int = Field(128, ge=1)
    samples_per_prompt: int = Field(4, ge=1)
    temperature: float = Field(1.0, ge=0, le=2)


class TaskConfig(Section):
    name: Literal["arithmetic", "file"] = "arithmetic"
    train: str | None = Field(None, description="JSONL or parquet file, for task.name=file")
    eval: str | None = Field(None, description="JSONL or parquet file, for task.name=file")
    reward: Literal["exact", "math_verify"] = "exact"
    slip_rate: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="share of wrong guesses in the last quarter of warm-start's text",
    )


class RuntimeConfig(Section):
    device: Literal["auto", "cpu", "cuda"] = "auto"
    world_size: int | None = Field(
        None, ge=1, description="processes; the fewest that can be if not given"
    )
    threads_per_rank: int = Field(1, ge=1, description="CPU threads of one training process")
    distributed_timeout_minutes: int = Field(10, ge=1)


class LoggingConfig(Section):
    tensorboard: bool = True
    wandb: bool = True
    wandb_project: str = "alp-megatron"
    clean_mismatch_interval: int = Field(
        1,
        ge=0,
        description="in steps, of mismatch_before/*; costs a forward pass where the method makes "
        "none before its updates; 0 for never",
    )
    envelope_interval: int = Field(
        10,
        ge=0,
        description="in steps, of envelopes/ and its metrics; the last step has them too; costs a "
        "forward pass where the method has noise; 0 for never",
    )
    save_rollouts: int = Field(16, ge=0, description="samples of each step kept in rollouts/")


class Config(Section):
    run_dir: str = "runs/default"
    seed: int = Field(1234, ge=0, lt=2**63)
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
