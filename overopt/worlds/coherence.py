"""What the rubric reads of responses: texts, and how likely a language model finds them."""

from functools import lru_cache

import numpy as np

from overopt.base.datatypes import Responses
from overopt.nets import checkpoints, sampling
from overopt.nets.backbone import Backbone
from overopt.worlds import codecs, tokenizers
from overopt.worlds.rubric import Read, RubricConfig
from overopt.worlds.world import World


@lru_cache(maxsize=2)
def _judge(source: str, device: str) -> Backbone:
    """The judge, loaded once a process."""
    return checkpoints.load_lm(source).to(device)


def coherence(responses: Responses, world: World, *, judge: str, device: str) -> np.ndarray:
    """Mean log-probability (R,) in nats of a response's tokens, the end token among them.

    Tokens are the judge's own: one with another tokenizer than the policy's reads the text. A
    response without a token has 0.
    """
    if not tokenizers.shares_vocabulary(judge, world.tokenizer):
        responses = codecs.retokenize(world, codecs.load_codec(judge), responses)
    total = sampling.score_logprobs(_judge(judge, device), responses).double().sum(1)
    return (total / responses.length.double().clamp_min(1)).numpy()


def read(cfg: RubricConfig, responses: Responses, world: World, *, device: str) -> Read:
    """What the rubric reads of responses; the judge is asked where coherence has a weight.

    The judge is that of ``cfg``, the settings, never one that an artefact names.
    """
    judged = None
    if cfg.coherence != 0:
        judged = coherence(responses, world, judge=cfg.judge, device=device)
    texts = world.prompt_texts(responses), world.response_texts(responses)
    return (*texts, responses.ended.tolist(), judged)
