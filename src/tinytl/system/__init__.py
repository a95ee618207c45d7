"""The machine below Python: files, processes, threads."""
