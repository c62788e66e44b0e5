"""A BERT and a Llama of 32 dimensions with random weights, for benchmarks of all but the model."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

_MARKS = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
_SIZES = {"hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 64, "max_position_embeddings": 64}


def write_encoder(folder: Path, pieces: Iterable[str], layers: int) -> None:
    """`pieces` are the words that its tokenizer knows, and the parts of words, which begin with ##."""
    import torch
    from tokenizers import processors
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    tokenizer = _tokenizer(pieces)
    ends = [(mark, tokenizer.token_to_id(mark)) for mark in ("[CLS]", "[SEP]")]
    tokenizer.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=ends)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **_MARKS).save_pretrained(folder)
    torch.manual_seed(0)
    config = BertConfig(vocab_size=tokenizer.get_vocab_size(), num_hidden_layers=layers, **_SIZES)
    BertModel(config).save_pretrained(folder)


def write_decoder(folder: Path, pieces: Iterable[str], layers: int) -> None:
    """See `write_encoder`. A prompt and a label end with [SEP]."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    tokenizer = _tokenizer(pieces)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="[SEP]", **_MARKS).save_pretrained(folder)
    torch.manual_seed(0)
    ends = {"pad_token_id": 0, "bos_token_id": None, "eos_token_id": tokenizer.token_to_id("[SEP]")}
    config = LlamaConfig(vocab_size=tokenizer.get_vocab_size(), num_hidden_layers=layers, **_SIZES, **ends)
    LlamaForCausalLM(config).save_pretrained(folder)


def _tokenizer(pieces: Iterable[str]) -> Any:
    from tokenizers import Tokenizer, models, pre_tokenizers

    vocabulary = {piece: index for index, piece in enumerate([*_MARKS.values(), *pieces])}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return tokenizer
