"""What attends in place of diffusers' own processors: their projections, norms and rotations, then
an operator.

All of it runs through the modules of the library, whatever they are wrapped in (LoRA, offload).
Projected features are (batch, tokens, heads, features) here, as in the library.
"""

import abc
import copy
from collections.abc import Callable
from typing import Any, ClassVar, Literal

import torch
from diffusers.models.embeddings import apply_rotary_emb
from diffusers.models.transformers.transformer_ltx import apply_rotary_emb as apply_rotary_emb_ltx
from jaxtyping import Bool, Float
from torch import Tensor

from ndgpa.integrations.diffusers.grids import KEYWORD, Shape
from ndgpa.integrations.spaces import Space
from ndgpa.operators import Operator
from ndgpa.operators.base import Attends

Features = Float[Tensor, "b n h d"]
Tokens = Float[Tensor, "b n width"]
Text = Float[Tensor, "b t text_width"]
Rotary = tuple[Tensor, Tensor]


class Processor(Attends, abc.ABC):
    """Answer the call of an attention module.

    Args:
        operator: What attends.
        space: Gives the structure of a call.
        replaced: The processor of the library that stood here.
    """

    text: ClassVar[Literal["before", "after", "none"]] = "none"
    replaces: ClassVar[tuple[str, ...]]

    def __init__(self, operator: Operator, space: Space, replaced: Any) -> None:
        self.operator, self.space, self.replaced = operator, space, replaced

    @abc.abstractmethod
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Attend; the arguments and their names are the library's."""

    def attend(
        self,
        query: Features,
        key: Features,
        value: Features,
        grid: Shape | None,
        mask: Tensor | None = None,
    ) -> Float[Tensor, "b n inner"]:
        structure = self.space.of(query.shape[1], grid)
        by_head = (x.transpose(1, 2) for x in (query, key, value))
        out = self.operator(*by_head, structure, key_mask=_key_mask(mask, query))
        return out.transpose(1, 2).flatten(2).to(query.dtype)

    def __deepcopy__(self, memo: dict[int, Any]) -> "Processor":
        """Copy for the copy of a model; the space can serve both."""
        return type(self)(self.operator, self.space, copy.deepcopy(self.replaced, memo))


class Wan(Processor):
    """Attend in Wan's blocks."""

    replaces = ("WanAttnProcessor",)

    def __call__(
        self,
        attn: Any,
        hidden_states: Tokens,
        encoder_hidden_states: Tokens | None = None,
        attention_mask: Tensor | None = None,
        rotary_emb: Rotary | None = None,
    ) -> Tokens:
        query, key, value = _projected(attn, hidden_states)
        query, key = attn.norm_q(query), attn.norm_k(key)
        query, key, value = _by_head(attn, query, key, value)
        query, key = _rotated(_rotate_wan, query, key, rotary_emb)
        out = self.attend(query, key, value, _grid_of(rotary_emb), attention_mask)
        return _to_out(attn, out)


class LTX(Processor):
    """Attend in LTX-Video's blocks."""

    replaces = ("LTXVideoAttnProcessor",)

    def __call__(
        self,
        attn: Any,
        hidden_states: Tokens,
        encoder_hidden_states: Tokens | None = None,
        attention_mask: Tensor | None = None,
        image_rotary_emb: Rotary | None = None,
    ) -> Tokens:
        query, key, value = _projected(attn, hidden_states)
        query, key = attn.norm_q(query), attn.norm_k(key)
        query, key = _rotated(apply_rotary_emb_ltx, query, key, image_rotary_emb)
        query, key, value = _by_head(attn, query, key, value)
        out = self.attend(query, key, value, _grid_of(image_rotary_emb), attention_mask)
        return _to_out(attn, out)


class Hunyuan(Processor):
    """Attend in HunyuanVideo's blocks: the video, then the text, whose padding is masked."""

    text = "after"
    replaces = ("HunyuanVideoAttnProcessor2_0",)

    def __call__(
        self,
        attn: Any,
        hidden_states: Tokens,
        encoder_hidden_states: Text,
        attention_mask: Tensor | None = None,
        image_rotary_emb: Rotary | None = None,
    ) -> tuple[Tokens, Text]:
        video = hidden_states.shape[1]
        query, key, value = self._projected(attn, hidden_states, encoder_hidden_states)
        query, key = (
            torch.cat([_rotate(x[:, :video], image_rotary_emb), x[:, video:]], dim=1)
            for x in (query, key)
        )
        out = self.attend(query, key, value, _grid_of(image_rotary_emb), attention_mask)
        out, text = out[:, :video], out[:, video:]
        if attn.to_out is None:  # a block of one stream projects both itself
            return out, text
        return _to_out(attn, out), attn.to_add_out(text)

    def _projected(self, attn: Any, video: Tokens, text: Text) -> list[Float[Tensor, "b both h d"]]:
        """Project both with the same weights, or each with its own."""
        if attn.add_q_proj is None:
            both = _projected(attn, torch.cat([video, text], dim=1))
            return _normed(attn.norm_q, attn.norm_k, *_by_head(attn, *both))
        of_video = _normed(attn.norm_q, attn.norm_k, *_by_head(attn, *_projected(attn, video)))
        of_text = _normed(
            attn.norm_added_q, attn.norm_added_k, *_by_head(attn, *_added(attn, text))
        )
        return [torch.cat(pair, dim=1) for pair in zip(of_video, of_text)]


class Flux(Processor):
    """Attend in Flux's blocks: the text, then the image."""

    text = "before"
    replaces = ("FluxAttnProcessor",)

    def __call__(
        self,
        attn: Any,
        hidden_states: Tokens,
        encoder_hidden_states: Text | None = None,
        attention_mask: Tensor | None = None,
        image_rotary_emb: Rotary | None = None,
        ndgpa_grid: Shape | None = None,
    ) -> Tokens | tuple[Tokens, Text]:
        parts = _normed(attn.norm_q, attn.norm_k, *_by_head(attn, *_projected(attn, hidden_states)))
        if encoder_hidden_states is not None:
            of_text = _normed(
                attn.norm_added_q,
                attn.norm_added_k,
                *_by_head(attn, *_added(attn, encoder_hidden_states)),
            )
            parts = [torch.cat(pair, dim=1) for pair in zip(of_text, parts)]
        query, key = (_rotate(x, image_rotary_emb) for x in parts[:2])
        out = self.attend(query, key, parts[2], ndgpa_grid, attention_mask)
        if encoder_hidden_states is None:
            return out
        text = encoder_hidden_states.shape[1]
        return _to_out(attn, out[:, text:]), attn.to_add_out(out[:, :text])


class CogVideoX(Processor):
    """Attend in CogVideoX's blocks: the text, then the video."""

    text = "before"
    replaces = ("CogVideoXAttnProcessor2_0", "FusedCogVideoXAttnProcessor2_0")

    def __call__(
        self,
        attn: Any,
        hidden_states: Tokens,
        encoder_hidden_states: Text,
        attention_mask: Tensor | None = None,
        image_rotary_emb: Rotary | None = None,
        ndgpa_grid: Shape | None = None,
    ) -> tuple[Tokens, Text]:
        text = encoder_hidden_states.shape[1]
        both = _projected(attn, torch.cat([encoder_hidden_states, hidden_states], dim=1))
        query, key, value = _normed(attn.norm_q, attn.norm_k, *_by_head(attn, *both))
        query, key = (
            torch.cat([x[:, :text], _rotate(x[:, text:], image_rotary_emb)], dim=1)
            for x in (query, key)
        )
        out = _to_out(attn, self.attend(query, key, value, ndgpa_grid, attention_mask))
        return out[:, text:], out[:, :text]


class Plain(Processor):
    """Attend in the blocks of DiT and of UNets."""

    replaces = ("AttnProcessor2_0", "FusedAttnProcessor2_0")

    def __call__(
        self,
        attn: Any,
        hidden_states: Tokens,
        encoder_hidden_states: Tokens | None = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
        ndgpa_grid: Shape | None = None,
    ) -> Tokens:
        features = _by_head(attn, *_projected(attn, hidden_states))
        query, key, value = _normed(attn.norm_q, attn.norm_k, *features)
        return _to_out(attn, self.attend(query, key, value, ndgpa_grid, attention_mask))


assert KEYWORD in Plain.__call__.__annotations__  # the library passes on the names that it finds


# The arithmetic of the library


def _projected(attn: Any, x: Tokens) -> tuple[Float[Tensor, "b n inner"], ...]:
    if getattr(attn, "fused_projections", False):
        return attn.to_qkv(x).chunk(3, dim=-1)
    return attn.to_q(x), attn.to_k(x), attn.to_v(x)


def _added(attn: Any, text: Text) -> tuple[Float[Tensor, "b t inner"], ...]:
    """Project the text with its own weights."""
    if getattr(attn, "fused_projections", False):
        return attn.to_added_qkv(text).chunk(3, dim=-1)
    return attn.add_q_proj(text), attn.add_k_proj(text), attn.add_v_proj(text)


def _by_head(attn: Any, *xs: Tokens) -> list[Features]:
    return [x.unflatten(2, (attn.heads, -1)) for x in xs]


def _normed(norm_query: Any, norm_key: Any, query: Any, key: Any, value: Any) -> list[Any]:
    """Normalize queries and keys where there are norms."""
    query = query if norm_query is None else norm_query(query)
    return [query, key if norm_key is None else norm_key(key), value]


def _rotated(
    rotate: Callable[[Any, Any], Any], query: Tensor, key: Tensor, rotary: Rotary | None
) -> tuple[Tensor, Tensor]:
    return (query, key) if rotary is None else (rotate(query, rotary), rotate(key, rotary))


def _rotate(x: Any, rotary: Any) -> Any:
    """Rotate where there is a rotation."""
    return x if rotary is None else apply_rotary_emb(x, rotary, sequence_dim=1)


def _rotate_wan(x: Features, rotary: Rotary) -> Features:
    """Turn each pair of neighbouring features by its angle."""
    cos, sin = rotary[0][..., 0::2], rotary[1][..., 1::2]
    even, odd = x.unflatten(-1, (-1, 2)).unbind(dim=-1)
    turned = torch.stack([even * cos - odd * sin, even * sin + odd * cos], dim=-1)
    return turned.flatten(-2).type_as(x)


def _to_out(attn: Any, x: Float[Tensor, "b n inner"]) -> Tokens:
    """Project and drop out."""
    return attn.to_out[1](attn.to_out[0](x))


def _grid_of(rotary: Rotary | None) -> Shape | None:
    return getattr(rotary, "grid", None)


def _key_mask(mask: Tensor | None, query: Features) -> Bool[Tensor, "b n"] | None:
    """Bring the library's masks of padding to one form."""
    if mask is None:
        return None
    if mask.dtype != torch.bool or (mask.ndim == 4 and mask.shape[1:3] != (1, 1)):
        raise NotImplementedError(
            f"the attention mask is {mask.dtype} of shape {tuple(mask.shape)}; GPA takes a mask of "
            "padding, bool of shape (batch, tokens) or (batch, 1, 1, tokens)"
        )
    return mask.view(mask.shape[0], mask.shape[-1]).expand(query.shape[0], -1)
