"""Zero-shot classification and retrieval.

In the order of a reader's questions:

- `Evaluator`: top-1, mean average precision and recall@k; `classifiers`: files of text classifiers.
- `open_evaluations`, `open_evaluator`, `measure_zeroshot`, `find_record`: from the options to a result's file.
"""

from amp.evaluation.zeroshot.evaluator import RECALL_KS, Evaluator
from amp.evaluation.zeroshot.measure import find_record, measure_zeroshot, open_evaluations, open_evaluator

__all__ = ["RECALL_KS", "Evaluator", "find_record", "measure_zeroshot", "open_evaluations", "open_evaluator"]
