"""Any causal language model of transformers as a `overopt.nets.backbone.Backbone`.

The loaders in `overopt.nets.checkpoints` fall back on this class where the compact Llama does not
compute the architecture. It is the trunk of a ``...ForCausalLM`` and, for a policy, its output
embedding; sampling and scoring stay ours, ``generate`` is never called.

What differs on purpose from running the whole model: inputs to ``forward`` are right-padded and
carry no mask (causality hides what comes later), hidden states and logits are separate, so that
logits are computed only where they are needed. Because that is an assumption about somebody else's
code, `HFBackbone.verify` tests it on the loaded weights before anything is sampled.
"""

import inspect
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, DynamicCache, PreTrainedModel

from overopt.base.errors import CheckpointError
from overopt.base.seeding import scoped_torch_seed
from overopt.nets import sources
from overopt.nets.backbone import Backbone
from overopt.nets.block import at_positions

_OWN = ("_token_id", "masked_ids")  # what `HFBackbone` is told beside the model
_AGREE = 1e-3  # largest difference in `verify`, relative to the largest hidden state or logit


@dataclass(frozen=True, kw_only=True)
class BackboneConfig:
    """What the rest of the package needs to know of a network.

    ``eos_token_id`` is -1 where there is no end token: no response ever ends. ``masked_ids``: tokens
    that are given no mass, since the tokenizer lacks them.
    """

    vocab_size: int
    hidden_size: int
    num_hidden_layers: int
    max_position_embeddings: int
    pad_token_id: int
    bos_token_id: int
    eos_token_id: int
    masked_ids: Sequence[int] = ()


class HFBackbone(Backbone):
    """Trunk of a transformers causal LM; call it for hidden states, `logits` for the vocabulary.

    Parameters
    ----------
    model : a ``...ForCausalLM`` in evaluation mode.
    pad_token_id, bos_token_id, eos_token_id : of the tokenizer that goes with it.
    output : keep the output embedding. Reward and value models do without.
    masked_ids : tokens that are given no mass, since the tokenizer lacks them.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        *,
        pad_token_id: int,
        bos_token_id: int,
        eos_token_id: int,
        output: bool = True,
        masked_ids: Sequence[int] = (),
    ) -> None:
        super().__init__()
        self.trunk = cast(PreTrainedModel, model.base_model)
        if self.trunk is model:
            raise CheckpointError(
                f"{type(model).__name__} has no trunk apart from its output layer: not supported"
            )
        head = cast(nn.Module, model.get_output_embeddings())
        names = {id(module): name for name, module in model.named_modules()}
        self._trunk_name, self._output_name = names[id(self.trunk)], names[id(head)]
        self.output = head if output else None
        parameters = inspect.signature(self.trunk.forward).parameters
        self._takes_positions = "position_ids" in parameters
        # Renamed in transformers 5.24, architecture by architecture.
        self._cache_name = "cache" if "cache" in parameters else "past_key_values"
        text: Any = model.config.get_text_config()
        self.cfg: BackboneConfig = BackboneConfig(
            vocab_size=self.embed.weight.shape[0],
            hidden_size=text.hidden_size,
            num_hidden_layers=text.num_hidden_layers,
            max_position_embeddings=getattr(text, "max_position_embeddings", None)
            or sources.UNLIMITED_CONTEXT,
            pad_token_id=pad_token_id,
            bos_token_id=bos_token_id,
            eos_token_id=eos_token_id,
            masked_ids=tuple(masked_ids),
        )
        self.mask(masked_ids, len(cast(Tensor, head.weight)))

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.embed.weight.device

    @property
    def embed(self) -> nn.Embedding:
        """The input embedding."""
        return cast(nn.Embedding, self.trunk.get_input_embeddings())

    def forward(self, input_ids: Tensor, at: Tensor | None = None) -> Tensor:
        """Final hidden states (R, L, D) of right-padded token ids (R, L); (R, T, D) at ``at`` (R, T)."""
        length, context = input_ids.shape[1], self.cfg.max_position_embeddings
        if length > context:
            raise ValueError(
                f"input_ids has {length} tokens a row; the model's context is {context}: use "
                "shorter prompts or responses"
            )
        # All ones and not None: without a mask transformers looks for padding and warns of it.
        mask = torch.ones_like(input_ids)
        out = self.trunk(input_ids=input_ids, attention_mask=mask, use_cache=False)
        hidden = out.last_hidden_state
        return hidden if at is None else at_positions(hidden, at)

    def at_last_token(self, input_ids: Tensor, length: Tensor) -> Tensor:
        """Final hidden states (R, D) at the last real token; ``length`` (R,) real tokens a row."""
        rows = torch.arange(len(length), device=length.device)
        return self(input_ids)[rows, length - 1]

    def logits(self, hidden: Tensor) -> Tensor:
        """Unnormalised log-probabilities (…, V) of the next token, `masked`."""
        return self.masked(self._given(hidden))

    def _given(self, hidden: Tensor) -> Tensor:
        """Logits (…, V) as the checkpoint gives them."""
        if self.output is None:
            raise ValueError("this backbone was loaded without its output layer")
        return self.output(hidden)

    def decoder(self, ids: Tensor, mask: Tensor, row: Tensor, n_tokens: int) -> "HFDecoder":
        """A `HFDecoder` of rows ``row`` (R,) of left-padded prompts (P, L); grows as it needs."""
        return HFDecoder(self, ids, mask, row)

    def transformers_state(self) -> dict[str, Tensor]:
        """Weights under the names of the ``...ForCausalLM``, each tied weight once."""
        parts = [(self._trunk_name, self.trunk), (self._output_name, self.output)]
        seen: set[int] = set()
        state: dict[str, Tensor] = {}
        for prefix, module in parts:
            for name, t in module.state_dict().items() if module is not None else ():
                if t.data_ptr() not in seen:
                    seen.add(t.data_ptr())
                    state[f"{prefix}.{name}"] = t.detach().clone()
        return state

    def spec(self) -> dict[str, Any]:
        """What `from_spec` needs beside the weights, as JSON values."""
        config = json.loads(self.trunk.config.to_json_string(use_diff=False))
        own = {k: v for k, v in asdict(self.cfg).items() if k.endswith(_OWN)}
        return {"config": config, "output": self.output is not None, **own}

    @torch.no_grad()
    def verify(self, model: PreTrainedModel | None = None) -> None:
        """Check on a few tokens that this class computes what the model does.

        1. padding on the right changes nothing in front of it; 2. (``model`` given) logits are
        those of the whole model; 3. (policies) decoding with left padding and a cache gives the
        states of the full forward, also after rows were dropped.

        Raises
        ------
        CheckpointError
            Something differs; says what.
        """
        device = self.device
        ids = ((torch.arange(14, device=device) * 7 + 3) % self.cfg.vocab_size).view(2, 7)
        full = self(ids)
        self._agree(self(ids[:, :4]), full[:, :4], "hidden states depend on later tokens")
        if self.output is None:
            return
        if model is not None:
            mask = torch.ones_like(ids)
            whole = model(input_ids=ids, attention_mask=mask, use_cache=False).logits
            self._agree(self._given(full), whole, "logits are more than an output embedding")
        prompts = torch.stack([ids[0, :4], torch.cat([ids[1, :1] * 0, ids[1, :3]])])
        real = torch.tensor([[True] * 4, [False] + [True] * 3], device=device)
        decoder = self.decoder(prompts, real, torch.tensor([0, 1, 1], device=device), 2)
        hidden = [decoder.hidden[1], decoder.step(ids[[0, 1, 1], [4, 3, 3]])[1]]
        decoder.keep(torch.tensor([1], device=device))
        hidden.append(decoder.step(ids[1, 4:5])[0])
        self._agree(torch.stack(hidden), full[1, 2:5], "left padding or the cache changes states")

    def _agree(self, a: Tensor, b: Tensor, what: str) -> None:
        worst = float((a - b).abs().max() / b.abs().max().clamp_min(1e-30))
        if not worst < _AGREE:
            raise CheckpointError(
                f"{type(self.trunk).__name__}: {what} (relative difference {worst:.2g}); this "
                "architecture cannot be used here: choose a causal decoder with ordinary attention"
            )


class HFDecoder:
    """Rows of one batch under decoding, with transformers' own key-value cache.

    ``hidden`` (R, D): last hidden state of each row.
    """

    @torch.no_grad()
    def __init__(self, backbone: HFBackbone, ids: Tensor, mask: Tensor, row: Tensor) -> None:
        self._backbone = backbone
        self._cache = DynamicCache(config=backbone.trunk.config)
        self._mask = mask.long()
        self._n_real = self._mask.sum(1)
        # Each distinct prompt is read once; its keys and values are then copied to its rows.
        position = (self._mask.cumsum(1) - 1).clamp_min(0)
        self.hidden = self._run(ids, position)
        self.keep(row)

    @torch.no_grad()
    def step(self, token: Tensor) -> Tensor:
        """Append one token to each row, (R,); returns the new hidden states (R, D)."""
        self._mask = torch.cat([self._mask, self._mask.new_ones(len(token), 1)], 1)
        self.hidden = self._run(token[:, None], self._n_real[:, None])
        self._n_real = self._n_real + 1
        return self.hidden

    def keep(self, rows: Tensor) -> None:
        """Replace the rows by those at ``rows`` (R',), in that order."""
        self._cache.batch_select_indices(rows)
        self._mask, self._n_real = self._mask[rows], self._n_real[rows]
        self.hidden = self.hidden[rows]

    def _run(self, ids: Tensor, position: Tensor) -> Tensor:
        extra = {"position_ids": position} if self._backbone._takes_positions else {}
        out = self._backbone.trunk(
            input_ids=ids,
            attention_mask=self._mask,
            use_cache=True,
            **{self._backbone._cache_name: self._cache},
            **extra,
        )
        return out.last_hidden_state[:, -1]


def from_spec(spec: Mapping[str, Any], state: Mapping[str, Tensor]) -> HFBackbone:
    """The backbone that `HFBackbone.spec` and `HFBackbone.transformers_state` describe.

    Raises
    ------
    CheckpointError
        Weights are missing or of another shape.
    """
    # transformers initializes from the global generator; what it draws is overwritten below.
    with scoped_torch_seed(0):
        config = AutoConfig.for_model(**spec["config"])
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    try:
        missing, unknown = model.load_state_dict(dict(state), strict=False)
    except RuntimeError as e:
        raise CheckpointError(f"weights do not fit {type(model).__name__}: {e}") from e
    own = {k: v for k, v in spec.items() if k.endswith(_OWN)}
    backbone = HFBackbone(model, output=spec["output"], **own)
    kept = backbone.transformers_state().keys()
    wrong = [n for n in missing if n in kept] + list(unknown)
    if wrong:
        raise CheckpointError(f"weights do not fit {type(model).__name__}: {wrong[0]!r}")
    return backbone
