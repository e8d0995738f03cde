"""What the agent knows of the machine it runs on."""

from local_agent.host.facts import host_facts

__all__ = ["host_facts"]
