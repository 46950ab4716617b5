"""Stage 2 score: the attention that guiding text rows pay to every key of their own request."""

import torch

MAX_LOGITS = 1 << 24  # at a time, over all requests and heads: 64 MiB


def guided_score(
    query: torch.Tensor,
    key: torch.Tensor,
    cu_queries: torch.Tensor,
    cu_keys: torch.Tensor,
    query_positions: torch.Tensor,
    max_queries: int,
    max_keys: int,
    scale: float,
) -> torch.Tensor:
    """Causal softmax of each guiding row over its request's keys, mean over heads and over the request's guiding rows.

    Args:
        query: ``[queries, heads, head_dim]``, the guiding rows' queries, rotary applied, request after request.
        key: ``[keys, kv_heads, head_dim]``, all rows of the same requests; ``heads`` is a multiple of ``kv_heads``
            and query head ``h`` reads key head ``h // (heads // kv_heads)``.
        cu_queries: ``[requests + 1]``, where each request's guiding rows begin.
        cu_keys: ``[requests + 1]``, where each request's keys begin.
        query_positions: ``[queries]``, each guiding row's own key, counted from its request's first.
        max_queries: most guiding rows of any request.
        max_keys: most keys of any request.
        scale: what the layer multiplies its logits by.

    Returns:
        ``[keys]`` float32. A guiding row gives nothing to later keys, so within one pool of visual tokens the order is
        that of the guiding rows after it.
    """
    num_kv_heads = key.shape[1]
    query_index, query_mask = _pad(cu_queries, max_queries)  # [R, Q]
    key_index, key_mask = _pad(cu_keys, max_keys)  # [R, K]
    padded_key = key[key_index].float()  # [R, K, KV, d]
    # Padded guiding rows see the first key at least, so that no softmax is empty; their weight is zero.
    weights = query_mask.float() / query_mask.sum(dim=1, keepdim=True).clamp(min=1)  # [R, Q]

    num_requests = key_index.shape[0]
    block = max(1, MAX_LOGITS // (num_requests * query.shape[1] * max_keys))
    padded_score = padded_key.new_zeros(num_requests, max_keys)
    for rows, row_weights in zip(query_index.split(block, dim=1), weights.split(block, dim=1), strict=True):
        padded_query = query[rows].float().unflatten(2, (num_kv_heads, -1))  # [R, block, KV, G, d]
        visible = torch.arange(max_keys, device=key.device) <= query_positions[rows][..., None]
        logits = torch.einsum("rqhgd,rkhd->rhgqk", padded_query, padded_key) * scale
        logits = logits.masked_fill(~(visible & key_mask[:, None])[:, None, None], -torch.inf)
        padded_score += torch.einsum("rhgqk,rq->rk", logits.softmax(dim=-1), row_weights)
    return (padded_score / query.shape[1]).flatten().index_select(0, _unpad(cu_keys, max_keys, key.shape[0]))


def _pad(cu: torch.Tensor, longest: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Padded indices ``[R, longest]`` into the flat rows (clamped to the last row), and which of them are real."""
    start, end = cu[:-1, None].long(), cu[1:, None].long()
    index = start + torch.arange(longest, device=cu.device)
    return index.clamp(max=cu[-1].long() - 1), index < end


def _unpad(cu: torch.Tensor, longest: int, total: int) -> torch.Tensor:
    """Where each of ``total`` flat rows lies in the padded ``[R, longest]`` layout, flattened."""
    row = torch.arange(total, device=cu.device)
    request = torch.searchsorted(cu[1:].contiguous(), row, right=True)
    return request * longest + row - cu[request]
