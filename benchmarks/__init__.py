"""The data plane measured on one machine: `make bench`. How to read it: docs/performance.md."""
