"""What every network of this package that reads tokens can do: `Backbone`.

Policies, references, and the trunks of reward and value models are of this type. There are two: the
compact `overopt.nets.llama.Llama`, and `overopt.nets.hf.HFBackbone` around any causal language model of
transformers. Only what one of them alone can do, such as decoding in lanes, asks for its class.

It is a class and no ``typing.Protocol``, since whoever takes one also trains, copies and saves it as the
``nn.Module`` that it is, which a protocol cannot say.
"""

from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor, nn

from overopt.base.datatypes import Responses

MASKED = -1e30
"""Logit of a token without mass. Its exponential is 0, and unlike with -inf so is 0 times it."""


class Decoder(Protocol):
    """State of R rows that grow by one token a row at a time.

    hidden (R, D): last hidden state of each row, from which `Backbone.logits` gives the distribution
    of its next token. It stays valid until the next `step`.
    """

    hidden: Tensor

    def step(self, token: Tensor) -> Tensor:
        """Append one token a row, (R,) int64; returns the new ``hidden``."""
        ...

    def keep(self, rows: Tensor) -> None:
        """Drop all other rows: row i becomes what row ``rows[i]`` was, ``hidden`` included."""
        ...


class PolicyShape(Protocol):
    """What the sampler must know of a model, under transformers' names."""

    @property
    def max_position_embeddings(self) -> int:
        """Longest sequence, prompt and response together, in tokens."""
        ...

    @property
    def pad_token_id(self) -> int:
        """Stands behind the end of a response; never looked at."""
        ...

    @property
    def bos_token_id(self) -> int:
        """What a prompt without words consists of."""
        ...

    @property
    def eos_token_id(self) -> int:
        """Ends a response; -1 where nothing does."""
        ...


class BackboneShape(PolicyShape, Protocol):
    """What the rest of the package must know of a network, under transformers' names."""

    @property
    def vocab_size(self) -> int:
        """V, the tokens that `Backbone.logits` tells apart."""
        ...

    @property
    def hidden_size(self) -> int:
        """D, the width of a hidden state."""
        ...

    @property
    def num_hidden_layers(self) -> int:
        """Blocks."""
        ...

    @property
    def masked_ids(self) -> Sequence[int]:
        """Tokens that the tokenizer lacks: `Backbone.logits` gives them no mass."""
        ...


class Backbone(nn.Module):
    """A causal network over tokens; call it for hidden states, `logits` maps them to the vocabulary.

    cfg : its shape. reader : of a scorer whose tokenizer is not the policy's, gives responses in the
    scorer's own tokens; else None.
    """

    cfg: BackboneShape

    def __init__(self) -> None:
        super().__init__()
        self.reader: Callable[[Responses], Responses] | None = None
        self._masked: Tensor | None
        self.register_buffer("_masked", None, persistent=False)

    def mask(self, ids: Sequence[int], n_vocab: int) -> None:
        """Take all mass from the tokens ``ids`` of ``n_vocab``: `masked` does it to logits."""
        if ids:
            self._masked = torch.zeros(n_vocab, dtype=torch.bool)
            self._masked[list(ids)] = True

    def masked(self, logits: Tensor) -> Tensor:
        """``logits`` (…, V), which are changed, without mass where the tokenizer has no token."""
        return logits if self._masked is None else logits.masked_fill_(self._masked, MASKED)

    @property
    def logit_mask(self) -> Tensor | None:
        """What is added to logits (V,) to mask them; None where nothing is masked."""
        if self._masked is None:
            return None
        return self.masked(torch.zeros(len(self._masked), device=self._masked.device))

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        raise NotImplementedError

    def forward(self, input_ids: Tensor, at: Tensor | None = None) -> Tensor:
        """Final hidden states (R, L, D) of right-padded token ids (R, L); (R, T, D) at ``at`` (R, T).

        Raises
        ------
        ValueError
            Rows are longer than the context.
        """
        raise NotImplementedError

    def at_last_token(self, input_ids: Tensor, length: Tensor) -> Tensor:
        """Final hidden states (R, D) at the last real token; ``length`` (R,) real tokens a row."""
        raise NotImplementedError

    def logits(self, hidden: Tensor) -> Tensor:
        """Unnormalised log-probabilities (…, V) of the next token, `masked`, a new tensor."""
        raise NotImplementedError

    def decoder(self, ids: Tensor, mask: Tensor, row: Tensor, n_tokens: int) -> Decoder:
        """Compute P distinct prompts and continue each in any number of rows.

        ids, mask (P, L), left-padded, at least one real token each; row (R,) the prompt of each
        row, ascending; n_tokens: steps that will follow at most. All on the model's device.
        """
        raise NotImplementedError
