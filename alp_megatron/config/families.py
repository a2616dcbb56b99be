"""The model families that can be trained, as data.

A family with the parts of these is one more row here and one in `weights.mapping.FAMILIES`.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Family:
    """What a Hugging Face architecture has beside the decoder that all families share.

    Attributes:
        model_type, architecture: its names in config.json.
        qkv_bias: the query, key and value projections have biases, always.
        optional_biases: `attention_bias` and `mlp_bias` add biases to all linear layers.
        qk_norm: queries and keys pass an RMSNorm over each head.
        experts: a router and experts stand in place of the MLP.
        always_slides: `sliding_window` is obeyed without `use_sliding_window`.
    """

    model_type: str
    architecture: str
    qkv_bias: bool = False
    optional_biases: bool = False
    qk_norm: bool = False
    experts: bool = False
    always_slides: bool = False


FAMILIES = {
    family.model_type: family
    for family in (
        Family("llama", "LlamaForCausalLM", optional_biases=True),
        Family("mistral", "MistralForCausalLM", always_slides=True),
        Family("qwen2", "Qwen2ForCausalLM", qkv_bias=True),
        Family("qwen3", "Qwen3ForCausalLM", qk_norm=True),
        Family("qwen3_moe", "Qwen3MoeForCausalLM", qk_norm=True, experts=True),
    )
}
