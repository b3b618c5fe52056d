"""A toy that any method can be tried on: a small policy, four prompts, a proxy that counts a token."""

import dataclasses

import torch

from overopt.base.datatypes import PreferenceSet, Prompts
from overopt.base.kinds import names
from overopt.methods.method import Problem
from overopt.nets.block import LlamaConfig
from overopt.nets.compute import Compute
from overopt.nets.llama import Llama
from overopt.nets.sampling import sample

KINDS = names("overopt.methods")
T, SEED = 6, 5


def policy():
    """One layer, 16 tokens, the same weights each time."""
    cfg = LlamaConfig(
        vocab_size=16, hidden_size=16, intermediate_size=24, num_hidden_layers=1,
        num_attention_heads=2, max_position_embeddings=32,
    )  # fmt: skip
    model = Llama(cfg)
    model.init_weights(torch.Generator().manual_seed(0))
    return model


def prompts():
    """Four, of two lengths."""
    ids = torch.tensor([[1, 4, 5], [0, 1, 6], [1, 7, 8], [1, 2, 3]])
    return Prompts(ids, ids > 0, torch.arange(4))


@dataclasses.dataclass
class LikesToken:
    """A proxy that counts one token."""

    scale: float = 1.0

    def score(self, responses):
        """How often the token occurs."""
        return self.scale * ((responses.ids == 9) & responses.mask).sum(1).float()


def comparisons(proxy):
    """Pairs of the initial policy's responses that the proxy tells apart."""
    responses = sample(policy(), prompts(), n_tokens=T, seed=1, copies=64)
    score = proxy.score(responses).view(4, 32, 2)
    first = 2 * torch.arange(128).view(4, 32)
    best = score.argmax(2)
    told = (score[..., 0] != score[..., 1]).flatten()
    chosen, rejected = ((first + x).flatten()[told] for x in (best, 1 - best))
    nothing = torch.full((len(chosen),), torch.nan)
    return PreferenceSet(
        responses, chosen, rejected, nothing, nothing > 0, responses.prompts.prompt_id[chosen]
    )


def problem(proxy=None, compute=None):
    """What a method is given; ``compute``: None for one process without micro-batches."""
    proxy = proxy or LikesToken()
    return Problem(
        ref_policy=policy(),
        proxy=proxy,
        prompts=prompts(),
        n_tokens=T,
        seed=SEED,
        compute=compute or Compute(),
        preferences=lambda: comparisons(proxy),
    )


SMALL = {"batch": 32, "minibatches": 2, "group": 4, "n": 4, "examples": 4, "lr": 1e-2, "steps": 12}
"""Settings of the toy, for methods that have them."""


def settings_of(module, **more):
    """A method's settings for the toy."""
    known = {f.name for f in dataclasses.fields(module.Settings)}
    wanted = SMALL | {"warmup_steps": 0} | more
    return module.Settings(**{name: x for name, x in wanted.items() if name in known})


def started(module, settings, task):
    """A fresh state."""
    return module.start(policy(), settings, task)


def steps(module, state, settings, task, n):
    """What is logged in ``n`` steps."""
    return [module.step(state, settings, task) for _ in range(n)]


def copied(tensors):
    """Copies of named tensors, which the next step changes."""
    return {name: x.clone() for name, x in tensors.items()}


def variants(kind):
    """A method's ways that keep another state or read other inputs."""
    return {
        "dpo": [{}, {"data": "online", "loss": "ipo_sum"}, {"loss": "simpo"}],
        "rejection": [{}, {"keep": "all", "reference_share": 0.5}],
        "filtered_sft": [{}, {"keep": 10.0, "keep_of": "prompt"}],
        "grpo": [{}, {"kl_coef": 0.1, "kl_in": "exact_loss", "epochs": 2}],
        "rloo": [
            {},
            {"kl_coef": 0.1, "kl_in": "chi2_reward"},
            {"step_kl": 0.1, "kl_coef": 0.1, "proxy_target": 1.0},
        ],
        "ppo": [
            {},
            {"adv_scale": "fixed", "step_kl": 0.1, "stop_sqrt_kl": 3.0},
            {"kl_coef": 0.1, "proxy_target": 1.0},
        ],
    }.get(kind, [{}])


CASES = [(kind, more) for kind in KINDS for more in variants(kind)]
NAMES = [" ".join([kind, *(f"{k}={v}" for k, v in more.items())]) for kind, more in CASES]
