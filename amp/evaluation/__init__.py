"""Measurements of a dense or a pruned model, over any number of processes.

In the order of a reader's questions:

- `options`: what can be typed to the scripts in eval/, and which of it decides a result.
- `benchmarks.Benchmark`: the data of a zero-shot measurement; `dataset_files.find_missing`: what must lie on disk.
- `readers`: images and words, of known data sets and of one's own.
- `zeroshot.Evaluator`: top-1, mean average precision and recall@k.
- `knn.Featurizer`: features, and the accuracy of their nearest neighbours; `probe`: that of a logistic regression.
- `top1`: the accuracy of a model's own classifier.
- `side_by_side`: a pruned model beside its dense one, and how far the two agree.
- `efficiency.record.measure_efficiency`: parameters, FLOPs, memory and images a second.
- `student.build_metric`: an accuracy of a student while it trains.
- `sharding.ShardedBatches`: how batches are shared out so that every number of processes gives the same numbers.
- `results.Evaluation`: the file of a result, found again by the next call; `paper.summarise`: the table of several,
  beside the published numbers.

Nothing is imported here: the options answer before torch is loaded.
"""
