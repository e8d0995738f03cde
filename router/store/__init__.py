"""The registry: tables, reads of whole snapshots, and writes through one thread."""
