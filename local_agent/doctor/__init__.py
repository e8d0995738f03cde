"""What is wrong on this host, and how to put it right: the checks behind `iir-agent doctor`."""
