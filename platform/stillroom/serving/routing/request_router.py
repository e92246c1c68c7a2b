"""Ray Serve's choice among an encoder's replicas, made visible to the dispatcher.

Serve pickles everything in this file by value, and rebuilds it in the router's process. State
that the dispatcher reads must therefore be in another module: observed_replicas.py.
"""

from stillroom.cluster.ray_private import power_of_two_request_router
from stillroom.serving.routing.observed_replicas import ObservedReplicas


class ObservedRequestRouter(power_of_two_request_router()):  # type: ignore[misc]
    """Serve's own choice, registered in `ObservedReplicas`.

    A handle of Serve exposes neither the number of running replicas nor their queues. Its
    public `request_router_config` names the class that holds both.
    """

    def initialize_state(self, model: str) -> None:
        """Called by Serve, with `request_router_kwargs`.

        Args:
            model: the encoder whose replicas these are.
        """
        ObservedReplicas.by_encoder[model] = ObservedReplicas(self)
