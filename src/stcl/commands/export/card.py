"""The model card: ``README.md`` of a model folder in the style of Hugging Face, made from what ``model.json`` holds."""

import math
from pathlib import Path
from typing import Any

import yaml

from stcl.files.plain import json_number
from stcl.pages.results import Result
from stcl.pages.skeleton import template
from stcl.pages.tables import percent_text

KNOWN_LICENSES = (
    *("apache-2.0", "mit", "bsd-2-clause", "bsd-3-clause", "mpl-2.0", "gpl-3.0", "lgpl-3.0", "agpl-3.0", "unlicense"),
    *("cc0-1.0", "cc-by-4.0", "cc-by-sa-4.0", "cc-by-nc-4.0", "cc-by-nc-sa-4.0", "cc-by-nd-4.0", "cc-by-nc-nd-4.0"),
    "openrail",
)
"""Identifiers that the hub knows; others are called ``other`` and named beside it."""


def summarise(result: Result) -> dict[str, Any]:
    """What a card says about an evaluated run; scores in percent, None where a class does not occur."""
    details = result.details
    return {
        "miou": json_number(result.miou),
        "iou": dict(zip(result.protocol.classes, map(json_number, result.iou), strict=True)),
        "target": details["data"].get("target"),
        "split": details["data"].get("split"),
        "frames": details["data"].get("frames"),
        "statistics": details["statistics"],
        "date": details["date"],
    }


def render_card(about: dict[str, Any]) -> str:
    """The card of a model; ``about`` is what its ``model.json`` holds."""
    results, reported = about["results"], {about["classes"][index] for index in about["protocol"]["reported"]}

    def percent(score: float | None) -> str:
        return percent_text(math.nan if score is None else score) if results else "not measured"

    classes = [
        {
            "id": train_id,
            "name": name,
            "colour": "#" + bytes(about["palette"][train_id]).hex(),
            "iou": percent(results["iou"].get(name) if results else None),
            "reported": name in reported,
        }
        for train_id, name in enumerate(about["classes"])
    ]
    return template(Path(__file__).with_name("card.md.j2"), megabytes=lambda count: f"{count / 1e6:.2f} MB").render(
        about=about,
        front=yaml.safe_dump(front_matter(about), sort_keys=False, allow_unicode=True).strip(),
        classes=classes,
        miou=percent(results["miou"] if results else None),
    )


def front_matter(about: dict[str, Any]) -> dict[str, Any]:
    """The YAML block that the hub reads."""
    training = about["training"]
    known = about["license"].lower() in KNOWN_LICENSES
    front = {
        "license": about["license"].lower() if known else "other",
        **({} if known else {"license_name": about["license"].lower()}),
        "library_name": "stcl",
        "pipeline_tag": "image-segmentation",
        "tags": ["video-segmentation", "semantic-segmentation", "domain-adaptation", training["method"]],
        "datasets": list(dict.fromkeys((training["source"]["name"], training["target"]["name"]))),
        "metrics": ["mean_iou"],
    }
    if about["results"] and about["results"]["miou"] is not None:
        measured = {
            "task": {"type": "image-segmentation", "name": "Video semantic segmentation"},
            "dataset": {
                "type": training["target"]["name"],
                "name": training["target"]["name"],
                "split": about["results"]["split"],
            },
            "metrics": [{"type": "mean_iou", "name": "mIoU in percent", "value": about["results"]["miou"]}],
        }
        front["model-index"] = [{"name": about["name"], "results": [measured]}]
    return front
