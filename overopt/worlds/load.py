"""A world by its settings."""

from overopt.base.kinds import module_of
from overopt.worlds.world import World, WorldSettings


def load_world(settings: WorldSettings) -> World:
    """Prompts, tokenizer and intent of a world; what its file's ``load`` raises, is raised."""
    return module_of(settings).load(settings)
