"""Sampling by ``generate`` of transformers, the other side of every comparison of samplers."""

from collections.abc import Callable

import torch

from overopt.base.datatypes import Prompts
from overopt.base.seeding import scoped_torch_seed
from overopt.nets.layout import to_transformers_state
from overopt.nets.llama import Llama


def transformers_generate(
    policy: Llama,
    prompts: Prompts,
    n_tokens: int,
    root_seed: int,
    *,
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
) -> Callable[[], None]:
    """The same work by transformers' ``generate`` with copied weights."""
    from transformers import AutoConfig, AutoModelForCausalLM

    spec = policy.cfg.to_transformers()
    config = AutoConfig.for_model(spec.pop("model_type"), **spec)
    model = AutoModelForCausalLM.from_config(config).eval()
    model.load_state_dict(to_transformers_state(policy), strict=False)
    model.tie_weights()
    model.to(device=device, dtype=dtype)
    ids, mask = prompts.ids.to(device), prompts.mask.long().to(device)

    def run() -> None:
        with scoped_torch_seed(root_seed), torch.inference_mode():
            made = model.generate(
                ids,
                attention_mask=mask,
                do_sample=True,
                top_k=0,
                top_p=1.0,
                min_new_tokens=n_tokens,
                max_new_tokens=n_tokens,
                pad_token_id=policy.cfg.pad_token_id,
            )
        if made.shape[1] != prompts.ids.shape[1] + n_tokens:
            raise RuntimeError("generate stopped early: nothing to compare")

    return run
