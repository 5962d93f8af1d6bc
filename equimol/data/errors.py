"""The one error of reading, checking and splitting data."""


class DataError(ValueError):
    """A data set that cannot be used as it is.

    The message names the file and the frame ("water.xyz:17", counted from 0), then what is wrong, then what to do.
    """
