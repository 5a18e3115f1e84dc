"""The training data, as far as memory depends on it: token lengths and image sizes."""
