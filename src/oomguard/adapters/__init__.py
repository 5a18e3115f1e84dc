"""One file per framework: (Job, Plan) to its own config and back."""
