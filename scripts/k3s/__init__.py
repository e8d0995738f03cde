"""llm-d in a Kubernetes of one machine: `make k3s-up`, `k3s-down`, `k3s-status` and `k3s-doctor`."""
