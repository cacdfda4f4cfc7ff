"""The text encoders against the transformers classes run plainly, and loading from the meta device."""

from __future__ import annotations

import logging
import time
from typing import Any, TypeAlias

import pytest
import torch
from torch import Tensor

from diffsynth.errors import InvalidRequest
from diffsynth.models.bert_clip.config import BertClipConfig
from diffsynth.models.bert_clip.model import BertClip
from diffsynth.models.mt5.config import MT5Config
from diffsynth.models.mt5.model import MT5Encoder

Encoder: TypeAlias = BertClip | MT5Encoder
KINDS = [BertClip, MT5Encoder]
LENGTHS = (2, 9, 5)  # real tokens of each text


def build(kind: type[Encoder]) -> Encoder:
    torch.manual_seed(0)
    model: Encoder = BertClip(BertClipConfig.tiny()) if kind is BertClip else MT5Encoder(MT5Config.tiny())
    for weight in model.parameters():  # the library starts norms at one, biases at zero: hide nothing behind that
        torch.nn.init.normal_(weight, 0.05 if weight.ndim > 1 else 0.5, 0.2)
    return model.requires_grad_(False)


def tokens(model: Encoder) -> tuple[Tensor, Tensor]:
    """Token ids (3, 9) and their mask, texts of different lengths."""
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(3, model.config.vocab_size, (len(LENGTHS), max(LENGTHS)), generator=generator)
    mask = torch.arange(max(LENGTHS)) < torch.tensor(LENGTHS)[:, None]
    return ids.where(mask, 0), mask


def weights_of(model: Encoder, prefix: str) -> dict[str, Tensor]:
    """The weights under the library's own names."""
    return {name.removeprefix(prefix): weight for name, weight in model.state_dict().items()}


def plain(model: Encoder) -> Any:
    """The transformers class with textbook attention and the weights of ``model``."""
    transformers = pytest.importorskip("transformers")
    ours = model.config
    if isinstance(ours, BertClipConfig):
        config = transformers.BertConfig(
            vocab_size=ours.vocab_size,
            hidden_size=ours.hidden_size,
            num_hidden_layers=ours.num_layers,
            num_attention_heads=2,
            intermediate_size=ours.mlp_size,
            max_position_embeddings=ours.max_positions,
            attn_implementation="eager",
        )
        theirs = transformers.BertModel(config, add_pooling_layer=False)
        theirs.load_state_dict(weights_of(model, "bert."))
    else:
        config = transformers.MT5Config(
            vocab_size=ours.vocab_size,
            d_model=ours.d_model,
            d_kv=ours.d_kv,
            d_ff=ours.d_ff,
            num_layers=ours.num_layers,
            num_heads=ours.num_heads,
            relative_attention_num_buckets=ours.buckets,
            attn_implementation="eager",
        )
        theirs = transformers.MT5EncoderModel(config)
        theirs.load_state_dict(weights_of(model, "t5."))
    return theirs.eval()


def layer_outputs(theirs: Any, ids: Tensor, mask: Tensor) -> tuple[list[Tensor], Tensor]:
    """What each layer puts out, caught on the way, and the final states."""
    caught: list[Tensor] = []
    layers = theirs.encoder.layer if hasattr(theirs.encoder, "layer") else theirs.encoder.block
    for layer in layers:
        layer.register_forward_hook(
            lambda module, given, output: caught.append(output[0] if isinstance(output, tuple) else output)
        )
    final = theirs(input_ids=ids, attention_mask=mask.long()).last_hidden_state
    return caught, final


@pytest.mark.parametrize("kind", KINDS)
def test_equals_the_library_with_textbook_attention(kind: type[Encoder]) -> None:
    model = build(kind)
    ids, mask = tokens(model)

    states = model(ids, mask)

    expected = plain(model)(input_ids=ids, attention_mask=mask.long()).last_hidden_state
    assert states.shape == expected.shape
    torch.testing.assert_close(states, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("clip_skip", [2, 3])
def test_an_earlier_layer_has_mean_and_spread_of_the_last(kind: type[Encoder], clip_skip: int) -> None:
    model = build(kind)
    ids, mask = tokens(model)
    caught, final = layer_outputs(plain(model), ids, mask)

    states = model(ids, mask, clip_skip=clip_skip)

    for row in range(len(LENGTHS)):
        earlier, last = caught[-clip_skip][row], final[row]
        expected = (earlier - earlier.mean()) / earlier.std() * last.std() + last.mean()
        torch.testing.assert_close(states[row], expected, atol=2e-5, rtol=2e-5)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("clip_skip", [1, 2])
def test_a_batch_of_texts_equals_one_at_a_time(kind: type[Encoder], clip_skip: int) -> None:
    model = build(kind)
    ids, mask = tokens(model)

    together = model(ids, mask, clip_skip=clip_skip)
    alone = torch.cat([model(ids[i : i + 1], mask[i : i + 1], clip_skip=clip_skip) for i in range(len(LENGTHS))])

    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_padding_does_not_change_the_real_tokens(kind: type[Encoder]) -> None:
    model = build(kind)
    ids, mask = tokens(model)
    other = ids.where(mask, 7)

    states, changed = model(ids, mask), model(other, mask)

    torch.testing.assert_close(states[mask], changed[mask], atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_weights_assigned_to_a_meta_module_work(kind: type[Encoder], caplog: pytest.LogCaptureFixture) -> None:
    """The road of the loader: build on meta, assign every tensor, call after_load; in silence."""
    model = build(kind)
    ids, mask = tokens(model)
    state = {name: weight.clone() for name, weight in model.state_dict().items()}

    with caplog.at_level(logging.INFO), torch.device("meta"):
        loaded = kind(model.config)  # type: ignore[arg-type]
        loaded.load_state_dict(state, strict=True, assign=True)
        loaded.after_load()

    left = [name for name, tensor in [*loaded.named_parameters(), *loaded.named_buffers()] if tensor.is_meta]
    assert left == []
    assert [name for name, _ in loaded.named_buffers()] == [name for name, _ in model.named_buffers()]
    assert caplog.records == []
    assert torch.equal(loaded.requires_grad_(False)(ids, mask), model(ids, mask))


def test_the_two_names_of_the_embedding_are_one_parameter() -> None:
    """Assigned as two tensors, they become one again, and stay so in another dtype."""
    model = build(MT5Encoder)
    state = {name: weight.clone() for name, weight in model.state_dict().items()}
    with torch.device("meta"):
        loaded = MT5Encoder(MT5Config.tiny())
    loaded.load_state_dict(state, strict=True, assign=True)

    loaded.after_load()

    assert {"t5.shared.weight", "t5.encoder.embed_tokens.weight"} <= state.keys()
    for module in (loaded, loaded.half(), loaded.float()):
        assert module.t5.shared.weight is module.t5.encoder.embed_tokens.weight
        assert len(list(module.parameters())) == len(state) - 1


@pytest.mark.parametrize(
    ("kind", "config", "tensors", "values"),
    [(BertClip, BertClipConfig(), 389, None), (MT5Encoder, MT5Config(), 220, 1_670_000_000)],
    ids=["bert_clip", "mt5"],
)
def test_the_released_sizes_are_built_on_meta_in_no_time(
    kind: type[Encoder], config: Any, tensors: int, values: int | None
) -> None:
    kind(type(config).tiny())  # imports the library
    start = time.process_time()
    with torch.device("meta"):
        model = kind(config)
    seconds = time.process_time() - start

    assert all(weight.is_meta for weight in model.parameters())
    assert len(model.state_dict()) == tensors
    assert seconds < 0.5
    if values is not None:
        assert abs(sum(weight.numel() for weight in model.parameters()) - values) < 1e6


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("clip_skip", [1, 2])
def test_half_precision_is_finite_and_stays_half(kind: type[Encoder], dtype: torch.dtype, clip_skip: int) -> None:
    model = build(kind)
    ids, mask = tokens(model)
    expected = model(ids, mask, clip_skip=clip_skip)

    states = model.to(dtype)(ids, mask, clip_skip=clip_skip)

    assert {weight.dtype for weight in model.parameters()} == {dtype}
    assert states.dtype == dtype
    assert states.isfinite().all()
    assert (states.float() - expected).abs().max() < 0.1 * expected.abs().max()


def test_mt5_in_float16_survives_overflow_inside_a_layer() -> None:
    """Feed-forward outputs past float16's largest number are clamped instead of becoming infinite."""
    model = build(MT5Encoder)
    ids, mask = tokens(model)
    for name, weight in model.named_parameters():
        if name.endswith("wo.weight"):
            weight.mul_(3e4)
    caught, _ = layer_outputs(plain(model), ids, mask)

    states = model.half()(ids, mask)

    assert max(float(layer.detach().abs().max()) for layer in caught) > torch.finfo(torch.float16).max
    assert states.isfinite().all()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("clip_skip", [0, -1, 9])
def test_a_layer_that_does_not_exist_is_refused(kind: type[Encoder], clip_skip: int) -> None:
    model = build(kind)

    with pytest.raises(InvalidRequest, match=rf"clip_skip is {clip_skip}, .* to {model.config.num_layers}"):
        model(*tokens(model), clip_skip=clip_skip)


@pytest.mark.parametrize("kind", KINDS)
def test_training_mode_changes_nothing(kind: type[Encoder]) -> None:
    """There is no dropout, so nobody has to remember eval()."""
    model = build(kind)
    ids, mask = tokens(model)

    assert torch.equal(model.train()(ids, mask), model.eval()(ids, mask))
