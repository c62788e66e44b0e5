"""The tiny student: a classifier of about 30,000 parameters that scores short answers (arXiv 2312.15842).

    vocabulary = Vocabulary.fit(train_fields, shape)                 # training texts only
    data = TinyRows(EncodedRows(train_fields, vocabulary), gold, probabilities)
    dev = TinyRows(EncodedRows(dev_fields, vocabulary), dev_gold)
    settings = [Setting(seed, soft_weight, temperature) for seed in ... for ...]
    students = train_students(data, dev, settings, vocabulary, shape, training, num_classes=3)   # all at once
    predict(students[0].weights, EncodedRows(test_fields, vocabulary))               # batches of (rows, classes)
    export(folder, students[0].weights, vocabulary, classes, card)                   # model.onnx and JSON
    Scorer(folder).probabilities(test_fields)                                        # onnxruntime, one thread

A row is a sequence of *fields*, one text each, in the order of `TinyShape.fields` (question, reference, answer; or
a single text). Classes are numbered as in the problem; gold is -1 for rows without a label.

Modules: `shape` (dataclasses; no torch), `vocabulary`, `bags` (rows on disk, and batches of them), `network`,
`training`, `export` (ONNX and the model card), `scorer` (onnxruntime; latency and throughput), `baselines` (majority,
TF-IDF, label smoothing, TinyBERT-sized).
The package takes arrays and returns arrays and files; it knows nothing of steps, the store or the config.
"""
