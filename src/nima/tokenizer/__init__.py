"""Text to token ids and back: learnt, pretrained, checked, saved."""

from nima.tokenizer.gate import gate
from nima.tokenizer.tokenizer import Tokenizer, tokenizer_of

__all__ = ["Tokenizer", "gate", "tokenizer_of"]
