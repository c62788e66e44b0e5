"""The models behind generative students: architecture checks, encoders with a new decoder, and LoRA adapters."""

import warnings
from typing import Any

import torch
from transformers import BertConfig, BertLMHeadModel, EncoderDecoderModel, PreTrainedModel, PreTrainedTokenizerBase
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_FOR_MASKED_LM_MAPPING

from retort.config import CausalConfig, LoraConfig, Seq2SeqConfig
from retort.errors import ConfigError
from retort.models.weights import Weights

START = 0
"""Start and padding token id of a new decoder over classes, whose ids follow it."""


def end_of(tokenizer: PreTrainedTokenizerBase) -> int:
    """The id of the token that ends a text. Raises ConfigError if the tokenizer has none."""
    end = tokenizer.eos_token_id if tokenizer.eos_token_id is not None else tokenizer.sep_token_id
    if end is None:
        raise ConfigError("student.model: its tokenizer has no token that ends a text; use another model")
    return int(end)


def loaded(auto: Any, weights: Weights, config: Any, pretrained: bool) -> PreTrainedModel:
    if not pretrained:
        model: PreTrainedModel = auto.from_config(config, trust_remote_code=False)
        return model
    loaded: PreTrainedModel = auto.from_pretrained(
        weights.address,
        revision=weights.revision,
        trust_remote_code=False,
        config=config,
        use_safetensors=True,
        dtype=torch.float32,
    )
    return loaded


def with_new_decoder(
    encoder: PreTrainedModel, layers: int, tokenizer: PreTrainedTokenizerBase, num_classes: int
) -> PreTrainedModel:
    """Adds a randomly initialized decoder of the encoder's width.

    Its vocabulary is the classes, or, if `num_classes` is 0, the tokenizer's; its embeddings then start as a copy of
    the encoder's.
    """
    width = encoder.config.hidden_size
    heads = getattr(encoder.config, "num_attention_heads", None) or max(1, width // 64)
    size = num_classes + START + 1 if num_classes else table_of(encoder).num_embeddings
    start = START if num_classes else _first(tokenizer)
    config = BertConfig(
        vocab_size=size,
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=4 * width,
        max_position_embeddings=1024,
        attention_probs_dropout_prob=0.0,
        is_decoder=True,
        add_cross_attention=True,
        pad_token_id=None if num_classes else tokenizer.pad_token_id,
    )
    decoder = BertLMHeadModel(config)
    if not num_classes:
        table_of(decoder).weight.data.copy_(table_of(encoder).weight.data)
    model = EncoderDecoderModel(encoder=encoder, decoder=decoder)
    model.config.decoder_start_token_id = start
    model.config.pad_token_id = tokenizer.pad_token_id or 0
    return model


def table_of(model: PreTrainedModel) -> torch.nn.Embedding:
    """The model's input embeddings."""
    embeddings = model.get_input_embeddings()
    assert isinstance(embeddings, torch.nn.Embedding)
    return embeddings


def _first(tokenizer: PreTrainedTokenizerBase) -> int:
    """The start token of a new decoder over the tokenizer's vocabulary."""
    for token in (tokenizer.cls_token_id, tokenizer.bos_token_id, tokenizer.pad_token_id):
        if token is not None:
            return int(token)
    return end_of(tokenizer)


def check_architecture(config: Seq2SeqConfig | CausalConfig, model_config: Any) -> None:
    """Raises ConfigError if the model does not fit `config.kind`, naming the kind that does."""
    if model_config.is_encoder_decoder:
        found, right = "an encoder and a decoder", "kind: seq2seq"
    elif type(model_config) in MODEL_FOR_MASKED_LM_MAPPING.keys():  # noqa: SIM118
        found, right = "an encoder only", "kind: token-classification, or seq2seq with decoder_layers"
    elif type(model_config) in MODEL_FOR_CAUSAL_LM_MAPPING.keys():  # noqa: SIM118
        found, right = "a decoder only", "kind: causal"
    else:
        found, right = "none that writes text", "another model"
    wanted = "a decoder only"
    if isinstance(config, Seq2SeqConfig):
        wanted = "an encoder and a decoder" if config.decoder_layers is None else "an encoder only"
        if found == "an encoder and a decoder":
            right = "no decoder_layers"
    if found != wanted:
        raise ConfigError(
            f"student.kind '{config.kind}': '{config.model}' ({model_config.model_type}) is {found}, not {wanted}; use "
            f"{right}"
        )


def vocabulary_size(model_config: Any) -> int:
    size = getattr(model_config, "vocab_size", None) or model_config.decoder.vocab_size
    return int(size)


def check_vocabulary(config: Seq2SeqConfig | CausalConfig, tokenizer: PreTrainedTokenizerBase, size: int) -> None:
    if len(tokenizer) > size:
        raise ConfigError(
            f"student.model = '{config.model}': its tokenizer has {len(tokenizer)} tokens and the model only {size}; "
            "give a folder where both belong together"
        )


def _positions(model_config: Any) -> int | None:
    """The model's maximum number of positions; None for relative positions."""
    parts = [model_config, *(getattr(model_config, name, None) for name in ("encoder", "decoder"))]
    found = [getattr(part, "max_position_embeddings", None) for part in parts if part is not None]
    return min((int(length) for length in found if length), default=None)


def limits_of(
    config: Seq2SeqConfig | CausalConfig, model_config: Any, tokenizer: PreTrainedTokenizerBase
) -> tuple[int | None, int]:
    """Maximum tokens of (a source or prompt, a target); None for a source of any length.

    Raises ConfigError if a decoder-only model has no room for both.
    """
    most, positions = config.max_target_length, _positions(model_config)
    if positions is None:
        return None, most
    positions = min(positions, tokenizer.model_max_length)  # RoBERTa reserves two of its positions
    if config.kind == "seq2seq":
        return positions, min(most, positions)
    if most + 8 > positions:
        raise ConfigError(
            f"student.max_target_length = {most}: '{config.model}' counts {positions} tokens, text and label together; "
            "lower it"
        )
    return positions - most, most


def with_adapters(model: PreTrainedModel, lora: LoraConfig) -> torch.nn.Module:
    """The model with LoRA adapters (arXiv 2106.09685) on all linear layers, which alone are trainable."""
    from peft import LoraConfig as Adapters
    from peft import get_peft_model

    adapters = Adapters(
        r=lora.rank,
        lora_alpha=lora.alpha,  # type: ignore[arg-type]
        lora_dropout=lora.dropout,
        target_modules="all-linear",
        task_type="CAUSAL_LM",
    )
    with warnings.catch_warnings(
        action="ignore", category=FutureWarning
    ):  # peft uses a name that transformers has renamed
        return get_peft_model(model, adapters)
