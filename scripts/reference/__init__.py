"""The reference pages that are made from code."""
