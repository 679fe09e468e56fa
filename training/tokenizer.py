"""The embedded model's tokenizer: byte-level BPE that cuts a name alike in the text and in the reply.

A space before a capital or a digit is a token of its own, and every punctuation mark stands alone. So ``Paris`` in
``to Paris.`` and in ``<Paris>(location)`` are the same tokens, and copying a name needs no second spelling of it.
"""

from collections.abc import Iterable

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

__all__ = ["train_tokenizer"]

PIECES = r" (?=[\p{Lu}\p{Lt}\p{N}])| ?[\p{L}\p{M}]+|\p{N}{1,3}| ?[^\s\p{L}\p{M}\p{N}]|\s"
# Texts hold no "<" once they are in a prompt, so no text can spell one of these.
SPECIAL = {"unk_token": "<|unknown|>", "bos_token": "<|start|>", "eos_token": "<|end|>", "pad_token": "<|padding|>"}


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """A tokenizer of at most ``vocab_size`` tokens, learned from ``texts`` as they stand in prompts."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PIECES), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIAL.values()),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, padding_side="left", clean_up_tokenization_spaces=False, **SPECIAL
    )
