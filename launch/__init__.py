"""TorchX components that launch runs."""
