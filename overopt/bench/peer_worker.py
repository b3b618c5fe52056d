"""One training run of TRL, a step at a time; runs inside TRL's environment, without overopt.

Started by `peers.Peer` with one argument, a JSON object. It answers on standard output with one JSON
object a line, and reads "step" before each step and "finish" after the last; whatever the libraries
print goes to standard error. Seconds are those of this process between two answers, so waiting is
not counted as CPU time.

Jobs have ``precision``, "fp32" or "bf16" (the trainers' own setting), and may have ``site``, a directory
whose packages come first. By ``kind``:

reward
    RewardTrainer. ``model``, ``tokenizer`` (directories), ``pairs`` (JSON file of lists ``chosen_ids``
    and ``rejected_ids``), ``batch``, ``steps``, ``lr``, ``threads``, ``device``, ``out``. Data in the
    given order.
ppo
    PPOTrainer of the last release that had one. ``policy``, ``value``, ``reward``, ``tokenizer``
    (directories), ``reward_bias``, ``prompts`` (JSON file, lists of equal length), ``batch``,
    ``n_tokens``, ``steps``, ``epochs``, ``minibatches``, ``lr``, ``kl_coef``, ``threads``, ``device``,
    ``out``, ``seed``. No token ends a response: all have ``n_tokens``. The policy is saved in ``out``.
"""

import json
import os
import sys
import time
from typing import Any


def main() -> None:
    """Run the job in ``sys.argv[1]``."""
    job = json.loads(sys.argv[1])
    # A private copy of standard output; the name itself goes to standard error from here on.
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    if job.get("site"):
        sys.path.insert(0, job["site"])
    import torch

    torch.set_num_threads(job["threads"])
    {"reward": train_reward, "ppo": train_ppo}[job["kind"]](job, answers)


def answer(answers: Any, **content: Any) -> None:
    """Send one line."""
    answers.write(json.dumps(content) + "\n")
    answers.flush()


def wait_for(word: str) -> None:
    """Wait for ``word``; end the process where the other side has gone."""
    line = sys.stdin.readline()
    if line.strip() != word:
        sys.exit(f"expected {word!r}, got {line!r}")


def make_turns(answers: Any, n_steps: int, device: str) -> Any:
    """A callback that waits for its turn before each step and answers with its seconds."""
    import torch
    import transformers
    import trl

    def now() -> tuple[float, float]:
        if device != "cpu":
            torch.accelerator.synchronize(device)
        return time.process_time(), time.perf_counter()

    class Turns(transformers.TrainerCallback):
        def __init__(self) -> None:
            self.extra: dict[str, Any] = {}

        def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
            versions = {m.__name__: m.__version__ for m in (torch, transformers, trl)}
            answer(answers, ready=versions)
            wait_for("step")
            self.start = now()

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            cpu, wall = (b - a for a, b in zip(self.start, now(), strict=True))
            answer(answers, step={"cpu_s": cpu, "wall_s": wall, **self.extra})
            if state.global_step < n_steps:
                wait_for("step")
            self.start = now()

    return Turns()


def common_arguments(job: dict[str, Any]) -> dict[str, Any]:
    """Trainer arguments of both jobs: nothing saved, nothing reported."""
    return {
        "output_dir": job["out"],
        "learning_rate": job["lr"],
        "bf16": job.get("precision") == "bf16",
        "fp16": False,
        "use_cpu": job["device"] == "cpu",
        "gradient_checkpointing": False,
        "report_to": "none",
        "save_strategy": "no",
        "disable_tqdm": True,
        "seed": job.get("seed", 0),
    }


def load(path: str, head: str) -> Any:
    """The model of a directory, float32; ``head`` "lm" or "scalar"."""
    import torch
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    kind = {"lm": AutoModelForCausalLM, "scalar": AutoModelForSequenceClassification}[head]
    return kind.from_pretrained(path, dtype=torch.float32)


def read_json(path: str) -> Any:
    """Content of a JSON file."""
    with open(path, encoding="utf-8") as file:
        return json.load(file)


def train_reward(job: dict[str, Any], answers: Any) -> None:
    """RewardTrainer on ready-made token ids; the loss of the first step is handed over."""
    from datasets import Dataset
    from transformers import AutoTokenizer
    from trl import RewardConfig, RewardTrainer

    turns = make_turns(answers, job["steps"], job["device"])

    class Watched(RewardTrainer):
        def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
            out = super().compute_loss(*args, **kwargs)
            if "loss" not in turns.extra:
                turns.extra["loss"] = float(out[0] if isinstance(out, tuple) else out)
            return out

    trainer = Watched(
        model=load(job["model"], "scalar"),
        args=RewardConfig(
            **common_arguments(job),
            per_device_train_batch_size=job["batch"],
            max_steps=job["steps"],
            max_length=None,
            train_sampling_strategy="sequential",
            logging_steps=job["steps"],
            center_rewards_coefficient=None,
        ),
        processing_class=AutoTokenizer.from_pretrained(job["tokenizer"]),
        train_dataset=Dataset.from_dict(read_json(job["pairs"])),
        callbacks=[turns],
    )
    trainer.train()
    wait_for("finish")
    answer(answers, done={})


def whole_sequences(generate: Any, width: int) -> Any:
    """``generate``, with an error where a sequence has not ``width`` tokens."""

    def run(*args: Any, **kwargs: Any) -> Any:
        made = generate(*args, **kwargs)
        if made.sequences.shape[1] != width:
            raise RuntimeError(f"sequences of {made.sequences.shape[1]} tokens, not {width}")
        return made

    return run


def train_ppo(job: dict[str, Any], answers: Any) -> None:
    """PPOTrainer with a separate value model; every response has exactly ``n_tokens`` tokens."""
    import torch
    from datasets import Dataset
    from transformers import AutoTokenizer
    from trl.experimental.ppo import PPOConfig, PPOTrainer

    tokenizer = AutoTokenizer.from_pretrained(job["tokenizer"], padding_side="left")
    policy, ref_policy = load(job["policy"], "lm"), load(job["policy"], "lm")
    reward, value = load(job["reward"], "scalar"), load(job["value"], "scalar")
    weight = reward.score.weight
    reward.score = torch.nn.Linear(weight.shape[1], 1)
    with torch.no_grad():
        reward.score.weight.copy_(weight)
        reward.score.bias.fill_(job["reward_bias"])
    for model in (policy, ref_policy):
        model.config.eos_token_id = model.generation_config.eos_token_id = None
    prompts = read_json(job["prompts"])
    turns = make_turns(answers, job["steps"], job["device"])
    policy.generate = whole_sequences(policy.generate, len(prompts[0]) + job["n_tokens"])
    data = Dataset.from_dict({"input_ids": prompts})
    trainer = PPOTrainer(
        args=PPOConfig(
            **common_arguments(job),
            # The whole batch: with accumulation steps TRL would not step after each minibatch.
            per_device_train_batch_size=job["batch"],
            gradient_accumulation_steps=1,
            num_mini_batches=job["minibatches"],
            num_ppo_epochs=job["epochs"],
            total_episodes=job["batch"] * job["steps"],
            response_length=job["n_tokens"],
            temperature=1.0,
            kl_coef=job["kl_coef"],
            kl_estimator="k1",
            stop_token=None,
            missing_eos_penalty=None,
            local_rollout_forward_batch_size=job["batch"],
            num_sample_generations=0,
            eval_strategy="no",
        ),
        processing_class=tokenizer,
        model=policy,
        ref_model=ref_policy,
        reward_model=reward,
        value_model=value,
        train_dataset=data,
        eval_dataset=data.select(range(min(len(data), job["batch"]))),
        callbacks=[turns],
    )
    trainer.train()
    wait_for("finish")
    del policy.generate
    policy.save_pretrained(job["out"])
    last = [entry for entry in trainer.state.log_history if "objective/kl" in entry][-1:]
    answer(answers, done={"log": last, "policy": job["out"]})


if __name__ == "__main__":
    main()
