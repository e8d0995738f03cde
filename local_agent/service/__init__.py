"""The agent as a service of its user: a LaunchAgent on macOS, a unit of `systemd --user` on Linux."""
