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
pairs
    DPOTrainer. ``policy``, ``ref``, ``tokenizer`` (directories), ``pairs`` (JSON file of lists
    ``prompt_ids``, ``chosen_ids`` and ``rejected_ids``), ``batch`` (pairs), ``loss``, ``beta``,
    ``steps``, ``lr``, ``threads``, ``device``, ``out``, ``seed``. Data in the given order.
group
    GRPOTrainer or RLOOTrainer, by ``method``. ``policy``, ``ref``, ``reward``, ``tokenizer``
    (directories), ``reward_bias``, ``prompts`` (JSON file, lists of equal length), ``given`` (JSON
    file of the batch whose loss is handed over: ``prompts``, indices, ``completions``,
    ``rewards``), ``batch`` (responses), ``group``, ``n_tokens``, ``kl_coef``, ``steps``, ``lr``,
    ``threads``, ``device``, ``out``, ``seed``. No token ends a response: all have ``n_tokens``.
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
    jobs = {"reward": train_reward, "ppo": train_ppo, "pairs": train_pairs, "group": train_groups}
    jobs[job["kind"]](job, answers)


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


def arguments_on_tokens(job: dict[str, Any]) -> dict[str, Any]:
    """The same of jobs on ready-made tokens, which are read in their order and never cut."""
    return common_arguments(job) | {
        "per_device_train_batch_size": job["batch"],
        "max_steps": job["steps"],
        "max_length": None,
        "train_sampling_strategy": "sequential",
        "logging_steps": job["steps"],
    }


def train_to_the_end(trainer: Any, answers: Any) -> None:
    """All steps, in turn with the other side; nothing is handed over in the end."""
    trainer.train()
    wait_for("finish")
    answer(answers, done={})


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


def with_first_loss(trainer: type, turns: Any) -> type:
    """``trainer``, which hands over the loss of its first step."""

    class Watched(trainer):
        def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
            out = super().compute_loss(*args, **kwargs)
            if "loss" not in turns.extra:
                turns.extra["loss"] = float(out[0] if isinstance(out, tuple) else out)
            return out

        def _prepare_dataset(self, dataset: Any, *args: Any, **kwargs: Any) -> Any:
            if "prompt_ids" in dataset.column_names:  # tokens, not text
                return dataset
            return super()._prepare_dataset(dataset, *args, **kwargs)

    return Watched


def train_reward(job: dict[str, Any], answers: Any) -> None:
    """RewardTrainer on ready-made token ids; the loss of the first step is handed over."""
    from datasets import Dataset
    from transformers import AutoTokenizer
    from trl import RewardConfig, RewardTrainer

    turns = make_turns(answers, job["steps"], job["device"])
    trainer = with_first_loss(RewardTrainer, turns)(
        model=load(job["model"], "scalar"),
        args=RewardConfig(
            **arguments_on_tokens(job),
            center_rewards_coefficient=None,
        ),
        processing_class=AutoTokenizer.from_pretrained(job["tokenizer"]),
        train_dataset=Dataset.from_dict(read_json(job["pairs"])),
        callbacks=[turns],
    )
    train_to_the_end(trainer, answers)


def train_pairs(job: dict[str, Any], answers: Any) -> None:
    """DPOTrainer on ready-made token ids; the loss of the first step is handed over."""
    from datasets import Dataset
    from transformers import AutoTokenizer
    from trl import DPOConfig, DPOTrainer

    turns = make_turns(answers, job["steps"], job["device"])
    trainer = with_first_loss(DPOTrainer, turns)(
        model=load(job["policy"], "lm"),
        ref_model=load(job["ref"], "lm"),
        args=DPOConfig(
            **arguments_on_tokens(job),
            loss_type=[job["loss"]],
            beta=job["beta"],
        ),
        processing_class=AutoTokenizer.from_pretrained(job["tokenizer"]),
        train_dataset=Dataset.from_dict(read_json(job["pairs"])),
        callbacks=[turns],
    )
    train_to_the_end(trainer, answers)


def train_groups(job: dict[str, Any], answers: Any) -> None:
    """GRPOTrainer or RLOOTrainer; loss and gradient of the given batch are handed over.

    Prompts are named by their number: their tokens come from the file, not from text.
    """
    from datasets import Dataset
    from transformers import AutoTokenizer
    from trl import GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer

    is_grpo = job["method"] == "grpo"
    base, config = (GRPOTrainer, GRPOConfig) if is_grpo else (RLOOTrainer, RLOOConfig)
    own = {"loss_type": "grpo", "scale_rewards": "group"} if is_grpo else {}
    prompts = read_json(job["prompts"])
    policy, scorer = load(job["policy"], "lm"), load(job["reward"], "scalar").eval()
    policy.config.eos_token_id = policy.generation_config.eos_token_id = None
    turns = make_turns(answers, job["steps"], job["device"])
    trainer: Any = numbered(base, prompts)(
        model=policy,
        reward_funcs=lambda **batch: rewards(trainer, scorer, job, **batch),
        args=config(
            **common_arguments(job),
            **own,
            per_device_train_batch_size=job["batch"],
            steps_per_generation=1,
            num_generations=job["group"],
            max_completion_length=job["n_tokens"],
            max_steps=job["steps"],
            logging_steps=job["steps"],
            temperature=1.0,
            beta=job["kl_coef"],
        ),
        processing_class=AutoTokenizer.from_pretrained(job["tokenizer"], padding_side="left"),
        train_dataset=Dataset.from_dict({"prompt": [str(i) for i in range(len(prompts))]}),
        callbacks=[turns],
    )
    scorer.to(trainer.accelerator.device)
    trainer.ref_model.load_state_dict(load(job["ref"], "lm").state_dict())
    trainer.eos_token_ids = [-1]
    trainer.generation_config.eos_token_id = trainer.generation_kwargs["eos_token_id"] = None
    turns.extra |= given_batch(trainer, read_json(job["given"]))
    train_to_the_end(trainer, answers)


def numbered(base: type, prompts: list[list[int]]) -> type:
    """``base``, to which prompts are numbers of ``prompts``, and which may be given its responses."""

    class Numbered(base):
        given: Any = None

        def _tokenize_prompts(self, texts: list[str]) -> Any:
            return [prompts[int(text)] for text in texts], None, {}

        def _generate_single_turn(self, *args: Any, **kwargs: Any) -> Any:
            if self.given is None:
                return super()._generate_single_turn(*args, **kwargs)
            tokens = self.given["completions"]
            return (tokens, None) if base.__name__ == "GRPOTrainer" else tokens

    return Numbered


def rewards(
    trainer: Any, scorer: Any, job: dict[str, Any], prompts: Any, completion_ids: Any, **_: Any
) -> list[float]:
    """What is given, or the scores of responses of ``n_tokens`` tokens each at their last token."""
    import torch

    if trainer.given is not None:
        return trainer.given["rewards"]
    if any(len(ids) != job["n_tokens"] for ids in completion_ids):
        raise RuntimeError(f"a response has not {job['n_tokens']} tokens")
    start, _, _ = trainer._tokenize_prompts(prompts)
    ids = torch.tensor([a + b for a, b in zip(start, completion_ids, strict=True)])
    with torch.no_grad():
        hidden = scorer.model(input_ids=ids.to(scorer.device)).last_hidden_state[:, -1]
        return (scorer.score(hidden)[:, 0] + job["reward_bias"]).tolist()


def given_batch(trainer: Any, given: dict[str, Any]) -> dict[str, float]:
    """Loss of a batch that is given, and the norm of its gradient.

    GRPO: its responses are those of the reference, so that ratios are not 1 and some are clipped.
    """
    import torch

    trainer.given = given
    trainer.model.train()
    trainer.current_gradient_accumulation_steps = 1
    inputs = trainer._generate_and_score_completions([{"prompt": str(i)} for i in given["prompts"]])
    if "ref_per_token_logps" in inputs:
        inputs["old_per_token_logps"] = inputs["ref_per_token_logps"]
    loss = trainer._compute_loss(trainer.model, inputs)
    loss.backward()
    gradients = [p.grad for p in trainer.model.parameters() if p.grad is not None]
    norm = torch.linalg.vector_norm(torch.stack([g.norm() for g in gradients]))
    trainer.model.zero_grad()
    trainer.given = None
    return {"loss": float(loss), "gradient_norm": float(norm)}


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
