"""One PPO step with the pieces of its problem given one by one, as tests want them."""

from overopt.methods import ppo, rollouts
from overopt.methods.method import Problem
from overopt.nets.compute import Compute


def ppo_step(state, ref_policy, proxy, prompts, cfg, *, n_tokens, seed, shape=None, compute=None):
    problem = Problem(
        ref_policy=ref_policy,
        proxy=proxy,
        prompts=prompts,
        n_tokens=n_tokens,
        seed=seed,
        compute=compute or Compute(),
        shape=shape,
    )
    return ppo.step(state, cfg, problem)


def reference_scores(ref_policy, proxy, prompts, cfg, *, n_tokens, seed):
    return rollouts.reference_scores(
        ref_policy,
        proxy,
        prompts,
        batch=cfg.batch,
        steps=cfg.steps,
        n_tokens=n_tokens,
        seed=seed,
    )
