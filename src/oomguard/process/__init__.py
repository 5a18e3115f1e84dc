"""Start, watch and stop the processes of one attempt on this machine."""
