"""Fit the shipped gold reward model to the preset `extremal` of the rubric and freeze it.

    python experiments/ladder/make_gold.py OUT_DIR [--backbone 3m] [--prompts 1400] [--device cuda]

Prints how well it ranks held-out pairs of the initial policy and of tilted policies, and how its
score follows the rubric's beyond the sweet spot.
"""

import argparse
import json
import time
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

from overopt.base.seeding import derive_seed, torch_generator
from overopt.nets.checkpoints import load_lm
from overopt.nets.heads import ScalarHeadModel
from overopt.nets.layout import to_transformers_state
from overopt.nets.sampling import sample
from overopt.nets.sources import ladder_dir
from overopt.rewards.kinds.rubric import RubricScorer
from overopt.rewards.scorer import mean_std, raw_scores
from overopt.rewards.training.tilted import sample_tilted, soft_pairs
from overopt.rewards.training.train import train_reward_model
from overopt.worlds.prompts import load_openings
from overopt.worlds.rubric import PRESETS
from overopt.worlds.stories import StoriesWorld
from overopt.worlds.tokenizers import load_tokenizer


def main() -> None:
    """Sample, label, fit, report, save."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--backbone", default="3m", help="rung under the head")
    parser.add_argument("--prompts", type=int, default=1400)
    parser.add_argument("--copies", type=int, default=12)
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--lr", type=float, default=4e-4)
    parser.add_argument("--ladder", type=Path, help="directory of the rungs, default the shipped")
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    torch.set_num_threads(1)
    started = time.time()
    world = StoriesWorld(tuple(load_openings()), load_tokenizer(), PRESETS["extremal"])
    ladder = args.ladder or ladder_dir()
    policy = load_lm(str(ladder / "policy-0.8m")).to(args.device)
    base = sample(
        policy,
        world.prompts("validation", 400),
        n_tokens=48,
        seed=derive_seed(0, "calibration"),
        copies=5,
    )
    spec = world.calibrate(base)
    scorer = RubricScorer(spec, world)
    prompts = world.prompts("gold", args.prompts)
    train = sample_tilted(
        policy,
        prompts,
        world,
        copies=args.copies,
        n_tokens=48,
        seed=derive_seed(0, "gold"),
    )
    held = world.prompts("eval", 60)
    test = sample_tilted(policy, held, world, copies=12, n_tokens=48, seed=derive_seed(0, "t"))
    plain = sample(policy, held, n_tokens=48, seed=derive_seed(0, "u"), copies=12)
    print(f"sampled {len(train)} in {time.time() - started:.0f} s", flush=True)
    model = ScalarHeadModel(load_lm(str(ladder / args.backbone)))
    model.init_head(torch_generator(0, "gold", "head"))
    model.to(args.device)
    pairs = soft_pairs(train, scorer.score(train), copies=args.copies, pairs_per_prompt=30, seed=1)

    def validate() -> dict[str, float]:
        report = {}
        for name, part in (("tilted", test), ("plain", plain)):
            s, r = raw_scores(model, part).view(60, 12), scorer.score(part).view(60, 12)
            ds, dr = s[:, :, None] - s[:, None], r[:, :, None] - r[:, None]
            apart = dr.abs() > 1e-9
            report[f"{name}_accuracy"] = float((ds.sign() == dr.sign())[apart].float().mean())
            report[f"{name}_correlation"] = float(np.corrcoef(s.flatten(), r.flatten())[0, 1])
        return report

    def progress(done: int, total: int) -> None:
        if done % 20 == 0:
            print(f"step {done}/{total} {time.time() - started:.0f} s", flush=True)

    log = train_reward_model(
        model,
        pairs,
        epochs=args.epochs,
        lr=args.lr,
        batch_prompts=8,
        weight_decay=0.01,
        seed=derive_seed(0, "gold", "order"),
        validate=validate,
        progress=progress,
    )
    mean, std = mean_std(raw_scores(model, base))
    info = {
        "backbone": f"ladder:{args.backbone}",
        "n_responses": len(train),
        "n_pairs": len(pairs.first),
        "loss": log.loss[::10],
        "validation": log.validation,
        "wall_s": round(time.time() - started),
        "rubric": spec,
    }
    print(json.dumps({k: v for k, v in info.items() if k != "loss"}))
    args.out.mkdir(parents=True, exist_ok=True)
    config = model.backbone.cfg.to_transformers() | {"overopt_score": {"mean": mean, "std": std}}
    (args.out / "config.json").write_text(json.dumps(config, indent=1) + "\n")
    (args.out / "training.json").write_text(json.dumps(info, indent=1) + "\n")
    model.cpu()
    state = to_transformers_state(model.backbone) | {
        "score.weight": model.head.weight.detach(),
        "score.bias": model.head.bias.detach(),
    }
    save_file({k: v.half().contiguous() for k, v in state.items()}, args.out / "model.safetensors")


if __name__ == "__main__":
    main()
