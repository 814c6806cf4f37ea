"""Replies, verdicts, rates."""
