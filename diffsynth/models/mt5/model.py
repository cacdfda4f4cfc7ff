"""The multilingual T5 encoder: a thin face on the T5 of the transformers library."""

from __future__ import annotations

from torch import Tensor, nn

from diffsynth.models.mt5.config import MT5Config
from diffsynth.nn.text_encoder import check_clip_skip, earlier_layer


class MT5Encoder(nn.Module):
    """Encoder half of mT5 (arXiv 2010.11934): gated GELU, relative positions, RMS norms, no biases.

    In float16, infinities between the layers become large finite numbers, as the library does.
    """

    def __init__(self, config: MT5Config) -> None:
        super().__init__()
        from transformers import T5Config, T5EncoderModel  # slow to import, and not every pipeline needs it

        self.config = config
        self.t5 = T5EncoderModel(
            T5Config(
                vocab_size=config.vocab_size,
                d_model=config.d_model,
                d_kv=config.d_kv,
                d_ff=config.d_ff,
                num_layers=config.num_layers,
                num_heads=config.num_heads,
                relative_attention_num_buckets=config.buckets,
                relative_attention_max_distance=config.max_distance,
                layer_norm_epsilon=1e-6,
                feed_forward_proj="gated-gelu",
                dropout_rate=0.0,  # the encoder is never trained here
                attn_implementation="sdpa",
            )
        )

    def forward(self, token_ids: Tensor, mask: Tensor, *, clip_skip: int = 1) -> Tensor:
        """Encode texts.

        Args:
            token_ids: (B, L) int64.
            mask: (B, L) bool, True for a real token; no row may be all False.
            clip_skip: the layer to take, counted from the end: 1 is the last, after the final norm. An earlier
                one is taken before that norm and brought to the mean and spread of the last, each row by
                itself (see `earlier_layer`).

        Returns:
            (B, L, d_model), in the weights' dtype.

        Raises:
            InvalidRequest: if there is no such layer.
        """
        check_clip_skip(clip_skip, self.config.num_layers)
        output = self.t5(input_ids=token_ids, attention_mask=mask, output_hidden_states=clip_skip > 1)
        return earlier_layer(output.hidden_states or [output.last_hidden_state], clip_skip)

    def after_load(self) -> None:
        """Make the embedding's two names one parameter again, after weights were assigned to each."""
        self.t5.tie_weights()
