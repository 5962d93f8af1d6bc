"""Training: from files of frames to a model file, a log, an error table and a report. Files are imported when used."""
