"""What frameworks built on the Hugging Face Trainer share."""
