"""A JSON Schema of the fields of ray.io/v1 RayJob and of pods that kuberay.yaml uses; any other name is an error.

The fields are those of KubeRay 1.7's custom resource definition and of Kubernetes' core v1 API.
"""

from __future__ import annotations

from typing import Any

TEXT = {"type": "string", "minLength": 1}
FLAG = {"type": "boolean"}
COUNT = {"type": "integer", "minimum": 0}
TEXTS = {"type": "object", "additionalProperties": TEXT}


def fields(*required: str, **properties: Any) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": properties,
        "required": list(required),
        "additionalProperties": False,
    }


def list_of(items: Any) -> dict[str, Any]:
    return {"type": "array", "items": items}


_AMOUNTS = fields("cpu", "memory", cpu=TEXT, memory=TEXT)
RESOURCES = fields("requests", "limits", requests=_AMOUNTS, limits=_AMOUNTS)
_CONTAINER = fields(
    "name",
    "image",
    "resources",
    name=TEXT,
    image=TEXT,
    ports=list_of(fields("containerPort", containerPort=COUNT, name=TEXT)),
    envFrom=list_of(fields("secretRef", secretRef=fields("name", name=TEXT, optional=FLAG))),
    resources=RESOURCES,
    volumeMounts=list_of(fields("name", "mountPath", name=TEXT, mountPath=TEXT, readOnly=FLAG)),
)
_TOLERATION = fields(
    "operator",
    key=TEXT,
    operator={"enum": ["Exists", "Equal"]},
    value=TEXT,
    effect={"enum": ["NoSchedule", "NoExecute", "PreferNoSchedule"]},
)
_POD = fields(
    "containers",
    containers=list_of(_CONTAINER) | {"minItems": 1},
    volumes=list_of(fields("name", "configMap", name=TEXT, configMap=fields("name", name=TEXT))),
    nodeSelector=TEXTS,
    tolerations=list_of(_TOLERATION),
    terminationGracePeriodSeconds=COUNT,
)
_TEMPLATE = fields("spec", spec=_POD)
_AUTOSCALER = fields(
    version={"enum": ["v1", "v2"]},
    upscalingMode={"enum": ["Default", "Aggressive", "Conservative"]},
    idleTimeoutSeconds=COUNT,
    resources=RESOURCES,
)
_WORKERS = fields(
    "groupName",
    "rayStartParams",
    "template",
    groupName=TEXT,
    replicas=COUNT,
    minReplicas=COUNT,
    maxReplicas=COUNT,
    rayStartParams=TEXTS,
    template=_TEMPLATE,
)
_CLUSTER = fields(
    "rayVersion",
    "headGroupSpec",
    "workerGroupSpecs",
    rayVersion=TEXT,
    enableInTreeAutoscaling=FLAG,
    autoscalerOptions=_AUTOSCALER,
    headGroupSpec=fields("rayStartParams", "template", rayStartParams=TEXTS, template=_TEMPLATE),
    workerGroupSpecs=list_of(_WORKERS),
)
_JOB = fields(
    "entrypoint",
    "rayClusterSpec",
    submissionMode={"enum": ["K8sJobMode", "HTTPMode", "InteractiveMode", "SidecarMode"]},
    entrypoint=TEXT,
    backoffLimit=COUNT,
    submitterConfig=fields("backoffLimit", backoffLimit=COUNT),
    activeDeadlineSeconds=COUNT,
    shutdownAfterJobFinishes=FLAG,
    ttlSecondsAfterFinished=COUNT,
    metadata=TEXTS,
    rayClusterSpec=_CLUSTER,
)
RAY_JOB = fields(
    "apiVersion",
    "kind",
    "metadata",
    "spec",
    apiVersion={"const": "ray.io/v1"},
    kind={"const": "RayJob"},
    metadata=fields("name", name=TEXT, namespace=TEXT),
    spec=_JOB,
)
