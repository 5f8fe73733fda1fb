"""The Triton kernels. They read intervals of keys and tile maps, never a pattern or a layout itself."""
