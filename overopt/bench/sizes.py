"""How much work the rows at the shape of a checkpoint do.

On a GPU the ladder's models would time the launching of kernels, so training, scoring and sampling
are compared at the shape of SmolLM2-135M. Its weights are random: speed does not depend on them, and
no checkpoint has to be at hand.
"""

from dataclasses import dataclass

from overopt.nets.block import LlamaConfig
from overopt.nets.compute import Precision

SMOLLM2_135M = LlamaConfig(
    vocab_size=49152,
    hidden_size=576,
    intermediate_size=1536,
    num_hidden_layers=30,
    num_attention_heads=9,
    num_key_value_heads=3,
    max_position_embeddings=8192,
    rope_theta=100000.0,
    eos_token_id=0,
)


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """How much work the rows of a GPU do.

    model : shape of policy, value model, reward model
    n_pairs, n_tokens : of a training step against the peer: pairs, tokens of a row
    mfu_pairs : pairs of the step whose share of the matrix rate is measured
    matrix : rows and columns of the matrices behind that rate
    ppo_batch, ppo_prompt_tokens, ppo_tokens : responses of a PPO step, tokens of each
    sample_rows, sample_shapes : responses sampled at once; tokens of prompt and response
    n_scored, n_pool : responses to score with the large model, and with the ladder's 0.8M
    """

    model: LlamaConfig = SMOLLM2_135M
    n_pairs: int = 128
    n_tokens: int = 128
    mfu_pairs: int = 256
    matrix: int = 8192
    ppo_batch: int = 128
    ppo_prompt_tokens: int = 32
    ppo_tokens: int = 64
    sample_rows: int = 1024
    sample_shapes: tuple[tuple[int, int], ...] = ((64, 64), (128, 256))
    n_scored: int = 2048
    n_pool: int = 1_900_000
    precision: Precision = "bf16"
