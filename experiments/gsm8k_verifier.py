"""A verifier of GSM8K solutions, trained on one half of the problems and scored on the other.

2,640 solutions by four models to 660 test problems, each right or wrong; a head on a shipped backbone of
stories, which has never seen a sum. Prediction, written before: within a problem it orders right above
wrong in 0.50 to 0.60 of the pairs, over all problems more, because it sees which model wrote and how
hard a problem is, and not whether a sum is right.

    overopt convert-benchmark gsm8k COPY/grade_school_math/data --out data
    python experiments/gsm8k_verifier.py data/gsm8k_train.jsonl verifier
    overopt eval candidates --model verifier --data data/gsm8k_test.jsonl \\
        model.max_tokens=256 model.cut=start
"""

import sys
from pathlib import Path

import torch

from overopt.base.seeding import torch_generator
from overopt.bench.models import write_reward_model
from overopt.evals.benchmarks import candidates
from overopt.evals.models.classifier import encode
from overopt.nets.checkpoints import load_trunk
from overopt.nets.heads import ScalarHeadModel
from overopt.nets.sources import auto_tokenizer, tokenizer_dir
from overopt.rewards.kinds.outcome import outcome_loss, single_responses
from overopt.rewards.training.train import train_reward_model
from overopt.worlds.rows import as_responses

BACKBONE = "ladder:0.2m"
EPOCHS, LR, BATCH = 3, 1e-3, 32


def main(data: str, out: str) -> None:
    """Train on ``data``, the candidates of one half, and write the classifier ``out``."""
    settings = candidates.Settings()
    rows = candidates.read(settings, [data])
    tokenizer = auto_tokenizer(BACKBONE, tokenizer_dir(BACKBONE))
    model = ScalarHeadModel(load_trunk(BACKBONE))
    model.init_head(torch_generator(0, "gsm8k", "head"))
    context = model.backbone.cfg.max_position_embeddings
    # The end of a text, where the solution is, is kept.
    found = encode(tokenizer, candidates.questions(settings, rows))
    ids = [list(row["input_ids"][-context:]) for row in found]
    gold = torch.tensor([g for row in rows for g in row["gold"]])
    log = train_reward_model(
        model,
        single_responses(as_responses([(row[:1], row[1:]) for row in ids]), gold),
        epochs=EPOCHS,
        lr=LR,
        batch_prompts=BATCH,
        weight_decay=0.01,
        seed=0,
        validate=dict,
        progress=lambda done, total: print(f"{done} of {total}", file=sys.stderr, end="\r"),
        pair_loss=outcome_loss,
    )
    torch.nn.init.zeros_(model.head.bias)  # the layout has none, and it moves no order
    write_reward_model(model, Path(out))
    tokenizer.save_pretrained(out)
    last = log.loss[-log.steps // EPOCHS :]
    print(f"{len(ids)} solutions, loss of the last epoch {sum(last) / len(last):.3f} nats -> {out}")


if __name__ == "__main__":
    main(*sys.argv[1:])
