"""A training or streaming step of the real model on a CUDA device that computes nothing.

Shapes, types, devices, operators and the lives of tensors are those of a GPU; values and times do not exist.
"""
