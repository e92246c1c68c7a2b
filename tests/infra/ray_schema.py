"""A closed JSON schema of KubeRay 1.7.0 (ray.io/v1) for the fields that infra/kuberay uses.

Pod templates are left open: Kubernetes' own schema checks them.
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
COUNT = {"type": "integer", "minimum": 0}
TEXTS = {"type": "object", "additionalProperties": TEXT}  # numbers must be quoted
ANY_OBJECT = {"type": "object"}
TEMPLATE = closed("spec", metadata=closed(labels=TEXTS, annotations=TEXTS), spec=ANY_OBJECT)

AUTOSCALER = closed(
    version={"enum": ["v1", "v2"]},
    upscalingMode={"enum": ["Default", "Aggressive", "Conservative"]},
    idleTimeoutSeconds=COUNT,
    imagePullPolicy={"enum": ["Always", "IfNotPresent", "Never"]},
    securityContext=ANY_OBJECT,
    resources=ANY_OBJECT,
)
REDIS = closed(
    "redisAddress",
    redisAddress=TEXT,
    redisPassword=closed(value=TEXT, valueFrom=ANY_OBJECT),
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
    replicas=COUNT,
    minReplicas=COUNT,
    maxReplicas=COUNT,
    idleTimeoutSeconds=COUNT,
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
    ttlSecondsAfterFinished=COUNT,
    activeDeadlineSeconds=COUNT,
    backoffLimit=COUNT,
    runtimeEnvYAML=TEXT,
    submitterPodTemplate=TEMPLATE,
    rayClusterSpec=CLUSTER,
)
UPGRADE = closed(
    "gatewayClassName stepSizePercent intervalSeconds",
    gatewayClassName=TEXT,
    maxSurgePercent=COUNT,
    stepSizePercent=COUNT,
    intervalSeconds=COUNT,
)
SERVICE = closed(
    "serveConfigV2 rayClusterConfig",
    serveConfigV2=TEXT,
    rayClusterConfig=CLUSTER,
    upgradeStrategy=closed(
        type={"enum": ["NewCluster", "NewClusterWithIncrementalUpgrade", "None"]},
        clusterUpgradeOptions=UPGRADE,
    ),
)

SPECS = {"RayCluster": CLUSTER, "RayJob": JOB, "RayService": SERVICE}
