"""Spherical k-means (Dhillon and Modha, 2001), by FAISS.

Shapes: n vectors, d dims, k centres.
"""

import torch


def spherical_kmeans(
    vectors_nd: torch.Tensor, count: int, *, iterations: int, seed: int
) -> torch.Tensor:
    """Centres of vectors, of unit length: float32, (k, d).

    Args:
        count: of the centres.
    """
    import faiss  # not above: training workers import this file, and it tells how it is loaded

    kmeans = faiss.Kmeans(
        vectors_nd.shape[1],
        count,
        niter=iterations,
        seed=seed,
        spherical=True,
        min_points_per_centroid=1,
    )
    kmeans.train(vectors_nd.numpy())
    return torch.from_numpy(kmeans.centroids)
