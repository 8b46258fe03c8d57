"""The Kubernetes chart as Helm renders it, and the schemas that clusters check objects against.

Helm itself renders (its Go library, in a wheel). Kubernetes' own objects are checked against
the OpenAPI schemas of a release, strictly: an unknown key is an error. Those of KEDA and of the
Prometheus operator are described here, as far as the chart uses them.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

import helm_python
import jsonschema
import yaml
from referencing import Registry, Resource

HOME = Path(__file__).parents[1] / "deploy" / "kubernetes"
CHART = HOME / "hipscore"
RELEASE = "hips"
NAMESPACE = "radiology"

Values = dict[str, Any]
Manifest = dict[str, Any]

_STRING = {"type": "string", "minLength": 1}
_COUNT = {"type": "integer", "minimum": 0}


def _only(properties: Mapping[str, Any], *required: str) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": dict(properties),
        "required": list(required),
        "additionalProperties": False,
    }


#: KEDA 2.16, keda.sh/v1alpha1: https://keda.sh/docs/2.16/reference/scaledobject-spec/, and the
#: trigger https://keda.sh/docs/2.16/scalers/redis-lists/ (its metadata are strings, all of them)
SCALED_OBJECT = _only(
    {
        "scaleTargetRef": _only(
            {
                "apiVersion": _STRING,
                "kind": _STRING,
                "name": _STRING,
                "envSourceContainerName": _STRING,
            },
            "name",
        ),
        "pollingInterval": _COUNT,
        "cooldownPeriod": _COUNT,
        "initialCooldownPeriod": _COUNT,
        "idleReplicaCount": _COUNT,
        "minReplicaCount": _COUNT,
        "maxReplicaCount": _COUNT,
        "fallback": _only(
            {"failureThreshold": _COUNT, "replicas": _COUNT}, "failureThreshold", "replicas"
        ),
        "advanced": _only(
            {
                "restoreToOriginalReplicaCount": {"type": "boolean"},
                "horizontalPodAutoscalerConfig": _only(
                    {"name": _STRING, "behavior": {"type": "object"}}
                ),
            }
        ),
        "triggers": {
            "type": "array",
            "minItems": 1,
            "items": _only(
                {
                    "type": {"const": "redis"},
                    "name": _STRING,
                    "metricType": {"enum": ["AverageValue", "Value", "Utilization"]},
                    "useCachedMetrics": {"type": "boolean"},
                    "authenticationRef": _only({"name": _STRING, "kind": _STRING}, "name"),
                    "metadata": _only(
                        {
                            "address": {"type": "string", "pattern": r"^[^:]+:\d+$"},
                            "listName": _STRING,
                            "listLength": {"type": "string", "pattern": r"^\d+$"},
                            "activationListLength": {"type": "string", "pattern": r"^\d+$"},
                            "databaseIndex": {"type": "string", "pattern": r"^\d+$"},
                            "enableTLS": {"enum": ["true", "false"]},
                            "unsafeSsl": {"enum": ["true", "false"]},
                        },
                        "address",
                        "listName",
                    ),
                },
                "type",
                "metadata",
            ),
        },
    },
    "scaleTargetRef",
    "triggers",
)

#: KEDA 2.16: https://keda.sh/docs/2.16/concepts/authentication/; parameters of the redis trigger
TRIGGER_AUTHENTICATION = _only(
    {
        "secretTargetRef": {
            "type": "array",
            "minItems": 1,
            "items": _only(
                {"parameter": {"enum": ["username", "password"]}, "name": _STRING, "key": _STRING},
                "parameter",
                "name",
                "key",
            ),
        }
    },
    "secretTargetRef",
)

#: monitoring.coreos.com/v1: https://prometheus-operator.dev/docs/api-reference/api/
SERVICE_MONITOR = _only(
    {
        "selector": _only({"matchLabels": {"type": "object"}}, "matchLabels"),
        "endpoints": {
            "type": "array",
            "minItems": 1,
            "items": _only(
                {
                    "port": _STRING,
                    "path": _STRING,
                    "interval": {"type": "string", "pattern": r"^(\d+(ms|s|m|h))+$"},
                    "scheme": {"enum": ["http", "https"]},
                    "tlsConfig": _only({"serverName": _STRING}),
                    "authorization": _only(
                        {
                            "type": _STRING,
                            "credentials": _only({"name": _STRING, "key": _STRING}, "key"),
                        }
                    ),
                },
                "port",
            ),
        },
    },
    "selector",
    "endpoints",
)
CUSTOM = {
    ("keda.sh/v1alpha1", "ScaledObject"): SCALED_OBJECT,
    ("keda.sh/v1alpha1", "TriggerAuthentication"): TRIGGER_AUTHENTICATION,
    ("monitoring.coreos.com/v1", "ServiceMonitor"): SERVICE_MONITOR,
}


def merged(*layers: Mapping[str, Any]) -> Values:
    """Values as Helm lays several files over each other: mappings are merged, all else replaced."""
    result: Values = {}
    for layer in layers:
        for key, value in layer.items():
            below = result.get(key)
            both = isinstance(value, dict) and isinstance(below, dict)
            result[key] = merged(below, value) if both and below is not None else value
    return result


def example(name: str) -> Values:
    """Values of a shipped example."""
    values: Values = yaml.safe_load((HOME / "examples" / f"{name}.yaml").read_text())
    return values


def render(values: Values) -> list[Manifest]:
    """The objects that ``helm install`` would make, after Helm has checked the values.

    Raises
    ------
    helm_python.HelmError
        If the values do not fit the chart's schema, or a template refuses them.
    """
    with helm_python.Chart.load(CHART) as chart:
        chart.validate_schema(values)
        files = chart.render(values, name=RELEASE, namespace=NAMESPACE, is_install=True)
    return [
        document
        for name, text in sorted(files.items())
        if name.endswith(".yaml")
        for document in yaml.safe_load_all(text)
        if document
    ]


def check(manifest: Manifest, release: str) -> None:
    """Check an object as a cluster of this Kubernetes release (``1.37``) does.

    Raises
    ------
    jsonschema.ValidationError
        If it would not be taken.
    """
    custom = CUSTOM.get((manifest["apiVersion"], manifest["kind"]))
    if custom is None:
        group, _, version = manifest["apiVersion"].rpartition("/")
        parts = [manifest["kind"].lower(), group.partition(".")[0], version]
        _validator(release, "-".join(part for part in parts if part)).validate(manifest)
        return
    assert set(manifest) == {"apiVersion", "kind", "metadata", "spec"}
    jsonschema.Draft202012Validator(custom).validate(manifest["spec"])
    scaling = manifest["spec"].get("advanced", {}).get("horizontalPodAutoscalerConfig", {})
    if behavior := scaling.get("behavior"):
        name = "horizontalpodautoscalerbehavior-autoscaling-v2"
        _validator(release, name).validate(behavior)


@cache
def _validator(release: str, name: str) -> Any:
    schema = _schema(release, name)
    resource: Resource[Any] = Resource.from_contents(schema)
    return jsonschema.Draft202012Validator(schema, registry=resource @ _definitions(release))


@cache
def _definitions(release: str) -> Registry[Any]:
    definitions: Resource[Any] = Resource.from_contents(_schema(release, "_definitions"))
    return definitions @ Registry()


def _schema(release: str, name: str) -> Any:
    folder = resources.files("kubernetes_validate") / "kubernetes-json-schema"
    text = (folder / f"v{release}.0-local-strict" / f"{name}.json").read_text("utf-8")
    return json.loads(text)


def pods(manifests: list[Manifest]) -> Iterator[tuple[str, Manifest]]:
    """Component and pod template of everything that runs."""
    for each in manifests:
        if each["kind"] in {"Deployment", "Job"}:
            template = each["spec"]["template"]
            yield template["metadata"]["labels"]["app.kubernetes.io/component"], template


def container(template: Manifest) -> Manifest:
    """The one container of a pod."""
    (only,) = template["spec"]["containers"]
    assert isinstance(only, dict)
    return only


def environment(template: Manifest, manifests: list[Manifest]) -> dict[str, str]:
    """Variables of a container; what comes from a Secret or the cluster reads ``<secret>``."""
    found: dict[str, str] = {}
    for source in container(template).get("envFrom", ()):
        name = source["configMapRef"]["name"]
        (settings,) = (
            each["data"]
            for each in manifests
            if each["kind"] == "ConfigMap" and each["metadata"]["name"] == name
        )
        found |= settings
    for each in container(template).get("env", ()):
        found[each["name"]] = each.get("value", "<elsewhere>")
    return found
