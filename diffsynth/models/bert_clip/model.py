"""The bilingual CLIP text encoder: a thin face on the BERT of the transformers library."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from diffsynth.models.bert_clip.config import BertClipConfig
from diffsynth.nn.text_encoder import check_clip_skip, copy_buffers, earlier_layer


class BertClip(nn.Module):
    """BERT text tower (arXiv 1810.04805) of a CLIP trained on Chinese and English; no pooling, no projection."""

    def __init__(self, config: BertClipConfig) -> None:
        super().__init__()
        from transformers import BertConfig, BertModel  # slow to import, and not every pipeline needs it

        self.config = config
        self.bert = BertModel(
            BertConfig(
                vocab_size=config.vocab_size,
                hidden_size=config.hidden_size,
                num_hidden_layers=config.num_layers,
                num_attention_heads=config.num_heads,
                intermediate_size=config.mlp_size,
                max_position_embeddings=config.max_positions,
                type_vocab_size=config.token_types,
                hidden_act="gelu",
                layer_norm_eps=1e-12,
                hidden_dropout_prob=0.0,  # the encoder is never trained here
                attention_probs_dropout_prob=0.0,
                attn_implementation="sdpa",
            ),
            add_pooling_layer=False,
        )

    def forward(self, token_ids: Tensor, mask: Tensor, *, clip_skip: int = 1) -> Tensor:
        """Encode texts.

        Args:
            token_ids: (B, L) int64, L at most ``config.max_positions``.
            mask: (B, L) bool, True for a real token; no row may be all False.
            clip_skip: the layer to take, counted from the end: 1 is the last. An earlier layer is brought
                to the mean and spread of the last, each row by itself (see `earlier_layer`).

        Returns:
            (B, L, hidden_size), in the weights' dtype.

        Raises:
            InvalidRequest: if there is no such layer.
        """
        check_clip_skip(clip_skip, self.config.num_layers)
        output = self.bert(input_ids=token_ids, attention_mask=mask, output_hidden_states=clip_skip > 1)
        return earlier_layer(output.hidden_states or [output.last_hidden_state], clip_skip)

    def after_load(self) -> None:
        """Rebuild what no file holds, after weights were assigned to a module made on the meta device.

        The library's position and token type numbers are such: they come from a small encoder
        that it builds itself, so we need not know what they are.
        """
        with torch.device("cpu"):
            twin = BertClip(replace(self.config, num_layers=1, vocab_size=1, mlp_size=1))
        copy_buffers(twin, self, next(self.parameters()).device)
