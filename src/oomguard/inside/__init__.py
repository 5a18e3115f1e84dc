"""What runs inside the processes of the job. Standard library and the torch of the job only."""
