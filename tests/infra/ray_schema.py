"""What KubeRay 1.6 takes of the fields that infra/kuberay uses, ray.io/v1, as a closed JSON schema.

Pod templates are Kubernetes' own matter, and so are left open here.
"""

from typing import Any


def closed(required: str = "", /, **properties: Any) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": properties,
        "required": required.split(),
        "additionalProperties": False,
    }


TEXT = {"type": "string"}
WHOLE = {"type": "integer", "minimum": 0}
TEXTS = {"type": "object", "additionalProperties": TEXT}  # numbers must be quoted
OPEN = {"type": "object"}
TEMPLATE = closed("spec", metadata=closed(labels=TEXTS, annotations=TEXTS), spec=OPEN)

AUTOSCALER = closed(
    version={"enum": ["v1", "v2"]},
    upscalingMode={"enum": ["Default", "Aggressive", "Conservative"]},
    idleTimeoutSeconds=WHOLE,
    imagePullPolicy={"enum": ["Always", "IfNotPresent", "Never"]},
    securityContext=OPEN,
    resources=OPEN,
)
REDIS = closed(
    "redisAddress",
    redisAddress=TEXT,
    redisPassword=closed(value=TEXT, valueFrom=OPEN),
    externalStorageNamespace=TEXT,
)
HEAD = closed(
    "rayStartParams template",
    rayStartParams=TEXTS,
    labels=TEXTS,
    resources=TEXTS,
    serviceType=TEXT,
    template=TEMPLATE,
)
GROUP = closed(
    "groupName minReplicas maxReplicas rayStartParams template",
    groupName=TEXT,
    replicas=WHOLE,
    minReplicas=WHOLE,
    maxReplicas=WHOLE,
    idleTimeoutSeconds=WHOLE,
    rayStartParams=TEXTS,
    labels=TEXTS,
    resources=TEXTS,
    template=TEMPLATE,
)
CLUSTER = closed(
    "headGroupSpec",
    rayVersion=TEXT,
    authOptions=closed(mode={"enum": ["token", "disabled"]}, secretName=TEXT),
    enableInTreeAutoscaling={"type": "boolean"},
    autoscalerOptions=AUTOSCALER,
    gcsFaultToleranceOptions=REDIS,
    headGroupSpec=HEAD,
    workerGroupSpecs={"type": "array", "items": GROUP},
)
JOB = closed(
    "entrypoint rayClusterSpec",
    entrypoint=TEXT,
    entrypointNumCpus={"type": "number"},
    submissionMode={"enum": ["K8sJobMode", "HTTPMode", "InteractiveMode", "SidecarMode"]},
    shutdownAfterJobFinishes={"type": "boolean"},
    ttlSecondsAfterFinished=WHOLE,
    activeDeadlineSeconds=WHOLE,
    backoffLimit=WHOLE,
    runtimeEnvYAML=TEXT,
    submitterPodTemplate=TEMPLATE,
    rayClusterSpec=CLUSTER,
)
SERVICE = closed("serveConfigV2 rayClusterConfig", serveConfigV2=TEXT, rayClusterConfig=CLUSTER)

SPECS = {"RayCluster": CLUSTER, "RayJob": JOB, "RayService": SERVICE}
