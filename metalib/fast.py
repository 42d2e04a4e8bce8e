"""The fast path, in one place: the same numbers, up to rounding, for less work. Nothing else depends on it.

*Packing.* Texts of unlike length are padded to a rectangle. But only in attention does a token meet others; all else,
which is most of the work, is done token by token. So the padding is taken out before the first layer, attention puts it
back for itself, and the result gets it back at the end.

*Word rows.* Half of a small encoder's weights are word embeddings, and a support set needs a few hundred of their
30,000 rows. The others have a gradient of zero and do not move (with SGD, and with Adam where β₁ = 0), so the inner
loop works on a small matrix of the rows that do. On a CPU only.

*Recording.* A GPU computes a small batch faster than Python can ask for it, hundreds of kernels one by one. So the
forward and backward pass of each shape of batch is recorded once, as a CUDA graph, and played back in one call.
"""

import logging
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from metalib.parts import word_table
from metalib.weights import Weights

if TYPE_CHECKING:
    from metalib.models import TokenizedReviews

log = logging.getLogger("metalib")
Tensors = tuple[torch.Tensor, ...]
Passes = Callable[[PreTrainedModel, dict[str, torch.Tensor], float], torch.Tensor]
PACKED = "metalib_packed"
WORTH_IT = 1_000_000  # numbers saved; below, a smaller matrix of words does not pay
MOST = 200  # shapes that are recorded: each keeps some memory
ROOM: ContextVar[int] = ContextVar("room", default=0)  # tokens that a packed batch takes; 0: as many as it has
PARAMETERS: ContextVar[tuple] = ContextVar("parameters", default=(None, ()))  # a model's, while an inner loop runs


@dataclass(frozen=True)
class Padding:
    """Where the tokens of a packed batch stand in the padded one.

    Attributes:
        keep: (rows, longest) where the padded batch holds a token.
        places: (tokens,) the numbers of these places, row by row; behind them, where there is more room than tokens,
            the batch's last place again and again, which then is padding.
    """

    keep: torch.Tensor
    places: torch.Tensor

    def take_out(self, padded: torch.Tensor) -> torch.Tensor:
        """(rows, longest, …) → (1, tokens, …)"""
        return padded.flatten(0, 1).index_select(0, self.places)[None]

    def put_back(self, packed: torch.Tensor) -> torch.Tensor:
        """(1, tokens, …) → (rows, longest, …), zeros between."""
        empty = packed.new_zeros(self.keep.numel(), *packed.shape[2:])
        return empty.index_copy_(0, self.places, packed[0]).unflatten(0, self.keep.shape)


def packed_attention(module: nn.Module, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor,
                     attention_mask: Any, **how: Any) -> tuple[torch.Tensor, None]:  # fmt: skip
    """Attention within each text: (1, heads, tokens, size) → (1, tokens, heads, size), as Transformers calls it."""
    if not isinstance(attention_mask, Padding):  # no text of the batch is shorter than another
        return sdpa_attention_forward(module, query, key, value, attention_mask, **how)
    attend = text_by_text if query.device.type == "cpu" else all_at_once
    return attend(module, (query, key, value), attention_mask, **how), None


def text_by_text(module: nn.Module, qkv: Tensors, padding: Padding, **how: Any) -> torch.Tensor:
    """For a CPU, where no kernel has to be launched: no score is computed that the mask would take away."""
    lengths = padding.keep.sum(dim=1).tolist()
    parts = zip(*(each.split(lengths, dim=2) for each in qkv), strict=True)
    return torch.cat([sdpa_attention_forward(module, *part, None, **how)[0] for part in parts], dim=1)


def all_at_once(module: nn.Module, qkv: Tensors, padding: Padding, **how: Any) -> torch.Tensor:
    """For a GPU: one call for the batch, with its padding."""
    padded = [padding.put_back(each.transpose(1, 2)).transpose(1, 2) for each in qkv]
    return padding.take_out(sdpa_attention_forward(module, *padded, padding.keep[:, None, None, :], **how)[0])


def take_padding_out(stack: nn.Module, given: tuple, named: dict[str, Any]) -> tuple[tuple, dict[str, Any]] | None:
    """Before the first layer; where there is no padding, or another attention, everything stays as it is."""
    mask = named.get("attention_mask")
    if not isinstance(mask, torch.Tensor) or mask.dim() != 2:
        return None
    keep = mask.bool()
    flat, room = keep.flatten(), ROOM.get()
    places = torch.nonzero_static(flat, size=room, fill_value=len(flat) - 1) if room else flat.nonzero()
    padding = Padding(keep, places.flatten())
    named = {**named, "attention_mask": padding}
    if given:
        return (padding.take_out(given[0]), *given[1:]), named
    return given, {**named, "hidden_states": padding.take_out(named["hidden_states"])}


def put_padding_back(stack: nn.Module, given: tuple, named: dict[str, Any], output: Any) -> Any:
    """After the last layer: (rows, longest, hidden) again, as what stands on top of the layers expects it."""
    if isinstance(padding := named.get("attention_mask"), Padding):
        output["last_hidden_state"] = padding.put_back(output["last_hidden_state"])
    return output


def pack(model: PreTrainedModel) -> bool:
    """Let the model's layers compute real tokens only; it returns the same numbers as before, up to rounding.

    Returns:
        False where that cannot be done: the model's attention cannot be exchanged, or two texts of unlike length do
        not get the logits that they had. Then the model stays as it was.
    """
    stacks = [module for module in model.base_model.modules()
              if any(isinstance(child, nn.ModuleList) for child in module.children())]  # fmt: skip
    attention = model.config._attn_implementation
    if len(stacks) != 1 or attention != "sdpa":
        return False
    before = _logits(model)
    hooks = [stacks[0].register_forward_pre_hook(take_padding_out, with_kwargs=True),
             stacks[0].register_forward_hook(put_padding_back, with_kwargs=True)]  # fmt: skip
    try:
        model.set_attn_implementation(PACKED)
        if torch.allclose(_logits(model), before, rtol=1e-4, atol=1e-4):
            return True
    except Exception as error:  # other people's code: whatever it says, the model works without packing
        log.debug("%s is not packed: %s", type(model).__name__, error)
    for hook in hooks:
        hook.remove()
    model.set_attn_implementation(attention)
    return False


@torch.no_grad()
def _logits(model: PreTrainedModel) -> torch.Tensor:
    """Of two short texts of unlike length, in evaluation mode."""
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]], device=model.device)
    was_training = model.training
    model.eval()
    logits = model(input_ids=3 + mask.cumsum(-1), attention_mask=mask).logits
    model.train(was_training)
    return logits


def packed_mask(*, attention_mask: torch.Tensor | None = None, **unused: Any) -> torch.Tensor | None:
    """The mask as it is, or None where there is no padding (which cannot be asked while a GPU records)."""
    if attention_mask is None or (not ROOM.get() and attention_mask.all()):
        return None
    return attention_mask


AttentionInterface.register(PACKED, packed_attention)
AttentionMaskInterface.register(PACKED, packed_mask)


class Moving:
    """What moves in an inner loop: the leaves that its optimiser steps, and the gradients that it needs.

    As a context, it lets the model look its words up in a small matrix (R, hidden) of the rows that the texts need,
    and puts them back into the whole matrix at the end. That is done for large matrices only.

    Args:
        names: the parameters that adapt.
        words: called for the numbers (R,) of the words of the texts, each once; the padding's among them.
    """

    def __init__(self, model: nn.Module, weights: Weights, names: Collection[str],
                 words: Callable[[], torch.Tensor]) -> None:  # fmt: skip
        self.parameters = model, list(model.parameters()) if weights.flat.is_cuda else []  # once: there are hundreds
        name, self.table = word_table(model, names)
        if self.table is not None:
            self.words = words()
            saved = (self.table.num_embeddings - len(self.words)) * self.table.embedding_dim
            if saved < WORTH_IT or weights.flat.is_cuda:  # a recording needs everything to stay in its place
                name, self.table = "", None
        self.leaves = [weights.leaf(place) for place in weights.places(each for each in names if each != name)]
        if self.table is not None:
            self.rows = nn.Parameter(self.table.weight.detach()[self.words])
            self.rows.grad = torch.zeros_like(self.rows)
            self.leaves.append(self.rows)
            self.row_of = torch.zeros(self.table.num_embeddings, dtype=torch.long, device=self.words.device)
            self.row_of[self.words] = torch.arange(len(self.words), device=self.words.device)
            padding = self.table.padding_idx  # whose row gets no gradient
            self.padding = int(self.row_of[padding]) if padding is not None and padding in self.words else None

    def look_up(self, input_ids: torch.Tensor) -> torch.Tensor:
        """(…) word numbers → (…, hidden)"""
        return nn.functional.embedding(self.row_of[input_ids], self.rows, self.padding)

    def __enter__(self) -> "Moving":
        self.token = PARAMETERS.set(self.parameters)
        if self.table is not None:
            self.table.forward = self.look_up  # type: ignore[method-assign, assignment]
        return self

    def __exit__(self, *error: object) -> None:
        PARAMETERS.reset(self.token)
        if self.table is not None:
            del self.table.forward
            self.table.weight.data[self.words] = self.rows.data

    @contextmanager
    def whole(self) -> Iterator[None]:
        """Inside, the whole model stands at the point that the inner loop has reached, and reads any text."""
        self.__exit__()
        try:
            yield
        finally:
            self.__enter__()


class Recorder:
    """A model's forward and backward passes on a GPU, each shape of batch recorded and played back.

    So that shapes recur, texts are padded to a multiple of 32 tokens, and packed batches to one of 128. A shape is
    computed without a recording when it is first met, and recorded when it comes again. Dropout is drawn anew at every
    playback, from the seed that is set then. What cannot be recorded (a model that looks at its numbers, say) is
    computed as ever.
    """

    def __init__(self) -> None:
        self.seen: set[tuple] = set()
        self.recordings: dict[tuple, tuple[torch.cuda.CUDAGraph, dict[str, torch.Tensor], torch.Tensor]] = {}
        self.works = True

    def play(self, passes: Passes, model: PreTrainedModel, reviews: "TokenizedReviews", rows: np.ndarray, share: float,
             parameters: Collection[nn.Parameter]) -> torch.Tensor:  # fmt: skip
        """As `play` below; the parameters are the model's."""
        lengths = reviews.lengths[rows]
        rows = rows[np.argsort(-lengths, kind="stable")]  # the batch's last place is padding, if any is
        longest = min(32 * -(-int(lengths.max()) // 32), int(reviews.lengths.max()))
        room = min(128 * -(-int(lengths.sum()) // 128), len(rows) * longest)
        inputs = reviews.batch(rows, longest)
        places = [(p.data_ptr(), p.requires_grad, 0 if p.grad is None else p.grad.data_ptr()) for p in parameters]
        precision = torch.is_autocast_enabled("cuda") and torch.get_autocast_dtype("cuda")
        key = (passes, len(rows), longest, room, share, model.training, precision, *places)
        token = ROOM.set(room)
        try:
            if key in self.seen and key not in self.recordings and self.works and len(self.recordings) < MOST:
                self.record(key, passes, model, inputs, share)
            self.seen.add(key)
            if key not in self.recordings:
                return passes(model, inputs, share)
        finally:
            ROOM.reset(token)
        graph, given, loss = self.recordings[key]
        for name, tensor in inputs.items():
            given[name].copy_(tensor)
        graph.replay()
        return loss

    def record(self, key: tuple, passes: Passes, model: PreTrainedModel, inputs: dict[str, torch.Tensor],
               share: float) -> None:  # fmt: skip
        """Record the passes over a batch of this shape; nothing is computed yet."""
        graph, given = torch.cuda.CUDAGraph(), {name: tensor.clone() for name, tensor in inputs.items()}
        pool = next(iter(self.recordings.values()))[0].pool() if self.recordings else None
        try:
            with torch.cuda.stream(torch.cuda.current_stream()), torch.cuda.graph(graph, pool=pool):
                loss = passes(model, given, share)
            self.recordings[key] = graph, given, loss
        except Exception as error:  # other people's code again
            self.works = False
            for generator in torch.cuda.default_generators:  # a recording that failed leaves them unusable
                generator.graphsafe_set_state(generator.clone_state())
            for recorder in (self, *RECORDERS.values()):  # they draw from the generators as these were
                recorder.recordings.clear()
            log.info("%s is not recorded: %s", type(model).__name__, error)


RECORDERS: WeakKeyDictionary[nn.Module, Recorder] = WeakKeyDictionary()


def play(passes: Passes, model: PreTrainedModel, reviews: "TokenizedReviews", rows: np.ndarray,
         share: float) -> torch.Tensor:  # fmt: skip
    """`passes(model, batch, share)` for the batch of some rows; on a GPU recorded, and played back.

    What it does must follow from shapes alone; it adds to the parameters' `grad` and returns a tensor.
    """
    if reviews.device.type == "cuda":
        whose, known = PARAMETERS.get()
        parameters = known if whose is model else list(model.parameters())
        if all(p.grad is not None for p in parameters if p.requires_grad):
            return RECORDERS.setdefault(model, Recorder()).play(passes, model, reviews, rows, share, parameters)
    return passes(model, reviews.batch(rows), share)
