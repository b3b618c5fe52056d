"""A world by its settings."""

from overopt.base.config import require
from overopt.nets import sources
from overopt.nets.hf import UNLIMITED_CONTEXT
from overopt.worlds import codecs, prompts
from overopt.worlds.stories import StoriesWorld
from overopt.worlds.text import HFWorld
from overopt.worlds.world import WorldConfig


def load_world(cfg: WorldConfig) -> StoriesWorld | HFWorld:
    """Prompts and tokenizer of a world.

    Raises
    ------
    ConfigError
        A response may be as long as the policy's context.
    """
    texts = tuple(prompts.read_prompts(cfg.prompts_file)) if cfg.prompts_file else ()
    if cfg.kind == "stories":
        return StoriesWorld(texts or prompts.load_openings(), codecs.load_tokenizer())
    context = sources.context_tokens(cfg.policy) or UNLIMITED_CONTEXT
    require(
        cfg.max_response_tokens < context,
        "world.max_response_tokens",
        cfg.max_response_tokens,
        f"must be below {context}, the context of {cfg.policy!r}, to leave room for a prompt",
    )
    return HFWorld(
        texts or tuple(prompts.load_instructions()),
        codecs.load_codec(cfg.policy),
        context - cfg.max_response_tokens,
    )
