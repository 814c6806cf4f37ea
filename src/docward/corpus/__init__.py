"""The starter documents, as data."""
