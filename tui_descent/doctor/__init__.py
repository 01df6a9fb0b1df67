"""`tui-descent doctor`: what works on this machine, what does not, and what to do.

Only a child process imports torch.
"""
