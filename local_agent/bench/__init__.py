"""What models do on this machine: measured by `iir-agent bench`, kept under IIR_HOME."""
