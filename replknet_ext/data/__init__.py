"""Pictures, labels and folders: what the commands and a training recipe read."""
