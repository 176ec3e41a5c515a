"""Text to vectors: lexical (no weights, no download), static, sentence-transformers, any callable, several at once."""

from collections.abc import Callable, Sequence
from pathlib import Path

from numpy.typing import ArrayLike

from eccos_integrations.encoders.base import Encoder
from eccos_integrations.encoders.concatenated import ConcatenatedEncoder
from eccos_integrations.encoders.embedding import CallableEncoder, SentenceTransformerEncoder
from eccos_integrations.encoders.lexical import LexicalEncoder
from eccos_integrations.encoders.static import StaticEncoder
from eccos_integrations.errors import ConfigError

__all__ = [
    "ENCODERS",
    "CallableEncoder",
    "ConcatenatedEncoder",
    "Encoder",
    "EncoderLike",
    "LexicalEncoder",
    "SentenceTransformerEncoder",
    "StaticEncoder",
    "make_encoder",
]

ENCODERS: dict[str, type[Encoder]] = {
    encoder.name: encoder
    for encoder in (LexicalEncoder, StaticEncoder, CallableEncoder, SentenceTransformerEncoder, ConcatenatedEncoder)
}

OneEncoder = str | Path | Encoder | Callable[[list[str]], ArrayLike]
EncoderLike = OneEncoder | Sequence[OneEncoder]


def make_encoder(encoder: EncoderLike) -> Encoder:
    """The encoder a user means.

    Args:
        encoder: `"lexical"`, `"static"`, `"minilm"`, the name or folder of a sentence-transformers model, a function
            from texts to an array, an `Encoder`; or several of them, as a list or as in `"lexical+static"`.

    Raises:
        ConfigError: It is none of these, or not on this machine.
    """
    if isinstance(encoder, Encoder):
        return encoder
    if encoder == LexicalEncoder.name:
        return LexicalEncoder()
    if encoder == StaticEncoder.name:
        return StaticEncoder.cached()
    if isinstance(encoder, str) and "+" in encoder and not Path(encoder).exists():
        return make_encoder([name.strip() for name in encoder.split("+")])
    if isinstance(encoder, str | Path):
        return SentenceTransformerEncoder(encoder)
    if isinstance(encoder, list | tuple):
        return ConcatenatedEncoder([make_encoder(one) for one in encoder])
    if callable(encoder):
        return CallableEncoder(encoder)
    raise ConfigError(
        f"encoder: {type(encoder).__name__} is not a name, a folder, a function, an Encoder or a list of them"
    )
