"""A run folder to one self-contained HTML page: figures, tables, samples."""
