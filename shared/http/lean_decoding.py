"""Answers that come compressed although nobody asked for it: some servers do not look."""

from __future__ import annotations

import zlib

from shared.http.errors import UpstreamFailed, UpstreamInterrupted

_CODINGS = frozenset({b"gzip", b"x-gzip", b"deflate"})
_EITHER_HEADER = 32 + zlib.MAX_WBITS
# A small answer may claim to be a huge one: it is unpacked in pieces, as its reader takes them.
_PIECE_BYTES = 256 * 1024
_BROKEN = "The upstream's compressed answer is broken."


class Decoder:
    """Unpacks one body."""

    def __init__(self, coding: bytes) -> None:
        """Take the value of `content-encoding`.

        Raises:
            UpstreamFailed: it is not gzip or deflate.
        """
        if coding.strip().lower() not in _CODINGS:
            raise UpstreamFailed("The upstream's answer is compressed, which was not asked for.")
        self._inflater = zlib.decompressobj(_EITHER_HEADER)
        self._is_begun = False

    @property
    def has_more(self) -> bool:
        """Tell whether what was fed gives another piece."""
        return bool(self._inflater.unconsumed_tail)

    def feed(self, data: bytes) -> bytes:
        """Return the next piece, maybe empty; `data` may be given once there is no more.

        Raises:
            UpstreamInterrupted: the body is not what it says.
        """
        self._is_begun = True
        inflater = self._inflater
        if inflater.eof and data:  # it would keep whatever comes
            raise UpstreamInterrupted(_BROKEN)
        try:
            piece = inflater.decompress(inflater.unconsumed_tail + data, _PIECE_BYTES)
        except zlib.error as exc:
            raise UpstreamInterrupted(_BROKEN) from exc
        if inflater.unused_data:
            raise UpstreamInterrupted(_BROKEN)
        return piece

    def last(self) -> bytes:
        """Return what is left once the body has ended: a piece, or `b""` after the last.

        Raises:
            UpstreamInterrupted: the body is not whole.
        """
        if not self._is_begun or self._inflater.eof:
            return b""
        piece = self.feed(b"")
        if not piece and not self._inflater.eof:
            raise UpstreamInterrupted("The upstream broke off its answer.")
        return piece
