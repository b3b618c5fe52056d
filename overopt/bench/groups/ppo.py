"""Speed of a PPO step with TRL's algorithm, against TRL and against bare matrix products.

4 epochs, one minibatch, a value model of the policy's size, a KL penalty: both sides take the same
steps from the same weights on the same prompts, in turn.
"""

from overopt.base.seeding import torch_generator
from overopt.bench.harness import (
    Product,
    Row,
    forward_products,
    make_row,
    product_runner,
    training_products,
)
from overopt.bench.opponent import WARM_STEPS, PeerSource
from overopt.bench.ppo_run import PEER, PeerSettings, PpoRun, ppo_run
from overopt.bench.ppo_task import PpoTask, random_task, story_task
from overopt.bench.setting import Group, Setting
from overopt.bench.training import DTYPES
from overopt.methods.ppo import Settings
from overopt.nets.block import LlamaConfig
from overopt.nets.compute import Precision

NAMES = ("ppo_step_vs_trl", "ppo_step_vs_products")
TARGET, ACCELERATOR_TARGET = 1.5, 3.0


def group(setting: Setting) -> Group:
    """The embedded world's policy and proxy, or random ones at the shape of a checkpoint."""

    def measure() -> list[Row]:
        sizes, peer = setting.sizes, setting.peer(PEER)
        if sizes is None:
            task = story_task(root_seed=setting.root_seed)
            return ppo_rows(task, peer, **setting.where)
        return ppo_rows(
            random_task(sizes, root_seed=setting.root_seed),
            peer,
            batch=sizes.ppo_batch,
            precision=sizes.precision,
            **setting.where,
        )

    return Group(NAMES, measure)


def same_algorithm(n_steps: int, batch: int) -> Settings:
    """The settings that both sides share in the comparison of the same algorithm."""
    return Settings(
        steps=n_steps,
        batch=batch,
        ppo_epochs=4,
        minibatches=1,
        lr=1e-5,
        value_lr=1e-5,
        kl_coef=0.05,
        value_backbone="ladder:policy-0.8m",
        max_update_kl_token_nats=1e9,
    )


def ppo_rows(
    task: PpoTask,
    peer: PeerSource,
    *,
    batch: int = 64,
    repeats: int = 5,
    root_seed: int = 0,
    device: str = "cpu",
    precision: Precision = "fp32",
) -> list[Row]:
    """A PPO step with the peer's algorithm: 4 epochs, separate value model, KL penalty.

    ``precision`` of the products in training, on both sides.
    """
    cfg = same_algorithm(repeats + WARM_STEPS, batch)
    value = task.value_model(cfg.value_backbone)
    shapes = (task.policy().cfg, value.compact.cfg, task.proxy.model.compact.cfg)
    n_prompt = task.prompts.ids.shape[1]
    products = product_runner(
        ppo_products(*shapes, cfg, n_prompt=n_prompt, n_tokens=task.n_tokens),
        torch_generator(root_seed, "products"),
        device=device,
        dtype=DTYPES[precision],
    )
    run = ppo_run(
        task,
        cfg,
        peer,
        PeerSettings(lr=cfg.lr),
        between=products,
        seed=root_seed,
        device=device,
        precision=precision,
    )
    work = (
        f"{batch} responses x ({n_prompt} + {task.n_tokens}) tokens, 4 epochs, "
        f"1 minibatch, separate value model, KL penalty, {precision}"
    )
    target = TARGET if device == "cpu" else ACCELERATOR_TARGET
    return [_vs_trl(run, work, target), _vs_products(run)]


def _vs_trl(run: PpoRun, work: str, target: float) -> Row:
    return make_row(
        NAMES[0],
        run.ours,
        run.opponent.timed,
        target=target,
        reason=run.opponent.reason,
        note=f"{work}; reference: TRL PPOTrainer, same weights, proxy, prompts and precision",
        details={"peer_versions": run.opponent.versions, "peer_log": run.opponent.done},
    )


def _vs_products(run: PpoRun) -> Row:
    return make_row(
        NAMES[1],
        run.ours,
        run.between,
        against="limit",
        note="reference: the linear maps of rollout, scoring and updates alone; ratio at most 1",
    )


def ppo_products(
    policy: LlamaConfig,
    value: LlamaConfig,
    proxy: LlamaConfig,
    cfg: Settings,
    *,
    n_prompt: int,
    n_tokens: int,
) -> list[Product]:
    """Linear maps of one PPO step: rollout, scores, values, reference, and the updates."""
    whole, read = cfg.batch * (n_prompt + n_tokens), cfg.batch * n_tokens
    out = forward_products(policy, cfg.batch * n_prompt, n_read=cfg.batch, n_logits=cfg.batch)
    # The last sampled token needs no forward pass; its logits come from the one before.
    for p in forward_products(policy, cfg.batch, n_logits=cfg.batch):
        out.append(p._replace(times=p.times * (n_tokens - 1)))
    out += forward_products(proxy, whole, n_read=cfg.batch)
    out += forward_products(value, whole, n_read=read)
    if cfg.kl_coef > 0:  # the reference's log-probs; the old policy's come with the samples
        out += forward_products(policy, whole, n_read=read, n_logits=read)
    whole, read = whole // cfg.minibatches, read // cfg.minibatches
    update = training_products(value, whole, n_read=read)
    update += training_products(policy, whole, n_read=read, n_logits=read)
    n_updates = cfg.ppo_epochs * cfg.minibatches
    return out + [p._replace(times=p.times * n_updates) for p in update]
