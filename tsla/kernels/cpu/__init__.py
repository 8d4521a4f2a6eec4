"""C++ for the CPU, and what hands tensors to it."""
