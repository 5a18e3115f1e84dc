"""Starting, watching and stopping the processes of one attempt on this machine."""
