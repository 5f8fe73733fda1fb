"""The backward kernels: `query` owns tiles of queries, `key` tiles of keys, `bias` tiles of a bias. No atomics.

Each sum is accumulated by one program in a fixed order, so a call repeated gives the same bits.
With ``p`` the weights and ``dp_ij = grad_i . v_j``: ``ds = p (dp - delta)``, where ``delta_i = grad_i . out_i`` minus
the gradient of the logsumexp (`deltas`); ``dq_i = scale sum_j ds_ij k_j``, ``dk_j = scale sum_i ds_ij q_i``,
``dv_j = sum_i p_ij grad_i``. `tiles` holds what the kernels share.
"""
