"""What ends a run early. Alone in its file: the command line knows it without importing the trainer."""


class TrainingInterrupted(RuntimeError):
    """A run was stopped by a signal. Its state is on the disk."""
