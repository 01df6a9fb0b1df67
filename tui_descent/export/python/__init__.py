"""A run as a plain PyTorch script, which needs torch alone: its net, data, loop and interventions as text."""
