"""Ray Serve's view of an encoder's replicas, in this process."""

from typing import Any, ClassVar


class ObservedReplicas:
    """Number and queues of one encoder's replicas.

    Args:
        request_router: Serve's object that chooses among the replicas; see request_router.py.
    """

    by_encoder: ClassVar[dict[str, "ObservedReplicas"]] = {}

    def __init__(self, request_router: Any):
        self._request_router = request_router

    def ready(self) -> int:
        """The number of running replicas."""
        return len(self._request_router.curr_replicas)

    def ongoing(self) -> int:
        """Requests in all replicas, including other routers' requests, as far as Serve knows in
        this process.
        """
        queue_lengths = self._request_router.replica_queue_len_cache
        replicas = list(self._request_router.curr_replicas)
        return sum(queue_lengths.get(replica) or 0 for replica in replicas)
