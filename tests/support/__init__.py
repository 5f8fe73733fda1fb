"""What tests share: hypothesis strategies, oracles, comparisons, kernels run by hand, and models of other libraries."""
