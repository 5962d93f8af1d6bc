"""Published models of other codes, read into ours. One file per code."""

from equimol.convert.archive import ConversionError, Record, read_archive

__all__ = ["ConversionError", "Record", "read_archive"]
