"""The options of the scripts that measure: what is asked, what is refused at once, what decides the numbers.

Light to import: `--help` and mistakes answer before torch is loaded.
"""

from amp.evaluation.options.compare import CompareOptions, parse_compare
from amp.evaluation.options.images import KnnOptions, ProbeOptions, Top1Options, parse_knn, parse_probe, parse_top1
from amp.evaluation.options.model import ModelOptions, slug
from amp.evaluation.options.speed import EfficiencyOptions, SpeedOptions, parse_efficiency, parse_speed
from amp.evaluation.options.zeroshot import ZeroshotOptions, file_of, parse_zeroshot, root_of

__all__ = [
    "CompareOptions",
    "EfficiencyOptions",
    "KnnOptions",
    "ModelOptions",
    "ProbeOptions",
    "SpeedOptions",
    "Top1Options",
    "ZeroshotOptions",
    "file_of",
    "parse_compare",
    "parse_efficiency",
    "parse_knn",
    "parse_probe",
    "parse_speed",
    "parse_top1",
    "parse_zeroshot",
    "root_of",
    "slug",
]
